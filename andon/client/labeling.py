"""The labeling service as a client sees it: tasks in, leases and answers, comparisons in and out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing

from andon.api.labeling.v1 import labeling_service_pb2 as labeling_pb2
from andon.api.labeling.v1 import labeling_service_pb2_grpc as labeling_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection, new_request_id
from andon.client.labeling_messages import (
    agreement_from_proto,
    answer_to_proto,
    batch_settings_to_proto,
    comparison_from_proto,
    comparison_to_import,
    import_report_from_proto,
    project_settings_to_proto,
    task_to_proto,
)
from andon.client.labeling_values import (
    Agreement,
    AnswerDraft,
    BatchSettings,
    Estimate,
    ImportReport,
    LabelerPair,
    LabelingProgress,
    LeasedTask,
    ProjectSettings,
    RefusedRow,
    TaskDraft,
)
from andon.corpus.records import ComparisonRecord
from andon.errors import UnavailableError
from andon.rpc.convert import seconds_to_duration, timestamp_to_datetime

__all__ = [
    "Agreement",
    "AnswerDraft",
    "BatchSettings",
    "Estimate",
    "ImportReport",
    "LabelerPair",
    "LabelingClient",
    "LabelingProgress",
    "LeasedTask",
    "ProjectSettings",
    "RefusedRow",
    "TaskDraft",
]

MAX_TASKS_PER_CALL = 1000
MAX_STREAM_BREAKS = 5  # in a row, without one comparison in between
IMPORT_ROWS = 500  # in one message
IMPORT_BYTES = 4 * 1024 * 1024  # after which a message is sent with fewer


class LabelingClient(ServiceConnection):
    """Calls the labeling service."""

    def __init__(
        self, target: str, *, options: ChannelOptions | None = None, token: str | None = None
    ) -> None:
        """``token`` is the bearer token; ANDON_TOKEN when left out."""
        super().__init__(
            target,
            service_name="andon.api.labeling.v1.LabelingService",
            options=options,
            token=token,
        )
        self._stub = labeling_grpc.LabelingServiceStub(self.channel)

    def submit_tasks(
        self,
        tasks: Sequence[TaskDraft],
        *,
        batch: str,
        project: str = "",
        batch_settings: BatchSettings | None = None,
        request_id: str | None = None,
        timeout_s: float = 120.0,
        wait_for_ready: bool = False,
    ) -> list[str]:
        """Adds tasks to a batch and returns their ids, in order. Project and settings are for a new batch.

        Many tasks go out as several calls. With a ``request_id`` of the caller's own the whole submission may
        be repeated after a failure: each part's id is derived from it.
        """
        base_id = request_id or new_request_id()
        task_ids: list[str] = []
        for part, start in enumerate(range(0, max(1, len(tasks)), MAX_TASKS_PER_CALL)):
            request = labeling_pb2.SubmitTasksRequest(
                request_id=base_id if part == 0 else f"{base_id}.{part}",
                batch=batch,
                tasks=[task_to_proto(task) for task in tasks[start : start + MAX_TASKS_PER_CALL]],
                project=project,
                batch_settings=(None if batch_settings is None else batch_settings_to_proto(batch_settings)),
            )
            answer = self.unary(
                self._stub.SubmitTasks, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
            )
            task_ids.extend(answer.task_ids)
        return task_ids

    def lease_tasks(
        self,
        labeler_id: str,
        *,
        batch: str = "",
        project: str = "",
        max_tasks: int = 1,
        lease_s: float | None = None,
        timeout_s: float = 60.0,
        wait_for_ready: bool = False,
    ) -> list[LeasedTask]:
        """Tasks that are this labeler's until the lease expires; none when there is nothing to do."""
        request = labeling_pb2.LeaseTasksRequest(
            labeler_id=labeler_id,
            batch=batch,
            project=project,
            max_tasks=max_tasks,
            lease_duration=None if lease_s is None else seconds_to_duration(lease_s),
        )
        answer = self.unary(
            self._stub.LeaseTasks, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
        )
        return [
            LeasedTask(
                lease_id=task.lease_id,
                document=task.document,
                candidates=tuple(task.candidates),
                expire_time=timestamp_to_datetime(task.expire_time),
            )
            for task in answer.tasks
        ]

    def submit_answers(
        self,
        labeler_id: str,
        answers: Sequence[AnswerDraft],
        *,
        request_id: str | None = None,
        timeout_s: float = 60.0,
        wait_for_ready: bool = False,
    ) -> list[int]:
        """Records answers, all or none, and returns the comparisons' ids, in order."""
        request = labeling_pb2.SubmitAnswersRequest(
            request_id=request_id or new_request_id(),
            labeler_id=labeler_id,
            answers=[answer_to_proto(answer) for answer in answers],
        )
        answer = self.unary(
            self._stub.SubmitAnswers, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
        )
        return list(answer.comparison_ids)

    def skip_tasks(
        self,
        labeler_id: str,
        reasons_by_lease: Mapping[str, str],
        *,
        request_id: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Gives leased tasks back, each with a reason; the labeler does not get them again."""
        request = labeling_pb2.SkipTasksRequest(
            request_id=request_id or new_request_id(),
            labeler_id=labeler_id,
            skips=[
                labeling_pb2.SkippedTask(lease_id=lease_id, reason=reason)
                for lease_id, reason in reasons_by_lease.items()
            ],
        )
        self.unary(self._stub.SkipTasks, request, timeout_s=timeout_s)

    def export_comparisons(
        self,
        *,
        batch: str = "",
        project: str = "",
        with_superseded: bool = False,
        with_onboarding: bool = False,
        after_comparison_id: int = 0,
        follow: bool = False,
        timeout_s: float | None = 600.0,
        wait_for_ready: bool = True,
    ) -> Iterator[ComparisonRecord]:
        """Streams answers in the order in which they were recorded.

        Answers that a correction has superseded, and those to training and screening items, are left out
        unless asked for.

        A stream that breaks is continued after the last comparison received. ``timeout_s`` holds for each
        stream; ``follow`` without a timeout waits for further answers for ever.
        """
        cursor, breaks = after_comparison_id, 0
        while True:
            request = labeling_pb2.ExportComparisonsRequest(
                batch=batch,
                project=project,
                with_superseded=with_superseded,
                with_onboarding=with_onboarding,
                after_comparison_id=cursor,
                follow=follow,
            )
            answers = self.stream(
                self._stub.ExportComparisons,
                request,
                timeout_s=timeout_s,
                wait_for_ready=wait_for_ready,
            )
            try:
                with closing(answers):
                    for answer in answers:
                        yield comparison_from_proto(answer.comparison)
                        cursor, breaks = answer.comparison.comparison_id, 0
                return
            except UnavailableError:
                breaks += 1
                if breaks > MAX_STREAM_BREAKS:
                    raise

    def import_comparisons(
        self,
        records: Iterable[tuple[int, ComparisonRecord]],
        *,
        project: str,
        batch: str,
        on_refused: Callable[[RefusedRow], None] = lambda refused: None,
        on_rows: Callable[[int], None] = lambda count: None,
        timeout_s: float = 86_400.0,
        wait_for_ready: bool = False,
    ) -> ImportReport:
        """Records answers that were given elsewhere, each with the number of its row in the source.

        They go out in messages of a few hundred rows, each recorded by itself, so the memory is that of a
        message. Importing the same rows again records nothing twice: a message is recognised by its place and
        content. ``on_refused`` hears of rows that cannot even be sent; those that the service refuses are in
        the report. ``on_rows`` hears how many rows have gone out.
        """

        def messages() -> Iterator[labeling_pb2.ImportComparisonsRequest]:
            message = labeling_pb2.ImportComparisonsRequest(project=project, batch=batch)
            num_bytes = num_sent = 0
            for row, record in records:
                try:
                    comparison = comparison_to_import(record, row=row)
                except (ValueError, TypeError) as error:
                    on_refused(RefusedRow(row=row, reason="MALFORMED_ROW", message=str(error)))
                    continue
                message.comparisons.append(comparison)
                num_bytes += comparison.ByteSize()
                if len(message.comparisons) >= IMPORT_ROWS or num_bytes >= IMPORT_BYTES:
                    yield _with_id(message, num_sent)
                    num_sent += 1
                    on_rows(len(message.comparisons))
                    message = labeling_pb2.ImportComparisonsRequest(project=project, batch=batch)
                    num_bytes = 0
            if message.comparisons or num_sent == 0:
                yield _with_id(message, num_sent)
                on_rows(len(message.comparisons))

        answer = self.upload(
            self._stub.ImportComparisons, messages(), timeout_s=timeout_s, wait_for_ready=wait_for_ready
        )
        return import_report_from_proto(answer)

    def create_project(
        self, project: str, settings: ProjectSettings | None = None, *, timeout_s: float = 30.0
    ) -> bool:
        """Makes a project; False when it is there already, with the same settings."""
        request = labeling_pb2.CreateProjectRequest(
            project=project, settings=project_settings_to_proto(settings or ProjectSettings())
        )
        return self.unary(self._stub.CreateProject, request, timeout_s=timeout_s).created

    def project_names(self, *, timeout_s: float = 30.0) -> list[str]:
        """The names of all projects."""
        names: list[str] = []
        page_token = ""
        while True:
            request = labeling_pb2.ListProjectsRequest(page_token=page_token)
            answer = self.unary(self._stub.ListProjects, request, timeout_s=timeout_s)
            names.extend(project.project for project in answer.projects)
            page_token = answer.next_page_token
            if not page_token:
                return names

    def agreement(self, project: str, *, batch: str = "", timeout_s: float = 600.0) -> Agreement:
        """How far the labelers of a project, or of one of its batches, agree."""
        request = labeling_pb2.GetAgreementRequest(project=project, batch=batch)
        return agreement_from_proto(self.unary(self._stub.GetAgreement, request, timeout_s=timeout_s))

    def progress(
        self, *, batch: str = "", project: str = "", timeout_s: float = 30.0, wait_for_ready: bool = False
    ) -> LabelingProgress:
        """Counts tasks and answers of a batch, of a project, or of all."""
        answer = self.unary(
            self._stub.GetProgress,
            labeling_pb2.GetProgressRequest(batch=batch, project=project),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return LabelingProgress(
            task_count=answer.task_count,
            slot_count=answer.slot_count,
            answer_count=answer.answer_count,
            lease_count=answer.lease_count,
            labeler_count=answer.labeler_count,
        )


def _with_id(
    message: labeling_pb2.ImportComparisonsRequest, number: int
) -> labeling_pb2.ImportComparisonsRequest:
    """The message with the id by which a repetition is recognised: its batch, its place and its content."""
    digest = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
    message.request_id = f"{message.batch}.{number}.{digest[:32]}"
    return message
