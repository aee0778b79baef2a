"""In which pieces recorded answers go out, and when a reader who follows hears of new ones.

Each page is a short read of its own: a slow reader holds no transaction open, and a database of any size is
exported in the memory of one page.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.labeling.answers import Comparison
from services.labeling.changes import Changes
from services.labeling.store import LabelingStore
from services.labeling.threads import DatabaseThreads


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPace:
    """How an export proceeds."""

    page_comparisons: int
    poll_s: float  # a follower looks this often for answers that another process recorded


async def pages_of_comparisons(
    store: LabelingStore,
    threads: DatabaseThreads,
    changes: Changes,
    pace: ExportPace,
    *,
    batch: str,
    after_comparison_id: int,
    follow: bool,
) -> AsyncIterator[list[Comparison]]:
    """All answers after the cursor in the order of their ids; with ``follow`` it ends only by an error."""
    cursor = after_comparison_id
    while True:
        count = changes.count
        page = await threads.read(
            functools.partial(store.comparisons_after, cursor, batch=batch, limit=pace.page_comparisons)
        )
        if page:
            cursor = page[-1].comparison_id
            yield page
        if len(page) < pace.page_comparisons:
            if not follow:
                return
            await changes.wait_beyond(count, timeout_s=pace.poll_s)
