"""A real Alertmanager for tests, started from the binary on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.http_program import HttpProgram
from tests.ports import free_port


def find_alertmanager() -> str | None:
    """The program, None where it is not installed (Debian calls it prometheus-alertmanager)."""
    return shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")


class Alertmanager:
    """Serves on a free loopback port inside ``with`` and sends every alert to one webhook."""

    def __init__(self, folder: Path, *, webhook_url: str, token: str, repeat_interval: str = "1s") -> None:
        self._folder = folder
        receiver = {
            "name": "cord",
            "webhook_configs": [
                {
                    "url": webhook_url,
                    "send_resolved": True,
                    "http_config": {"authorization": {"type": "Bearer", "credentials": token}},
                }
            ],
        }
        route = {
            "receiver": "cord",
            "group_by": ["alertname"],
            "group_wait": "0s",
            "group_interval": "1s",
            "repeat_interval": repeat_interval,
        }
        folder.mkdir(exist_ok=True)
        # JSON is YAML.
        (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))

    def __enter__(self) -> Self:
        program = find_alertmanager()
        if program is None:
            raise FileNotFoundError("Alertmanager is not installed")
        self.address = f"127.0.0.1:{free_port()}"
        self._program = HttpProgram(
            [
                program,
                f"--config.file={self._folder / 'alertmanager.yml'}",
                f"--storage.path={self._folder / 'data'}",
                f"--web.listen-address={self.address}",
                "--cluster.listen-address=",
            ],
            log=self._folder / "alertmanager.log",
            base_url=f"http://{self.address}",
            ready_path="/-/ready",
        )
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._program.end()

    def tell(self, *alerts: Mapping[str, Any]) -> None:
        """Give alerts as Prometheus does: ``{"labels": ..., "annotations": ..., "endsAt": ...}``."""
        self._program.client.post("/api/v2/alerts", json=list(alerts)).raise_for_status()

    def metric(self, name: str) -> float:
        """The sum over all series of a metric of its own."""
        lines = self._program.client.get("/metrics").text.splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
        )
