"""Decides how one call is made: with a deadline, with errors as Andon's classes, with the peer named in them.

All clients build on ``ServiceConnection``. It knows nothing of what the calls mean. A token goes with each
call as metadata; a client that is given none takes ANDON_TOKEN, or what the file named by ANDON_TOKEN_FILE
holds at that moment.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

import grpc

from andon.client.channel import ChannelOptions, open_channel
from andon.errors import AndonError, InvalidArgumentError, UnavailableError
from andon.rpc.auth import bearer
from andon.rpc.errors import error_from_rpc
from andon.rpc.file_versions import FilesVersion, files_version

TOKEN_VARIABLE = "ANDON_TOKEN"
TOKEN_FILE_VARIABLE = "ANDON_TOKEN_FILE"
TRACK_HEADER = "x-andon-track"  # metadata by which a caller asks for one side of a canary split

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def new_request_id() -> str:
    """An id that makes one write safe to repeat."""
    return uuid.uuid4().hex


class TokenInFile:
    """The token in a file, read again when the file changes. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._version: FilesVersion | None = None
        self._token = ""

    def current(self) -> str:
        """The token as the file says now. Raises InvalidArgumentError TOKEN_FILE, which never quotes it."""
        with self._lock:
            version = files_version(self._path)
            if version != self._version:
                self._token = self._read()
                self._version = version
            return self._token

    def _read(self) -> str:
        try:
            token = self._path.read_text(encoding="ascii").strip()
        except UnicodeDecodeError:
            raise self._error("holds no token, which is ASCII text") from None
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror}") from error
        if not token or not token.isprintable():
            raise self._error("must hold one line with a token")
        return token

    def _error(self, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"{TOKEN_FILE_VARIABLE}: {self._path} {problem}", reason="TOKEN_FILE", path=self._path
        )


def find_token_source(token: str | None) -> str | TokenInFile | None:
    """The token to call with: the given one, or else what ANDON_TOKEN or ANDON_TOKEN_FILE says.

    Raises InvalidArgumentError TOKEN_SETTINGS when both variables are set, TOKEN_FILE for an unusable file.
    """
    if token:
        return token
    variable, file_name = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    if variable and file_name:
        raise InvalidArgumentError(
            f"{TOKEN_VARIABLE} and {TOKEN_FILE_VARIABLE} are both set; which token is meant?",
            reason="TOKEN_SETTINGS",
        )
    if not file_name:
        return variable or None
    source = TokenInFile(Path(file_name))
    source.current()
    return source


class Upload(Generic[Answer]):
    """A stream of requests on its way to its one answer."""

    def __init__(
        self,
        call: grpc.Future[Answer],
        failures: Sequence[Exception],
        translated: Callable[[grpc.RpcError], AndonError],
    ) -> None:
        """``failures`` gets what making the requests raises."""
        self._call = call
        self._failures = failures
        self._translated = translated

    def result(self) -> Answer:
        """Wait for the answer. Raises the call's error, or the one of making the requests as it is."""
        try:
            return self._call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if self._failures:
                raise self._failures[0] from None
            # A call is its own error, also where it was cancelled.
            raise self._translated(cast("grpc.RpcError", self._call)) from error

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call this from some thread when the call has ended, however it did; at once if it has."""
        self._call.add_done_callback(lambda call: callback())

    def cancel(self) -> None:
        """End the call, unless it has ended."""
        self._call.cancel()


class ServiceConnection:
    """A channel to one service and the ways to call over it. Safe to share between threads."""

    def __init__(
        self,
        target: str,
        *,
        service_name: str,
        options: ChannelOptions | None = None,
        token: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """``token`` is the bearer token; ANDON_TOKEN or ANDON_TOKEN_FILE when left out. ``headers`` are
        further metadata of every call.
        """
        self._token_source = find_token_source(token)
        self._headers = tuple(headers)
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
            return method(
                request, timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=self._metadata()
            )
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
        return self.begin_upload(
            method, requests, timeout_s=timeout_s, wait_for_ready=wait_for_ready
        ).result()

    def begin_upload(
        self,
        method: grpc.StreamUnaryMultiCallable[Request, Answer],
        requests: Iterable[Request],
        *,
        timeout_s: float,
        wait_for_ready: bool = False,
    ) -> Upload[Answer]:
        """Begin a stream of requests, which are made and sent in another thread."""
        failures: list[Exception] = []

        def noted() -> Iterator[Request]:
            # gRPC says no more of an error here than that there was one.
            try:
                yield from requests
            except Exception as error:
                failures.append(error)
                raise

        call = method.future(
            noted(), timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=self._metadata()
        )
        return Upload(call, failures, self._translated)

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Request, Answer],
        request: Request,
        *,
        timeout_s: float | None,
        wait_for_ready: bool = False,
    ) -> Generator[Answer, None, None]:
        """One request, a stream of answers. Closing the iterator cancels the call."""
        call = method(request, timeout=timeout_s, wait_for_ready=wait_for_ready, metadata=self._metadata())
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes with a call that begins now."""
        token = self._token_source
        if isinstance(token, TokenInFile):
            token = token.current()
        return (*self._headers, bearer(token)) if token else self._headers or None

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
