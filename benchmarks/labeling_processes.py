"""Decides how a benchmark runs the labeling service: as an operator does, in processes of its own.

The service is `python -m services.labeling` on SQLite or on a PostgreSQL that waits for the disk at each
commit. Memory is the kernel's own high-water mark of a process, so no peak is missed between two looks.
"""

from __future__ import annotations

import json
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ENGINES = ("sqlite", "postgresql")
SERVICE_TOKEN_NAME = "service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Somebody who may call the service."""

    name: str
    role: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelingProcess:
    """A labeling service that is ready to answer."""

    target: str
    web_url: str
    database_url: str
    pid: int
    database_pid: int | None  # None where the service is its own database
    holders: Mapping[str, Holder]  # by name

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds since their start of the service and of the database with all its processes."""
        used = {"service": _cpu_seconds_of_tree(self.pid)}
        if self.database_pid is not None:
            used["database"] = _cpu_seconds_of_tree(self.database_pid)
        return used


def holders(*names: str, role: str) -> list[Holder]:
    """Holders of new tokens."""
    return [Holder(name=name, role=role, token=secrets.token_urlsafe(24)) for name in names]


@contextmanager
def labeling_process(
    engine: str, *, callers: Sequence[Holder] = (), flags: Sequence[str] = ()
) -> Iterator[LabelingProcess]:
    """Start the service on an empty database; end both afterwards. ``callers`` come beside one with the role
    of Andon's own services.
    """
    with TemporaryDirectory(prefix="andon-benchmark-") as name:
        folder = Path(name)
        if engine == "sqlite":
            with _service(
                f"sqlite:///{folder / 'labeling.sqlite3'}", None, folder, callers, flags
            ) as running:
                yield running
            return
        with (
            PostgresServer(durable=True) as server,
            _service(server.new_database(), server.pid, folder, callers, flags) as running,
        ):
            yield running


@contextmanager
def _service(
    database_url: str,
    database_pid: int | None,
    folder: Path,
    callers: Sequence[Holder],
    flags: Sequence[str],
) -> Iterator[LabelingProcess]:
    everybody = [*holders(SERVICE_TOKEN_NAME, role="service"), *callers]
    tokens = folder / "tokens.json"
    tokens.touch(mode=0o600)
    tokens.write_text(
        json.dumps([{"name": one.name, "role": one.role, "token": one.token} for one in everybody])
    )
    log = folder / "labeling.log"
    command = [
        *(sys.executable, "-m", "services.labeling", "--port=0", "--metrics-port=0", "--web-port=0"),
        *(f"--database={database_url}", f"--tokens-file={tokens}", *flags),
    ]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("ANDON_READY "):
                raise SystemExit(f"the labeling service did not start:\n{log.read_text()[-2000:]}")
            facts = json.loads(line.removeprefix("ANDON_READY "))
            yield LabelingProcess(
                target=f"127.0.0.1:{facts['port']}",
                web_url=facts["web_url"],
                database_url=database_url,
                pid=process.pid,
                database_pid=database_pid,
                holders={one.name: one for one in everybody},
            )
        finally:
            process.terminate()


def peak_memory_bytes(pid: int) -> int:
    """The most memory that a process has had at a time since its start or :func:`forget_peak_memory`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the kernel tells nothing of the memory of process {pid}")


def forget_peak_memory(pid: int) -> None:
    """Let the high-water mark begin at what the process has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def write_results(name: str, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write what was measured, and on what, to ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    path.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    return path


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows with the same keys as a Markdown table."""
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "---|" * len(names))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in names) + " |", flush=True)


def _cpu_seconds_of_tree(pid: int) -> float:
    process = psutil.Process(pid)
    own = process.cpu_times()
    # Children that have ended are counted with their parent, the living ones by themselves.
    total: float = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total
