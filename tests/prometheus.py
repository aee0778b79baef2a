"""A real Prometheus for tests, with the rules of the monitoring component."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import monitoring
from tests.http_program import HttpProgram
from tests.ports import free_port


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
        self.port = free_port()
        self._program = HttpProgram(
            [
                program,
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            log=self._folder / "prometheus.log",
            base_url=f"http://127.0.0.1:{self.port}/api/v1",
            ready_path="/status/runtimeinfo",
        )
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._program.end()

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
        answer = self._program.client.get(path, params=parameters)
        content = answer.json()
        if content.get("status") != "success":
            raise ValueError(f"{parameters.get('query')}: {content.get('error')}")
        result: list[dict[str, Any]] = content["data"]["result"]
        return result


def _pod(name: str, port: int, track: str) -> dict[str, Any]:
    labels = {"namespace": "andon", "pod": f"{name}-0", "track": track}
    return {"targets": [f"127.0.0.1:{port}"], "labels": labels}
