"""Decides how many calls one caller may make: a token bucket each, refilled at a steady rate.

The interceptor asks before it parses a request. A caller is the name of a bearer token, or the address where
nobody asks for tokens; behind a proxy all callers have one address, so limits there want tokens. This is for
the edge: what protects the model is the bounded queue before it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from andon.errors import ResourceExhaustedError

RATE_LIMITED = "RATE_LIMITED"
RETRY_AFTER = "retry_after_s"  # the key of the error's metadata
MAX_CALLERS = 10_000


@dataclass(slots=True, kw_only=True, eq=False)
class _Bucket:
    """What one caller has left."""

    calls: float
    at_s: float  # when it was so


class CallLimiter:
    """Buckets of ``burst`` calls that fill at ``calls_per_second``. Used on the event loop only."""

    def __init__(
        self,
        *,
        calls_per_second: float,
        burst: int,
        clock: Callable[[], float],
        max_callers: int = MAX_CALLERS,
    ) -> None:
        """``max_callers`` bounds the memory: beyond it, who has not called for longest is forgotten."""
        self._calls_per_second = calls_per_second
        self._burst = burst
        self._clock = clock
        self._max_callers = max_callers
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def admit(self, caller: str) -> None:
        """Take one call from the caller's bucket. Raises ResourceExhaustedError RATE_LIMITED."""
        now_s = self._clock()
        bucket = self._buckets.get(caller)
        if bucket is None:
            if len(self._buckets) >= self._max_callers:
                self._buckets.popitem(last=False)
            bucket = self._buckets[caller] = _Bucket(calls=float(self._burst), at_s=now_s)
        self._buckets.move_to_end(caller)
        refilled = bucket.calls + (now_s - bucket.at_s) * self._calls_per_second
        bucket.calls, bucket.at_s = min(float(self._burst), refilled), now_s
        if bucket.calls < 1.0:
            retry_after_s = (1.0 - bucket.calls) / self._calls_per_second
            raise ResourceExhaustedError(
                f"more than {self._calls_per_second:g} calls per second; repeat in {retry_after_s:.3g} s",
                reason=RATE_LIMITED,
                # Rounded up, so that whoever waits so long is let in.
                **{RETRY_AFTER: f"{math.ceil(retry_after_s * 1000) / 1000:.3f}"},
            )
        bucket.calls -= 1.0


def peer_address(peer: str) -> str:
    """The address of gRPC's "ipv4:10.0.0.7:51234", without the port, which changes with each connection."""
    return peer.rpartition(":")[0] or peer
