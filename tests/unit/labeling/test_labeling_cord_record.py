"""The record of the cord cannot be rewritten: the database itself refuses, on both engines."""

import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from services.labeling.cord import CordAction
from services.labeling.database import Database
from services.labeling.requests import RepeatableRequest
from services.labeling.schema import cord_events


@pytest.fixture
def database(open_store: Callable[..., Any]) -> Database:
    """With a pull and a release."""
    opened = open_store()
    for number, action in enumerate((CordAction.PULL, CordAction.RELEASE)):
        origin = RepeatableRequest(method=action.value, request_id=str(number), digest="")
        opened.cord.act(origin, action, actor="ann", reason=f"reason {number}")
    found: Database = opened.database
    return found


def event(number: object) -> dict[str, object]:
    return {"number": number, "action": "release", "actor": "eve", "reason": "never was", "event_us": 1}


def record(database: Database) -> list[tuple[Any, ...]]:
    query = sa.select(cord_events).order_by(cord_events.c.number)
    return database.read(lambda connection: [tuple(row) for row in connection.execute(query)])


REWRITES = {
    "another reason": sa.update(cord_events).where(cord_events.c.number == 1).values(reason="nothing"),
    "another number": sa.update(cord_events).where(cord_events.c.number == 2).values(number=3),
    "all of it": sa.update(cord_events).values(actor="nobody"),
    "the same again": sa.update(cord_events).values(number=cord_events.c.number),
    "the last removed": sa.delete(cord_events).where(cord_events.c.number == 2),
    "all removed": sa.delete(cord_events),
    "a second first": sa.insert(cord_events).values(**event(1)),
    "one before the first": sa.insert(cord_events).values(**event(0)),
    "a gap": sa.insert(cord_events).values(**event(4)),
}


@pytest.mark.parametrize("rewrite", REWRITES.values(), ids=REWRITES.keys())
def test_the_database_refuses_to_rewrite_the_record(database: Database, rewrite: sa.Executable) -> None:
    before = record(database)
    with pytest.raises(sa.exc.IntegrityError), database.engine.begin() as connection:
        connection.execute(rewrite)
    assert record(database) == before
    assert [row[0] for row in before] == [1, 2]


def test_nor_by_the_engines_own_ways(database: Database) -> None:
    before = record(database)
    if database.engine.dialect.name == "sqlite":
        ways = [
            "INSERT OR REPLACE INTO cord_events VALUES (1, 'release', 'eve', 'never was', 1)",
            "REPLACE INTO cord_events VALUES (2, 'release', 'eve', 'never was', 1)",
            "UPDATE OR REPLACE cord_events SET number = 1 WHERE number = 2",
            "INSERT INTO cord_events VALUES (1, 'release', 'eve', 'x', 1)"
            " ON CONFLICT (number) DO UPDATE SET actor = 'eve'",
        ]
    else:
        ways = [
            "TRUNCATE cord_events",
            "INSERT INTO cord_events VALUES (2, 'release', 'eve', 'x', 1)"
            " ON CONFLICT (number) DO UPDATE SET actor = 'eve'",
        ]
    for way in ways:
        # By the driver alone, as somebody with a database shell would.
        raw = database.engine.raw_connection()
        try:
            with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
                raw.cursor().execute(way)
        finally:
            raw.rollback()
            raw.close()
        assert record(database) == before, way


def test_the_record_goes_on(database: Database, open_store: Callable[..., Any]) -> None:
    cord = open_store().cord
    origin = RepeatableRequest(method="pull", request_id="again", digest="")
    assert cord.act(origin, CordAction.PULL, actor="ann", reason="again").event.number == 3
    assert [found.number for found in cord.newest_events(2)] == [3, 2]
    assert [found.number for found in cord.newest_events(2, before=2)] == [1]
    assert cord.newest_events(2, before=1) == []
