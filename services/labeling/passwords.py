"""How passwords become hashes and are compared with them: argon2id, in threads of its own.

A hash takes tens of milliseconds and 64 MiB on purpose, so few run at a time and none on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.labeling.accounts import MAX_PASSWORD_CHARS, new_secret, normal_password
from services.labeling.errors import QueueFullError

T = TypeVar("T")

MAX_WAITING = 100  # about five seconds of work for two threads


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordCheck:
    """What comparing a password gave."""

    is_right: bool
    new_hash: str | None  # set when the right password should be kept under newer parameters


class Passwords:
    """Hashes and verifies with a bounded queue."""

    def __init__(self, hasher: PasswordHasher | None = None, *, num_threads: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="passwords")
        self._num_waiting = 0
        # Compared with when there is no such account, so that the answer takes as long as for any other.
        self._nobodys_hash = self._hasher.hash(new_secret())

    async def hash(self, password: str) -> str:
        """The hash to keep of a new password."""
        return await self._run(lambda: self._hasher.hash(normal_password(password)))

    async def check(self, password: str, kept_hash: str | None) -> PasswordCheck:
        """Whether ``password`` is the one of ``kept_hash``, which is None where there is no such account."""
        return await self._run(lambda: self._check(password, kept_hash))

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _check(self, password: str, kept_hash: str | None) -> PasswordCheck:
        # Cut, not refused: a refusal would answer sooner than a comparison.
        normal = normal_password(password[: MAX_PASSWORD_CHARS + 1])
        try:
            self._hasher.verify(kept_hash or self._nobodys_hash, normal)
        except (VerificationError, InvalidHashError):
            return PasswordCheck(is_right=False, new_hash=None)
        if kept_hash is None:
            return PasswordCheck(is_right=False, new_hash=None)
        outdated = self._hasher.check_needs_rehash(kept_hash)
        return PasswordCheck(is_right=True, new_hash=self._hasher.hash(normal) if outdated else None)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._num_waiting >= MAX_WAITING:
            raise QueueFullError(MAX_WAITING)
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._num_waiting -= 1
