"""All stores of the labeling site over one database, and short words for what their tests do."""

from typing import Any

from services.labeling.answers import AnswerDraft, Comparison, Origin, Ranking
from services.labeling.demonstration_store import DemonstrationStore
from services.labeling.export import ExportFilter
from services.labeling.message_store import MessageStore
from services.labeling.onboarding_store import OnboardingStore
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchSettings
from services.labeling.quality.records import Purpose
from services.labeling.quality_store import QualityStore
from services.labeling.requests import RepeatableRequest
from services.labeling.site_store import Item, SiteStore
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft

HOUR_US = 3_600_000_000


class SiteStores:
    """All stores over one database."""

    def __init__(self, opened: Any) -> None:
        self.clock = opened.clock
        self.store: LabelingStore = opened.store
        self.projects = ProjectStore(opened.database, clock=opened.clock)
        self.site = SiteStore(opened.database, opened.store, clock=opened.clock)
        self.texts = DemonstrationStore(opened.database, clock=opened.clock)
        self.onboarding = OnboardingStore(opened.database, clock=opened.clock)
        self.messages = MessageStore(opened.database, clock=opened.clock)
        self.quality = QualityStore(opened.database)
        self._num_requests = 0

    def request(self) -> RepeatableRequest:
        self._num_requests += 1
        return RepeatableRequest(method="Test", request_id=str(self._num_requests), digest="d")

    def submit(self, batch: str, *drafts: TaskDraft, **settings: Any) -> list[int]:
        project = settings.pop("project", "")
        return self.store.submit_tasks(
            self.request(), batch, drafts, project=project, batch_settings=BatchSettings(**settings)
        ).task_ids

    def next(self, labeler: str, project: str = "default") -> Item:
        item = self.site.next_item(labeler, project=project, duration_us=HOUR_US)
        assert item is not None
        return item

    def answer(self, labeler: str, item: Item, *, best: int = 0, **fields: Any) -> int:
        """Prefer the candidate with this index in the submitter's order over all others."""
        place = item.shown_order.index(best)
        others = tuple(index for index in range(len(item.candidates)) if index != place)
        draft = AnswerDraft(lease_id=item.lease_id, decision=Ranking(tiers=((place,), others)), **fields)
        return self.store.submit_answers(self.request(), labeler, [draft], origin=Origin.SITE).comparison_ids[
            0
        ]

    def export(self, **fields: Any) -> list[Comparison]:
        return self.store.comparisons_after(0, wanted=ExportFilter(**fields), limit=10_000)[0]


def pair(name: str, **fields: Any) -> TaskDraft:
    return TaskDraft(
        document=f"document {name}",
        document_id=name,
        candidates=(Candidate(text=f"{name}/0"), Candidate(text=f"{name}/1")),
        **fields,
    )


def known(name: str, purpose: Purpose) -> TaskDraft:
    return pair(name, purpose=purpose, expected=((1,), (0,)), explanation=f"{name}/1 is right")
