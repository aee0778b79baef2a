"""Many threads over two openings of one file, like two processes: no slot doubled, no answer lost."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from services.labeling.answers import AnswerDraft, Choice
from services.labeling.assignment import LeaseOrder
from services.labeling.export import ExportFilter
from services.labeling.requests import RepeatableRequest
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft

NUM_TASKS, OVERLAP, NUM_LABELERS = 60, 3, 8


def test_overlap_is_exact_under_concurrent_labelers(open_store: Callable[..., Any]) -> None:
    stores: list[LabelingStore] = [open_store().store, open_store().store]
    drafts = [
        TaskDraft(
            document=f"document {number}",
            candidates=(Candidate(text="a"), Candidate(text="b")),
            overlap_count=OVERLAP,
        )
        for number in range(NUM_TASKS)
    ]
    stores[0].submit_tasks(RepeatableRequest(method="s", request_id="s", digest="d"), "b", drafts)
    together = threading.Barrier(NUM_LABELERS)

    def label(number: int) -> int:
        store, labeler = stores[number % 2], f"labeler-{number}"
        together.wait()
        num_answers = 0
        while True:
            leased = store.lease_tasks(
                LeaseOrder(labeler_id=labeler, batch="", max_tasks=5, duration_us=10**12)
            )
            if not leased:
                return num_answers
            store.submit_answers(
                RepeatableRequest(method="a", request_id=f"{labeler}-{num_answers}", digest="d"),
                labeler,
                [AnswerDraft(lease_id=task.lease_id, decision=Choice(best_index=0)) for task in leased],
            )
            num_answers += len(leased)

    with ThreadPoolExecutor(NUM_LABELERS) as threads:
        given = sum(threads.map(label, range(NUM_LABELERS)))

    recorded, _ = stores[0].comparisons_after(0, wanted=ExportFilter(), limit=10_000)
    assert given == len(recorded) == NUM_TASKS * OVERLAP
    assert set(Counter(comparison.task_id for comparison in recorded).values()) == {OVERLAP}
    assert len({(comparison.task_id, comparison.labeler_id) for comparison in recorded}) == len(recorded)


def test_one_request_sent_by_many_at_once_is_done_once(open_store: Callable[..., Any]) -> None:
    stores: list[LabelingStore] = [open_store().store, open_store().store]
    request = RepeatableRequest(method="s", request_id="same", digest="d")
    draft = TaskDraft(document="d", candidates=(Candidate(text="a"), Candidate(text="b")))
    together = threading.Barrier(8)

    def submit(number: int) -> list[int]:
        together.wait()
        return stores[number % 2].submit_tasks(request, "b", [draft]).task_ids

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(submit, range(8)))
    assert answers == [[1]] * 8
    assert stores[0].progress("").num_tasks == 1


def test_one_labeler_asking_twice_at_once_holds_each_task_once(open_store: Callable[..., Any]) -> None:
    stores: list[LabelingStore] = [open_store().store, open_store().store]
    drafts = [
        TaskDraft(
            document=str(number), candidates=(Candidate(text="a"), Candidate(text="b")), overlap_count=4
        )
        for number in range(20)
    ]
    stores[0].submit_tasks(RepeatableRequest(method="s", request_id="s", digest="d"), "b", drafts)
    together = threading.Barrier(6)

    def lease(number: int) -> list[str]:
        together.wait()
        order = LeaseOrder(labeler_id="ann", batch="", max_tasks=4, duration_us=10**12)
        return [task.document for task in stores[number % 2].lease_tasks(order)]

    with ThreadPoolExecutor(6) as threads:
        leased = [document for documents in threads.map(lease, range(6)) for document in documents]
    assert sorted(leased) == sorted(str(number) for number in range(20))
