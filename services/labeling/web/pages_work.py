"""A labeler's work: their projects, the next item, and what its forms do.

All of it works with plain forms. A script that sends the header X-Andon-Swap gets the next page as the answer
to a form, in place of a redirect to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from services.labeling.accounts import Role
from services.labeling.answers import Choice, check_answer
from services.labeling.demonstration_store import check_demonstration
from services.labeling.errors import (
    InvalidFieldError,
    LeaseAlreadyAnsweredError,
    LeaseExpiredError,
    RequestIdReusedError,
)
from services.labeling.limits import MAX_NOTE_CHARS
from services.labeling.quality.records import Purpose
from services.labeling.site_store import Draft, Item
from services.labeling.tasks import ONBOARDING_PURPOSES, TaskKind
from services.labeling.web.answer_forms import (
    AnswerFields,
    answer_of,
    demonstration_of,
    fields_to_json,
    missing_in_comparison,
    missing_in_text,
    missing_readings,
    read_fields,
    words_of_answer,
)
from services.labeling.web.call import Call
from services.labeling.web.item_page import AXIS_WORDS, FLAG_WORDS, SKIP_REASONS, view_of_step
from services.labeling.web.pages import ALL_PEOPLE, PageTable
from services.labeling.web.problems import PageError
from services.labeling.web.work_desk import Desk, Step, StepKind, kept_fields, kept_readings, needs_reading

table = PageTable()

MAX_NONCE_CHARS = 100
_MAX_TOKEN_CHARS = 64
_MAX_REVISION = 2**53


@table.get("/work", roles=ALL_PEOPLE, menu="Work")
async def show_projects(call: Call) -> Response:
    """What there is to do, project by project."""
    desk = desk_of(call)
    overview = await call.read(lambda: desk.own.overview(desk.labeler_id))
    threads = await call.read(
        lambda: desk.messages.threads(reader=desk.labeler_id, labeler_id=desk.labeler_id)
    )
    return await call.render(
        "labeler_projects.html",
        overview=overview,
        num_unread=sum(thread.is_unread for thread in threads),
        may_talk=may_talk(call),
    )


@table.get("/work/{project}", roles=ALL_PEOPLE)
async def show_next(call: Call) -> Response:
    """The next item, or what stands before it."""
    return await next_page(call)


@table.post("/work/{project}/reading", roles=ALL_PEOPLE)
async def keep_readings(call: Call) -> Response:
    """Keep what the candidates say by themselves; then the document is shown."""
    desk, item = await posted_item(call)
    read = read_fields(call.form, num_candidates=len(item.candidates))
    fields = read.fields
    project = await call.read(lambda: desk.projects.project(item.project))
    if not needs_reading(project, item):
        return await after_form(call)
    problems = read.problems or missing_readings(fields)
    if problems:
        return await _item_again(call, desk, item, fields, problems)
    # The boxes of the first step are empty from now on: the readings stand.
    content = {"readings": [slot.reading for slot in fields.slots], "fields": None}
    revision = max(call.form.integer("revision", minimum=0, maximum=_MAX_REVISION) or 0, _revision(item)) + 1
    draft = Draft(content=content, revision=revision)
    await call.write(lambda: desk.items.save_draft(item.lease_id, desk.labeler_id, draft))
    return await after_form(call)


@table.post("/work/{project}/draft", roles=ALL_PEOPLE)
async def keep_draft(call: Call) -> Response:
    """Keep a half-finished answer for a reload or another device."""
    desk, item = await posted_item(call)
    read = read_fields(call.form, num_candidates=len(item.candidates))
    for name, problem in read.problems.items():
        raise InvalidFieldError(problem, reason="INVALID_FORM", field=name)
    revision = call.form.integer("revision", minimum=0, maximum=_MAX_REVISION) or 0
    content = {"readings": list(kept_readings(item)), "fields": fields_to_json(read.fields)}
    draft = Draft(content=content, revision=revision)
    is_kept = await call.write(lambda: desk.items.save_draft(item.lease_id, desk.labeler_id, draft))
    return call.answer_json({"kept": is_kept})


@table.post("/work/{project}/answer", roles=ALL_PEOPLE)
async def answer(call: Call) -> Response:
    """Record an answer and go on."""
    desk, item = await posted_item(call)
    nonce = read_nonce(call)
    read = read_fields(call.form, num_candidates=len(item.candidates))
    fields, problems = read.fields, read.problems
    try:
        if not problems:
            record = _record_comparison if item.kind is TaskKind.COMPARE else _record_text
            problems = await record(call, desk, item, fields, nonce)
    except InvalidFieldError as error:
        problems = {error.field: error.problem}
    except LeaseExpiredError:
        return await call.render(
            "labeler_expired.html",
            status=409,
            project=await call.read(lambda: desk.projects.project(item.project)),
            said=_said(item, fields),
            fields=fields,
        )
    except (LeaseAlreadyAnsweredError, RequestIdReusedError):
        return await call.render(
            "labeler_answered.html",
            status=409,
            project=await call.read(lambda: desk.projects.project(item.project)),
            item=item.lease_id,
            may_correct=item.purpose not in ONBOARDING_PURPOSES,
        )
    if problems:
        return await _item_again(call, desk, item, fields, problems)
    if item.purpose is Purpose.TRAINING:
        return call.redirect(f"/work/{item.project}/feedback/{item.lease_id}")
    return await after_form(call)


@table.post("/work/{project}/skip", roles=ALL_PEOPLE)
async def skip(call: Call) -> Response:
    """Give an item back, with the reason."""
    desk, item = await posted_item(call)
    if item.purpose in ONBOARDING_PURPOSES:
        raise PageError(409, "Items of the onboarding cannot be skipped.")
    nonce = read_nonce(call)
    try:
        reason = _read_reason(call)
        is_new = await call.write(lambda: desk.skip(item, reason, nonce=nonce))
    except InvalidFieldError as error:
        return await _item_again(call, desk, item, kept_fields(item), {error.field: error.problem})
    except (LeaseExpiredError, LeaseAlreadyAnsweredError, RequestIdReusedError):
        return await after_form(call)  # it is not theirs any more, which is what they wanted
    if is_new:
        call.site.metrics.tasks_skipped.inc()
    return await after_form(call)


def desk_of(call: Call) -> Desk:
    """The stores as the one who asks may use them."""
    return Desk(call.site, call.user.name)


def may_talk(call: Call) -> bool:
    """Whether threads with researchers are for the one who asks; researchers have their own page for them."""
    return call.user.role is Role.LABELER


async def posted_item(call: Call) -> tuple[Desk, Item]:
    """The item that a form is about: of the project in the address, and of nobody else."""
    desk = desk_of(call)
    token = call.form.text("item", max_chars=_MAX_TOKEN_CHARS)
    item = await call.read(lambda: desk.item(call.path("project"), token))
    return desk, item


def read_nonce(call: Call) -> str:
    """What makes a form that is sent twice one act."""
    return call.form.text("nonce", max_chars=MAX_NONCE_CHARS) or call.request_id


async def after_form(call: Call) -> Response:
    """Go on to what comes next in the project."""
    if call.request.headers.get("x-andon-swap"):
        return await next_page(call)
    return call.redirect(f"/work/{call.path('project')}")


async def next_page(call: Call) -> Response:
    """The page of what comes next in the project."""
    desk = desk_of(call)
    step = await call.write(lambda: desk.next_step(call.path("project")))
    base = f"/work/{step.project.name}"
    if step.kind is StepKind.INSTRUCTIONS:
        return call.redirect(f"{base}/instructions")
    if step.kind is StepKind.RESULT:
        return call.redirect(f"{base}/result")
    if step.kind is StepKind.NOT_READY:
        return await call.render("labeler_not_ready.html", project=step.project)
    if step.is_new:
        call.site.metrics.leases_granted.inc()
    if step.item is None:
        return await call.render(
            "labeler_done.html", project=step.project, has_history=step.previous is not None
        )
    return await _item_page(call, step)


async def _item_again(
    call: Call, desk: Desk, item: Item, fields: AnswerFields, problems: Mapping[str, str]
) -> Response:
    """The item with what was sent and what is wrong with it."""
    step = await call.write(lambda: desk.next_step(item.project))
    if step.item is None or step.item.lease_id != item.lease_id:
        return await after_form(call)  # another window has gone on
    return await _item_page(call, step, fields=fields, errors=problems)


async def _item_page(
    call: Call, step: Step, *, fields: AnswerFields | None = None, errors: Mapping[str, str] | None = None
) -> Response:
    view = view_of_step(call.site, step, nonce=call.request_id, fields=fields, errors=errors)
    return await call.render(
        "work_item.html",
        status=400 if errors else 200,
        headers={"X-Andon-Path": f"/work/{step.project.name}"},
        page=view,
        errors=errors or {},
        skip_reasons=SKIP_REASONS,
        skip_sent=call.form.text("reason", max_chars=40) if errors else "",
        flag_words=FLAG_WORDS,
        axis_words=AXIS_WORDS,
        may_talk=may_talk(call),
    )


def _read_reason(call: Call) -> str:
    choice = call.form.choice("reason", ("", *SKIP_REASONS))
    words = call.form.text("reason_words", max_chars=MAX_NOTE_CHARS // 2)
    if not choice or (choice == "other" and not words):
        raise InvalidFieldError("say why", reason="EMPTY_REASON", field="reason")
    return f"{SKIP_REASONS[choice]}: {words}" if words else SKIP_REASONS[choice]


async def _record_comparison(
    call: Call, desk: Desk, item: Item, fields: AnswerFields, nonce: str
) -> Mapping[str, str]:
    """Record a complete comparison; returns what is missing in one that is not."""
    project = await call.read(lambda: desk.projects.project(item.project))
    if needs_reading(project, item):
        return {"reading_A": "first say what each of them tells you"}
    problems = missing_in_comparison(fields, project.settings)
    if problems:
        return problems
    draft = answer_of(fields, lease_id=item.lease_id, readings=kept_readings(item))
    check_answer(draft, field="answer")
    is_new = await call.write(
        lambda: desk.record_comparison(item, draft, nonce=nonce), then=call.site.answers_recorded.announce
    )
    if is_new:
        decision = "choice" if isinstance(draft.decision, Choice) else "ranking"
        call.site.metrics.answers_recorded.labels(decision).inc()
    return {}


async def _record_text(
    call: Call, desk: Desk, item: Item, fields: AnswerFields, nonce: str
) -> Mapping[str, str]:
    """Record a written or edited text; returns what is missing in one that is not finished."""
    original = item.candidates[0] if item.kind is TaskKind.EDIT else None
    problems = missing_in_text(fields, original=original)
    if problems:
        return problems
    draft = demonstration_of(fields, lease_id=item.lease_id)
    check_demonstration(draft)
    await call.write(lambda: desk.record_text(item, draft, nonce=nonce))
    return {}


def _said(item: Item, fields: AnswerFields) -> str:
    """What a comparison that came too late said, in words."""
    return words_of_answer(fields) if item.kind is TaskKind.COMPARE else ""


def _revision(item: Item) -> int:
    return item.draft.revision if item.draft else 0
