"""A labeling site with projects and items, and labelers who fill in its forms without scripts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import sqlalchemy as sa

from services.labeling import schema
from services.labeling.project_store import ProjectStore
from services.labeling.projects import BatchSettings, ProjectSettings
from services.labeling.requests import RepeatableRequest
from services.labeling.service import now_us
from services.labeling.store import LabelingStore
from services.labeling.tasks import Candidate, TaskDraft, TaskKind
from tests.html_pages import HtmlForm, HtmlPage
from tests.site import Person, SiteUnderTest

SOURCE = "kept-secret-source"
BATCH = "kept-secret-batch"
DOCUMENT = "A post about a cat that learned to open doors."


class WorkSite:
    """Fills a served site through the stores, and reads what it recorded."""

    def __init__(self, site: SiteUnderTest) -> None:
        self.site = site
        self.projects = ProjectStore(site.database, clock=now_us)
        self.store = LabelingStore(site.database, clock=now_us)
        self._numbers = itertools.count(1)

    def add_project(
        self, name: str = "cats", *, instructions: str = "", tasks: Sequence[TaskDraft] = (), **settings: Any
    ) -> str:
        """A project, with a batch where there are tasks."""
        self.projects.create_project(name, ProjectSettings(**settings), instructions, actor="rita")
        if tasks:
            self.add_tasks(name, tasks)
        return name

    def add_tasks(self, project: str, tasks: Sequence[TaskDraft], *, settings: Any = None) -> None:
        """Tasks in the project's one batch."""
        number = str(next(self._numbers))
        self.store.submit_tasks(
            RepeatableRequest(method="SubmitTasks", request_id=f"{project}.{number}", digest=number),
            f"{BATCH}.{project}",
            tasks,
            project=project,
            batch_settings=settings or BatchSettings(),
        )

    def rows(self, table: sa.Table) -> list[Any]:
        """Everything in a table, in the order of its key."""
        with self.site.database.engine.connect() as connection:
            return list(connection.execute(sa.select(table).order_by(*table.primary_key.columns)))

    def count(self, table: sa.Table) -> int:
        """How many rows a table has."""
        return len(self.rows(table))

    def lease_of(self, form: HtmlForm) -> Any:
        """The row of the lease that a form is about."""
        token = field(form, "item")
        (row,) = [row for row in self.rows(schema.leases) if row.id == token]
        return row

    def expire(self, form: HtmlForm) -> None:
        """Let the lease of a form run out."""
        lease = self.lease_of(form)
        with self.site.database.engine.begin() as connection:
            connection.execute(
                sa.update(schema.leases).where(schema.leases.c.id == lease.id).values(expire_us=1)
            )
            connection.execute(
                sa.update(schema.slots).where(schema.slots.c.lease_id == lease.id).values(free_from_us=1)
            )


def compare(*texts: str, document: str = DOCUMENT, **fields: Any) -> TaskDraft:
    """A task to compare these texts."""
    candidates = tuple(Candidate(text=text, source=SOURCE) for text in texts)
    return TaskDraft(document=document, document_id="kept-secret-id", candidates=candidates, **fields)


def write(*texts: str, kind: TaskKind = TaskKind.WRITE, document: str = DOCUMENT) -> TaskDraft:
    """A task to write a text, or to edit the one that is given."""
    return TaskDraft(
        document=document, candidates=tuple(Candidate(text=text, source=SOURCE) for text in texts), kind=kind
    )


def field(form: HtmlForm, name: str) -> str:
    """The value of a field as the page holds it."""
    return next((control.value for control in form.controls if control.name == name), "")


def checked(form: HtmlForm, name: str) -> str | None:
    """The value of the radio button that is chosen."""
    return next((one.value for one in form.controls if one.name == name and one.is_on), None)


def find_form(response: httpx.Response, action_end: str) -> HtmlForm:
    """The form of a page whose address ends so."""
    found = [form for form in HtmlPage(response.text).forms if form.action.endswith(action_end)]
    assert len(found) == 1, (action_end, response.status_code, response.text)
    return found[0]


def open_form(person: Person, project: str = "cats", action_end: str = "/answer") -> HtmlForm:
    """The form of the next item."""
    response = person.get(f"/work/{project}")
    assert response.status_code == 200, response.text
    return find_form(response, action_end)


def hidden(form: HtmlForm) -> dict[str, str]:
    """What a form holds before anybody touches it."""
    return {control.name: control.value for control in form.controls if control.kind == "hidden"}


def send(
    person: Person, form: HtmlForm, fields: Mapping[str, Any] | None = None, **options: Any
) -> httpx.Response:
    """Send a form in which only these fields were filled in."""
    return person.post(form.action, data={**hidden(form), **(fields or {})}, **options)
