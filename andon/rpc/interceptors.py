"""Decides what happens around every call: parsing, deadline, errors to status, metrics, one log line.

``andon.rpc.server`` installs one ``CallInterceptor``, which wraps the methods under ``andon.api``; health and
reflection pass through untouched. It parses requests itself because gRPC would answer UNKNOWN, with the text
of a Python exception, to bytes that are no message. Servicers are plain coroutines, or async generators where
they stream answers. Who calls is asked before a request is parsed, and again while a stream runs: ``auth``;
whoever calls too often is refused there too: ``limits``.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from andon.errors import (
    AndonError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from andon.rpc.auth import AccessPolicy, Caller, authenticate, current_caller
from andon.rpc.deadline import set_call_deadline
from andon.rpc.errors import error_to_status
from andon.rpc.limits import RATE_LIMITED, CallLimiter, peer_address
from andon.rpc.metrics import CallMetrics

OWN_PREFIX = "/andon.api."
MAX_REQUEST_ID_CHARACTERS = 128
# How old the word on a caller may be when a stream goes on; a revoked token ends its streams too.
RECHECK_AFTER_S = 2.0

# Requests and answers are protobuf messages of any type, which gRPC's own types do not follow through a
# handler.
Message = Any
# Quoted, because they take parameters only in the stubs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Message, Message]"
Context: TypeAlias = "grpc.aio.ServicerContext[Message, Message]"

_log = structlog.stdlib.get_logger("andon.rpc")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of our own services. Set ``open`` once the service has started."""

    def __init__(
        self,
        *,
        metrics: CallMetrics,
        default_deadline_s: float,
        default_stream_deadline_s: float,
        access_policy: AccessPolicy | None = None,
        limiter: CallLimiter | None = None,
    ) -> None:
        """``access_policy`` is None for a service that asks nobody who they are, ``limiter`` for one that
        takes as many calls as come.
        """
        self.open = False
        self._access_policy = access_policy
        self._limiter = limiter
        self._metrics = metrics
        self._default_deadline_s = default_deadline_s
        self._default_stream_deadline_s = default_stream_deadline_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler with everything around it, or what was there if the method is not
        ours.
        """
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or not path.startswith(OWN_PREFIX):
            return handler
        return self._wrap(path, handler)

    def _wrap(self, path: str, handler: Handler) -> Handler:
        # The attributes of a handler are not in gRPC's type stubs.
        inner = cast(Any, handler)
        parse: Callable[[bytes], Message] = inner.request_deserializer

        async def requests_of(stream: AsyncIterator[bytes], entry: _Entry) -> AsyncIterator[Message]:
            async for raw in stream:
                await entry.recheck()
                yield _parse(parse, raw)

        if inner.unary_unary:

            async def unary_unary(raw: bytes, context: Context) -> Message:
                async with self._around(path, context, streams_answers=False):
                    request = _parse(parse, raw)
                    _note_request_id(request)
                    return await inner.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary_unary, None, inner.response_serializer)
        if inner.unary_stream:

            async def unary_stream(raw: bytes, context: Context) -> AsyncIterator[Message]:
                async with self._around(path, context, streams_answers=True) as entry:
                    request = _parse(parse, raw)
                    _note_request_id(request)
                    async for answer in inner.unary_stream(request, context):
                        await entry.recheck()
                        yield answer

            return grpc.unary_stream_rpc_method_handler(unary_stream, None, inner.response_serializer)
        if inner.stream_unary:

            async def stream_unary(stream: AsyncIterator[bytes], context: Context) -> Message:
                async with self._around(path, context, streams_answers=False) as entry:
                    return await inner.stream_unary(requests_of(stream, entry), context)

            return grpc.stream_unary_rpc_method_handler(stream_unary, None, inner.response_serializer)

        async def stream_stream(stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
            async with self._around(path, context, streams_answers=True) as entry:
                async for answer in inner.stream_stream(requests_of(stream, entry), context):
                    await entry.recheck()
                    yield answer

        return grpc.stream_stream_rpc_method_handler(stream_stream, None, inner.response_serializer)

    @asynccontextmanager
    async def _around(self, path: str, context: Context, *, streams_answers: bool) -> AsyncIterator[_Entry]:
        service, method = path.removeprefix("/").split("/", 1)
        in_progress = self._metrics.in_progress.labels(service, method)
        start = time.monotonic()
        code, reason = "OK", ""
        peer = context.peer()
        in_progress.inc()
        structlog.contextvars.bind_contextvars(request_id=_request_id(context), method=f"{service}/{method}")
        try:
            try:
                if not self.open:
                    raise UnavailableError("the service is still starting", reason="STARTING")
                async with self._deadline(context, streams_answers=streams_answers):
                    entry = _Entry(self._access_policy, path, context)
                    await entry.check()
                    if self._limiter is not None:
                        caller = current_caller()
                        self._limiter.admit(peer_address(peer) if caller is None else caller.name)
                    yield entry
            except AndonError as error:
                code, reason = error.code, error.reason
                if reason == RATE_LIMITED:
                    self._metrics.rate_limited.labels(service, method).inc()
                await _abort(context, error)
            except grpc.aio.AbortError:
                code = _code_set_by(context)
                raise
            except (asyncio.CancelledError, GeneratorExit):
                remaining_s = _remaining_s(context)
                code = "DEADLINE_EXCEEDED" if remaining_s is not None and remaining_s <= 0 else "CANCELLED"
                raise
            except Exception:  # noqa: BLE001 - the last place that can turn a defect into an answer
                code, reason = "INTERNAL", "UNEXPECTED"
                _log.exception("rpc_unexpected_error")
                # What went wrong inside is for the log, not for the caller.
                await _abort(context, InternalError("unexpected error; the log has it", reason="UNEXPECTED"))
        finally:
            seconds = time.monotonic() - start
            in_progress.dec()
            self._metrics.seconds.labels(service, method).observe(seconds)
            self._metrics.handled.labels(service, method, code).inc()
            _log.info("rpc_ended", code=code, reason=reason, seconds=round(seconds, 6), peer=peer)

    @asynccontextmanager
    async def _deadline(self, context: Context, *, streams_answers: bool) -> AsyncIterator[None]:
        """Note the caller's deadline, which gRPC itself enforces, or enforce the default one."""
        remaining_s = _remaining_s(context)
        if remaining_s is not None:
            set_call_deadline(remaining_s)
            yield
            return
        default_s = self._default_stream_deadline_s if streams_answers else self._default_deadline_s
        set_call_deadline(default_s)
        timeout = asyncio.timeout(default_s)
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():  # a time-out of the servicer's own making
                raise
            raise DeadlineExceededError(
                f"the call set no deadline and took longer than {default_s:g} s",
                reason="DEFAULT_DEADLINE",
                default_deadline_s=default_s,
            ) from None


