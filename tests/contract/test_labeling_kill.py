"""kill -9 of the real process under concurrent answers: no acknowledged answer is lost, none is doubled."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc

TIMEOUT_S = 30
NUM_LABELERS = 4
OVERLAP = 2

# Imports everything once and forks a process for each line it reads, so that a round costs no start-up time.
# Nothing is opened before the fork: main() opens the database and the ports.
LAUNCHER = """
import os, sys
from services.labeling.__main__ import main
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.exit(main())
    print("PID", pid, flush=True)
    os.waitpid(pid, 0)
"""


class Launcher:
    """Starts the service on one database, one process after the other."""

    def __init__(self, database: Path) -> None:
        arguments = ["--port", "0", "--metrics-port", "0", "--log-level", "ERROR"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments, "--database", f"sqlite:///{database}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._pid: int | None = None

    def serve(self) -> str:
        """Start a process and give its address."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        said = dict(self._process.stdout.readline().strip().split(" ", 1) for _ in range(2))
        self._pid = int(said["PID"])
        return f"127.0.0.1:{json.loads(said['ANDON_READY'])['port']}"

    def kill(self) -> None:
        """Kill the process that serves."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = None

    def end(self) -> None:
        self.kill()
        self._process.communicate()  # its input is at an end, so it ends too


@dataclass
class Labeler:
    """Leases and answers until the service dies, and goes on with what was not acknowledged."""

    name: str
    pending: pb.SubmitAnswersRequest | None = None
    num_requests: int = 0
    acknowledged: dict[int, tuple[str, str]] = field(default_factory=dict)  # id -> document, best text
    meant: dict[str, tuple[str, str]] = field(default_factory=dict)  # lease id -> document, best text

    def work(self, stub: labeling_grpc.LabelingServiceStub, progress: "Acknowledgements") -> None:
        try:
            while not progress.enough.is_set():
                if self.pending is None and not self.lease(stub):
                    return
                self.answer(stub, progress)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
                raise  # no dead peer but a defect: pytest fails on what a thread raises

    def lease(self, stub: labeling_grpc.LabelingServiceStub) -> bool:
        request = pb.LeaseTasksRequest(labeler_id=self.name, max_tasks=3)
        leased = stub.LeaseTasks(request, timeout=TIMEOUT_S).tasks
        if not leased:
            return False
        self.num_requests += 1
        self.pending = pb.SubmitAnswersRequest(
            request_id=f"{self.name}-{self.num_requests}", labeler_id=self.name
        )
        for task in leased:
            self.pending.answers.add(lease_id=task.lease_id, choice=pb.Choice(best_index=1))
            self.meant[task.lease_id] = (task.document, task.candidates[1])
        return True

    def answer(self, stub: labeling_grpc.LabelingServiceStub, progress: "Acknowledgements") -> None:
        assert self.pending is not None
        response = stub.SubmitAnswers(self.pending, timeout=TIMEOUT_S)
        for comparison_id, answer in zip(response.comparison_ids, self.pending.answers, strict=True):
            self.acknowledged[comparison_id] = self.meant[answer.lease_id]
        self.pending = None
        progress.count()


class Acknowledgements:
    """Counts until it is time to kill."""

    def __init__(self, wanted: int) -> None:
        self._left = wanted
        self._lock = threading.Lock()
        self.time_to_kill = threading.Event()
        self.enough = threading.Event()

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self.time_to_kill.set()


def run_rounds(database: Path, *, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    labelers = [Labeler(name=f"labeler-{number}") for number in range(NUM_LABELERS)]
    launcher = Launcher(database)
    try:
        for round_number in range(rounds):
            target = launcher.serve()
            progress = Acknowledgements(chance.randint(1, 12))
            with grpc.insecure_channel(target) as channel:
                stub = labeling_grpc.LabelingServiceStub(channel)
                submission = pb.SubmitTasksRequest(request_id=f"round-{round_number}", batch="b")
                for number in range(100):
                    name = f"{round_number}-{number}"
                    submission.tasks.add(
                        document=name,
                        candidates=[pb.Candidate(text=f"{name}/{index}") for index in range(3)],
                        overlap_count=OVERLAP,
                    )
                stub.SubmitTasks(submission, timeout=TIMEOUT_S)
                threads = [
                    threading.Thread(target=labeler.work, args=(stub, progress)) for labeler in labelers
                ]
                for thread in threads:
                    thread.start()
                assert progress.time_to_kill.wait(TIMEOUT_S)
                launcher.kill()
                progress.enough.set()
                for thread in threads:
                    thread.join()
        check_record(labelers, launcher.serve(), num_tasks=100 * rounds)
    finally:
        launcher.end()


def check_record(labelers: list[Labeler], target: str, *, num_tasks: int) -> None:
    with grpc.insecure_channel(target) as channel:
        stub = labeling_grpc.LabelingServiceStub(channel)
        for labeler in labelers:
            if labeler.pending is not None:  # whether or not it was recorded: repeating it is right
                labeler.answer(stub, Acknowledgements(1))
        recorded = [
            response.comparison
            for response in stub.ExportComparisons(pb.ExportComparisonsRequest(), timeout=TIMEOUT_S)
        ]
        progress = stub.GetProgress(pb.GetProgressRequest(), timeout=TIMEOUT_S)
    acknowledged = {
        comparison_id: (labeler.name, *said)
        for labeler in labelers
        for comparison_id, said in labeler.acknowledged.items()
    }
    assert sum(len(labeler.acknowledged) for labeler in labelers) == len(acknowledged)
    found = {
        comparison.comparison_id: (
            comparison.labeler_id,
            comparison.document,
            comparison.candidates[comparison.choice.best_index].text,
        )
        for comparison in recorded
    }
    # Every answer was sent until it was acknowledged, so the record is exactly what was acknowledged.
    assert found == acknowledged
    assert len(found) == len(recorded) > 0
    assert max(Counter(comparison.task_id for comparison in recorded).values()) <= OVERLAP
    assert len({(comparison.task_id, comparison.labeler_id) for comparison in recorded}) == len(recorded)
    assert progress.task_count == num_tasks


def test_ten_kills(tmp_path: Path) -> None:
    run_rounds(tmp_path / "labeling.sqlite3", rounds=10, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills(tmp_path: Path) -> None:
    run_rounds(tmp_path / "labeling.sqlite3", rounds=200, seed=1)
