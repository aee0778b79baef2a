"""What the figures for a monitor are read from: the newest rows, and no table whole."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from services.labeling import figures_store
from services.labeling.answers import AnswerDraft, Choice
from services.labeling.figures_store import FiguresStore
from services.labeling.import_store import ImportStore
from services.labeling.imports import ImportRow
from services.labeling.projects import BatchSettings
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.tasks import Candidate, TaskDraft

HOUR_US = 3_600_000_000


class Labeling:
    """A store in which people work."""

    def __init__(self, opened: Any) -> None:
        self.store = opened.store
        self.clock = opened.clock
        self.database = opened.database
        self.figures = FiguresStore(opened.database, clock=opened.clock)
        self._number = 0

    def request(self, method: str) -> RepeatableRequest:
        self._number += 1
        return RepeatableRequest(method=method, request_id=str(self._number), digest="")

    def submit(self, number: int, *, batch: str = "b", **fields: Any) -> None:
        tasks = [
            TaskDraft(
                document=f"document {each}", candidates=(Candidate(text="a"), Candidate(text="b")), **fields
            )
            for each in range(number)
        ]
        self.store.submit_tasks(
            self.request("SubmitTasks"), batch, tasks, batch_settings=BatchSettings(gold_share=0.5)
        )

    def work(self, labeler: str, number: int, lease_one: Callable[..., Any]) -> int:
        """Lease and answer one by one; gives how many there were to answer."""
        for each in range(number):
            leased = lease_one(self.store, labeler)
            if leased is None:
                return each
            answer = AnswerDraft(lease_id=leased.lease_id, decision=Choice(best_index=0))
            self.store.submit_answers(self.request("SubmitAnswers"), labeler, [answer])
        return number

    def workload(self) -> tuple[int, int]:
        found = self.figures.workload(active_us=HOUR_US)
        return found.num_waiting_tasks, found.num_active_labelers


@pytest.fixture
def labeling(open_store: Callable[..., Any]) -> Labeling:
    return Labeling(open_store())


def test_an_empty_database_has_nothing_to_tell(labeling: Labeling) -> None:
    assert labeling.figures.newest_answers(100) == []
    assert labeling.figures.newest_known_answers() == []
    assert labeling.workload() == (0, 0)


def test_the_newest_answers_are_read_and_no_others(labeling: Labeling, lease_one: Callable[..., Any]) -> None:
    labeling.submit(30, overlap_count=2)
    assert labeling.work("ann", 30, lease_one) == 30
    assert labeling.work("bob", 30, lease_one) == 30
    assert [answer.comparison_id for answer in labeling.figures.newest_answers(20)] == list(range(41, 61))
    assert {answer.labeler_id for answer in labeling.figures.newest_answers(20)} == {"bob"}
    newest = labeling.figures.newest_answers(10_000)
    assert len(newest) == 60
    assert newest[0].num_candidates == 2
    assert newest[0].candidate_chars == (1, 1)


def test_imported_answers_are_nobody_s_work(labeling: Labeling, lease_one: Callable[..., Any]) -> None:
    labeling.submit(5, overlap_count=1)
    labeling.work("ann", 5, lease_one)
    rows = [
        ImportRow(
            row=number,
            document_id=str(number),
            document=f"imported {number}",
            candidates=(Candidate(text="a"), Candidate(text="b")),
            answer=AnswerDraft(lease_id="", decision=Choice(best_index=0)),
            labeler_id="stranger",
        )
        for number in range(8)
    ]
    imports = ImportStore(labeling.database, clock=labeling.clock)
    imports.record(labeling.request("ImportComparisons"), rows, project="default", batch="imported")
    assert {answer.labeler_id for answer in labeling.figures.newest_answers(13)} == {"ann"}
    assert labeling.figures.newest_answers(8) == []
    assert labeling.workload() == (0, 1)


def test_known_items_are_found_among_the_others(
    labeling: Labeling, lease_one: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    labeling.submit(20, overlap_count=1)
    labeling.submit(20, purpose=Purpose.GOLD, expected=((0,), (1,)))
    assert labeling.work("ann", 100, lease_one) > 20
    known = labeling.figures.newest_known_answers()
    assert len(known) > 5
    assert {answer.purpose for answer in known} == {Purpose.GOLD}
    assert {answer.expected_tiers for answer in known} == {((0,), (1,))}
    ids = [answer.comparison_id for answer in known]
    monkeypatch.setattr(figures_store, "MAX_KNOWN", 3)
    assert [answer.comparison_id for answer in labeling.figures.newest_known_answers()] == ids[-3:]
    monkeypatch.setattr(figures_store, "KNOWN_SPAN", 1)
    assert len(labeling.figures.newest_known_answers()) <= 1


def test_tasks_wait_until_somebody_has_them(labeling: Labeling, lease_one: Callable[..., Any]) -> None:
    labeling.submit(4, overlap_count=2)
    assert labeling.workload() == (4, 0)
    for labeler in ("ann", "bob"):
        assert lease_one(labeling.store, labeler) is not None
    waiting, _ = labeling.workload()
    assert waiting in (3, 4)  # whether or not both were given the same task
    labeling.clock.advance_s(3600)  # leases run for a minute in these tests
    assert labeling.workload() == (4, 0)
    assert labeling.work("ann", 10, lease_one) == 4
    assert labeling.workload() == (4, 1)  # each waits for a second labeler
    assert labeling.work("bob", 10, lease_one) == 4
    assert labeling.workload() == (0, 2)
    labeling.clock.advance_s(3601)
    assert labeling.workload() == (0, 0)


def test_closed_batches_and_known_items_wait_for_nobody(labeling: Labeling) -> None:
    labeling.submit(3, overlap_count=1)
    labeling.submit(3, purpose=Purpose.GOLD, expected=((0,), (1,)))
    assert labeling.workload()[0] == 3
    with labeling.database.engine.connect().execution_options(andon_writes=True) as connection:
        connection.execute(sa.text("UPDATE batches SET is_closed = true"))
        connection.commit()
    assert labeling.workload()[0] == 0


def test_only_so_many_places_are_looked_at(labeling: Labeling, monkeypatch: pytest.MonkeyPatch) -> None:
    labeling.submit(10, overlap_count=1)
    monkeypatch.setattr(figures_store, "MAX_WAITING_SLOTS", 4)
    assert labeling.workload()[0] == 4


def test_no_table_that_grows_is_read_whole(labeling: Labeling) -> None:
    """By SQLite's own plan of every statement: all reach their rows by an index."""
    if labeling.database.engine.dialect.name != "sqlite":
        pytest.skip("the plan of PostgreSQL depends on how much is in the tables")
    statements: list[tuple[str, Sequence[Any]]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        statements.append((statement, parameters))

    sa.event.listen(labeling.database.engine, "before_cursor_execute", note)
    labeling.figures.newest_answers(100)
    labeling.figures.newest_known_answers()
    labeling.workload()
    sa.event.remove(labeling.database.engine, "before_cursor_execute", note)
    assert len(statements) > 8
    with labeling.database.engine.connect() as connection:
        for statement, parameters in statements:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            for row in plan:
                for table in ("comparisons", "tasks", "slots", "candidates", "demonstrations", "later"):
                    assert f"SCAN {table}" not in row.detail, (statement, row.detail)
