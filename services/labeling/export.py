"""Which recorded answers go out, in which pieces, and when a reader who follows hears of new ones.

Each page is a short read of its own: a slow reader holds no transaction open, and a database of any size is
exported in the memory of one page.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from andon.corpus.labeler_folds import labeler_fold
from services.labeling.answers import Comparison
from services.labeling.changes import Changes
from services.labeling.errors import InvalidFieldError
from services.labeling.limits import check_batch_filter
from services.labeling.projects import check_project_filter
from services.labeling.threads import DatabaseThreads

if TYPE_CHECKING:
    from services.labeling.store import LabelingStore

MAX_FOLDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerFold:
    """One of k groups of labelers, by a hash of their ids: the same in every database."""

    num_folds: int
    fold: int
    complement: bool = False  # all groups but this one

    def takes(self, labeler_id: str) -> bool:
        """Whether the labeler belongs to what is wanted."""
        is_in_fold = labeler_fold(labeler_id, num_folds=self.num_folds) == self.fold
        return is_in_fold is not self.complement


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFilter:
    """Which answers are wanted; without anything, all that people decided in earnest."""

    batch: str = ""
    project: str = ""
    fold: LabelerFold | None = None
    with_superseded: bool = False
    with_onboarding: bool = False

    def takes_labeler(self, labeler_id: str) -> bool:
        """Whether this labeler's answers are wanted."""
        return self.fold is None or self.fold.takes(labeler_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPace:
    """How an export proceeds."""

    page_comparisons: int
    poll_s: float  # a follower looks this often for answers that another process recorded


def check_export_filter(wanted: ExportFilter) -> None:
    """Refuse a filter that names nothing that could be."""
    check_batch_filter(wanted.batch)
    check_project_filter(wanted.project)
    fold = wanted.fold
    if fold is not None and not (2 <= fold.num_folds <= MAX_FOLDS and 0 <= fold.fold < fold.num_folds):
        raise InvalidFieldError(
            f"group {fold.fold} of {fold.num_folds}; 2 to {MAX_FOLDS} groups, counted from 0",
            reason="INVALID_FOLD",
            field="labeler_fold",
        )


async def pages_of_comparisons(
    store: LabelingStore,
    threads: DatabaseThreads,
    changes: Changes,
    pace: ExportPace,
    *,
    wanted: ExportFilter,
    after_comparison_id: int,
    follow: bool,
) -> AsyncIterator[list[Comparison]]:
    """All wanted answers after the cursor by their ids; with ``follow`` it ends only by an error.

    What an export that came to its end has sent can no longer be corrected.
    """
    cursor = after_comparison_id
    sent = 0
    while True:
        count = changes.count
        page, further = await threads.read(
            functools.partial(store.comparisons_after, cursor, wanted=wanted, limit=pace.page_comparisons)
        )
        if page:
            sent = page[-1].comparison_id
            yield page
        if further is not None:
            cursor = further
            continue
        cursor = max(cursor, sent)
        if sent:
            await threads.write(functools.partial(store.note_exported, wanted, sent))
            sent = 0
        if not follow:
            return
        await changes.wait_beyond(count, timeout_s=pace.poll_s)
