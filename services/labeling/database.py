"""How this service talks to its database: engine, transactions, and what a failure means.

The stores hand functions of a connection to :meth:`Database.read` and :meth:`Database.write`. A write has
either reached the disk when it returns, or it raises; a database that is locked, full or gone raises
:class:`DatabaseUnavailableError`, which callers may repeat. All that is special to SQLite stands at the
end.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from services.labeling import migrations, schema
from services.labeling.errors import DatabaseUnavailableError

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_COUNTERS = (
    "project",
    "batch",
    "task",
    "comparison",
    "demonstration",
    "message",
    "cord_event",
    "audit_event",
)
_WRITES = "andon_writes"
_MAX_ATTEMPTS = 5
_POOL_SIZE = 16  # at least as many as there are threads that read and write
# Made once: every write runs them, and making a statement costs more than running it.
_TAKE_NUMBERS = (
    sa.update(schema.counters)
    .where(schema.counters.c.name == sa.bindparam("counter"))
    .values(last=schema.counters.c.last + sa.bindparam("count", type_=sa.BigInteger))
    .returning(schema.counters.c.last)
)
_LOCK = sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger)))
_MIGRATION_LOCK = 0x416E646F6E  # "Andon": two services that start at once migrate one after the other


class Database:
    """An engine with transactions. Usable from several threads."""

    def __init__(
        self,
        url: str,
        *,
        new_seed: Callable[[], str],
        lock_wait_s: float = 5.0,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Name the database by its SQLAlchemy URL; nothing is touched before :meth:`open`.

        ``new_seed`` is asked once in a database's life, when it is empty. ``lock_wait_s`` is how long a
        write waits for other processes. ``on_failure`` hears of every failed transaction.
        """
        self._on_failure = on_failure
        self.engine = _create_engine(url, lock_wait_s=lock_wait_s)
        # SQLite has one writer at a time; inside one process a lock queues better than its polling.
        self._write_turn: contextlib.AbstractContextManager[object] = (
            threading.Lock() if self.engine.dialect.name == "sqlite" else contextlib.nullcontext()
        )
        self._new_seed = new_seed
        self._seed: str | None = None

    def open(self) -> None:
        """Make the tables of an empty database, and bring those of an earlier version to the present one.

        Raises FailedPreconditionError SCHEMA_VERSION for a database that a newer program has made.
        """
        with self._failures_translated(), self._write_turn, self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                # A table that is rebuilt is dropped first; SQLite obeys this only outside of transactions.
                _sqlite_connection(connection).execute("PRAGMA foreign_keys = OFF")
            connection = connection.execution_options(**{_WRITES: True})
            with connection.begin():
                if self.engine.dialect.name == "postgresql":
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                found, now = migrations.upgrade(connection)
                if found != now:
                    _log.info("database_migrated", found=found, now=now)
                self._seed = _prepare(connection, self._new_seed)
            if self.engine.dialect.name == "sqlite":
                _sqlite_connection(connection).execute("PRAGMA foreign_keys = ON")

    @property
    def seed(self) -> str:
        """From which all orders are drawn; it never changes in a database's life."""
        if self._seed is None:
            raise RuntimeError("the database is not open")
        return self._seed

    @property
    def max_writers(self) -> int:
        """How many threads can write at the same time to any use."""
        return 1 if self.engine.dialect.name == "sqlite" else 8

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` on one consistent view of the database."""
        with self._failures_translated():
            return self._repeated(lambda: self._run(work, writes=False))

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` in one transaction that is on disk when this returns, or leaves no trace.

        Where another writer was faster, it is run again: it may only do what the transaction undoes.
        """
        with self._failures_translated():
            return self._repeated(lambda: self._run(work, writes=True))

    def _repeated(self, run: Callable[[], T]) -> T:
        for _attempt in range(_MAX_ATTEMPTS - 1):
            try:
                return run()
            except sa.exc.DBAPIError as error:
                if not _lost_a_race(error):
                    raise
            except _ConnectionLostError:
                pass  # the pool has thrown away all connections of that age; the next one is new
        try:
            return run()
        except _ConnectionLostError as lost:
            raise lost.error from None

    def _run(self, work: Callable[[sa.Connection], T], *, writes: bool) -> T:
        with self._write_turn if writes else contextlib.nullcontext(), self.engine.connect() as connection:
            connection = connection.execution_options(**{_WRITES: writes})
            with connection.begin():
                try:
                    return work(connection)
                except sa.exc.DBAPIError as error:
                    if error.connection_invalidated:
                        raise _ConnectionLostError(error) from error
                    raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def _failures_translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.ProgrammingError, sa.exc.DataError, sa.exc.NotSupportedError):
            raise  # a defect of ours; repeating would not help
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            # An IntegrityError that outlasts its repetitions is a defect, but not one that a caller may see.
            self._on_failure()
            _log.warning(
                "database_failed", kind=type(error).__name__, error=str(getattr(error, "orig", error))
            )
            raise DatabaseUnavailableError() from error


class _ConnectionLostError(Exception):
    """The server was gone before the commit, so nothing has happened."""

    def __init__(self, error: sa.exc.DBAPIError) -> None:
        super().__init__(str(error.orig))
        self.error = error


def _lost_a_race(error: sa.exc.DBAPIError) -> bool:
    """Whether two writers made the same row, or waited for each other; whoever repeats sees the winner's."""
    state = getattr(error.orig, "sqlstate", None)  # PostgreSQL's: deadlock_detected, serialization_failure
    return isinstance(error, sa.exc.IntegrityError) or state in ("40P01", "40001")


