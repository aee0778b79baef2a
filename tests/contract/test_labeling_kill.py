"""kill -9 under concurrent answers, of the service or of its database: no acknowledged answer is lost, none
is doubled.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from tests.postgres import PostgresServer
from tests.tokens import TOKENS, with_token, write_tokens

TIMEOUT_S = 30
NUM_LABELERS = 4
OVERLAP = 2
TASKS_PER_ROUND = 100
MAX_ANSWERS_PER_ROUND = 12  # calls that are acknowledged before the kill

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

    def __init__(self, database_url: str, folder: Path) -> None:
        arguments = ["--port", "0", "--metrics-port", "0", "--web-port", "0", "--log-level", "ERROR"]
        arguments += ["--tokens-file", str(write_tokens(folder)), "--database", database_url]
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, *arguments],
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


class Round:
    """Counts acknowledged calls until it is time to kill, and says how labelers take a failed call."""

    def __init__(self, num_answers: int) -> None:
        self._left = num_answers
        self._lock = threading.Lock()
        self.time_to_kill = threading.Event()
        self.enough = threading.Event()
        self.is_back = threading.Event()  # what was killed serves again

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self.time_to_kill.set()


@dataclass
class Labeler:
    """Leases and answers until the service dies, and goes on with what was not acknowledged."""

    name: str
    chance: random.Random
    pending: pb.SubmitAnswersRequest | None = None
    num_requests: int = 0
    acknowledged: dict[int, tuple[str, str]] = field(default_factory=dict)  # id -> document, best text
    meant: dict[str, tuple[str, str]] = field(default_factory=dict)  # lease id -> document, best text

    def work_until_killed(self, stub: labeling_grpc.LabelingServiceStub, current: Round) -> None:
        """The service dies: its answers end with the connection."""
        try:
            while not current.enough.is_set() and self.step(stub, current):
                pass
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
                raise  # no dead peer but a defect: pytest fails on what a thread raises

    def work_across(self, stub: labeling_grpc.LabelingServiceStub, current: Round) -> None:
        """The database dies: the service lives and says so, until the database is back."""
        while not current.enough.is_set():
            try:
                if not self.step(stub, current):
                    return
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                assert current.is_back.wait(TIMEOUT_S)

    def step(self, stub: labeling_grpc.LabelingServiceStub, current: Round) -> bool:
        """Lease if there is nothing to say, and answer; False when there is nothing to lease."""
        if self.pending is None and not self.lease(stub):
            return False
        self.answer(stub)
        current.count()
        return True

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

    def answer(self, stub: labeling_grpc.LabelingServiceStub) -> None:
        """Send the answers until they are acknowledged; one time in four twice at once, as an impatient
        client does.
        """
        assert self.pending is not None
        times = 2 if self.chance.random() < 0.25 else 1
        calls = [stub.SubmitAnswers.future(self.pending, timeout=TIMEOUT_S) for _ in range(times)]
        said = [list(call.result().comparison_ids) for call in calls]
        assert all(ids == said[0] for ids in said)
        for comparison_id, answer in zip(said[0], self.pending.answers, strict=True):
            self.acknowledged[comparison_id] = self.meant[answer.lease_id]
        self.pending = None


def submit_round(stub: labeling_grpc.LabelingServiceStub, number: int) -> None:
    submission = pb.SubmitTasksRequest(request_id=f"round-{number}", batch="b")
    for task in range(TASKS_PER_ROUND):
        name = f"{number}-{task}"
        submission.tasks.add(
            document=name,
            candidates=[pb.Candidate(text=f"{name}/{index}") for index in range(3)],
            overlap_count=OVERLAP,
        )
    stub.SubmitTasks(submission, timeout=TIMEOUT_S)


def labelers_of(seed: int) -> list[Labeler]:
    return [
        Labeler(name=f"labeler-{number}", chance=random.Random(f"{seed}/{number}"))
        for number in range(NUM_LABELERS)
    ]


def stub_of(channel: grpc.Channel) -> labeling_grpc.LabelingServiceStub:
    return labeling_grpc.LabelingServiceStub(with_token(channel, TOKENS["service"]))


def kill_service(database_url: str, folder: Path, *, rounds: int, seed: int) -> None:
    """Kill the service ``rounds`` times while labelers answer, and check the record."""
    chance = random.Random(seed)
    labelers = labelers_of(seed)
    launcher = Launcher(database_url, folder)
    try:
        for number in range(rounds):
            target = launcher.serve()
            current = Round(chance.randint(1, MAX_ANSWERS_PER_ROUND))
            with grpc.insecure_channel(target) as channel:
                stub = stub_of(channel)
                submit_round(stub, number)
                threads = [
                    threading.Thread(target=labeler.work_until_killed, args=(stub, current))
                    for labeler in labelers
                ]
                for thread in threads:
                    thread.start()
                assert current.time_to_kill.wait(TIMEOUT_S)
                launcher.kill()
                current.enough.set()
                for thread in threads:
                    thread.join()
        check_record(labelers, launcher.serve(), num_tasks=TASKS_PER_ROUND * rounds)
    finally:
        launcher.end()


def kill_database(server: PostgresServer, folder: Path, *, rounds: int, seed: int) -> None:
    """Kill the database ``rounds`` times under one service while labelers answer, and check the record."""
    chance = random.Random(seed)
    labelers = labelers_of(seed)
    launcher = Launcher(server.new_database(), folder)
    try:
        target = launcher.serve()
        with grpc.insecure_channel(target) as channel:
            stub = stub_of(channel)
            for number in range(rounds):
                current = Round(chance.randint(1, MAX_ANSWERS_PER_ROUND))
                submit_round(stub, number)
                threads = [
                    threading.Thread(target=labeler.work_across, args=(stub, current)) for labeler in labelers
                ]
                for thread in threads:
                    thread.start()
                assert current.time_to_kill.wait(TIMEOUT_S)
                server.kill()
                server.start()
                current.enough.set()
                current.is_back.set()
                for thread in threads:
                    thread.join()
        check_record(labelers, target, num_tasks=TASKS_PER_ROUND * rounds)
    finally:
        launcher.end()


def check_record(labelers: list[Labeler], target: str, *, num_tasks: int) -> None:
    with grpc.insecure_channel(target) as channel:
        stub = stub_of(channel)
        for labeler in labelers:
            if labeler.pending is not None:  # whether or not it was recorded: repeating it is right
                labeler.answer(stub)
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


@pytest.fixture(scope="module")
def durable_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A PostgreSQL of this module's own that waits for the disk, and that a test may kill."""
    request.getfixturevalue("postgres_server")  # skips or fails where PostgreSQL is not installed
    with PostgresServer(durable=True) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database that waits for the disk, once on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/labeling.sqlite3"
    new_database: Callable[[], str] = request.getfixturevalue("durable_server").new_database
    return new_database()


