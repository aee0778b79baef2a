"""Projects, purposes, ratings, corrections, accounts: what a site with people needs.

All earlier batches become part of the project "default", their tasks ordinary comparisons, their answers
first answers that came over gRPC. Nothing is lost. The tables stand here as this revision made them, whatever
became of them later.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# PostgreSQL's own names of unnamed constraints; SQLite is told to use them for finding its own.
_NAMES = {"uq": "%(table_name)s_%(column_0_N_name)s_key"}
_DEFAULT_PROJECT = 1

metadata = sa.MetaData()
# What the new tables refer to.
for _table in ("batches", "tasks"):
    sa.Table(_table, metadata, sa.Column("id", sa.BigInteger, primary_key=True))
sa.Table("leases", metadata, sa.Column("id", sa.String(32), primary_key=True))

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("instructions_version", sa.Integer, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
)

instructions = sa.Table(
    "instructions",
    metadata,
    sa.Column("project_id", sa.ForeignKey("projects.id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("author", sa.String(200), nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
)

instruction_readings = sa.Table(
    "instruction_readings",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("labeler_id", sa.String(200), primary_key=True),
    sa.Column("read_us", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["project_id", "version"], ["instructions.project_id", "instructions.version"]),
)

drafts = sa.Table(
    "drafts",
    metadata,
    sa.Column("lease_id", sa.ForeignKey("leases.id"), primary_key=True),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("update_us", sa.BigInteger, nullable=False),
)

skips = sa.Table(
    "skips",
    metadata,
    sa.Column("lease_id", sa.ForeignKey("leases.id"), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("skip_us", sa.BigInteger, nullable=False),
)

demonstrations = sa.Table(
    "demonstrations",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.ForeignKey("batches.id"), nullable=False),
    sa.Column("task_id", sa.ForeignKey("tasks.id"), nullable=False, index=True),
    sa.Column("lease_id", sa.ForeignKey("leases.id"), nullable=False),
    sa.Column("labeler_id", sa.String(200), nullable=False),
    sa.Column("supersedes_id", sa.ForeignKey("demonstrations.id"), unique=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("lease_us", sa.BigInteger, nullable=False),
    sa.Column("answer_us", sa.BigInteger, nullable=False),
    sa.Column("answer_duration_us", sa.BigInteger),
    sa.Column("telemetry", sa.JSON(none_as_null=True)),
    sa.Index("demonstrations_of_batch", "batch_id", "id"),
)

messages = sa.Table(
    "messages",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.ForeignKey("tasks.id"), nullable=False),
    sa.Column("labeler_id", sa.String(200), nullable=False),
    sa.Column("author", sa.String(200), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Index("messages_of_thread", "labeler_id", "task_id", "id"),
)

message_readings = sa.Table(
    "message_readings",
    metadata,
    sa.Column("task_id", sa.BigInteger, primary_key=True),
    sa.Column("labeler_id", sa.String(200), primary_key=True),
    sa.Column("reader", sa.String(200), primary_key=True),
    sa.Column("last_message_id", sa.BigInteger, nullable=False),
)

admissions = sa.Table(
    "admissions",
    metadata,
    sa.Column("project_id", sa.ForeignKey("projects.id"), primary_key=True),
    sa.Column("labeler_id", sa.String(200), primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("screening_task_ids", sa.JSON, nullable=False),
    sa.Column("num_answered", sa.Integer, nullable=False),
    sa.Column("num_right", sa.Integer, nullable=False),
    sa.Column("mean_item_s", sa.Float),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("decide_us", sa.BigInteger),
    sa.Column("decided_by", sa.String(200), nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password_hash", sa.Text),
    sa.Column("oidc_issuer", sa.String(500)),
    sa.Column("oidc_subject", sa.String(500)),
    sa.Column("email", sa.String(320)),
    sa.Column("is_closed", sa.Boolean, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("oidc_issuer", "oidc_subject", name="one_account_per_subject"),
)

invitations = sa.Table(
    "invitations",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("user_name", sa.String(200), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Column("expire_us", sa.BigInteger, nullable=False),
    sa.Column("used_us", sa.BigInteger),
    sa.Column("used_by", sa.String(200)),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("user_name", sa.ForeignKey("users.name"), nullable=False, index=True),
    sa.Column("csrf_token", sa.String(64), nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Column("seen_us", sa.BigInteger, nullable=False),
    sa.Column("expire_us", sa.BigInteger, nullable=False),
)

api_tokens = sa.Table(
    "api_tokens",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False, index=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_by", sa.String(200), nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Column("expire_us", sa.BigInteger, nullable=False),
    sa.Column("revoke_us", sa.BigInteger),
)

sign_in_failures = sa.Table(
    "sign_in_failures",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("num_failures", sa.Integer, nullable=False),
    sa.Column("window_start_us", sa.BigInteger, nullable=False),
)

audit_events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("subject", sa.String(400), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("event_us", sa.BigInteger, nullable=False),
)

_NEW_TABLES = [
    projects,
    instructions,
    instruction_readings,
    drafts,
    skips,
    demonstrations,
    messages,
    message_readings,
    admissions,
    users,
    invitations,
    sessions,
    api_tokens,
    sign_in_failures,
    audit_events,
]


def upgrade() -> None:
    """Widen the tables and fill them in."""
    metadata.create_all(op.get_bind(), tables=_NEW_TABLES)
    _make_default_project()
    _widen_batches()
    _widen_tasks_and_slots()
    _widen_leases()
    _widen_comparisons()
    op.execute("DELETE FROM settings WHERE name = 'schema_version'")


def _make_default_project() -> None:
    op.bulk_insert(
        projects,
        [
            {
                "id": _DEFAULT_PROJECT,
                "name": "default",
                "settings": {},
                "instructions_version": 0,
                "create_us": time.time_ns() // 1000,
            }
        ],
    )
    counters = sa.table("counters", sa.column("name", sa.String), sa.column("last", sa.BigInteger))
    op.bulk_insert(counters, [{"name": "project", "last": _DEFAULT_PROJECT}])


def _widen_batches() -> None:
    with op.batch_alter_table("batches") as batch:
        batch.add_column(
            sa.Column("project_id", sa.BigInteger, nullable=False, server_default=str(_DEFAULT_PROJECT))
        )
        batch.add_column(sa.Column("settings", sa.JSON, nullable=False, server_default="{}"))
        batch.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("is_closed", sa.Boolean, nullable=False, server_default=sa.false()))
        batch.create_foreign_key("batches_project_id_fkey", "projects", ["project_id"], ["id"])
    op.create_index("ix_batches_project_id", "batches", ["project_id"])


def _widen_tasks_and_slots() -> None:
    with op.batch_alter_table("tasks") as batch:
        batch.add_column(sa.Column("kind", sa.String(16), nullable=False, server_default="compare"))
        batch.add_column(sa.Column("purpose", sa.String(16), nullable=False, server_default="ordinary"))
        batch.add_column(sa.Column("place", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("expected", sa.JSON))
        batch.add_column(sa.Column("explanation", sa.Text, nullable=False, server_default=""))
        batch.add_column(sa.Column("content_sha256", sa.String(64)))
    op.create_index("tasks_by_purpose", "tasks", ["purpose", "batch_id"])
    op.create_index("tasks_by_content", "tasks", ["batch_id", "content_sha256"])
    op.execute(
        "UPDATE tasks SET place ="
        " (SELECT place FROM slots WHERE slots.task_id = tasks.id AND slots.number = 0)"
    )
    op.drop_index("slots_open_in_batch", "slots")
    op.drop_index("slots_open", "slots")
    with op.batch_alter_table("slots") as batch:
        batch.add_column(sa.Column("purpose", sa.String(16), nullable=False, server_default="ordinary"))
    is_open = sa.text("free_from_us IS NOT NULL")
    by_place = ["batch_id", "purpose", "place", "task_id", "number"]
    op.create_index("slots_open_in_batch", "slots", by_place, sqlite_where=is_open, postgresql_where=is_open)
    newest: list[str | sa.TextClause] = ["batch_id", "purpose", sa.text("task_id DESC"), "number"]
    op.create_index("slots_newest_in_batch", "slots", newest, sqlite_where=is_open, postgresql_where=is_open)


def _widen_leases() -> None:
    with op.batch_alter_table("leases", naming_convention=_NAMES) as batch:
        batch.drop_constraint("leases_task_id_labeler_id_key", type_="unique")
        batch.add_column(sa.Column("round", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("is_skipped", sa.Boolean, nullable=False, server_default=sa.false()))
        batch.create_unique_constraint("one_lease_per_round", ["task_id", "labeler_id", "round"])
    op.create_index("leases_of_labeler", "leases", ["labeler_id", "task_id"])


def _widen_comparisons() -> None:
    with op.batch_alter_table("comparisons", naming_convention=_NAMES) as batch:
        batch.drop_constraint("comparisons_lease_id_key", type_="unique")
        batch.drop_constraint("comparisons_task_id_labeler_id_key", type_="unique")
        batch.drop_constraint("one_decision", type_="check")
        batch.alter_column("lease_id", existing_type=sa.String(32), nullable=True)
        batch.add_column(sa.Column("round", sa.Integer, nullable=False, server_default="0"))
        batch.add_column(sa.Column("supersedes_id", sa.BigInteger))
        batch.add_column(sa.Column("origin", sa.String(16), nullable=False, server_default="grpc"))
        batch.add_column(sa.Column("verdict", sa.Boolean))
        batch.add_column(sa.Column("preference", sa.Integer))
        batch.add_column(sa.Column("ratings", sa.JSON))
        batch.add_column(sa.Column("telemetry", sa.JSON))
        batch.create_check_constraint(
            "one_decision",
            "(CASE WHEN best_position IS NULL THEN 0 ELSE 1 END)"
            " + (CASE WHEN tiers IS NULL THEN 0 ELSE 1 END)"
            " + (CASE WHEN verdict IS NULL THEN 0 ELSE 1 END) = 1",
        )
        batch.create_foreign_key("comparisons_supersedes_id_fkey", "comparisons", ["supersedes_id"], ["id"])
        batch.create_unique_constraint("comparisons_supersedes_id_key", ["supersedes_id"])
    op.create_index("comparisons_of_labeler", "comparisons", ["labeler_id", "id"])
    is_first = sa.text("supersedes_id IS NULL")
    op.create_index(
        "one_answer_per_round",
        "comparisons",
        ["task_id", "labeler_id", "round"],
        unique=True,
        sqlite_where=is_first,
        postgresql_where=is_first,
    )
