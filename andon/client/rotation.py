"""Decides which of several channels a call takes, when the files that a channel was opened with change.

gRPC's client credentials never change. A ``RotatingChannel`` looks at the files' state before each call,
opens a new channel when it is another one, and closes the old channel when the last call on it has ended.
Stubs take it for any other channel. New files that cannot be used leave the old channel in use, with a
warning.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import grpc
import structlog

from andon.errors import InvalidArgumentError

# Messages, call objects and serializers of any type pass through untouched.
Opaque = Any

_log = structlog.stdlib.get_logger("andon.client")


class _Generation:
    """A channel and the calls on it. Counted under the lock of its owner."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.calls_in_progress = 0
        self.is_retired = False


class RotatingChannel(grpc.Channel):
    """One channel at a time, each opened by ``open_channel`` for one ``version``. Safe between threads."""

    def __init__(self, open_channel: Callable[[], grpc.Channel], version: Callable[[], Hashable]) -> None:
        """Opens the first channel; what ``open_channel`` raises comes out."""
        self._open_channel = open_channel
        self._version = version
        self._lock = threading.Lock()
        self._present_version = version()  # before the files are read: a change in between is then seen
        self._present = _Generation(open_channel())
        self._retired: list[_Generation] = []

    def enter(self) -> _Generation:
        """The channel for a new call, which must be given back to ``leave``."""
        with self._lock:
            version = self._version()
            if version != self._present_version:
                self._present_version = version
                self._rotate()
            self._present.calls_in_progress += 1
            return self._present

    def leave(self, generation: _Generation) -> None:
        """A call on this channel has ended."""
        with self._lock:
            generation.calls_in_progress -= 1
            self._close_unused()

    def _rotate(self) -> None:
        try:
            channel = self._open_channel()
        except InvalidArgumentError as error:
            _log.warning("tls_files_refused", error=error.message)
            return
        self._present.is_retired = True
        self._retired.append(self._present)
        self._present = _Generation(channel)
        self._close_unused()

    def _close_unused(self) -> None:
        for generation in [unused for unused in self._retired if unused.calls_in_progress == 0]:
            self._retired.remove(generation)
            generation.channel.close()

    def unary_unary(self, *arguments: Opaque, **options: Opaque) -> Opaque:
        """As of any channel."""
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Opaque, **options: Opaque) -> Opaque:
        """As of any channel."""
        return _StreamingMethod(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Opaque, **options: Opaque) -> Opaque:
        """As of any channel."""
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Opaque, **options: Opaque) -> Opaque:
        """As of any channel."""
        return _StreamingMethod(self, "stream_stream", arguments, options)

    def subscribe(self, callback: Callable[[Opaque], Opaque], try_to_connect: bool | None = False) -> None:
        """Follows the present channel only."""
        self._present.channel.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[Opaque], Opaque]) -> None:
        """As of any channel."""
        self._present.channel.unsubscribe(callback)

    def close(self) -> None:
        """Closes all channels, which ends their calls."""
        with self._lock:
            generations, self._retired = [self._present, *self._retired], []
        for generation in generations:
            generation.channel.close()

    def __enter__(self) -> RotatingChannel:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class _Bound:
    """One method, bound to the present channel when it is called."""

    def __init__(
        self, owner: RotatingChannel, kind: str, arguments: tuple[Opaque, ...], options: dict[str, Opaque]
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._bound: tuple[_Generation, Opaque] | None = None

    def _on(self, generation: _Generation) -> Opaque:
        bound = self._bound
        if bound is None or bound[0] is not generation:
            make = getattr(generation.channel, self._kind)
            bound = self._bound = (generation, make(*self._arguments, **self._options))
        return bound[1]

    def _begin(self, start: Callable[[Opaque], Opaque]) -> Opaque:
        """Start a call that runs on after this returns, and count it until it ends."""
        generation = self._owner.enter()
        try:
            call = start(self._on(generation))
        except BaseException:
            self._owner.leave(generation)
            raise
        # False: it has ended already, and nobody will be told any more.
        if not call.add_callback(lambda: self._owner.leave(generation)):
            self._owner.leave(generation)
        return call


class _Method(_Bound):
    """A method with one answer."""

    def __call__(self, request: Opaque, **options: Opaque) -> Opaque:
        generation = self._owner.enter()
        try:
            return self._on(generation)(request, **options)
        finally:
            self._owner.leave(generation)

    def with_call(self, request: Opaque, **options: Opaque) -> Opaque:
        generation = self._owner.enter()
        try:
            return self._on(generation).with_call(request, **options)
        finally:
            self._owner.leave(generation)

    def future(self, request: Opaque, **options: Opaque) -> Opaque:
        return self._begin(lambda method: method.future(request, **options))


class _StreamingMethod(_Bound):
    """A method with a stream of answers."""

    def __call__(self, request: Opaque, **options: Opaque) -> Opaque:
        return self._begin(lambda method: method(request, **options))