def test_ten_kills_of_the_service(durable_url: str, tmp_path: Path) -> None:
    kill_service(durable_url, tmp_path, rounds=10, seed=0)


def test_five_kills_of_the_database(durable_server: PostgresServer, tmp_path: Path) -> None:
    kill_database(durable_server, tmp_path, rounds=5, seed=0)  # each waits a second or two for recovery


def test_a_database_that_was_restarted_between_two_calls_costs_no_call(
    durable_server: PostgresServer, tmp_path: Path
) -> None:
    launcher = Launcher(durable_server.new_database(), tmp_path)
    try:
        with grpc.insecure_channel(launcher.serve()) as channel:
            stub = stub_of(channel)
            submit_round(stub, 0)  # a connection for writing waits in the pool, and one for reading
            stub.GetProgress(pb.GetProgressRequest(), timeout=TIMEOUT_S)
            durable_server.kill()
            durable_server.start()
            progress = stub.GetProgress(pb.GetProgressRequest(), timeout=TIMEOUT_S)
            submit_round(stub, 1)
            assert progress.task_count == TASKS_PER_ROUND
            assert len(stub.LeaseTasks(pb.LeaseTasksRequest(labeler_id="l"), timeout=TIMEOUT_S).tasks) == 1
    finally:
        launcher.end()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_of_the_service(durable_url: str, tmp_path: Path) -> None:
    kill_service(durable_url, tmp_path, rounds=200, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_of_the_database(durable_server: PostgresServer, tmp_path: Path) -> None:
    kill_database(durable_server, tmp_path, rounds=200, seed=1)
