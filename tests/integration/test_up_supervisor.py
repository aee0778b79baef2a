"""The supervisor with small real services: start, restart of a dead child, clean end, honest failures."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from andon.cli.endpoints import SERVICES, read_endpoints
from andon.cli.orphans import StartedProcess, end_orphans, note_processes
from andon.cli.supervisor import ChildEvent, Supervisor, free_ports, last_words
from andon.client.health import Health, check_health
from andon.errors import FailedPreconditionError, UnavailableError

SERVICE_PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, threading
    from concurrent.futures import ThreadPoolExecutor
    import grpc
    from grpc_health.v1 import health, health_pb2_grpc

    flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    print("flags", sys.argv[1], flags, flush=True)
    print("token", os.environ.get("ANDON_TRAINER_LABELING_TOKEN"), flush=True)
    if flags.get("--break") == "yes":
        print('{"event": "start_failed", "error": "no room"}', flush=True)
        sys.exit(1)
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    assert server.add_insecure_port("127.0.0.1:" + flags["--port"])
    server.start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    print("drained", flush=True)
    server.stop(None).wait()
    """
)

Start = Callable[..., Supervisor]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "service.py"
    path.write_text(SERVICE_PROGRAM)
    return path


@pytest.fixture
def make(tmp_path: Path, program: Path) -> Iterator[Start]:
    made: list[Supervisor] = []

    def command(service: str, flags: Sequence[str]) -> list[str]:
        return [sys.executable, str(program), service, *flags]

    def build(**arguments: object) -> Supervisor:
        supervisor = Supervisor(
            tmp_path / "home",
            ports=free_ports(),
            command=command,
            **arguments,  # type: ignore[arg-type]
        )
        made.append(supervisor)
        return supervisor

    yield build
    for supervisor in made:
        supervisor.stop()


def test_all_services_come_up_with_their_addresses_and_go_down_drained(make: Start) -> None:
    supervisor = make()
    supervisor.start()
    assert read_endpoints(supervisor.home) == supervisor.targets
    assert set(supervisor.targets) == set(SERVICES)
    ids = [supervisor.process_id(service) for service in SERVICES]
    assert len(set(ids)) == len(SERVICES)
    # Each is the leader of a group of its own, out of the terminal's reach.
    assert all(number is not None and os.getpgid(number) == number for number in ids)
    trainer_log = supervisor.log_path("trainer").read_text()
    assert json.dumps([supervisor.targets["policy"]]) in trainer_log
    assert str(supervisor.home / "runs") in trainer_log
    assert "labeling.sqlite3" in supervisor.log_path("labeling").read_text()
    supervisor.stop()
    assert read_endpoints(supervisor.home) == {}
    for service in SERVICES:
        assert supervisor.log_path(service).read_text().endswith("drained\n")
        assert check_health(supervisor.targets[service], timeout_s=1) is Health.UNREACHABLE


def test_each_home_has_tokens_and_only_the_trainer_is_told_one(make: Start) -> None:
    supervisor = make()
    supervisor.start()
    told = {service: supervisor.log_path(service).read_text() for service in SERVICES}
    assert f"token {supervisor.tokens.service}\n" in told["trainer"]
    assert str(supervisor.home / "tokens.json") in told["labeling"]
    assert f"'--web-port': '{supervisor.ports['labeling'].web}'" in told["labeling"]
    for service in SERVICES:
        assert supervisor.tokens.admin not in told[service]
        assert ("token None" in told[service]) == (service != "trainer")
        # On a command line everybody on the machine could read it.
        flags = told[service].splitlines()[0]
        assert supervisor.tokens.service not in flags
    first = supervisor.tokens
    supervisor.stop()
    again = make()
    again.start()
    assert again.tokens == first


