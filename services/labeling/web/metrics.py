"""What the site counts. No name, address or text ever stands in a label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class SiteMetrics:
    """All metrics of the site, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "andon_site_requests_total",
            "Requests that were answered, by page.",
            ["page", "method", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "andon_site_request_seconds",
            "Time until the answer was ready, by page.",
            ["page"],
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )
        self.sign_ins = Counter(
            "andon_site_sign_ins_total", "Sign-ins by how they ended.", ["outcome"], registry=registry
        )
        for outcome in ("accepted", "refused", "limited"):
            self.sign_ins.labels(outcome)