def take_numbers(connection: sa.Connection, name: str, count: int) -> range:
    """The next ``count`` numbers of a counter, from 1, without gaps, in the order of commits."""
    last = connection.execute(_TAKE_NUMBERS, {"counter": name, "count": count}).scalar_one()
    return range(last - count + 1, last + 1)


def last_number(connection: sa.Connection, name: str) -> int:
    """The last number that a counter gave out, 0 for none."""
    counter = schema.counters
    return int(connection.execute(sa.select(counter.c.last).where(counter.c.name == name)).scalar_one())


def lock_name(connection: sa.Connection, *names: str) -> None:
    """Let nobody else who locks the same names go on before the end of this transaction.

    SQLite has one writer at a time, so there is nothing to do there.
    """
    if connection.dialect.name == "postgresql":
        digest = hashlib.blake2b("\n".join(names).encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big", signed=True)
        connection.execute(_LOCK, {"number": number})


def parse_url(url: str) -> sa.URL:
    """Read a SQLAlchemy URL. Raises ValueError for one that cannot keep what is acknowledged."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise ValueError("not a SQLAlchemy URL, such as sqlite:///folder/file.sqlite3") from error
    if parsed.get_backend_name() == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        raise ValueError(f"{parsed.get_backend_name()} is not supported; use PostgreSQL or SQLite")
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("SQLite in memory would lose acknowledged answers; name a file")
    return parsed


def _prepare(connection: sa.Connection, new_seed: Callable[[], str]) -> str:
    """Give a new database its seed and its counters. Returns the seed."""
    known = set(connection.execute(sa.select(schema.counters.c.name)).scalars())
    missing = [name for name in _COUNTERS if name not in known]
    if missing:
        connection.execute(sa.insert(schema.counters), [{"name": name, "last": 0} for name in missing])
    settings = schema.settings
    seed: str | None = connection.execute(
        sa.select(settings.c.value).where(settings.c.name == "seed")
    ).scalar_one_or_none()
    if seed is None:
        seed = new_seed()
        connection.execute(sa.insert(settings).values(name="seed", value=seed))
    return seed


def _create_engine(url: str, *, lock_wait_s: float) -> sa.Engine:
    # Parameters are hidden from errors, and so from logs: they are people's texts and hashes of secrets.
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(
            parsed,
            hide_parameters=True,
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_SIZE,
            # A write that waits for a lock gives up as it does on SQLite, and the caller repeats.
            connect_args={"options": f"-c lock_timeout={round(lock_wait_s * 1000)}"},
        )
    Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
    # autocommit leaves BEGIN to us, see _begin_sqlite.
    engine = sa.create_engine(
        parsed, hide_parameters=True, connect_args={"timeout": lock_wait_s, "isolation_level": None}
    )
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(
    connection: sqlite3.Connection, _record: Any
) -> None:  # Any: SQLAlchemy's pool record, unused
    connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
    connection.execute(
        "PRAGMA synchronous = FULL"
    )  # a commit returns when it is on disk, also against power loss
    connection.execute("PRAGMA foreign_keys = ON")


def _sqlite_connection(connection: sa.Connection) -> sqlite3.Connection:
    found = connection.connection.driver_connection
    if not isinstance(found, sqlite3.Connection):
        raise TypeError(f"{type(found)} is no SQLite connection")
    return found


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that starts reading and then writes can fail with "locked" whatever the time-out; so
    # writers take the lock at the start.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
