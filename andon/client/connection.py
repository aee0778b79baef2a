"""Decides how one call is made: with a deadline, with errors as Andon's classes, with the peer named in them.

All clients build on ``ServiceConnection``. It knows nothing of what the calls mean. A token goes with each
call as metadata; a client of a service that wants one takes ANDON_TOKEN when it is given none.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc

from andon.client.channel import ChannelOptions, open_channel
from andon.errors import AndonError, UnavailableError
from andon.rpc.auth import bearer
from andon.rpc.errors import error_from_rpc

TOKEN_VARIABLE = "ANDON_TOKEN"

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def new_request_id() -> str:
    """An id that makes one write safe to repeat."""
    return uuid.uuid4().hex


def token_or_default(token: str | None) -> str | None:
    """The token to call with: the given one, or else what ANDON_TOKEN holds."""
    return token or os.environ.get(TOKEN_VARIABLE) or None


class ServiceConnection:
    """A channel to one service and the ways to call over it. Safe to share between threads."""

    def __init__(
        self,
        target: str,
        *,
        service_name: str,
        options: ChannelOptions | None = None,
        token: str | None = None,
    ) -> None:
        self._metadata = None if not token else (bearer(token),)
        self.target = target
        self.service_name = service_name
        self.channel = open_channel(target, service_name=service_name, options=options)

    def close(self) -> None:
        """Ends calls in progress and closes the channel."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[Request, Answer],
        request: Request,
        *,
        timeout_s: float,
        wait_for_ready: bool = False,
    ) -> Answer:
        """One request, one answer."""
        try:
            return method(request, timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._translated(error) from error

    def upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Answer],
        requests: Iterable[Request],
        *,
        timeout_s: float,
        wait_for_ready: bool = False,
    ) -> Answer:
        """A stream of requests, one answer. An error that making the requests raises comes out as it is."""
        failures: list[Exception] = []

        def noted() -> Iterator[Request]:
            # gRPC runs this in a thread of its own and says no more than that it failed.
            try:
                yield from requests
            except Exception as error:
                failures.append(error)
                raise

        try:
            return method(noted(), timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=self._metadata)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise self._translated(error) from error

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Answer],
        request: Request,
        *,
        timeout_s: float | None,
        wait_for_ready: bool = False,
    ) -> Generator[Answer, None, None]:
        """One request, a stream of answers. Closing the iterator cancels the call."""
        call = method(request, timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    def _translated(self, error: grpc.RpcError) -> AndonError:
        translated = error_from_rpc(error)
        if not isinstance(translated, UnavailableError):
            return translated
        short_name = self.service_name.rsplit(".", 1)[-1]
        facts = {**translated.metadata, "service": short_name, "target": self.target}
        return UnavailableError(
            f"{short_name} at {self.target} cannot be reached: {translated.message}",
            reason=translated.reason,
            **facts,
        )