def test_a_killed_service_is_started_again_on_its_port(make: Start) -> None:
    told: list[ChildEvent] = []
    back = threading.Event()

    def tell(event: ChildEvent) -> None:
        told.append(event)
        if event.message == "started again":
            back.set()

    supervisor = make(on_event=tell)
    supervisor.start()
    supervisor.set_argument("reward", "model", "reward/4")
    killed = supervisor.process_id("reward")
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    assert back.wait(30)
    assert [event.service for event in told] == ["reward", "reward"]
    assert "SIGKILL" in told[0].message
    assert supervisor.process_id("reward") not in (None, killed)
    assert supervisor.restart_count("reward") == 1
    assert supervisor.restart_count("policy") == 0
    deadline = threading.Event()
    while check_health(supervisor.targets["reward"], timeout_s=1) is not Health.SERVING:
        assert not deadline.wait(0.1)
    assert "'--model': 'reward/4'" in supervisor.log_path("reward").read_text()


def test_a_service_that_cannot_start_is_named_with_its_last_words(make: Start) -> None:
    supervisor = make(arguments={"policy": {"break": "yes"}})
    with pytest.raises(UnavailableError, match="the policy service ended while starting: no room") as caught:
        supervisor.start()
    assert caught.value.reason == "SERVICE_NOT_STARTED"
    assert all(supervisor.process_id(service) is None for service in SERVICES)
    assert read_endpoints(supervisor.home) == {}


def test_a_home_has_one_supervisor(make: Start) -> None:
    make().start()
    with pytest.raises(FailedPreconditionError) as caught:
        make().start()
    assert caught.value.reason == "HOME_IN_USE"


def test_a_taken_port_is_named_before_anything_starts(make: Start, tmp_path: Path) -> None:
    first = make()
    first.start()
    second = Supervisor(tmp_path / "other", ports=first.ports, command=first._command)
    with pytest.raises(FailedPreconditionError, match="port"):
        second.start()
    assert not second.log_path("policy").exists()
    assert read_endpoints(first.home) == first.targets


def test_a_start_can_be_given_up(make: Start) -> None:
    give_up = threading.Event()
    give_up.set()
    supervisor = make()
    with pytest.raises(FailedPreconditionError, match="stopped while starting"):
        supervisor.start(give_up=give_up)
    assert all(supervisor.process_id(service) is None for service in SERVICES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "its log is empty"),
        ("a\nTypeError: b\n", "TypeError: b"),
        ('{"event": "x"}\n', "x"),
        ('{"event": "x", "error": "y"}\n', "y"),
        ("[1]\n", "[1]"),
    ],
)
def test_last_words(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "service.log"
    path.write_text(content)
    assert last_words(path) == words
    assert last_words(tmp_path / "none.log") == "it wrote no log"


KILLED_SUPERVISOR = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from andon.cli.supervisor import Supervisor, free_ports

    home, program = sys.argv[1:]
    command = lambda service, flags: [sys.executable, program, service, *flags]
    Supervisor(Path(home), ports=free_ports(), command=command).start()
    os.kill(os.getpid(), signal.SIGKILL)
    """
)


def test_what_a_killed_supervisor_left_is_ended_first(make: Start, program: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", KILLED_SUPERVISOR, str(tmp_path / "home"), str(program)]
    killed = subprocess.run(arguments, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    left = read_endpoints(tmp_path / "home")
    assert {check_health(target, timeout_s=10) for target in left.values()} == {Health.SERVING}
    told: list[ChildEvent] = []
    supervisor = make(on_event=told.append)
    supervisor.start()
    assert sorted(event.service for event in told) == sorted(SERVICES)
    assert {check_health(target, timeout_s=1) for target in left.values()} == {Health.UNREACHABLE}
    for service in SERVICES:
        assert "drained" in supervisor.log_path(service).read_text()


def test_a_process_that_is_another_one_now_is_left_alone(tmp_path: Path) -> None:
    own = StartedProcess(process_id=os.getpid(), command=("python", "-m", "services.policy"))
    note_processes(tmp_path, {"policy": own})
    assert end_orphans(tmp_path) == []
    assert end_orphans(tmp_path) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"policy": 3}', '{"policy": {"process_id": "x"}}'])
def test_a_damaged_note_of_processes_ends_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "processes.json").write_text(content)
    assert end_orphans(tmp_path) == []