class _Entry:
    """The right of one call to run, asked for at its start and renewed while it streams."""

    def __init__(self, policy: AccessPolicy | None, path: str, context: Context) -> None:
        self._policy = policy
        self._path = path
        self._metadata = tuple(context.invocation_metadata() or ())
        self._checked_s = 0.0

    async def check(self) -> None:
        """Raise UnauthenticatedError or PermissionDeniedError where the caller may not call this."""
        if self._policy is None:
            return
        self._checked_s = time.monotonic()
        await authenticate(self._policy, self._path, self._metadata, on_known=_note_caller)

    async def recheck(self) -> None:
        """Check again when the last check is a while ago."""
        if time.monotonic() - self._checked_s >= RECHECK_AFTER_S:
            await self.check()


def _note_caller(caller: Caller) -> None:
    structlog.contextvars.bind_contextvars(caller=caller.name, role=caller.role)


def _parse(parse: Callable[[bytes], Message], raw: bytes) -> Message:
    try:
        return parse(raw)
    except DecodeError:
        raise InvalidArgumentError(
            "the bytes are not a message of this method", reason="MALFORMED_MESSAGE"
        ) from None


def _request_id(context: Context) -> str:
    """The caller's id from the metadata ``x-request-id``, or a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str):
            return value[:MAX_REQUEST_ID_CHARACTERS]
    return uuid.uuid4().hex


def _note_request_id(request: Message) -> None:
    """Prefer the id inside the message, where the method has one."""
    request_id = getattr(request, "request_id", "")
    if request_id:
        structlog.contextvars.bind_contextvars(request_id=request_id[:MAX_REQUEST_ID_CHARACTERS])


def _remaining_s(context: Context) -> float | None:
    """Time until the caller's deadline, None without one, which gRPC's type stubs forget."""
    return context.time_remaining()


def _code_set_by(context: Context) -> str:
    """The code with which a servicer itself aborted the call. gRPC keeps it as a number or as the enum."""
    code = cast(Any, context).code()
    for candidate in grpc.StatusCode:
        if code in (candidate, candidate.value[0]):
            return candidate.name
    return "UNKNOWN"


async def _abort(context: Context, error: AndonError) -> None:
    status = rpc_status.to_status(error_to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
