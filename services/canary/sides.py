"""Finds the replicas of both sides by name: every address of a headless Service is one.

The judge's way to know them, without the API of a cluster. Names are looked up anew each time, because
replicas come and go.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from andon.errors import UnavailableError
from services.canary.platform import Replica, Track

_TARGET = re.compile(r"(?:dns:///)?(?P<host>\[[^\[\]]+\]|[^:/\[\]\s]+):(?P<port>[0-9]{1,5})")
# Names that are there and have no address: no replica is ready.
_NO_ADDRESS = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a side answers, by name or number."""

    host: str
    port: int

    @classmethod
    def parse(cls, target: str) -> Address:
        """From ``host:port``, with or without ``dns:///`` before it. Raises ValueError."""
        found = _TARGET.fullmatch(target)
        if found is None or not 0 < int(found["port"]) < 65536:
            raise ValueError(f"{target!r} is not host:port")
        return cls(host=found["host"].strip("[]"), port=int(found["port"]))


class NamedSides:
    """Both sides, each behind one name or several."""

    def __init__(
        self, *, stable: Sequence[Address], canary: Sequence[Address], canary_metrics_port: int | None
    ) -> None:
        """``canary_metrics_port`` is where the canary's replicas show their metrics; None: nobody reads
        them.
        """
        self._addresses = {Track.STABLE: stable, Track.CANARY: canary}
        self._metrics_ports = {Track.STABLE: None, Track.CANARY: canary_metrics_port}

    def replicas(self, track: Track) -> Sequence[Replica]:
        """All of a side that its names lead to; none while no replica is ready.

        Raises UnavailableError NAME_NOT_RESOLVED when nobody answers what a name leads to.
        """
        metrics_port = self._metrics_ports[track]
        found = {
            (number, address.port): None for address in self._addresses[track] for number in _numbers(address)
        }
        return [
            Replica(
                name=f"{track.value} {number}:{port}",
                target=f"{number}:{port}",
                metrics_url="" if metrics_port is None else f"http://{number}:{metrics_port}/metrics",
            )
            for number, port in found
        ]


def _numbers(address: Address) -> list[str]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_ADDRESS:
            return []
        raise UnavailableError(
            f"{address.host} cannot be looked up: {error.strerror}",
            reason="NAME_NOT_RESOLVED",
            host=address.host,
        ) from error
    # A pod with an address of each family is one replica, not two.
    family = found[0][0]
    numbers = sorted({str(entry[4][0]) for entry in found if entry[0] == family})
    return [f"[{number}]" for number in numbers] if family == socket.AF_INET6 else numbers
