"""The RPCs of LabelingService: check, hand to a database thread, answer.

What may be asked and what it means is decided in ``projects``, ``tasks``, ``assignment``, ``answers``,
``imports`` and ``export``; who may ask in ``access``; errors become statuses in ``andon.rpc``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from services.labeling.accounts import Role
from services.labeling.answers import Choice, check_answers, check_count
from services.labeling.assignment import LeaseDurations, check_lease_order
from services.labeling.callers import acting_as, caller
from services.labeling.changes import Changes
from services.labeling.config import LabelingConfig
from services.labeling.errors import InvalidFieldError
from services.labeling.export import ExportPace, check_export_filter, pages_of_comparisons
from services.labeling.import_store import ImportStore
from services.labeling.imports import MAX_ROWS_PER_MESSAGE, ImportRow, ImportTally, Refusal, check_rows
from services.labeling.limits import (
    MAX_NOTE_CHARS,
    check_batch,
    check_batch_filter,
    check_labeler,
    check_request_id,
    check_text,
)
from services.labeling.messages import (
    answer_from_proto,
    batch_settings_from_proto,
    batch_settings_to_proto,
    comparison_to_proto,
    duration_to_us,
    estimate_to_proto,
    export_filter_from_proto,
    import_row_from_proto,
    import_tally_to_proto,
    leased_task_to_proto,
    progress_to_proto,
    project_settings_from_proto,
    project_settings_to_proto,
    repeatable,
    skip_from_proto,
    task_from_proto,
)
from services.labeling.metrics import LabelingMetrics
from services.labeling.project_store import ProjectRecord, ProjectStore
from services.labeling.projects import (
    check_batch_settings,
    check_instructions,
    check_project_filter,
    check_project_name,
    check_project_settings,
)
from services.labeling.quality.report import agreement_report
from services.labeling.quality_store import QualityStore
from services.labeling.requests import RepeatableRequest
from services.labeling.store import LabelingStore, SkipDraft
from services.labeling.tasks import check_submission
from services.labeling.threads import DatabaseThreads

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000


class LabelingServicer(labeling_grpc.LabelingServiceServicer):
    """Tasks in, leases and answers, comparisons out."""

    def __init__(
        self,
        store: LabelingStore,
        *,
        projects: ProjectStore,
        imports: ImportStore,
        quality: QualityStore,
        threads: DatabaseThreads,
        answers_recorded: Changes,
        config: LabelingConfig,
        metrics: LabelingMetrics,
    ) -> None:
        self._store = store
        self._projects = projects
        self._imports = imports
        self._quality = quality
        self._threads = threads
        self._answers_recorded = answers_recorded
        self._metrics = metrics
        self._max_text_chars = config.max_text_chars
        self._lease_durations = LeaseDurations(
            default_us=round(config.default_lease_s * 1e6), max_us=round(config.max_lease_s * 1e6)
        )
        self._export_pace = ExportPace(
            page_comparisons=config.export_page_comparisons, poll_s=config.export_poll_s
        )

    async def CreateProject(
        self,
        request: labeling_pb2.CreateProjectRequest,
        context: grpc.aio.ServicerContext[
            labeling_pb2.CreateProjectRequest, labeling_pb2.CreateProjectResponse
        ],
    ) -> labeling_pb2.CreateProjectResponse:
        """Make a project."""
        check_project_name(request.project)
        settings = project_settings_from_proto(request.settings)
        check_project_settings(settings)
        check_instructions(request.settings.instructions)
        actor = caller().name
        created = await self._threads.write(
            lambda: self._projects.create_project(
                request.project,
                settings,
                request.settings.instructions,
                actor=actor,
            )
        )
        return labeling_pb2.CreateProjectResponse(created=created)

    async def ListProjects(
        self,
        request: labeling_pb2.ListProjectsRequest,
        context: grpc.aio.ServicerContext[
            labeling_pb2.ListProjectsRequest, labeling_pb2.ListProjectsResponse
        ],
    ) -> labeling_pb2.ListProjectsResponse:
        """Name projects with their batches."""
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            raise InvalidFieldError(
                f"{request.page_size}; at most {MAX_PAGE_SIZE}", reason="INVALID_PAGE", field="page_size"
            )
        check_project_filter(request.page_token)
        limit = request.page_size or DEFAULT_PAGE_SIZE
        found = await self._threads.read(
            lambda: self._projects.projects(after=request.page_token, limit=limit + 1)
        )
        answer = labeling_pb2.ListProjectsResponse(
            next_page_token=found[limit - 1].name if len(found) > limit else ""
        )
        for project in found[:limit]:
            answer.projects.append(await self._project_to_proto(project))
        return answer

    async def SubmitTasks(
        self,
        request: labeling_pb2.SubmitTasksRequest,
        context: grpc.aio.ServicerContext[labeling_pb2.SubmitTasksRequest, labeling_pb2.SubmitTasksResponse],
    ) -> labeling_pb2.SubmitTasksResponse:
        """Add tasks to a batch."""
        check_request_id(request.request_id)
        check_project_filter(request.project)
        settings = batch_settings_from_proto(request.batch_settings)
        check_batch_settings(settings)
        drafts = [task_from_proto(task, field=f"tasks[{index}]") for index, task in enumerate(request.tasks)]
        check_submission(request.batch, drafts, max_text_chars=self._max_text_chars)
        origin = repeatable("SubmitTasks", request.request_id, request)
        submitted = await self._threads.write(
            lambda: self._store.submit_tasks(
                origin, request.batch, drafts, project=request.project, batch_settings=settings
            )
        )
        if submitted.repeated:
            self._metrics.requests_repeated.labels("SubmitTasks").inc()
        else:
            self._metrics.tasks_submitted.inc(len(drafts))
        return labeling_pb2.SubmitTasksResponse(task_ids=[str(task_id) for task_id in submitted.task_ids])

    async def LeaseTasks(
        self,
        request: labeling_pb2.LeaseTasksRequest,
        context: grpc.aio.ServicerContext[labeling_pb2.LeaseTasksRequest, labeling_pb2.LeaseTasksResponse],
    ) -> labeling_pb2.LeaseTasksResponse:
        """Give a labeler work."""
        duration_us: int | None = None
        if request.HasField("lease_duration"):
            duration_us = duration_to_us(
                request.lease_duration, field="lease_duration", reason="INVALID_LEASE"
            )
        order = check_lease_order(
            labeler_id=acting_as(request.labeler_id),
            batch=request.batch,
            project=request.project,
            max_tasks=request.max_tasks,
            duration_us=duration_us,
            durations=self._lease_durations,
        )
        must_be_admitted = caller().role == Role.LABELER
        leased = await self._threads.write(
            lambda: self._store.lease_tasks(order, must_be_admitted=must_be_admitted)
        )
        self._metrics.leases_granted.inc(len(leased))
        return labeling_pb2.LeaseTasksResponse(tasks=[leased_task_to_proto(task) for task in leased])

    async def SubmitAnswers(
        self,
        request: labeling_pb2.SubmitAnswersRequest,
        context: grpc.aio.ServicerContext[
            labeling_pb2.SubmitAnswersRequest, labeling_pb2.SubmitAnswersResponse
        ],
    ) -> labeling_pb2.SubmitAnswersResponse:
        """Record answers, all or none."""
        check_request_id(request.request_id)
        labeler_id = acting_as(request.labeler_id)
        check_labeler(labeler_id)
        answers = [
            answer_from_proto(answer, field=f"answers[{index}]")
            for index, answer in enumerate(request.answers)
        ]
        check_answers(answers)
        origin = repeatable("SubmitAnswers", request.request_id, request)
        recorded = await self._threads.write(
            lambda: self._store.submit_answers(origin, labeler_id, answers),
            then=self._answers_recorded.announce,
        )
        if recorded.repeated:
            self._metrics.requests_repeated.labels("SubmitAnswers").inc()
        else:
            num_choices = sum(isinstance(answer.decision, Choice) for answer in answers)
            self._metrics.answers_recorded.labels("choice").inc(num_choices)
            self._metrics.answers_recorded.labels("ranking").inc(len(answers) - num_choices)
        return labeling_pb2.SubmitAnswersResponse(comparison_ids=recorded.comparison_ids)

    async def SkipTasks(
        self,
        request: labeling_pb2.SkipTasksRequest,
        context: grpc.aio.ServicerContext[labeling_pb2.SkipTasksRequest, labeling_pb2.SkipTasksResponse],
    ) -> labeling_pb2.SkipTasksResponse:
        """Take tasks back, all or none."""
        check_request_id(request.request_id)
        labeler_id = acting_as(request.labeler_id)
        check_labeler(labeler_id)
        skipped = [skip_from_proto(skip) for skip in request.skips]
        check_skips(skipped)
        origin = repeatable("SkipTasks", request.request_id, request)
        is_new = await self._threads.write(lambda: self._store.skip_tasks(origin, labeler_id, skipped))
        if is_new:
            self._metrics.tasks_skipped.inc(len(skipped))
        else:
            self._metrics.requests_repeated.labels("SkipTasks").inc()
        return labeling_pb2.SkipTasksResponse()

    async def ExportComparisons(
        self,
        request: labeling_pb2.ExportComparisonsRequest,
        context: grpc.aio.ServicerContext[
            labeling_pb2.ExportComparisonsRequest, labeling_pb2.ExportComparisonsResponse
        ],
    ) -> AsyncIterator[labeling_pb2.ExportComparisonsResponse]:
        """Stream what was recorded."""
        wanted = export_filter_from_proto(request)
        check_export_filter(wanted)
        if request.after_comparison_id < 0:
            raise InvalidFieldError("is negative", reason="INVALID_CURSOR", field="after_comparison_id")
        pages = pages_of_comparisons(
            self._store,
            self._threads,
            self._answers_recorded,
            self._export_pace,
            wanted=wanted,
            after_comparison_id=request.after_comparison_id,
            follow=request.follow,
        )
        with self._metrics.streams.labels("export").track_inprogress():
            async for page in pages:
                for comparison in page:
                    yield labeling_pb2.ExportComparisonsResponse(comparison=comparison_to_proto(comparison))
                self._metrics.comparisons_exported.inc(len(page))

    async def ImportComparisons(
        self,
        request_iterator: AsyncIterator[labeling_pb2.ImportComparisonsRequest],
        context: grpc.aio.ServicerContext[
            labeling_pb2.ImportComparisonsRequest, labeling_pb2.ImportComparisonsResponse
        ],
    ) -> labeling_pb2.ImportComparisonsResponse:
        """Record answers that were given elsewhere, message by message."""
        tally = ImportTally()
        project = batch = ""
        recording: asyncio.Task[ImportTally] | None = None
        try:
            async for request in request_iterator:
                check_request_id(request.request_id)
                if not batch:
                    project, batch = request.project, request.batch
                    check_project_name(project)
                    check_batch(batch)
                    await self._threads.read(functools.partial(self._imports.check_project, project))
                # In a thread of its own: a message of a thousand rows would hold up all other calls. The next
                # message is read while the last one is recorded, in their order.
                read = await asyncio.to_thread(_read_import, request, max_text_chars=self._max_text_chars)
                if recording is not None:
                    tally += await recording
                recording = asyncio.create_task(self._record_import(read, project=project, batch=batch))
            if recording is not None:
                tally += await recording
        finally:
            if recording is not None:  # what came before a message that is refused stays recorded
                await asyncio.gather(recording, return_exceptions=True)
        if not batch:
            raise InvalidFieldError("at least one is needed", reason="EMPTY_REQUEST", field="comparisons")
        return import_tally_to_proto(tally)

    async def GetProgress(
        self,
        request: labeling_pb2.GetProgressRequest,
        context: grpc.aio.ServicerContext[labeling_pb2.GetProgressRequest, labeling_pb2.GetProgressResponse],
    ) -> labeling_pb2.GetProgressResponse:
        """Count."""
        check_batch_filter(request.batch)
        check_project_filter(request.project)
        return progress_to_proto(
            await self._threads.read(lambda: self._store.progress(request.batch, project=request.project))
        )

    async def GetAgreement(
        self,
        request: labeling_pb2.GetAgreementRequest,
        context: grpc.aio.ServicerContext[
            labeling_pb2.GetAgreementRequest, labeling_pb2.GetAgreementResponse
        ],
    ) -> labeling_pb2.GetAgreementResponse:
        """Say how far labelers agree."""
        check_project_name(request.project)
        check_batch_filter(request.batch)
        report = await self._threads.read(
            lambda: agreement_report(self._quality.judged_answers(request.project, batch=request.batch))
        )
        return labeling_pb2.GetAgreementResponse(
            pairs=[
                labeling_pb2.LabelerPair(
                    a=pair.a,
                    b=pair.b,
                    agreement=estimate_to_proto(pair.agreement),
                    cohen_kappa=estimate_to_proto(pair.cohen_kappa),
                )
                for pair in report.pairs
            ],
            fleiss_kappa=estimate_to_proto(report.fleiss_kappa),
            krippendorff_alpha=estimate_to_proto(report.krippendorff_alpha),
            labeler_labeler=estimate_to_proto(report.shares.labeler_labeler),
            labeler_researcher=estimate_to_proto(report.shares.labeler_researcher),
            labeler_majority=estimate_to_proto(report.shares.labeler_majority),
        )

    async def _record_import(self, read: _ReadImport, *, project: str, batch: str) -> ImportTally:
        if not read.kept:
            return read.refused
        recorded = await self._threads.write(
            lambda: self._imports.record(read.origin, read.kept, project=project, batch=batch),
            then=self._answers_recorded.announce,
        )
        self._metrics.answers_imported.inc(recorded.num_recorded)
        return read.refused + recorded

    async def _project_to_proto(self, project: ProjectRecord) -> labeling_pb2.Project:
        batches = await self._threads.read(lambda: self._projects.batches(project.name))
        message = labeling_pb2.Project(
            project=project.name,
            settings=project_settings_to_proto(project.settings, project.instructions),
            instructions_version=project.instructions_version,
        )
        for batch in batches:
            progress = await self._threads.read(functools.partial(self._store.progress, batch.name))
            message.batches.append(
                labeling_pb2.Batch(
                    batch=batch.name,
                    settings=batch_settings_to_proto(batch.settings),
                    progress=progress_to_proto(progress),
                )
            )
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadImport:
    """A message of an import, ready to be recorded."""

    origin: RepeatableRequest
    kept: list[ImportRow]
    refused: ImportTally


def _read_import(request: labeling_pb2.ImportComparisonsRequest, *, max_text_chars: int) -> _ReadImport:
    if len(request.comparisons) > MAX_ROWS_PER_MESSAGE:
        raise InvalidFieldError(
            f"{len(request.comparisons):,}; at most {MAX_ROWS_PER_MESSAGE:,} in a message",
            reason="TOO_MANY_ANSWERS",
            field="comparisons",
        )
    rows: list[ImportRow] = []
    unreadable: list[Refusal] = []
    for message in request.comparisons:
        try:
            rows.append(import_row_from_proto(message))
        except InvalidFieldError as error:
            unreadable.append(Refusal(row=message.row, reason=error.reason, message=error.message))
    kept, refused = check_rows(rows, max_text_chars=max_text_chars)
    return _ReadImport(
        origin=repeatable("ImportComparisons", request.request_id, request),
        kept=kept,
        refused=refused + ImportTally(num_refused=len(unreadable), refused=tuple(unreadable)),
    )


def check_skips(skipped: list[SkipDraft]) -> None:
    """Refuse what no lease could make right: a skip needs a reason, and each lease stands once."""
    check_count(len(skipped), field="skips")
    seen: set[str] = set()
    for index, skip in enumerate(skipped):
        field = f"skips[{index}]"
        if skip.lease_id in seen:
            raise InvalidFieldError("skipped twice", reason="INVALID_ANSWER", field=f"{field}.lease_id")
        seen.add(skip.lease_id)
        if not skip.reason.strip():
            raise InvalidFieldError("say why", reason="EMPTY_REASON", field=f"{field}.reason")
        check_text(skip.reason, field=f"{field}.reason", max_chars=MAX_NOTE_CHARS)
