"""A real PostgreSQL server for tests, started from the binaries on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

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
            [*as_nobody, str(binaries / "initdb"), "--no-sync", "-U", "andon", "-A", "trust", "-D", str(data)],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self._folder,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._folder}",
            "max_connections=300",
            f"fsync={'on' if self._durable else 'off'}",
        ]
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [*as_nobody, str(binaries / "postgres"), "-D", str(data)]
            + [part for setting in settings for part in ("-c", setting)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self._folder,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self._dsn("postgres"), connect_timeout=5).close()
                return self
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    self.__exit__(None, None, None)
                    raise
                time.sleep(0.05)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            # setpriv has become postgres. SIGINT ends it and its children, whoever is still connected.
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self) -> str:
        """Make a database and give its SQLAlchemy URL."""
        name = f"andon_{uuid.uuid4().hex}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://andon@127.0.0.1:{self.port}/{name}"

    def _dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=andon dbname={database}"
