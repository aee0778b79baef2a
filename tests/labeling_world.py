"""A served labeling site with people of every role and with something in every table.

``serve_world`` serves an empty one; ``World.populate`` fills it through the real RPCs and forms, as
researchers and labelers would, with texts of the test's choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from prometheus_client import CollectorRegistry

from andon.api.common.v1 import model_pb2
from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import labeling_service_pb2 as pb
from andon.rpc.server import RunningServer
from services.labeling import schema
from services.labeling.accounts import Role
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService
from services.labeling.web.pages import Page
from tests.html_pages import HtmlForm, HtmlPage
from tests.labeling_rpcs import METHODS, Outcome, RpcCaller, bearer
from tests.site import Person, SiteUnderTest
from tests.tokens import TOKENS, write_tokens

START_TIMEOUT_S = 60
NAMES: Mapping[Role, str] = {Role.LABELER: "lara", Role.RESEARCHER: "rita", Role.ADMIN: "root"}
OTHER_LABELER = "luis"
PAIRS, BLIND, SCHOOL = "pairs", "blind", "school"
PROJECTS = (PAIRS, BLIND, SCHOOL)

Write = Callable[[str], str]  # the text for a field


class World:
    """The site, its people and what is known of its database."""

    def __init__(
        self, site: SiteUnderTest, registry: CollectorRegistry, rpcs: RpcCaller, log_path: Path
    ) -> None:
        self.site = site
        self.log_path = log_path
        self.registry = registry
        self.rpcs = rpcs
        self.people = {role: site.person(name, role) for role, name in NAMES.items()}
        self.other = site.person(OTHER_LABELER, Role.LABELER)

    # Calls

    def call(self, name: str, request: Any, *, by: str = "admin", **options: Any) -> Outcome:
        """Call the method of this name with a token of ``tests.tokens``; None for no token."""
        (method,) = [method for method in METHODS.values() if method.name == name]
        return self.rpcs.call(method, request, metadata=bearer(TOKENS[by]), **options)

    def must(self, name: str, request: Any, *, by: str = "admin") -> Any:
        """As :meth:`call`; the answer of a call that has to succeed."""
        outcome = self.call(name, request, by=by)
        assert outcome.code == "OK", (name, outcome)
        return outcome.answers[0]

    # The database

    def fingerprint(self) -> dict[str, str]:
        """A hash of each table's content, but for when a session was last seen."""
        with self.site.database.engine.connect() as connection:
            found = {}
            for table in schema.metadata.sorted_tables:
                columns = [column for column in table.c if column is not schema.sessions.c.seen_us]
                rows = sorted(repr(tuple(row)) for row in connection.execute(sa.select(*columns)))
                found[table.name] = hashlib.sha256(repr(rows).encode()).hexdigest()
            return found

    def rows(self, query: sa.Select[Any]) -> list[Any]:
        """What a query finds."""
        with self.site.database.engine.connect() as connection:
            return list(connection.execute(query))

    def leases_of(
        self, name: str, *, project: str | None = None, kind: str | None = None, only_answered: bool = False
    ) -> list[str]:
        """The person's leases, oldest first."""
        query = (
            sa.select(schema.leases.c.id)
            .join(schema.tasks, schema.tasks.c.id == schema.leases.c.task_id)
            .join(schema.batches, schema.batches.c.id == schema.tasks.c.batch_id)
            .join(schema.projects, schema.projects.c.id == schema.batches.c.project_id)
            .where(schema.leases.c.labeler_id == name)
            .order_by(schema.leases.c.lease_us)
        )
        if project is not None:
            query = query.where(schema.projects.c.name == project)
        if kind is not None:
            query = query.where(schema.tasks.c.kind == kind)
        if only_answered:
            query = query.where(schema.leases.c.is_answered)
        return [row.id for row in self.rows(query)]

    def address(self, page: Page, name: str) -> str:
        """The page's path with things that are there, as they are this person's."""
        values = {"project": PAIRS, "batch": f"{PAIRS}.1", "token": "A" * 43}
        if page.path.startswith("/projects/"):
            values["item"] = str(self.rows(sa.select(sa.func.min(schema.comparisons.c.task_id)))[0][0] or 1)
            values["answer"] = str(self.rows(sa.select(sa.func.min(schema.comparisons.c.id)))[0][0] or 1)
        else:
            values["item"] = next(iter(self.leases_of(name, project=PAIRS, only_answered=True)), "0" * 32)
        path = re.sub(r"\{(\w+)(:\w+)?\}", lambda found: values.get(found[1], "1"), page.path)
        assert "{" not in path
        return path

    # Acts

    def populate(self, write: Write) -> None:
        """Let everybody do everything there is, once."""
        self._make_projects(write)
        self._make_tasks(write)
        self._import(write)
        lara, rita = self.people[Role.LABELER], self.people[Role.RESEARCHER]
        for person in (lara, self.other):
            for project in PROJECTS:
                self.work(person, project, write)
        self._correct(lara, write)
        self._talk(lara, rita, write)
        for path in ("/cord/pull", "/cord/release"):
            answer = rita.submit(path, {"reason": write("cord reason")})
            assert answer.status_code == 303, answer.text
        self.must("SubmitTasks", self.tasks(write, 4), by="rita")
        # One item is skipped, one is left with a half-finished answer.
        form = self.open_item(lara, PAIRS)
        fields = form.filled({"reason": "other", "reason_words": write("skip reason")})
        assert lara.post(f"/work/{PAIRS}/skip", data=fields).status_code == 303
        form = self.open_item(lara, PAIRS)
        fields = form.filled({"note": write("draft note")})
        assert lara.post(f"/work/{PAIRS}/draft", data=fields).json() == {"kept": True}

    def work(self, person: Person, project: str, write: Write, *, max_items: int = 20) -> int:
        """Answer what there is to answer; gives the number of forms that were sent."""
        for number in range(max_items):
            form = self.next_form(person, project)
            if form is None:
                return number
            changes = {name: write(f"{name} of {project}") for name in form.typed_names}
            if any(control.name == "flag_A" for control in form.controls):
                changes["flag_A"] = "harmful"
            answer = person.post(form.action, data=form.filled(changes))
            assert answer.status_code == 303, answer.text
        return max_items

    def next_form(self, person: Person, project: str) -> HtmlForm | None:
        """The form with which the person goes on in the project, None where nothing is left."""
        page = HtmlPage(person.get(f"/work/{project}", follow_redirects=True).text)
        wanted = tuple(f"/work/{project}/{act}" for act in ("answer", "reading", "instructions"))
        return next((form for form in page.forms if form.action in wanted), None)

    def open_item(self, person: Person, project: str) -> HtmlForm:
        """The form of the item that the person has before them."""
        form = self.next_form(person, project)
        assert form is not None
        return form

    def tasks(self, write: Write, number: int, **fields: Any) -> pb.SubmitTasksRequest:
        """A submission of pairs to the first batch."""
        tasks = [self._task(write, 2, **fields) for _ in range(number)]
        return pb.SubmitTasksRequest(request_id=uuid.uuid4().hex, batch=f"{PAIRS}.1", tasks=tasks)

    def _task(self, write: Write, num_candidates: int, **fields: Any) -> pb.Task:
        writer = model_pb2.ModelVersion(name=write("model name"), version=424242, weights_sha256="ab" * 32)
        # Two tasks of the same words are two tasks: their documents differ.
        return pb.Task(
            document=f"{write('document')} {uuid.uuid4().hex}",
            document_id=write("document id"),
            candidates=[
                pb.Candidate(text=write("candidate"), source=write("source")[:64], policy_version=writer)
                for _ in range(num_candidates)
            ],
            **{"overlap_count": 2, **fields},
        )

    def _make_projects(self, write: Write) -> None:
        onboarding = pb.Onboarding(training_count=1, screening_count=1, max_attempts=2)
        settings: dict[str, dict[str, Any]] = {
            PAIRS: {"rating_axes": True, "reading_aids": True},
            BLIND: {"naive_reading": True},
            SCHOOL: {"onboarding": onboarding},
        }
        for project, fields in settings.items():
            words: dict[str, Any] = {"title": write("title")[:200], "instructions": write("instructions")}
            self.must(
                "CreateProject",
                pb.CreateProjectRequest(project=project, settings=pb.ProjectSettings(**words, **fields)),
                by="rita",
            )

    def _make_tasks(self, write: Write) -> None:
        right = pb.Ranking(tiers=[pb.Tier(candidate_indices=[0]), pb.Tier(candidate_indices=[1])])
        known = {"expected": right, "explanation": write("explanation")}
        by_project = {
            PAIRS: [
                *(self._task(write, 2) for _ in range(3)),
                self._task(write, 3),
                self._task(write, 1, kind=pb.TASK_KIND_EDIT),
                self._task(write, 0, kind=pb.TASK_KIND_WRITE),
                self._task(write, 2, purpose=pb.TASK_PURPOSE_CALIBRATION),
                self._task(write, 2, purpose=pb.TASK_PURPOSE_GOLD, **known),
                self._task(write, 2, purpose=pb.TASK_PURPOSE_DRIFT),
            ],
            BLIND: [self._task(write, 2)],
            SCHOOL: [
                self._task(write, 2),
                self._task(write, 2, purpose=pb.TASK_PURPOSE_TRAINING, **known),
                self._task(write, 2, purpose=pb.TASK_PURPOSE_SCREENING, **known),
            ],
        }
        shares = pb.BatchSettings(calibration_share=0.3, gold_share=0.4)
        for project, tasks in by_project.items():
            self.must(
                "SubmitTasks",
                pb.SubmitTasksRequest(
                    request_id=uuid.uuid4().hex,
                    project=project,
                    batch=f"{project}.1",
                    batch_settings=shares,
                    tasks=tasks,
                ),
                by="service",
            )

    def _import(self, write: Write) -> None:
        row = pb.ImportedComparison(
            row=1,
            document_id=write("imported document id"),
            document=write("imported document"),
            candidates=[pb.Candidate(text=write("imported candidate")) for _ in range(2)],
            choice=pb.Choice(best_index=0),
            note=write("imported note"),
            labeler_id="somebody",
        )
        request = pb.ImportComparisonsRequest(
            request_id=uuid.uuid4().hex, project=PAIRS, batch="imported.1", comparisons=[row]
        )
        assert self.must("ImportComparisons", request, by="service").recorded_count == 1

    def _correct(self, person: Person, write: Write) -> None:
        name = NAMES[Role.LABELER]
        lease = self.leases_of(name, project=PAIRS, kind="compare", only_answered=True)[0]
        path = f"/work/{PAIRS}/item/{lease}"
        (form,) = [form for form in HtmlPage(person.get(path).text).forms if form.action == path]
        changes = {name: write(f"corrected {name}") for name in form.typed_names}
        answer = person.post(path, data=form.filled(changes))
        assert answer.status_code == 303, answer.text

    def _talk(self, lara: Person, rita: Person, write: Write) -> None:
        for name, person in ((NAMES[Role.LABELER], lara), (OTHER_LABELER, self.other)):
            lease = self.leases_of(name, project=PAIRS, only_answered=True)[0]
            answer = person.submit(f"/inbox/{lease}", {"text": write("message")})
            assert answer.status_code == 303, answer.text

    def pull(self, words: str) -> Outcome:
        """Pull the cord over gRPC."""
        return self.call("PullCord", cord_pb2.PullCordRequest(request_id=uuid.uuid4().hex, reason=words))


