"""Databases are made by migrations, from nothing and from the version before, on both engines."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.labeling import schema
from services.labeling.database import Database
from services.labeling.export import ExportFilter
from services.labeling.migrations.versions import v0001_first
from services.labeling.store import LabelingStore


def open_database(url: str) -> Database:
    database = Database(url, new_seed=lambda: "seed")
    database.open()
    return database


def test_a_new_database_is_what_the_schema_says(database_url: str) -> None:
    database = open_database(database_url)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    database.close()


def test_opening_again_changes_nothing(database_url: str) -> None:
    open_database(database_url).close()
    database = Database(database_url, new_seed=lambda: pytest.fail("the database has a seed"))
    database.open()
    assert database.seed == "seed"
    database.close()


def test_several_processes_may_open_a_new_database_at_once(database_url: str) -> None:
    databases = [Database(database_url, new_seed=lambda: "seed") for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Database.open, databases))
    assert {database.seed for database in databases} == {"seed"}
    for database in databases:
        database.close()


@pytest.fixture
def database_of_version_1(database_url: str) -> str:
    """As the first program left it: one task, two slots, an answer and a pulled cord."""
    # The engine that Database makes, without what Database does when it opens.
    database = Database(database_url, new_seed=lambda: "unused")
    tables = v0001_first.metadata.tables
    with database.engine.connect().execution_options(andon_writes=True) as connection, connection.begin():
        v0001_first.metadata.create_all(connection)

        def add(table: str, *rows: dict[str, Any]) -> None:
            connection.execute(sa.insert(tables[table]), list(rows))

        add("settings", {"name": "schema_version", "value": "1"}, {"name": "seed", "value": "old seed"})
        add(
            "counters",
            {"name": "batch", "last": 1},
            {"name": "task", "last": 1},
            {"name": "comparison", "last": 1},
            {"name": "cord_event", "last": 1},
        )
        add("batches", {"id": 1, "name": "old", "create_us": 5})
        add(
            "tasks",
            {
                "id": 1,
                "batch_id": 1,
                "document_id": "d",
                "document": "The post.",
                "overlap_count": 2,
                "create_us": 5,
            },
        )
        add(
            "candidates",
            {"task_id": 1, "position": 0, "text": "zero", "source": ""},
            {"task_id": 1, "position": 1, "text": "one", "source": ""},
        )
        add(
            "slots",
            {
                "task_id": 1,
                "number": 0,
                "batch_id": 1,
                "place": 77,
                "lease_id": "l" * 32,
                "free_from_us": None,
            },
            {"task_id": 1, "number": 1, "batch_id": 1, "place": 77, "lease_id": None, "free_from_us": 0},
        )
        add(
            "leases",
            {
                "id": "l" * 32,
                "task_id": 1,
                "slot_number": 0,
                "labeler_id": "ann",
                "shown_order": [1, 0],
                "lease_us": 6,
                "expire_us": 100,
                "is_answered": True,
            },
        )
        add(
            "comparisons",
            {
                "id": 1,
                "batch_id": 1,
                "task_id": 1,
                "lease_id": "l" * 32,
                "labeler_id": "ann",
                "best_position": 1,
                "tiers": None,
                "confidence": 7,
                "note": "old",
                "shown_order": [1, 0],
                "lease_us": 6,
                "answer_us": 7,
                "answer_duration_us": 1,
            },
        )
        add("cord_events", {"number": 1, "action": "pull", "actor": "ann", "reason": "r", "event_us": 9})
    database.close()
    return database_url


def test_a_database_of_the_version_before_loses_nothing(
    database_of_version_1: str, lease_one: Callable[..., Any]
) -> None:
    database = open_database(database_of_version_1)
    assert database.seed == "old seed"
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        assert connection.execute(sa.select(schema.cord_events.c.reason)).scalars().all() == ["r"]
        assert connection.execute(sa.select(schema.tasks.c.place)).scalars().all() == [77]
    store = LabelingStore(database, clock=lambda: 1_000)
    ((comparison,), _) = store.comparisons_after(0, wanted=ExportFilter(), limit=10)
    assert (comparison.labeler_id, comparison.note, comparison.confidence) == ("ann", "old", 7)
    assert (comparison.project, comparison.batch, comparison.round) == ("default", "old", 0)
    assert [candidate.text for candidate in comparison.candidates] == ["zero", "one"]
    # The slot that was open is open still, for anybody but Ann.
    assert lease_one(store, "ann") is None
    assert lease_one(store, "bob").document == "The post."
    database.close()


def test_foreign_keys_hold_after_a_migration(database_of_version_1: str) -> None:
    database = open_database(database_of_version_1)
    with (
        pytest.raises(sa.exc.IntegrityError),
        database.engine.connect().execution_options(andon_writes=True) as connection,
        connection.begin(),
    ):
        connection.execute(
            sa.insert(schema.drafts).values(lease_id="nobody's", content={}, revision=1, update_us=1)
        )
    database.close()


def test_a_migration_that_fails_leaves_the_old_database(
    database_of_version_1: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.labeling import database as database_module

    def fail(*_arguments: object) -> str:
        raise RuntimeError("the power went out")

    monkeypatch.setattr(database_module, "_prepare", fail)
    database = Database(database_of_version_1, new_seed=lambda: "seed")
    with pytest.raises(RuntimeError, match="the power went out"):
        database.open()
    tables = sa.inspect(database.engine).get_table_names()
    assert "projects" not in tables
    assert "alembic_version" not in tables
    database.close()
    monkeypatch.undo()
    again = open_database(database_of_version_1)
    assert again.seed == "old seed"
    again.close()
