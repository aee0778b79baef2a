"""A trainer of several processes under torchrun, as an operator starts it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from services.trainer.checkpoint import CheckpointFolder
from services.trainer.ranks import FRESH_STORE
from tests.ports import free_port

TIMEOUT_S = 120
RANKS = 2


class Torchrun:
    """``torchrun --nproc-per-node 2 -m services.trainer``. ``flags`` are the trainer's."""

    def __init__(
        self, *flags: str, log: Path, max_restarts: int = 0, monitor_interval_s: float = 0.1
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={RANKS}", f"--max-restarts={max_restarts}"),
            *(f"--monitor-interval={monitor_interval_s}", "--shutdown-timeout=120"),
            *("-m", "services.trainer", "--threads=1", "--metrics-port=0", "--log-level=DEBUG", *flags),
        ]
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.port = 0  # then always the same, also when torchrun starts the set again

    def start(self) -> None:
        """Start, and return when rank 0 answers."""
        if not self.port:
            self.port = free_port()
        with self._log.open("a") as log:
            process = self._process = subprocess.Popen(
                [*self._command, f"--port={self.port}"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", FRESH_STORE: "1"},
                start_new_session=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ANDON_READY "), self._log.read_text()[-4000:]

    @property
    def target(self) -> str:
        """Where rank 0 answers."""
        return f"127.0.0.1:{self.port}"

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks, by rank."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children()
        ranks = [child for child in children if "RANK" in child.environ()]
        return sorted(ranks, key=lambda child: int(child.environ()["RANK"]))

    def terminate(self) -> int:
        """End torchrun as an orchestrator does, and wait until nothing of it is left; the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End all processes at once, without a chance to finish anything."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        process = self._process
        if process is None:
            return 0
        self._process = None
        everything = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        if how is signal.SIGKILL:
            for child in everything:
                child.kill()
        code = process.wait(TIMEOUT_S)
        _, alive = psutil.wait_procs(everything, timeout=TIMEOUT_S)
        assert not alive, f"left running: {alive}"
        assert process.stdout is not None
        process.stdout.close()
        return code

    def words(self, event: str) -> list[dict[str, Any]]:
        """The lines of all ranks' logs with this event, oldest first; ``at`` is their moment."""
        return list(_words(self._log.read_text().splitlines(), event))

    def steps_begun(self, rank: int) -> int:
        """How many optimizer steps a rank has begun."""
        return sum(word["rank"] == rank for word in self.words("step_begins"))

    def steps_begun_since_heard(self) -> list[int]:
        """How many steps each rank has begun after rank 0 last heard that the cord is pulled."""
        heard_at = [word["at"] for word in self.words("cord_heard") if word["pulled"]][-1]
        late = [word["rank"] for word in self.words("step_begins") if word["at"] > heard_at]
        return [late.count(rank) for rank in range(RANKS)]

    def steps_done(self, run_folder: Path, steps_per_update: int) -> int:
        """Optimizer steps in the newest checkpoint of a run."""
        found = CheckpointFolder(run_folder / "checkpoints", keep=2).load_newest()
        assert found is not None
        under_way = found.state["in_progress"]
        done = 0 if under_way is None else under_way["progress"]["steps_done"]
        return int(found.state["update"]) * steps_per_update + int(done)


def _words(lines: Sequence[str], event: str) -> Iterator[dict[str, Any]]:
    for line in lines:
        if f'"event": "{event}"' in line:
            word = json.loads(line)
            yield {**word, "at": datetime.fromisoformat(word["time"])}
