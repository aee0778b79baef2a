"""Which tables there are.

Types and constraints that SQLite and PostgreSQL share. The constraints say a second time what the rules
promise: a task has each slot once, a labeler has one lease per task, a lease has one answer. Rows of
``comparisons`` and ``cord_events`` are only ever added. Times are whole microseconds since 1970 in UTC.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()

# Facts about the database itself: "schema_version" and "seed".
settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# The last number given out, by kind. Whoever takes numbers holds the row until the end of the transaction, so
# numbers become visible in their order and a reader's cursor never passes one that is still to come.
counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("last", BigInteger, nullable=False),
)

# What was answered to requests that may be repeated.
requests = Table(
    "requests",
    metadata,
    Column("method", String(64), primary_key=True),
    Column("request_id", String(200), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("response", JSON, nullable=False),
    Column("request_us", BigInteger, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(100), nullable=False, unique=True),
    Column("create_us", BigInteger, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False, index=True),
    Column("document_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("overlap_count", Integer, nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

candidates = Table(
    "candidates",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("position", Integer, primary_key=True),  # the submitter's index
    Column("text", Text, nullable=False),
    Column("source", String(64), nullable=False),
    Column("policy_family", Text),
    Column("policy_version", BigInteger),
    Column("policy_sha256", String(64)),
)

slots = Table(
    "slots",
    metadata,
    Column("task_id", ForeignKey("tasks.id"), primary_key=True),
    Column("number", Integer, primary_key=True),  # 0 .. overlap_count - 1
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("place", Integer, nullable=False),  # of the task on the circle, see assignment.Draws
    Column("lease_id", String(32)),  # the last lease; it holds the slot until free_from_us
    Column("free_from_us", BigInteger),  # may be leased from then on; null once it is answered
)
# Answered slots leave both indices, so that looking for work costs as much as there is work left.
Index(
    "slots_open_in_batch",
    slots.c.batch_id,
    slots.c.place,
    slots.c.task_id,
    slots.c.number,
    sqlite_where=slots.c.free_from_us.is_not(None),
    postgresql_where=slots.c.free_from_us.is_not(None),
)
Index(
    "slots_open",
    slots.c.place,
    slots.c.task_id,
    slots.c.number,
    sqlite_where=slots.c.free_from_us.is_not(None),
    postgresql_where=slots.c.free_from_us.is_not(None),
)

leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("task_id", BigInteger, nullable=False),
    Column("slot_number", Integer, nullable=False),
    Column("labeler_id", String(200), nullable=False),
    Column("shown_order", JSON, nullable=False),  # list of candidate positions, drawn once
    Column("lease_us", BigInteger, nullable=False),
    Column("expire_us", BigInteger, nullable=False),
    Column("is_answered", Boolean, nullable=False),
    ForeignKeyConstraint(["task_id", "slot_number"], ["slots.task_id", "slots.number"]),
    UniqueConstraint("task_id", "labeler_id"),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("lease_id", ForeignKey("leases.id"), nullable=False, unique=True),
    Column("labeler_id", String(200), nullable=False),
    Column("best_position", Integer),  # a choice, or
    Column("tiers", JSON(none_as_null=True)),  # a ranking: list of lists of candidate positions, best first
    Column("confidence", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("shown_order", JSON, nullable=False),
    Column("lease_us", BigInteger, nullable=False),
    Column("answer_us", BigInteger, nullable=False),
    Column("answer_duration_us", BigInteger),
    UniqueConstraint("task_id", "labeler_id"),
    CheckConstraint("(best_position IS NULL) <> (tiers IS NULL)", name="one_decision"),
    Index("comparisons_of_batch", "batch_id", "id"),
)

cord_events = Table(
    "cord_events",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("action", String(16), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("event_us", BigInteger, nullable=False),
)
