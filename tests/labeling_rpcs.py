"""Every RPC of the labeling service, from the descriptors, and a way to call any of them with anything."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import andon.api.labeling.v1 as api
from andon.rpc.errors import error_from_rpc

TIMEOUT_S = 30.0


def path_of(method: MethodDescriptor) -> str:
    """As gRPC names it: "/package.Service/Method"."""
    return f"/{method.containing_service.full_name}/{method.name}"


def _all_methods() -> dict[str, MethodDescriptor]:
    found: dict[str, MethodDescriptor] = {}
    for module in pkgutil.iter_modules(api.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"{api.__name__}.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                found.update({path_of(method): method for method in service.methods})
    return found


METHODS = _all_methods()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended."""

    code: str
    reason: str = ""
    words: str = ""
    answers: tuple[Message, ...] = ()


def request_class(method: MethodDescriptor) -> type[Message]:
    """What the method takes."""
    return GetMessageClass(method.input_type)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)


class RpcCaller:
    """A channel on which any method is called with messages or with bytes."""

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(
            target,
            options=[
                # What the server refuses is to be refused by the server, not here.
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 1024 * 1024),
            ],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._channel.close()

    def call(
        self,
        method: MethodDescriptor,
        *requests: Message | bytes,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        timeout_s: float = TIMEOUT_S,
        max_answers: int = 1,
    ) -> Outcome:
        """Call and say how it ended. Of a stream at most ``max_answers`` are read; then it is cancelled."""
        client_streams, server_streams = method.client_streaming, method.server_streaming
        kind = f"{'stream' if client_streams else 'unary'}_{'stream' if server_streams else 'unary'}"
        make: Callable[..., Any] = getattr(self._channel, kind)
        stub = make(path_of(method), _to_bytes, GetMessageClass(method.output_type).FromString)
        sent: object = iter(requests) if client_streams else requests[0]
        try:
            answer = stub(sent, timeout=timeout_s, metadata=metadata)
            if not server_streams:
                return Outcome(code="OK", answers=(answer,))
            return Outcome(code="OK", answers=tuple(_first(answer, max_answers)))
        except grpc.RpcError as error:
            call: Any = error
            found = error_from_rpc(error)
            return Outcome(code=call.code().name, reason=found.reason, words=found.message)


def _first(stream: Any, max_answers: int) -> list[Message]:
    answers: list[Message] = []
    try:
        for answer in stream:
            answers.append(answer)
            if len(answers) == max_answers:
                break
    finally:
        stream.cancel()
    return answers


def _to_bytes(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
