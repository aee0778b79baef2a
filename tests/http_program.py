"""A program that serves HTTP on a loopback port, as tests start it, wait for it and end it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

START_TIMEOUT_S = 60


class HttpProgram:
    """One process of a program, and a client of what it serves."""

    def __init__(self, command: Sequence[str], *, log: Path, base_url: str, ready_path: str) -> None:
        """``ready_path``, below ``base_url``, is answered with 200 as soon as the program may be asked."""
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.client = httpx.Client(base_url=base_url, trust_env=False, timeout=30)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                if self.client.get(ready_path).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    self.end()
                    raise
            time.sleep(0.05)

    def end(self) -> None:
        """Ask it to end, and wait for that."""
        self.client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._log.close()
