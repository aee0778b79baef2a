"""Decides what a service must be able to do so that ``andon.rpc.server`` can run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import grpc.aio


class Service(Protocol):
    """One deployable. The server calls the methods once each, in the order in which they stand here.

    ``drain`` and ``close`` are called even if ``start`` failed or was cancelled half way.
    """

    @property
    def name(self) -> str:
        """Short name for logs and the ready line, for example "policy"."""
        ...

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the servicers and return their full names, for health and reflection."""
        ...

    async def start(self) -> None:
        """Get ready: load a model, open a database. Calls answer UNAVAILABLE until it returns."""
        ...

    async def drain(self) -> None:
        """Let running work end and end open streams. New calls no longer arrive; running ones still may
        answer.
        """
        ...

    async def close(self) -> None:
        """Free everything. No call is running any more."""
        ...


@runtime_checkable
class TalkativeService(Protocol):
    """A service that has more to say in the ready line than its ports, for example where its site is."""

    @property
    def ready_facts(self) -> Mapping[str, str | int]:
        """Read once, after the start."""
        ...
