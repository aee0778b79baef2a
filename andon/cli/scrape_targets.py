"""Decides how a Prometheus on this machine finds the services of a home, with the labels of the dashboards.

``andon up`` keeps ``scrape-targets.json`` in its home in the form of Prometheus' ``file_sd_configs``. The
labels are those that a cluster's PodMonitor gives: the job is ``andon-<component>``, and the two sides of a
canary are one job with different tracks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

TARGETS_FILE = "scrape-targets.json"
NAMESPACE = "local"

_JOBS = {"policy-canary": "policy"}
_TRACKS = {"policy": "stable", "policy-canary": "canary"}


def write_scrape_targets(home: Path, metrics_urls: Mapping[str, str]) -> None:
    """Record where each service's metrics are, whole or not at all."""
    groups = []
    for service, url in metrics_urls.items():
        parts = urlsplit(url)
        labels = {"job": f"andon-{_JOBS.get(service, service)}", "namespace": NAMESPACE}
        if service in _TRACKS:
            labels["track"] = _TRACKS[service]
        if parts.path != "/metrics":
            labels["__metrics_path__"] = parts.path
        groups.append({"targets": [parts.netloc], "labels": labels})
    temporary = home / f".{TARGETS_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(groups, indent=2) + "\n", encoding="utf-8")
    temporary.replace(home / TARGETS_FILE)


def remove_scrape_targets(home: Path) -> None:
    """Forget them: the services are going down."""
    (home / TARGETS_FILE).unlink(missing_ok=True)
