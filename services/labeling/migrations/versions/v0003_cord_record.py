"""The record of the cord is append-only by the database's own rule, whoever writes to it.

Triggers refuse to change or remove an event, and to add one out of turn: its number must be the last one's
plus one. The latter also closes SQLite's INSERT OR REPLACE, which removes rows without a word to triggers.
Who owns the database can drop the triggers; nobody can by mistake, and no program that only writes rows can.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_SQLITE = (
    """
    CREATE TRIGGER cord_events_unchanged BEFORE UPDATE ON cord_events
    BEGIN SELECT RAISE(ABORT, 'cord_events is append-only'); END
    """,
    """
    CREATE TRIGGER cord_events_kept BEFORE DELETE ON cord_events
    BEGIN SELECT RAISE(ABORT, 'cord_events is append-only'); END
    """,
    """
    CREATE TRIGGER cord_events_in_turn BEFORE INSERT ON cord_events
    WHEN NEW.number IS NOT (SELECT COALESCE(MAX(number), 0) + 1 FROM cord_events)
    BEGIN SELECT RAISE(ABORT, 'cord_events are numbered without gaps'); END
    """,
)
_POSTGRESQL = (
    """
    CREATE FUNCTION cord_events_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'cord_events is append-only' USING ERRCODE = 'integrity_constraint_violation'; END
    $$
    """,
    """
    CREATE FUNCTION cord_events_check_turn() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF NEW.number IS DISTINCT FROM (SELECT COALESCE(MAX(number), 0) + 1 FROM cord_events) THEN
        RAISE EXCEPTION 'cord_events are numbered without gaps'
          USING ERRCODE = 'integrity_constraint_violation';
      END IF;
      RETURN NEW;
    END
    $$
    """,
    """
    CREATE TRIGGER cord_events_unchanged BEFORE UPDATE OR DELETE ON cord_events
    FOR EACH ROW EXECUTE FUNCTION cord_events_refuse()
    """,
    """
    CREATE TRIGGER cord_events_kept BEFORE TRUNCATE ON cord_events
    FOR EACH STATEMENT EXECUTE FUNCTION cord_events_refuse()
    """,
    """
    CREATE TRIGGER cord_events_in_turn BEFORE INSERT ON cord_events
    FOR EACH ROW EXECUTE FUNCTION cord_events_check_turn()
    """,
)


def upgrade() -> None:
    """Make the triggers."""
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
