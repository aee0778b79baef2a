"""Tasks, leases, comparisons and the cord: the schema before there were people with accounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

metadata = sa.MetaData()

# Facts about the database itself: "schema_version" and "seed".
settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

# The last number given out, by kind. Whoever takes numbers holds the row until the end of the transaction, so
# numbers become visible in their order and a reader's cursor never passes one that is still to come.
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("last", sa.BigInteger, nullable=False),
)

# What was answered to requests that may be repeated.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("method", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(200), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("response", sa.JSON, nullable=False),
    sa.Column("request_us", sa.BigInteger, nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    sa.Column("create_us", sa.BigInteger, nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.ForeignKey("batches.id"), nullable=False, index=True),
    sa.Column("document_id", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("overlap_count", sa.Integer, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
)

candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("task_id", sa.ForeignKey("tasks.id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),  # the submitter's index
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("policy_family", sa.Text),
    sa.Column("policy_version", sa.BigInteger),
    sa.Column("policy_sha256", sa.String(64)),
)

slots = sa.Table(
    "slots",
    metadata,
    sa.Column("task_id", sa.ForeignKey("tasks.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # 0 .. overlap_count - 1
    sa.Column("batch_id", sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("place", sa.Integer, nullable=False),  # of the task on the circle, see assignment.Draws
    sa.Column("lease_id", sa.String(32)),  # the last lease; it holds the slot until free_from_us
    sa.Column("free_from_us", sa.BigInteger),  # may be leased from then on; null once it is answered
)
# Answered slots leave both indices, so that looking for work costs as much as there is work left.
sa.Index(
    "slots_open_in_batch",
    slots.c.batch_id,
    slots.c.place,
    slots.c.task_id,
    slots.c.number,
    sqlite_where=slots.c.free_from_us.is_not(None),
    postgresql_where=slots.c.free_from_us.is_not(None),
)
sa.Index(
    "slots_open",
    slots.c.place,
    slots.c.task_id,
    slots.c.number,
    sqlite_where=slots.c.free_from_us.is_not(None),
    postgresql_where=slots.c.free_from_us.is_not(None),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("task_id", sa.BigInteger, nullable=False),
    sa.Column("slot_number", sa.Integer, nullable=False),
    sa.Column("labeler_id", sa.String(200), nullable=False),
    sa.Column("shown_order", sa.JSON, nullable=False),  # list of candidate positions, drawn once
    sa.Column("lease_us", sa.BigInteger, nullable=False),
    sa.Column("expire_us", sa.BigInteger, nullable=False),
    sa.Column("is_answered", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["task_id", "slot_number"], ["slots.task_id", "slots.number"]),
    sa.UniqueConstraint("task_id", "labeler_id"),
)

comparisons = sa.Table(
    "comparisons",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("task_id", sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("lease_id", sa.ForeignKey("leases.id"), nullable=False, unique=True),
    sa.Column("labeler_id", sa.String(200), nullable=False),
    sa.Column("best_position", sa.Integer),  # a choice, or
    sa.Column("tiers", sa.JSON(none_as_null=True)),  # a ranking
    sa.Column("confidence", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("shown_order", sa.JSON, nullable=False),
    sa.Column("lease_us", sa.BigInteger, nullable=False),
    sa.Column("answer_us", sa.BigInteger, nullable=False),
    sa.Column("answer_duration_us", sa.BigInteger),
    sa.UniqueConstraint("task_id", "labeler_id"),
    sa.CheckConstraint("(best_position IS NULL) <> (tiers IS NULL)", name="one_decision"),
    sa.Index("comparisons_of_batch", "batch_id", "id"),
)

cord_events = sa.Table(
    "cord_events",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("event_us", sa.BigInteger, nullable=False),
)


def upgrade() -> None:
    """Make the tables."""
    metadata.create_all(op.get_bind())
