"""Keeps reports of quality for as long as they say what the database says, so that pages may ask often.

A report is made anew when an answer was recorded since, but never more often than every few seconds: with
many answers it is seconds of work. Reading uses a database thread, computing a thread of its own; the event
loop does neither. One report is computed at a time, and whoever wants the same waits for it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.labeling.database import Database, last_number
from services.labeling.quality.records import JudgedAnswer
from services.labeling.quality.report import QualityReport, quality_report
from services.labeling.quality_store import QualityStore
from services.labeling.threads import DatabaseThreads

MAX_PEOPLE_FOR_PAIRS = 60  # 1,770 pairs
_MIN_AGE_S = 5.0  # so old a report may be whatever was recorded since
_MAX_AGE_S = 60.0  # roles change too, and nothing says so
_MAX_KEPT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReport:
    """A report and how far it reaches."""

    report: QualityReport
    last_comparison_id: int  # of the whole database when it was made
    made_s: float  # by the monotonic clock
    check_s: float  # when it was last found to be up to date


class QualityReports:
    """Reports by project and batch."""

    def __init__(
        self,
        database: Database,
        threads: DatabaseThreads,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._store = QualityStore(database)
        self._threads = threads
        self._monotonic_s = monotonic_s
        self._kept: OrderedDict[tuple[str, str], KeptReport] = OrderedDict()
        self._turn = asyncio.Lock()  # one is computed at a time

    async def report(self, project: str, *, batch: str = "") -> KeptReport:
        """The report of a project, or of one batch. Raises ProjectNotFoundError and BatchNotFoundError."""
        key = (project, batch)
        kept = self._fresh(key)
        if kept is not None:
            return kept
        async with self._turn:
            kept = self._fresh(key)  # somebody may have made it meanwhile
            return kept if kept is not None else await self._renew(key)

    def _fresh(self, key: tuple[str, str]) -> KeptReport | None:
        kept = self._kept.get(key)
        return kept if kept is not None and self._monotonic_s() - kept.check_s < _MIN_AGE_S else None

    async def _renew(self, key: tuple[str, str]) -> KeptReport:
        kept = self._kept.get(key)
        last_id = await self._threads.read(self._last_comparison_id)
        now_s = self._monotonic_s()
        if kept is not None and kept.last_comparison_id == last_id and now_s - kept.made_s < _MAX_AGE_S:
            kept = replace(kept, check_s=now_s)
        else:
            project, batch = key
            answers = await self._threads.read(
                functools.partial(self._store.judged_answers, project, batch=batch)
            )
            report = await asyncio.to_thread(_make_report, answers)
            now_s = self._monotonic_s()
            kept = KeptReport(report=report, last_comparison_id=last_id, made_s=now_s, check_s=now_s)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return kept

    def _last_comparison_id(self) -> int:
        return self._database.read(lambda connection: last_number(connection, "comparison"))


def _make_report(answers: Sequence[JudgedAnswer]) -> QualityReport:
    num_people = len({answer.labeler_id for answer in answers})
    return quality_report(answers, include_pairs=num_people <= MAX_PEOPLE_FOR_PAIRS)
