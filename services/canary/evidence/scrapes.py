"""How the calls of real callers end, by what the canary's replicas tell Prometheus.

Counters are read at every round and compared with the round before; what the controller itself called is
taken off. A counter that is smaller than before belongs to a new process and counts from 0. What was counted
before the first look is nobody's evidence.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from services.canary.errors import MetricsUnreadableError
from services.canary.platform import Replica

TIMEOUT_S = 5.0
MOST_BYTES = 16 * 1024 * 1024
_FAMILY, _SAMPLE = "andon_rpc_handled", "andon_rpc_handled_total"
_LABELS = {"grpc_service": "andon.api.policy.v1.PolicyService", "grpc_method": "Sample"}
# Ends that are the server's doing; as in the dashboard and the alerts. CANCELLED is nobody's doing that
# matters here, and all other codes are answers to what was asked.
FAILURES = frozenset({"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS"})
_NO_CALL = "CANCELLED"


def read_counts(url: str) -> Counter[str]:
    """Calls of Sample that have ended since the process began, by status code.

    Raises MetricsUnreadableError.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            text = answer.read(MOST_BYTES).decode("utf-8")
    except (urllib.error.URLError, TimeoutError, ConnectionError, UnicodeDecodeError) as error:
        raise MetricsUnreadableError(url, error) from error
    counts: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        if family.name != _FAMILY:
            continue
        for sample in family.samples:
            if sample.name == _SAMPLE and _LABELS.items() <= sample.labels.items():
                counts[sample.labels["grpc_code"]] += round(sample.value)
    return counts


class Scrapes:
    """Remembers the last look at each replica. Each replica by one thread at a time."""

    def __init__(self) -> None:
        self._last: dict[str, Counter[str]] = {}
        self._own: dict[str, Counter[str]] = {}  # the controller's own calls since then

    def look(self, replica: Replica, *, own_calls: Mapping[str, int]) -> Counter[str]:
        """Calls of others that ended since the last look, by status code. Raises MetricsUnreadableError.

        ``own_calls`` are the controller's since the last attempt to look.
        """
        self._own.setdefault(replica.name, Counter()).update(own_calls)
        counts = read_counts(replica.metrics_url)
        return self.since_last(replica.name, counts, own_calls=self._own.pop(replica.name))

    def since_last(self, name: str, counts: Counter[str], *, own_calls: Mapping[str, int]) -> Counter[str]:
        """What has been added to a replica's counts, but for the controller's own calls."""
        last = self._last.get(name)
        self._last[name] = counts
        if last is None:
            return Counter()
        if any(counts[code] < number for code, number in last.items()):
            last = Counter()
        added = {code: number - last[code] - own_calls.get(code, 0) for code, number in counts.items()}
        return Counter({code: number for code, number in added.items() if number > 0})


def answered(calls: Mapping[str, int]) -> dict[float, int]:
    """Calls as values of the gate ``calls``: 1 for an answer, 0 for a failure."""
    failed = sum(number for code, number in calls.items() if code in FAILURES)
    ended = sum(number for code, number in calls.items() if code != _NO_CALL)
    return {value: number for value, number in ((1.0, ended - failed), (0.0, failed)) if number}
