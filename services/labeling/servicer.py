"""The RPCs of LabelingService: check, hand to a database thread, answer.

What may be asked and what it means is decided in ``tasks``, ``assignment`` and ``answers``; errors become
statuses in ``andon.rpc``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from services.labeling.answers import Choice, check_answers
from services.labeling.assignment import LeaseDurations, check_lease_order
from services.labeling.changes import Changes
from services.labeling.config import LabelingConfig
from services.labeling.errors import InvalidFieldError
from services.labeling.export import ExportPace, pages_of_comparisons
from services.labeling.limits import check_batch_filter, check_request_id
from services.labeling.messages import (
    answer_from_proto,
    comparison_to_proto,
    duration_to_us,
    leased_task_to_proto,
    progress_to_proto,
    repeatable,
    task_from_proto,
)
from services.labeling.metrics import LabelingMetrics
from services.labeling.store import LabelingStore
from services.labeling.tasks import check_submission
from services.labeling.threads import DatabaseThreads


class LabelingServicer(labeling_grpc.LabelingServiceServicer):
    """Tasks in, leases and answers, comparisons out."""

    def __init__(
        self,
        store: LabelingStore,
        *,
        threads: DatabaseThreads,
        answers_recorded: Changes,
        config: LabelingConfig,
        metrics: LabelingMetrics,
    ) -> None:
        self._store = store
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

    async def SubmitTasks(
        self,
        request: labeling_pb2.SubmitTasksRequest,
        context: grpc.aio.ServicerContext[labeling_pb2.SubmitTasksRequest, labeling_pb2.SubmitTasksResponse],
    ) -> labeling_pb2.SubmitTasksResponse:
        """Add tasks to a batch."""
        check_request_id(request.request_id)
        drafts = [task_from_proto(task) for task in request.tasks]
        check_submission(request.batch, drafts, max_text_chars=self._max_text_chars)
        origin = repeatable("SubmitTasks", request.request_id, request)
        submitted = await self._threads.write(lambda: self._store.submit_tasks(origin, request.batch, drafts))
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
            labeler_id=request.labeler_id,
            batch=request.batch,
            max_tasks=request.max_tasks,
            duration_us=duration_us,
            durations=self._lease_durations,
        )
        leased = await self._threads.write(lambda: self._store.lease_tasks(order))
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
        answers = [
            answer_from_proto(answer, field=f"answers[{index}]")
            for index, answer in enumerate(request.answers)
        ]
        check_answers(answers)
        origin = repeatable("SubmitAnswers", request.request_id, request)
        recorded = await self._threads.write(
            lambda: self._store.submit_answers(origin, request.labeler_id, answers),
            then=self._answers_recorded.announce,
        )
        if recorded.repeated:
            self._metrics.requests_repeated.labels("SubmitAnswers").inc()
        else:
            num_choices = sum(isinstance(answer.decision, Choice) for answer in answers)
            self._metrics.answers_recorded.labels("choice").inc(num_choices)
            self._metrics.answers_recorded.labels("ranking").inc(len(answers) - num_choices)
        return labeling_pb2.SubmitAnswersResponse(comparison_ids=recorded.comparison_ids)

    async def ExportComparisons(
        self,
        request: labeling_pb2.ExportComparisonsRequest,
        context: grpc.aio.ServicerContext[
            labeling_pb2.ExportComparisonsRequest, labeling_pb2.ExportComparisonsResponse
        ],
    ) -> AsyncIterator[labeling_pb2.ExportComparisonsResponse]:
        """Stream what was recorded."""
        check_batch_filter(request.batch)
        if request.after_comparison_id < 0:
            raise InvalidFieldError("is negative", reason="INVALID_CURSOR", field="after_comparison_id")
        pages = pages_of_comparisons(
            self._store,
            self._threads,
            self._answers_recorded,
            self._export_pace,
            batch=request.batch,
            after_comparison_id=request.after_comparison_id,
            follow=request.follow,
        )
        with self._metrics.streams.labels("export").track_inprogress():
            async for page in pages:
                for comparison in page:
                    yield labeling_pb2.ExportComparisonsResponse(comparison=comparison_to_proto(comparison))
                self._metrics.comparisons_exported.inc(len(page))

    async def GetProgress(
        self,
        request: labeling_pb2.GetProgressRequest,
        context: grpc.aio.ServicerContext[labeling_pb2.GetProgressRequest, labeling_pb2.GetProgressResponse],
    ) -> labeling_pb2.GetProgressResponse:
        """Count."""
        check_batch_filter(request.batch)
        return progress_to_proto(await self._threads.read(lambda: self._store.progress(request.batch)))
