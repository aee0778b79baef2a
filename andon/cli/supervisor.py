"""Decides how the services live and die as processes on one machine.

``andon up`` and ``andon demo`` run a ``Supervisor``: it starts ``python -m services.<name>`` for each service
in a process group of its own, waits until all are healthy, records their addresses, starts a dead one again
on the same ports, and on the way out lets them drain, the trainer first so that it can save. With
``andon up --canary`` a second policy process, Envoy and the canary's controller are among them. It imports no
service and speaks only the health protocol with them. One home is supervised by one process, which a lock on
the home ensures.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from andon.cli.endpoints import (
    CANARY,
    CANARY_PARTS,
    DEFAULT_GRPC_PORTS,
    DEFAULT_METRICS_PORTS,
    DEFAULT_WEB_PORT,
    ENVOY,
    POLICY_CANARY,
    SERVICES,
    remove_endpoints,
    write_endpoints,
)
from andon.cli.envoy_process import envoy_folder, prepare_envoy
from andon.cli.local_encryption import check_encryption
from andon.cli.orphans import StartedProcess, end_orphans, forget_processes, note_processes
from andon.cli.scrape_targets import remove_scrape_targets, write_scrape_targets
from andon.cli.tokens import CANARY_VARIABLE, TRAINER_VARIABLE, LocalTokens, make_tokens, tokens_path
from andon.client.health import Health, check_health
from andon.errors import FailedPreconditionError, UnavailableError
from andon.modeling.stores.location import parse_location

HOST = "127.0.0.1"
POLL_S = 0.2
FIRST_RESTART_DELAY_S = 0.5
LAST_RESTART_DELAY_S = 30.0
SETTLED_AFTER_S = 60.0  # a child that lived so long starts again without delay
TRAINER_DRAIN_S = 60.0  # a checkpoint of a large model takes a while
DRAIN_S = 20.0
LOCK_FILE = "supervisor.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePorts:
    """Where one service listens on the loopback address."""

    grpc: int
    metrics: int
    web: int | None = None  # of the labeling site
    metrics_path: str = "/metrics"

    @property
    def target(self) -> str:
        """What a gRPC client connects to."""
        return f"{HOST}:{self.grpc}"

    @property
    def metrics_url(self) -> str:
        """What Prometheus scrapes."""
        return f"http://{HOST}:{self.metrics}{self.metrics_path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEvent:
    """Something that happened to a child and that a person may want to see."""

    service: str
    message: str


@dataclass(slots=True)
class _Child:
    """One service's process and its recent fate. Touched only under the supervisor's lock."""

    service: str
    process: subprocess.Popen[bytes] | None = None
    command: tuple[str, ...] = ()
    started_at_s: float = 0.0
    restart_count: int = 0
    restart_delay_s: float = FIRST_RESTART_DELAY_S
    restart_at_s: float | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    fixed_command: list[str] | None = None  # of one that is no service of ours


def default_ports(*, canary: bool = False) -> dict[str, ServicePorts]:
    """The ports that the documentation names; with ``canary`` also those of its parts."""
    return {
        service: ServicePorts(
            grpc=DEFAULT_GRPC_PORTS[service],
            metrics=DEFAULT_METRICS_PORTS[service],
            web=DEFAULT_WEB_PORT if service == "labeling" else None,
            metrics_path=_metrics_path(service),
        )
        for service in _names(canary=canary)
    }


def free_ports(*, canary: bool = False) -> dict[str, ServicePorts]:
    """Ports that nobody uses now, all different, for a demo beside other services."""
    names = _names(canary=canary)
    held: list[socket.socket] = []
    try:
        for _ in range(2 * len(names) + 1):
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(listener)
            listener.bind((HOST, 0))
        numbers = [listener.getsockname()[1] for listener in held]
    finally:
        for listener in held:
            listener.close()
    return {
        service: ServicePorts(
            grpc=numbers[2 * index],
            metrics=numbers[2 * index + 1],
            web=numbers[-1] if service == "labeling" else None,
            metrics_path=_metrics_path(service),
        )
        for index, service in enumerate(names)
    }


def _names(*, canary: bool) -> tuple[str, ...]:
    return (*SERVICES, *CANARY_PARTS) if canary else SERVICES


def _metrics_path(service: str) -> str:
    return "/stats/prometheus" if service == ENVOY else "/metrics"


def service_command(service: str, flags: Sequence[str]) -> list[str]:
    """How a service is started."""
    module = "policy" if service == POLICY_CANARY else service
    return [sys.executable, "-m", f"services.{module}", *flags]


class Supervisor:
    """The services as child processes. Use it as a context manager."""

    def __init__(
        self,
        home: Path,
        *,
        store: str | None = None,
        ports: Mapping[str, ServicePorts] | None = None,
        arguments: Mapping[str, Mapping[str, str]] | None = None,
        config_files: Mapping[str, Path] | None = None,
        on_event: Callable[[ChildEvent], None] | None = None,
        command: Callable[[str, Sequence[str]], list[str]] = service_command,
    ) -> None:
        """``store`` is a folder or s3://bucket/prefix, by default a folder in the home. ``ports`` also says
        what runs. ``arguments`` holds further flags by service, for example
        {"policy": {"threads": "2"}}.
        """
        self.home = home.absolute()
        place = parse_location(store or self.home / "store")
        self.store = str(place.absolute() if isinstance(place, Path) else place)
        self.ports = dict(ports or default_ports())
        self.targets = {service: self.ports[service].target for service in self.ports}
        self._config_files = dict(config_files or {})
        self._on_event = on_event or (lambda event: None)
        self._command = command
        self._lock = threading.Lock()
        self._children = {
            service: _Child(service=service, arguments=dict((arguments or {}).get(service, {})))
            for service in (*SERVICES, *CANARY_PARTS)
            if service in self.ports
        }
        self._stopping = threading.Event()
        self._monitor: threading.Thread | None = None
        self._home_lock: IO[str] | None = None
        self._tokens: LocalTokens | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, *, timeout_s: float = 300.0, give_up: threading.Event | None = None) -> None:
        """Starts all services and returns when all are healthy and their addresses are recorded.

        Raises FailedPreconditionError HOME_IN_USE, PORT_IN_USE, ENCRYPTION_DIFFERS or ENVOY_MISSING,
        UnavailableError SERVICE_NOT_STARTED with the last words of its log, START_GIVEN_UP when ``give_up``
        is set meanwhile. When it raises, nothing is left running.
        """
        check_encryption(
            [service for service in SERVICES if service in self._children],
            config_files=self._config_files,
            environment=os.environ,
        )
        for folder in (self.home, self.home / "runs", self.home / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self._take_home()
        try:
            self._tokens = make_tokens(self.home)
            for service in end_orphans(self.home):
                self._on_event(ChildEvent(service=service, message="was left running by a killed supervisor"))
            self._check_ports()
            if ENVOY in self._children:
                self._children[ENVOY].fixed_command = self._envoy_command()
            with self._lock:
                for child in self._children.values():
                    self._spawn(child)
            self._wait_until_healthy(timeout_s, give_up or threading.Event())
            write_endpoints(self.home, self.targets)
            write_scrape_targets(
                self.home, {service: ports.metrics_url for service, ports in self.ports.items()}
            )
        except BaseException:
            self.stop()
            raise
        self._monitor = threading.Thread(target=self._watch_children, name="supervisor", daemon=True)
        self._monitor.start()

    def stop(self) -> None:
        """Lets every child drain and returns when all are gone. Safe to call twice."""
        self._stopping.set()
        if self._monitor is not None:
            self._monitor.join()
            self._monitor = None
        if self._home_lock is not None:
            remove_endpoints(self.home)
            remove_scrape_targets(self.home)
        # The trainer first: it saves a checkpoint, and until then it needs the others. The canary's
        # controller too: it would take a policy that ends for a bad one.
        self._terminate(["trainer", CANARY], TRAINER_DRAIN_S)
        self._terminate(list(self._children), DRAIN_S)
        if self._home_lock is not None:
            forget_processes(self.home)
            self._home_lock.close()
            self._home_lock = None

    @property
    def tokens(self) -> LocalTokens:
        """The tokens of this home, once it is started."""
        if self._tokens is None:
            raise RuntimeError("the supervisor was not started")
        return self._tokens

    def set_argument(self, service: str, name: str, value: str) -> None:
        """Changes a flag for the next time this service is started, for example which model it loads."""
        with self._lock:
            self._children[service].arguments[name] = value

    def process_id(self, service: str) -> int | None:
        """The process that runs the service now; None while there is none."""
        with self._lock:
            process = self._children[service].process
            return process.pid if process is not None and process.poll() is None else None

    def restart_count(self, service: str) -> int:
        """How often the service had to be started again."""
        with self._lock:
            return self._children[service].restart_count

    def log_path(self, service: str) -> Path:
        """Where the service's output goes."""
        return self.home / "logs" / f"{service}.log"

    def _take_home(self) -> None:
        self._home_lock = (self.home / LOCK_FILE).open("w")
        try:
            fcntl.flock(self._home_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._home_lock.close()
            self._home_lock = None
            raise FailedPreconditionError(
                f"services already run in {self.home}; stop them or choose another --home",
                reason="HOME_IN_USE",
                home=self.home,
            ) from error

    def _check_ports(self) -> None:
        for service, ports in self.ports.items():
            for number in (ports.grpc, ports.metrics, ports.web):
                if number is None:
                    continue
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        listener.bind((HOST, number))
                    except OSError as error:
                        raise FailedPreconditionError(
                            f"port {number}, wanted for {service}, is in use; end what listens there or use "
                            "--free-ports",
                            reason="PORT_IN_USE",
                            port=number,
                            service=service,
                        ) from error

    def _spawn(self, child: _Child) -> None:
        environment = {
            # The services share the cores: a thread that waits must not spin.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            **os.environ,
        }
        if child.service == "trainer":
            environment[TRAINER_VARIABLE] = self.tokens.service
        if child.service == CANARY:
            environment[CANARY_VARIABLE] = self.tokens.service
        command = child.fixed_command or self._command(child.service, self._flags(child))
        with self.log_path(child.service).open("ab") as log:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C goes to the supervisor alone, which then drains in order
            )
        child.command = tuple(command)
        child.started_at_s = time.monotonic()
        child.restart_at_s = None
        note_processes(
            self.home,
            {
                known.service: StartedProcess(process_id=known.process.pid, command=known.command)
                for known in self._children.values()
                if known.process is not None
            },
        )

    def _envoy_command(self) -> list[str]:
        return prepare_envoy(
            self.home,
            host=HOST,
            listener=self.ports[ENVOY].grpc,
            admin=self.ports[ENVOY].metrics,
            stable=self.ports["policy"].grpc,
            canary=self.ports[POLICY_CANARY].grpc,
        )

    def _flags(self, child: _Child) -> list[str]:
        ports = self.ports[child.service]
        arguments = {"port": str(ports.grpc), "metrics-port": str(ports.metrics)}
        if child.service == "labeling":
            arguments["database"] = f"sqlite:///{self.home / 'labeling.sqlite3'}"
            arguments["tokens-file"] = str(tokens_path(self.home))
            if ports.web is not None:
                arguments["web-port"] = str(ports.web)
        else:
            arguments["store"] = self.store
        if child.service == "trainer":
            arguments["runs"] = str(self.home / "runs")
            arguments["policy-targets"] = json.dumps([self.targets["policy"]])
        if child.service == CANARY:
            for side, service in (("stable", "policy"), ("canary", POLICY_CANARY)):
                arguments[f"{side}-targets"] = json.dumps([self.targets[service]])
                arguments[f"{side}-metrics-urls"] = json.dumps([self.ports[service].metrics_url])
            arguments["platform"] = "static"
            arguments["routes-folder"] = str(envoy_folder(self.home))
            arguments["record-folder"] = str(self.home / "rollouts")
        if child.service in ("trainer", CANARY):
            for other in ("reference", "reward", "labeling"):
                arguments[f"{other}-target"] = self.targets[other]
        arguments.update(child.arguments)
        settings_of = "policy" if child.service == POLICY_CANARY else child.service
        config_file = self._config_files.get(settings_of)
        flags = [] if config_file is None else ["--config", str(config_file)]
        return flags + [part for name, value in arguments.items() for part in (f"--{name}", value)]

    def _wait_until_healthy(self, timeout_s: float, give_up: threading.Event) -> None:
        deadline_s = time.monotonic() + timeout_s
        waiting = list(self._children)
        while waiting:
            for service in list(waiting):
                with self._lock:
                    process = self._children[service].process
                if process is None or process.poll() is not None:
                    raise self._start_error(service, "ended while starting")
                # Envoy looks after its two sides by itself, and may see one of them later than the other.
                tracks = ("stable", "canary") if service == ENVOY else (None,)
                target = self.targets[service]
                if all(check_health(target, timeout_s=1.0, track=t) is Health.SERVING for t in tracks):
                    waiting.remove(service)
            if waiting and time.monotonic() > deadline_s:
                raise self._start_error(waiting[0], f"is not healthy after {timeout_s:.0f} s")
            if waiting and give_up.wait(POLL_S):
                raise FailedPreconditionError("stopped while starting", reason="START_GIVEN_UP")

    def _start_error(self, service: str, what: str) -> UnavailableError:
        path = self.log_path(service)
        return UnavailableError(
            f"the {service} service {what}: {last_words(path)} (log: {path})",
            reason="SERVICE_NOT_STARTED",
            service=service,
        )

    def _watch_children(self) -> None:
        while not self._stopping.wait(POLL_S):
            for child in self._children.values():
                for message in self._look_after(child):
                    self._on_event(ChildEvent(service=child.service, message=message))

    def _look_after(self, child: _Child) -> list[str]:
        """Notices a death and starts the service again when its delay is over; returns what to tell."""
        with self._lock:
            now_s = time.monotonic()
            if child.restart_at_s is None:
                exit_code = child.process.poll() if child.process is not None else None
                if exit_code is None:
                    return []
                lived_s = now_s - child.started_at_s
                if lived_s >= SETTLED_AFTER_S:
                    child.restart_delay_s = FIRST_RESTART_DELAY_S
                child.restart_at_s = now_s + child.restart_delay_s
                wait_s, child.restart_delay_s = (
                    child.restart_delay_s,
                    min(2 * child.restart_delay_s, LAST_RESTART_DELAY_S),
                )
                return [f"{_ending(exit_code)}, starting it again in {wait_s:.1f} s"]
            if now_s < child.restart_at_s:
                return []
            child.restart_count += 1
            self._spawn(child)
            return ["started again"]

    def _terminate(self, services: Sequence[str], timeout_s: float) -> None:
        processes = [
            process
            for service in services
            if service in self._children
            and (process := self._children[service].process) is not None
            and process.poll() is None
        ]
        for process in processes:
            _signal_group(process, signal.SIGTERM)
        deadline_s = time.monotonic() + timeout_s
        for process in processes:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()


def last_words(log: Path) -> str:
    """What the end of a service's log says, for an error message: its last error if it is structured."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        return "it wrote no log"
    if not lines:
        return "its log is empty"
    try:
        entry = json.loads(lines[-1])
    except ValueError:
        return lines[-1]
    if not isinstance(entry, dict):
        return lines[-1]
    return str(entry.get("error") or entry.get("event") or lines[-1])


def _ending(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"ended with code {exit_code}"


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        # It ended by itself between the check and the signal.
        return
