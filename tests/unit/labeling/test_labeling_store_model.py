"""The store against a model of a few sets, over long random histories of calls, expiries and restarts."""

import shutil
import tempfile
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from services.labeling.answers import AnswerDraft, Choice, Ranking
from services.labeling.assignment import LeasedTask, LeaseOrder
from services.labeling.database import Database
from services.labeling.errors import (
    LeaseAlreadyAnsweredError,
    LeaseExpiredError,
    LeaseOfAnotherLabelerError,
)
from services.labeling.export import ExportFilter
from services.labeling.requests import RepeatableRequest
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft

LABELERS = ("ann", "bob", "cem")


@dataclass
class ModelTask:
    batch: str
    overlap: int
    texts: tuple[str, ...]
    # labeler -> second at which the lease ends; a labeler stays here for good, with the newest lease
    lease_end_s: dict[str, int] = field(default_factory=dict)
    seen: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)  # labeler -> lease id, texts
    answered_by: list[str] = field(default_factory=list)

    def holders(self, now_s: int) -> list[str]:
        return [
            name for name, end in self.lease_end_s.items() if end > now_s and name not in self.answered_by
        ]

    def is_open_to(self, labeler: str, now_s: int) -> bool:
        holders = self.holders(now_s)
        return (
            labeler not in self.answered_by
            and labeler not in holders
            and len(holders) + len(self.answered_by) < self.overlap
        )


class StoreAgainstModel(RuleBasedStateMachine):
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.now_s = 1000
        self.tasks: dict[str, ModelTask] = {}  # by document
        self.expected: list[tuple[str, str, str]] = []  # document, labeler, best text; in order
        self.num_requests = 0
        self.repeatable: list[tuple[RepeatableRequest, str, list[AnswerDraft], list[int]]] = []
        self.open_store()

    def open_store(self) -> None:
        self.database = Database(f"sqlite:///{self.folder}/l.sqlite3", new_seed=lambda: "seed")
        self.database.open()
        self.store = LabelingStore(self.database, clock=lambda: self.now_s * 1_000_000)

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    def new_request(self, method: str) -> RepeatableRequest:
        self.num_requests += 1
        return RepeatableRequest(method=method, request_id=str(self.num_requests), digest="d")

    @rule(
        batch=st.sampled_from(["one", "two"]),
        shapes=st.lists(st.tuples(st.integers(2, 4), st.integers(1, 3)), min_size=1, max_size=3),
    )
    def submit(self, batch: str, shapes: list[tuple[int, int]]) -> None:
        drafts = []
        for num_candidates, overlap in shapes:
            document = f"document {len(self.tasks)}"
            texts = tuple(f"{document}/{index}" for index in range(num_candidates))
            self.tasks[document] = ModelTask(batch=batch, overlap=overlap, texts=texts)
            drafts.append(
                TaskDraft(
                    document=document,
                    candidates=tuple(Candidate(text=text) for text in texts),
                    overlap_count=overlap,
                )
            )
        self.store.submit_tasks(self.new_request("submit"), batch, drafts)

    @rule(
        target=leases,
        labeler=st.sampled_from(LABELERS),
        batch=st.sampled_from(["", "one", "two"]),
        max_tasks=st.integers(1, 4),
        duration_s=st.integers(1, 30),
    )
    def lease(self, labeler: str, batch: str, max_tasks: int, duration_s: int) -> object:
        leased = self.store.lease_tasks(
            LeaseOrder(
                labeler_id=labeler, batch=batch, max_tasks=max_tasks, duration_us=duration_s * 1_000_000
            )
        )
        could_have = [
            document
            for document, task in self.tasks.items()
            if batch in ("", task.batch) and task.is_open_to(labeler, self.now_s)
        ]
        assert len({task.document for task in leased}) == len(leased)
        assert {task.document for task in leased} <= set(could_have)
        assert len(leased) == min(max_tasks, len(could_have))
        for item in leased:
            task = self.tasks[item.document]
            assert sorted(item.candidates) == sorted(task.texts)
            assert task.seen.setdefault(labeler, (item.lease_id, item.candidates)) == (
                item.lease_id,
                item.candidates,
            )
            assert item.expire_us == (self.now_s + duration_s) * 1_000_000
            task.lease_end_s[labeler] = self.now_s + duration_s
        return multiple(*((labeler, item) for item in leased))

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(held=leases, place=st.integers(0, 1), ranked=st.booleans())
    def answer(self, held: tuple[str, LeasedTask], place: int, ranked: bool) -> None:
        labeler, item = held
        task = self.tasks[item.document]
        others = tuple(other for other in range(len(item.candidates)) if other != place)
        decision = Ranking(tiers=((place,), others)) if ranked else Choice(best_index=place)
        drafts = [AnswerDraft(lease_id=item.lease_id, decision=decision)]
        request = self.new_request("answer")
        if labeler in task.answered_by:
            with pytest.raises(LeaseAlreadyAnsweredError):
                self.store.submit_answers(request, labeler, drafts)
        elif labeler not in task.holders(self.now_s):
            with pytest.raises(LeaseExpiredError):
                self.store.submit_answers(request, labeler, drafts)
        else:
            recorded = self.store.submit_answers(request, labeler, drafts)
            task.answered_by.append(labeler)
            self.expected.append((item.document, labeler, item.candidates[place]))
            assert recorded.comparison_ids == [len(self.expected)]
            self.repeatable.append((request, labeler, drafts, recorded.comparison_ids))

    @rule(held=leases, thief=st.sampled_from(LABELERS))
    def answer_for_another(self, held: tuple[str, LeasedTask], thief: str) -> None:
        labeler, item = held
        if thief != labeler:
            with pytest.raises(LeaseOfAnotherLabelerError):
                self.store.submit_answers(
                    self.new_request("answer"),
                    thief,
                    [AnswerDraft(lease_id=item.lease_id, decision=Choice(best_index=0))],
                )

    @rule(data=st.data())
    def repeat_an_answer(self, data: st.DataObject) -> None:
        if self.repeatable:
            request, labeler, drafts, ids = data.draw(st.sampled_from(self.repeatable))
            repeated = self.store.submit_answers(request, labeler, drafts)
            assert (repeated.comparison_ids, repeated.repeated) == (ids, True)

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.open_store()

    @invariant()
    def recorded_is_what_was_answered(self) -> None:
        recorded, _ = self.store.comparisons_after(0, wanted=ExportFilter(), limit=10_000)
        assert [comparison.comparison_id for comparison in recorded] == list(range(1, len(recorded) + 1))
        said = []
        for comparison in recorded:
            decision = comparison.decision
            if isinstance(decision, Ranking):
                (best,) = decision.tiers[0]
            else:
                best = decision.best_index
            said.append((comparison.document, comparison.labeler_id, comparison.candidates[best].text))
        assert said == self.expected

    @invariant()
    def progress_counts(self) -> None:
        progress = self.store.progress("")
        assert progress.num_tasks == len(self.tasks)
        assert progress.num_slots == sum(task.overlap for task in self.tasks.values())
        assert progress.num_answers == len(self.expected)
        assert progress.num_open_leases == sum(len(task.holders(self.now_s)) for task in self.tasks.values())
        assert progress.num_labelers == len({labeler for _, labeler, _ in self.expected})


class TestStoreAgainstModel(StoreAgainstModel.TestCase):
    settings = settings(max_examples=12, stateful_step_count=30, deadline=None, derandomize=True)


@pytest.mark.slow
class TestStoreAgainstModelForLonger(StoreAgainstModel.TestCase):
    settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
