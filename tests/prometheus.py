"""A real Prometheus for tests, with the rules of the monitoring component."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests import monitoring

START_TIMEOUT_S = 60


class Prometheus:
    """Scrapes loopback ports every second and evaluates the rules as often, inside ``with``."""

    def __init__(
        self,
        folder: Path,
        *,
        scraped: Mapping[str, int],
        alertmanager: str | None = None,
        canary_policy: int | None = None,
    ) -> None:
        """``scraped``: metrics ports by service; labels are those that the PodMonitor gives."""
        self._folder = folder
        folder.mkdir(exist_ok=True)
        monitoring.write_rules(folder / "rules")
        config: dict[str, Any] = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules" / "*.yaml")],
            "scrape_configs": [
                {"job_name": f"andon-{service}", "static_configs": [_pod(service, port, "stable")]}
                for service, port in scraped.items()
            ],
        }
        if canary_policy is not None:
            for job in config["scrape_configs"]:
                if job["job_name"] == "andon-policy":
                    job["static_configs"].append(_pod("policy-canary", canary_policy, "canary"))
        if alertmanager is not None:
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def __enter__(self) -> Self:
        program = monitoring.program("prometheus", package="prometheus")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = (self._folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/api/v1", trust_env=False, timeout=30
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if self._client.get("/status/runtimeinfo").status_code == httpx.codes.OK:
                    return self
            except httpx.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    self.__exit__(None, None, None)
                    raise
            time.sleep(0.05)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._log.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives at this moment."""
        return self._get("/query", query=expression)

    def query_range(self, expression: str, *, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series that an expression gives over a time."""
        return self._get("/query_range", query=expression, start=start, end=end, step=step)

    def firing(self) -> list[dict[str, str]]:
        """The labels of all alerts that fire."""
        return [series["metric"] for series in self.query('ALERTS{alertstate="firing"}')]

    def ever_fired(self) -> set[str]:
        """The names of all alerts that have fired."""
        series = self.query('count by (alertname) (last_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {entry["metric"]["alertname"] for entry in series}

    def _get(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = self._client.get(path, params=parameters)
        content = answer.json()
        if content.get("status") != "success":
            raise ValueError(f"{parameters.get('query')}: {content.get('error')}")
        result: list[dict[str, Any]] = content["data"]["result"]
        return result


def _pod(name: str, port: int, track: str) -> dict[str, Any]:
    labels = {"namespace": "andon", "pod": f"{name}-0", "track": track}
    return {"targets": [f"127.0.0.1:{port}"], "labels": labels}
