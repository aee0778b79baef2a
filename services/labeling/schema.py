"""Which tables there are.

Types and constraints that SQLite and PostgreSQL share. The constraints say a second time what the rules
promise: a task has each slot once, a labeler has one lease per task and round, an answer is corrected at most
once. Rows of ``comparisons``, ``demonstrations``, ``messages``, ``cord_events`` and ``audit_events`` are only
ever added. Times are whole microseconds since 1970 in UTC. How a database of an earlier version comes here is
told by ``migrations``, which a test compares with this module.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
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

metadata = MetaData()

# Facts about the database itself: "seed".
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

projects = Table(
    "projects",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(100), nullable=False, unique=True),
    Column("settings", JSON, nullable=False),  # see projects.ProjectSettings
    Column("instructions_version", Integer, nullable=False),  # 0 while there are none
    Column("create_us", BigInteger, nullable=False),
)

instructions = Table(
    "instructions",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("version", Integer, primary_key=True),  # from 1
    Column("text", Text, nullable=False),
    Column("author", String(200), nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

instruction_readings = Table(
    "instruction_readings",
    metadata,
    Column("project_id", BigInteger, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("labeler_id", String(200), primary_key=True),
    Column("read_us", BigInteger, nullable=False),
    ForeignKeyConstraint(["project_id", "version"], ["instructions.project_id", "instructions.version"]),
)

batches = Table(
    "batches",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("settings", JSON, nullable=False),  # see projects.BatchSettings, without the two below
    Column("priority", Integer, nullable=False),
    Column("is_closed", Boolean, nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False, index=True),
    Column("document_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("overlap_count", Integer, nullable=False),  # 0 for a task that everybody answers
    Column("kind", String(16), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("place", Integer, nullable=False),  # on the circle, see assignment.Draws
    Column("expected", JSON(none_as_null=True)),  # tiers, where the right answer is known
    Column("explanation", Text, nullable=False),
    Column("content_sha256", String(64)),  # of an imported task, by which its further answers find it
    Column("create_us", BigInteger, nullable=False),
    Index("tasks_by_purpose", "purpose", "batch_id"),
    Index("tasks_by_content", "batch_id", "content_sha256"),
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
    Column("purpose", String(16), nullable=False),  # of the task, or "repeat"
    Column("place", Integer, nullable=False),  # of the task
    Column("lease_id", String(32)),  # the last lease; it holds the slot until free_from_us
    Column("free_from_us", BigInteger),  # may be leased from then on; null once it is answered
)
# Answered slots leave the indices, so that looking for work costs as much as there is work left.
Index(
    "slots_open_in_batch",
    slots.c.batch_id,
    slots.c.purpose,
    slots.c.place,
    slots.c.task_id,
    slots.c.number,
    sqlite_where=slots.c.free_from_us.is_not(None),
    postgresql_where=slots.c.free_from_us.is_not(None),
)
Index(
    "slots_newest_in_batch",  # for batches that are answered while the policy changes
    slots.c.batch_id,
    slots.c.purpose,
    slots.c.task_id.desc(),
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
    Column("round", Integer, nullable=False),  # 0, and 1 and more where a labeler is asked again
    Column("shown_order", JSON, nullable=False),  # list of candidate positions, drawn once
    Column("lease_us", BigInteger, nullable=False),
    Column("expire_us", BigInteger, nullable=False),
    Column("is_answered", Boolean, nullable=False),
    Column("is_skipped", Boolean, nullable=False),
    ForeignKeyConstraint(["task_id", "slot_number"], ["slots.task_id", "slots.number"]),
    UniqueConstraint("task_id", "labeler_id", "round", name="one_lease_per_round"),
    Index("leases_of_labeler", "labeler_id", "task_id"),
)

# Half-finished answers, by lease; the last one wins.
drafts = Table(
    "drafts",
    metadata,
    Column("lease_id", ForeignKey("leases.id"), primary_key=True),
    Column("content", JSON, nullable=False),  # as the page wrote it
    Column("revision", BigInteger, nullable=False),  # the page's own count; an older one is not taken
    Column("update_us", BigInteger, nullable=False),
)

skips = Table(
    "skips",
    metadata,
    Column("lease_id", ForeignKey("leases.id"), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("skip_us", BigInteger, nullable=False),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("lease_id", ForeignKey("leases.id")),  # null for imported ones
    Column("labeler_id", String(200), nullable=False),
    Column("round", Integer, nullable=False),
    Column("supersedes_id", ForeignKey("comparisons.id"), unique=True),  # the one that this one corrects
    Column("origin", String(16), nullable=False),  # "site", "grpc" or "import"
    Column("best_position", Integer),  # a choice, or
    Column("tiers", JSON(none_as_null=True)),  # a ranking: list of lists of candidate positions, or
    Column("verdict", Boolean),  # yes or no to the one candidate
    Column("preference", Integer),  # pairs: 1 (position 0 far better) .. 9 (position 1 far better)
    Column("confidence", Integer, nullable=False),
    Column("ratings", JSON(none_as_null=True)),  # list by candidate position
    Column("note", Text, nullable=False),
    Column("shown_order", JSON, nullable=False),
    Column("lease_us", BigInteger, nullable=False),
    Column("answer_us", BigInteger, nullable=False),
    Column("answer_duration_us", BigInteger),
    Column("telemetry", JSON(none_as_null=True)),
    CheckConstraint(
        "(CASE WHEN best_position IS NULL THEN 0 ELSE 1 END)"
        " + (CASE WHEN tiers IS NULL THEN 0 ELSE 1 END)"
        " + (CASE WHEN verdict IS NULL THEN 0 ELSE 1 END) = 1",
        name="one_decision",
    ),
    Index("comparisons_of_batch", "batch_id", "id"),
    Index("comparisons_of_labeler", "labeler_id", "id"),
)
Index(
    "one_answer_per_round",
    comparisons.c.task_id,
    comparisons.c.labeler_id,
    comparisons.c.round,
    unique=True,
    sqlite_where=comparisons.c.supersedes_id.is_(None),
    postgresql_where=comparisons.c.supersedes_id.is_(None),
)

# Texts that people wrote or edited.
demonstrations = Table(
    "demonstrations",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("batch_id", ForeignKey("batches.id"), nullable=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("lease_id", ForeignKey("leases.id"), nullable=False),
    Column("labeler_id", String(200), nullable=False),
    Column("supersedes_id", ForeignKey("demonstrations.id"), unique=True),
    Column("text", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("lease_us", BigInteger, nullable=False),
    Column("answer_us", BigInteger, nullable=False),
    Column("answer_duration_us", BigInteger),
    Column("telemetry", JSON(none_as_null=True)),
    Index("demonstrations_of_batch", "batch_id", "id"),
)

# What researchers and one labeler say to each other about one task.
messages = Table(
    "messages",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("labeler_id", String(200), nullable=False),  # the labeler whose thread it is
    Column("author", String(200), nullable=False),
    Column("text", Text, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Index("messages_of_thread", "labeler_id", "task_id", "id"),
)

message_readings = Table(
    "message_readings",
    metadata,
    Column("task_id", BigInteger, primary_key=True),
    Column("labeler_id", String(200), primary_key=True),  # of the thread
    Column("reader", String(200), primary_key=True),
    Column("last_message_id", BigInteger, nullable=False),
)

# How a labeler came into a project, one row per attempt.
admissions = Table(
    "admissions",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("labeler_id", String(200), primary_key=True),
    Column("attempt", Integer, primary_key=True),  # from 1
    Column("state", String(16), nullable=False),  # "training", "screening", "admitted" or "failed"
    Column("screening_task_ids", JSON, nullable=False),
    Column("num_answered", Integer, nullable=False),
    Column("num_right", Integer, nullable=False),
    Column("mean_item_s", Float),
    Column("start_us", BigInteger, nullable=False),
    Column("decide_us", BigInteger),
    Column("decided_by", String(200), nullable=False),  # "rule", or the researcher who decided otherwise
)

users = Table(
    "users",
    metadata,
    Column("name", String(200), primary_key=True),  # the labeler_id of their answers
    Column("role", String(16), nullable=False),
    Column("password_hash", Text),  # null for those who sign in elsewhere
    Column("oidc_issuer", String(500)),
    Column("oidc_subject", String(500)),
    Column("email", String(320)),
    Column("is_closed", Boolean, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    UniqueConstraint("oidc_issuer", "oidc_subject", name="one_account_per_subject"),
)

# Of secrets only the SHA-256 is kept.
invitations = Table(
    "invitations",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("user_name", String(200), nullable=False),  # empty: the invited person chooses
    Column("created_by", String(200), nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Column("expire_us", BigInteger, nullable=False),
    Column("used_us", BigInteger),
    Column("used_by", String(200)),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("user_name", ForeignKey("users.name"), nullable=False, index=True),
    Column("csrf_token", String(64), nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Column("seen_us", BigInteger, nullable=False),
    Column("expire_us", BigInteger, nullable=False),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("name", String(200), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Column("expire_us", BigInteger, nullable=False),
    Column("revoke_us", BigInteger),
)

# Failed sign-ins by account and by address, see accounts.
sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("num_failures", Integer, nullable=False),
    Column("window_start_us", BigInteger, nullable=False),
)

# What researchers and admins changed.
audit_events = Table(
    "audit_events",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(400), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("event_us", BigInteger, nullable=False),
)

# Triggers of the migration 0003 refuse to change or remove a row and one whose number is out of turn. A later
# migration that rebuilds the table (SQLite knows no other way to alter one) has to make them again.
cord_events = Table(
    "cord_events",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("action", String(16), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("event_us", BigInteger, nullable=False),
)
