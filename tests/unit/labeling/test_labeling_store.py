"""What the store keeps: exact overlap, all or none, repetitions, restarts, cursors, failures."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from andon.errors import FailedPreconditionError
from andon.modeling.versions import ModelVersion
from services.labeling import schema
from services.labeling.answers import AnswerDraft, Choice, Comparison, Origin, Ranking
from services.labeling.assignment import LeasedTask, LeaseOrder
from services.labeling.database import Database
from services.labeling.errors import (
    DatabaseUnavailableError,
    InvalidFieldError,
    LeaseAlreadyAnsweredError,
    LeaseExpiredError,
    LeaseNotFoundError,
    LeaseOfAnotherLabelerError,
    RequestIdReusedError,
)
from services.labeling.export import ExportFilter
from services.labeling.quality.records import Purpose
from services.labeling.requests import RepeatableRequest
from services.labeling.store import LabelingStore, Progress
from services.labeling.tasks import Candidate, TaskDraft

OpenStoreFixture = Callable[..., Any]


def request(request_id: str, *, digest: str = "d") -> RepeatableRequest:
    return RepeatableRequest(method="Test", request_id=request_id, digest=digest)


def draft(name: str, *, num_candidates: int = 2, overlap: int = 1) -> TaskDraft:
    return TaskDraft(
        document=f"document {name}",
        document_id=name,
        candidates=tuple(Candidate(text=f"{name}/{index}") for index in range(num_candidates)),
        overlap_count=overlap,
    )


def lease(
    store: LabelingStore, labeler: str, *, max_tasks: int = 100, seconds: float = 60, batch: str = "b"
) -> list[LeasedTask]:
    return store.lease_tasks(
        LeaseOrder(labeler_id=labeler, batch=batch, max_tasks=max_tasks, duration_us=round(seconds * 1e6))
    )


def answer(task: LeasedTask, *, best: int = 0, **fields: Any) -> AnswerDraft:
    return AnswerDraft(lease_id=task.lease_id, decision=Choice(best_index=best), **fields)


def everything(store: LabelingStore, *, batch: str = "", after: int = 0) -> list[Comparison]:
    comparisons, further = store.comparisons_after(after, wanted=ExportFilter(batch=batch), limit=1000)
    assert further is None
    return comparisons


def test_an_answer_comes_out_in_the_submitters_order_with_all_that_is_known(
    open_store: OpenStoreFixture,
) -> None:
    opened = open_store()
    store, clock = opened.store, opened.clock
    written_by = ModelVersion("policy", 12, "a" * 64)
    task = TaskDraft(
        document="The post.",
        document_id="post-1",
        candidates=(
            Candidate(text="zero", source="policy", policy_version=written_by),
            Candidate(text="one", source="reference"),
            Candidate(text="two"),
        ),
    )
    (task_id,) = store.submit_tasks(request("s"), "b", [task]).task_ids
    clock.advance_s(5)
    (leased,) = lease(store, "ann", seconds=60)
    lease_us = clock.now_us
    assert leased.document == "The post."
    assert sorted(leased.candidates) == ["one", "two", "zero"]
    assert leased.expire_us == lease_us + 60_000_000
    clock.advance_s(7)
    places = {text: place for place, text in enumerate(leased.candidates)}
    ranking = Ranking(tiers=((places["two"],), (places["zero"], places["one"])))
    store.submit_answers(
        request("a"),
        "ann",
        [
            AnswerDraft(
                lease_id=leased.lease_id,
                decision=ranking,
                confidence=7,
                note="déjà <b>vu</b>",
                answer_duration_us=6_500_000,
            )
        ],
    )
    (comparison,) = everything(store)
    assert comparison == Comparison(
        comparison_id=1,
        task_id=task_id,
        project="default",
        batch="b",
        purpose=Purpose.ORDINARY,
        document_id="post-1",
        document="The post.",
        candidates=task.candidates,
        decision=Ranking(tiers=((2,), (0, 1))),
        confidence=7,
        preference=None,
        ratings=(),
        note="déjà <b>vu</b>",
        labeler_id="ann",
        round=0,
        supersedes_id=None,
        is_superseded=False,
        origin=Origin.GRPC,
        shown_order=tuple(["zero", "one", "two"].index(text) for text in leased.candidates),
        lease_us=lease_us,
        answer_us=lease_us + 7_000_000,
        answer_duration_us=6_500_000,
        telemetry=None,
    )


def test_overlap_is_exact_and_nobody_gets_a_task_twice(open_store: OpenStoreFixture) -> None:
    store = open_store().store
    store.submit_tasks(request("s"), "b", [draft("x", overlap=2), draft("y", overlap=3)])
    by_labeler = {name: lease(store, name) for name in ("ann", "bob", "cem", "dan")}
    documents = {name: sorted(task.document for task in tasks) for name, tasks in by_labeler.items()}
    assert documents["ann"] == documents["bob"] == ["document x", "document y"]
    assert documents["cem"] == ["document y"]
    assert documents["dan"] == []
    for name, tasks in by_labeler.items():
        assert lease(store, name) == []
        if tasks:
            store.submit_answers(request(name), name, [answer(task) for task in tasks])
        assert lease(store, name) == []
    assert store.progress("b") == Progress(
        num_tasks=2, num_slots=5, num_answers=5, num_open_leases=0, num_labelers=3
    )


def test_an_expired_lease_returns_to_the_pool(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store, clock = opened.store, opened.clock
    store.submit_tasks(request("s"), "b", [draft("x")])
    (first,) = lease(store, "ann", seconds=10)
    clock.advance_s(9.999999)
    assert lease(store, "bob") == []
    assert store.progress("b").num_open_leases == 1
    clock.advance_s(0.000001)
    assert store.progress("b").num_open_leases == 0
    (second,) = lease(store, "bob")
    with pytest.raises(LeaseExpiredError):
        store.submit_answers(request("a1"), "ann", [answer(first)])
    store.submit_answers(request("a2"), "bob", [answer(second)])
    assert [comparison.labeler_id for comparison in everything(store)] == ["bob"]


def test_whoever_answered_a_task_never_gets_it_again(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store, clock = opened.store, opened.clock
    store.submit_tasks(request("s"), "b", [draft("x", overlap=2)])
    store.submit_answers(request("a"), "ann", [answer(task) for task in lease(store, "ann", seconds=10)])
    clock.advance_s(1000)
    assert lease(store, "ann") == []
    assert len(lease(store, "bob")) == 1


def test_a_task_that_comes_back_to_the_same_labeler_looks_the_same(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store, clock = opened.store, opened.clock
    store.submit_tasks(request("s"), "b", [draft(str(n), num_candidates=9) for n in range(5)])
    before = lease(store, "ann", seconds=10)
    clock.advance_s(10)
    again = lease(store, "ann", seconds=10)
    assert [task.candidates for task in again] == [task.candidates for task in before]
    assert [task.lease_id for task in again] == [task.lease_id for task in before]
    store.submit_answers(request("a"), "ann", [answer(task) for task in again])
    assert len(everything(store)) == 5


def test_a_lapsed_labeler_gets_the_other_slot_when_theirs_is_taken(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store, clock = opened.store, opened.clock
    store.submit_tasks(request("s"), "b", [draft("x", overlap=2)])
    lease(store, "ann", seconds=10)
    clock.advance_s(10)
    (for_bob,) = lease(store, "bob")
    (for_ann,) = lease(store, "ann")
    assert lease(store, "cem") == []
    store.submit_answers(request("1"), "bob", [answer(for_bob)])
    store.submit_answers(request("2"), "ann", [answer(for_ann)])
    assert len(everything(store)) == 2


def test_labelers_get_the_tasks_in_orders_of_their_own(open_store: OpenStoreFixture) -> None:
    store = open_store().store
    names = [f"{number:02}" for number in range(30)]
    store.submit_tasks(request("s"), "b", [draft(name, overlap=2) for name in names])
    ann = [task.document for task in lease(store, "ann")]
    bob = [task.document for task in lease(store, "bob")]
    submitted = [f"document {name}" for name in names]
    assert sorted(ann) == sorted(bob) == submitted
    assert ann != bob
    assert ann != submitted


def test_only_the_asked_batch_is_leased_and_exported(open_store: OpenStoreFixture) -> None:
    store = open_store().store
    store.submit_tasks(request("1"), "one", [draft("x")])
    store.submit_tasks(request("2"), "two", [draft("y"), draft("z")])
    assert lease(store, "ann", batch="none") == []
    (x,) = lease(store, "ann", batch="one")
    rest = lease(store, "ann", batch="")
    assert x.document == "document x"
    assert len(rest) == 2
    store.submit_answers(request("3"), "ann", [answer(rest[0]), answer(x), answer(rest[1])])
    assert [comparison.comparison_id for comparison in everything(store)] == [1, 2, 3]
    assert [comparison.comparison_id for comparison in everything(store, batch="one")] == [2]
    assert [comparison.comparison_id for comparison in everything(store, batch="two", after=1)] == [3]
    assert everything(store, batch="none") == []
    assert store.progress("one").num_answers == 1
    assert store.progress("none") == Progress(
        num_tasks=0, num_slots=0, num_answers=0, num_open_leases=0, num_labelers=0
    )


def test_a_lease_call_ends_where_its_texts_would_not_fit_into_an_answer(
    open_store: OpenStoreFixture,
) -> None:
    store = open_store(max_text_chars_per_lease_call=250).store
    big = [
        TaskDraft(document=f"{number}" * 60, candidates=(Candidate(text="a" * 20), Candidate(text="b" * 20)))
        for number in range(5)
    ]
    store.submit_tasks(request("s"), "b", big)
    assert len(lease(store, "ann")) == 2
    assert len(lease(store, "ann")) == 2
    assert len(lease(store, "ann")) == 1
    huge = TaskDraft(document="h" * 300, candidates=(Candidate(text="a"), Candidate(text="b")))
    store.submit_tasks(request("t"), "b", [huge])
    assert len(lease(store, "ann")) == 1


def test_answers_are_recorded_all_or_none(open_store: OpenStoreFixture) -> None:
    store = open_store().store
    store.submit_tasks(request("s"), "b", [draft("x"), draft("y")])
    first, second = lease(store, "ann")
    for wrong, error in [
        (AnswerDraft(lease_id="no such", decision=Choice(best_index=0)), LeaseNotFoundError),
        (AnswerDraft(lease_id=second.lease_id, decision=Choice(best_index=2)), InvalidFieldError),
    ]:
        with pytest.raises(error):
            store.submit_answers(request("a"), "ann", [answer(first), wrong])
        assert everything(store) == []
    # The same request_id works once its content is right: a refused request leaves nothing behind.
    store.submit_answers(request("a"), "ann", [answer(first), answer(second)])
    assert [comparison.comparison_id for comparison in everything(store)] == [1, 2]


def test_leases_are_personal_and_answered_once(open_store: OpenStoreFixture) -> None:
    store = open_store().store
    store.submit_tasks(request("s"), "b", [draft("x")])
    (task,) = lease(store, "ann")
    with pytest.raises(LeaseOfAnotherLabelerError):
        store.submit_answers(request("a"), "bob", [answer(task)])
    store.submit_answers(request("a"), "ann", [answer(task)])
    with pytest.raises(LeaseAlreadyAnsweredError):
        store.submit_answers(request("other"), "ann", [answer(task)])


def test_repeated_requests_get_the_first_answer(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store = opened.store
    tasks = [draft("x"), draft("y")]
    first = store.submit_tasks(request("s", digest="1"), "b", tasks)
    again = store.submit_tasks(request("s", digest="1"), "b", tasks)
    assert (first.task_ids, first.repeated, again.repeated) == (again.task_ids, False, True)
    assert store.progress("b").num_tasks == 2
    with pytest.raises(RequestIdReusedError):
        store.submit_tasks(request("s", digest="2"), "b", tasks)

    answers = [answer(task) for task in lease(store, "ann", seconds=10)]
    recorded = store.submit_answers(
        RepeatableRequest(method="Other", request_id="s", digest="3"), "ann", answers
    )
    opened.clock.advance_s(100)  # a repetition is answered also when the lease has long run out
    store = open_store().store  # and after a restart
    repeated = store.submit_answers(
        RepeatableRequest(method="Other", request_id="s", digest="3"), "ann", answers
    )
    assert repeated.comparison_ids == recorded.comparison_ids == [1, 2]
    assert repeated.repeated
    assert len(everything(store)) == 2


def test_everything_is_there_after_a_restart(open_store: OpenStoreFixture) -> None:
    store = open_store(seed="first").store
    store.submit_tasks(request("s"), "b", [draft(str(n), num_candidates=4, overlap=2) for n in range(6)])
    leased = lease(store, "ann", max_tasks=4)
    store.submit_answers(request("a"), "ann", [answer(task) for task in leased[:2]])

    reopened = open_store(seed="second").store
    assert len(everything(reopened)) == 2
    assert reopened.progress("b").num_open_leases == 2
    reopened.submit_answers(request("b"), "ann", [answer(task) for task in leased[2:]])
    assert [comparison.comparison_id for comparison in everything(reopened)] == [1, 2, 3, 4]
    shown = {comparison.document: comparison for comparison in everything(reopened)}
    for task in leased:
        comparison = shown[task.document]
        texts = [comparison.candidates[index].text for index in comparison.shown_order]
        assert tuple(texts) == task.candidates


def test_cursors(open_store: OpenStoreFixture) -> None:
    store = open_store().store
    store.submit_tasks(request("s"), "b", [draft(str(n)) for n in range(5)])
    store.submit_answers(request("a"), "ann", [answer(task) for task in lease(store, "ann")])

    def page(after: int, *, batch: str = "", limit: int) -> tuple[list[int], int | None]:
        found, further = store.comparisons_after(after, wanted=ExportFilter(batch=batch), limit=limit)
        return [comparison.comparison_id for comparison in found], further

    assert page(0, limit=2) == ([1, 2], 2)
    assert page(2, batch="b", limit=9) == ([3, 4, 5], None)
    assert page(5, limit=9) == ([], None)
    for nowhere in (6, 2**62, -1):
        with pytest.raises(InvalidFieldError) as caught:
            page(nowhere, limit=9)
        assert caught.value.reason == "INVALID_CURSOR"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_locked_sqlite_is_unavailable_and_works_afterwards(
    open_store: OpenStoreFixture, tmp_path: Path
) -> None:
    store = open_store(lock_wait_s=0.01).store
    store.submit_tasks(request("s"), "b", [draft("x")])
    intruder = sqlite3.connect(tmp_path / "labeling.sqlite3", isolation_level=None)
    intruder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseUnavailableError):
        lease(store, "ann")
    assert store.progress("b").num_tasks == 1  # readers go on
    intruder.execute("ROLLBACK")
    intruder.close()
    assert len(lease(store, "ann")) == 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_locked_table_is_unavailable_and_works_afterwards(open_store: OpenStoreFixture) -> None:
    opened = open_store(lock_wait_s=0.01)
    store = opened.store
    store.submit_tasks(request("s"), "b", [draft("x")])
    with opened.database.engine.connect() as intruder, intruder.begin():
        intruder.exec_driver_sql("LOCK TABLE leases IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailableError):
            lease(store, "ann")
        assert store.progress("b").num_tasks == 1  # readers of other tables go on
    assert len(lease(store, "ann")) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_full_disk_is_unavailable_and_acknowledges_nothing(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store = opened.store
    store.submit_tasks(request("s"), "b", [draft("x")])
    (task,) = lease(store, "ann")

    def fill_disk(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    opened.database.read(fill_disk)  # holds for the one pooled connection that is used from now on
    with pytest.raises(DatabaseUnavailableError):
        store.submit_answers(request("a"), "ann", [answer(task, note="n" * 1_000_000)])
    assert everything(store) == []
    opened.database.read(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count = 1000000"))
    store.submit_answers(request("a"), "ann", [answer(task, note="n" * 1_000_000)])
    assert len(everything(store)) == 1


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite3").write_bytes(os.urandom(4096))
    failures: list[None] = []
    database = Database(
        f"sqlite:///{tmp_path}/broken.sqlite3",
        new_seed=lambda: "s",
        on_failure=lambda: failures.append(None),
    )
    with pytest.raises(DatabaseUnavailableError):
        database.open()
    assert len(failures) == 1
    database.close()


def test_a_database_of_a_newer_program_is_refused(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    opened.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    )
    with pytest.raises(FailedPreconditionError) as caught:
        open_store()
    assert caught.value.reason == "SCHEMA_VERSION"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_commits_wait_for_the_disk(open_store: OpenStoreFixture) -> None:
    def pragmas(connection: sa.Connection) -> list[object]:
        return [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]

    assert open_store().database.read(pragmas) == ["wal", 2, 1]  # 2 is FULL


def test_the_tables_themselves_refuse_doubles(open_store: OpenStoreFixture) -> None:
    opened = open_store()
    store = opened.store
    store.submit_tasks(request("s"), "b", [draft("x", overlap=2)])
    (task,) = lease(store, "ann")
    store.submit_answers(request("a"), "ann", [answer(task)])
    copies = [
        copy_of(schema.comparisons, id=99),
        copy_of(schema.comparisons, id=99, labeler_id="bob", task_id=99),
        copy_of(schema.leases, id="other"),
        copy_of(schema.slots),
    ]
    for statement in copies:
        with pytest.raises(DatabaseUnavailableError):
            opened.database.write(lambda connection, insert=statement: connection.execute(insert))
    assert len(everything(store)) == 1


def copy_of(table: sa.Table, **changed: object) -> sa.Insert:
    """An INSERT of the table's own rows with some columns changed."""
    columns = [
        sa.literal(changed[column.name], column.type) if column.name in changed else column
        for column in table.columns
    ]
    return sa.insert(table).from_select([column.name for column in table.columns], sa.select(*columns))
