"""What the researcher's pages share: stores, a project's frame, forms that keep what was typed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response

from services.labeling.demonstration_store import DemonstrationStore
from services.labeling.errors import InvalidFieldError
from services.labeling.flag_store import FlagStore
from services.labeling.history_store import HistoryStore
from services.labeling.import_store import ImportStore
from services.labeling.known_item_store import KnownItemStore
from services.labeling.limits import check_batch
from services.labeling.message_store import MessageStore
from services.labeling.onboarding_store import OnboardingStore
from services.labeling.progress_store import ProgressStore
from services.labeling.project_store import BatchRecord, ProjectRecord, ProjectStore
from services.labeling.projects import check_project_name
from services.labeling.requests import RepeatableRequest
from services.labeling.review_store import ReviewStore
from services.labeling.web.call import Call
from services.labeling.web.forms import Form
from services.labeling.web.problems import PageError

T = TypeVar("T")

MAX_TYPED_CHARS = 10_000_000  # the body's limit comes first
MAX_NONCE_CHARS = 100
MAX_LABELER_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The stores of the researcher's side."""

    projects: ProjectStore
    progress: ProgressStore
    history: HistoryStore
    review: ReviewStore
    flags: FlagStore
    known_items: KnownItemStore
    onboarding: OnboardingStore
    messages: MessageStore
    imports: ImportStore
    demonstrations: DemonstrationStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Tab:
    """A page of a project in the project's own menu."""

    name: str
    words: str
    path: str


_TABS = (
    ("overview", "Overview", ""),
    ("onboarding", "Onboarding", "/onboarding"),
    ("quality", "Quality", "/quality"),
    ("disagreements", "Disagreements", "/disagreements"),
    ("flags", "Flags", "/flags"),
    ("labelers", "Labelers", "/labelers"),
    ("messages", "Messages", "/messages"),
    ("export", "Export", "/export"),
    ("import", "Import", "/import"),
    ("settings", "Settings", "/settings"),
    ("changes", "Changes", "/changes"),
)


def desk_of(call: Call) -> Desk:
    """The stores over the site's database."""
    database, clock = call.site.database, call.site.clock
    return Desk(
        projects=ProjectStore(database, clock=clock),
        progress=ProgressStore(database, clock=clock),
        history=HistoryStore(database, clock=clock),
        review=ReviewStore(database, clock=clock),
        flags=FlagStore(database, clock=clock),
        known_items=KnownItemStore(database),
        onboarding=OnboardingStore(database, clock=clock),
        messages=MessageStore(database, clock=clock),
        imports=ImportStore(database, clock=clock),
        demonstrations=DemonstrationStore(database, clock=clock),
    )


async def project_of(call: Call) -> ProjectRecord:
    """The project that the path names. Raises ProjectNotFoundError."""
    name = call.path("project")
    _check_in_path(lambda: check_project_name(name))
    return await call.read(lambda: desk_of(call).projects.project(name))


def _check_in_path(rule: Callable[[], None]) -> None:
    """What can be no name is a page that does not exist."""
    try:
        rule()
    except InvalidFieldError:
        raise PageError(404) from None


async def batches_of(call: Call, project: ProjectRecord) -> list[BatchRecord]:
    """The project's batches, oldest first."""
    return await call.read(lambda: desk_of(call).projects.batches(project.name))


async def batch_of(call: Call, project: ProjectRecord) -> BatchRecord:
    """The batch that the path names; one of another project does not exist here."""
    name = call.path("batch")
    _check_in_path(lambda: check_batch(name))
    batch = await call.read(lambda: desk_of(call).projects.batch(name))
    if batch.project != project.name:
        raise PageError(404)
    return batch


def wanted_batch(call: Call, batches: list[BatchRecord]) -> str:
    """The batch that the address asks for, empty for all; one that is not there does not exist."""
    name = call.query("batch")
    if name and name not in {batch.name for batch in batches}:
        raise PageError(404)
    return name


async def render_in_project(
    call: Call,
    template: str,
    project: ProjectRecord,
    tab: str,
    /,
    *,
    status: int = 200,
    **values: Any,  # whatever the template shows
) -> Response:
    """Draw a page of a project with the project's own menu."""
    base = f"/projects/{project.name}"
    return await call.render(
        template,
        status=status,
        project=project,
        base=base,
        tab=tab,
        tabs=[Tab(name=name, words=words, path=base + path) for name, words, path in _TABS],
        now_us=call.site.clock(),
        **values,
    )


class TypedForm:
    """Reads a form field by field, keeps what was typed, and gathers what is wrong instead of stopping."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self.values: dict[str, str] = {}
        self.errors: dict[str, str] = {}

    def text(self, name: str, *, max_chars: int, is_required: bool = False) -> str:
        """A text without space at its ends."""
        self._keep(name)
        text = self._or(lambda: self._form.text(name, max_chars=max_chars), "")
        if is_required and not text and name not in self.errors:
            self.errors[name] = "is needed"
        return text

    def integer(self, name: str, *, minimum: int, maximum: int, default: int) -> int:
        """A whole number; ``default`` for an empty field."""
        self._keep(name)

        def read() -> int:
            number = self._form.integer(name, minimum=minimum, maximum=maximum)
            return default if number is None else number

        return self._or(read, default)

    def number(self, name: str, *, minimum: float, maximum: float) -> float | None:
        """A number, None for an empty field."""
        self._keep(name)
        return self._or(lambda: self._form.number(name, minimum=minimum, maximum=maximum), None)

    def share(self, name: str, *, max_percent: float) -> float:
        """A share of 1 that people write in percent; 0 for an empty field."""
        return (self.number(name, minimum=0, maximum=max_percent) or 0.0) / 100

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of those offered; the first where it was none."""
        self._keep(name)
        return self._or(lambda: self._form.choice(name, allowed), allowed[0])

    def checked(self, name: str) -> bool:
        """Whether a checkbox is on."""
        is_on = self._form.checked(name)
        self.values[name] = "yes" if is_on else ""
        return is_on

    def check(self, rule: Callable[[], None]) -> None:
        """Apply a rule of the domain; what it refuses stands beside its field."""
        self._or(rule, None)

    def _keep(self, name: str) -> None:
        self.values[name] = self._or(lambda: self._form.secret(name, max_chars=MAX_TYPED_CHARS), "")

    def _or(self, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except InvalidFieldError as error:
            self.errors.setdefault(error.field, error.problem)
            return otherwise


def request_of(call: Call, method: str, *content: str) -> RepeatableRequest:
    """What makes a double click one act: the form's nonce, which belongs to whom it was shown."""
    nonce = call.form.text("nonce", max_chars=MAX_NONCE_CHARS) or call.request_id
    return RepeatableRequest(
        method=method,
        request_id=hashlib.sha256("\n".join((call.user.name, nonce)).encode()).hexdigest(),
        digest=hashlib.sha256("\0".join(content).encode()).hexdigest(),
    )