@contextmanager
def serve_world(
    loop: asyncio.AbstractEventLoop, database_url: str, folder: Path, **fields: Any
) -> Iterator[World]:
    """Serve on the loop of ``server_loop``, which runs in its own thread."""
    config = LabelingConfig(
        port=0,
        metrics_port=0,
        web_port=0,
        database=database_url,
        tokens_file=write_tokens(folder),
        **{"seed": "the same items for everybody each time", **fields},
    )
    registry = CollectorRegistry()
    service = LabelingService(config, registry)
    running = RunningServer(service, config, registry)
    with log_to(folder / "log") as log_path:
        asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(START_TIMEOUT_S)
        try:
            with SiteUnderTest(service, running, database_url) as site, RpcCaller(running.target) as rpcs:
                yield World(site, registry, rpcs, log_path)
        finally:
            asyncio.run_coroutine_threadsafe(running.stop(grace_s=5.0), loop).result(START_TIMEOUT_S)


@contextmanager
def log_to(path: Path) -> Iterator[Path]:
    """Let everybody log to a file: pytest swaps standard output while servers' threads write to it."""
    with path.open("w", encoding="utf-8") as file:
        structlog.configure(
            processors=[  # as in production: a trace without the values of variables
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.WriteLoggerFactory(file),
        )
        try:
            yield path
        finally:
            structlog.reset_defaults()
