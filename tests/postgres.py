"""A real PostgreSQL server for tests, started from the binaries on this machine."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import psycopg

from tests.ports import free_port

START_TIMEOUT_S = 60


def find_binaries() -> Path | None:
    """The folder with initdb and postgres, None where PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgresServer:
    """Serves on a free loopback port inside ``with``; every database is new and empty."""

    def __init__(self, *, durable: bool = False) -> None:
        """``durable`` waits for the disk at each commit, as in production; else it does not."""
        self._durable = durable

    def __enter__(self) -> Self:
        binaries = find_binaries()
        if binaries is None:
            raise FileNotFoundError("PostgreSQL is not installed")
        self._folder = Path(tempfile.mkdtemp(prefix="andon-postgres-"))
        data = self._folder / "data"
        as_nobody: list[str] = []
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self._folder, "nobody", "nogroup")
            as_nobody = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
        subprocess.run(
            [
                *as_nobody,
                str(binaries / "initdb"),
                "--no-sync",
                "-U",
                "andon",
                "-A",
                "trust",
                "-D",
                str(data),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
        )
        self.port = free_port()
        settings = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._folder}",
            "max_connections=300",
            f"fsync={'on' if self._durable else 'off'}",
        ]
        self._command = [*as_nobody, str(binaries / "postgres"), "-D", str(data)]
        self._command += [part for setting in settings for part in ("-c", setting)]
        self._log = (self._folder / "log").open("wb")
        self.start()
        return self

    def start(self) -> None:
        """Start the server and wait until it answers; also after :meth:`kill`, on the same databases."""
        self._process = subprocess.Popen(
            self._command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self._folder,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self._dsn("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    self.__exit__(None, None, None)
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        """End the server and all its processes at once, without a chance to finish anything."""
        # Stopped first, so that it starts no further process; each of its processes leads its own group.
        self._process.send_signal(signal.SIGSTOP)
        watched = select.poll()
        handles = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            handles.append(os.pidfd_open(process.pid))
            watched.register(handles[-1], select.POLLIN)
            process.kill()
        self._process.kill()
        self._process.wait()
        # The next server waits for nobody who still has this one's memory. Orphans may stay zombies for a
        # while, so their ends are heard of rather than their disappearance.
        left = set(handles)
        while left:
            for handle, _event in watched.poll():
                watched.unregister(handle)
                os.close(handle)
                left.remove(handle)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            # setpriv has become postgres. SIGQUIT ends it and its children, whoever is still connected, and
            # writes nothing down, for nobody reads it again.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Of the first of its processes."""
        return self._process.pid

    def new_database(self) -> str:
        """Make a database and give its SQLAlchemy URL."""
        name = f"andon_{uuid.uuid4().hex}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://andon@127.0.0.1:{self.port}/{name}"

    def _dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=andon dbname={database}"
