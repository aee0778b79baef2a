"""When a stream that waits for news looks again.

Servicers that change something announce it, streams wait. What the news is, the streams read from the
database; so an announcement is only a hint, and a stream that gets none looks after a while all the same.
All of it runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib

from services.labeling.errors import DrainingError


class Changes:
    """A counter of changes that can be waited for."""

    def __init__(self) -> None:
        self._count = 0
        self._is_ended = False
        self._next = asyncio.Event()

    @property
    def count(self) -> int:
        """How many changes there were. Note it before reading, wait for more after."""
        return self._count

    def announce(self) -> None:
        """Wake all who wait."""
        self._count += 1
        self._next.set()
        self._next = asyncio.Event()

    def end(self) -> None:
        """Let all who wait, now and later, go on to another process."""
        self._is_ended = True
        self.announce()

    async def wait_beyond(self, count: int, *, timeout_s: float) -> None:
        """Return once there were more than ``count`` changes, or after the time-out."""
        if not self._is_ended and self._count <= count:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._next.wait()
        if self._is_ended:
            raise DrainingError()
