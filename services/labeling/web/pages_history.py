"""What a labeler has answered: the list, and correcting an answer as long as it has not been exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

from services.labeling.answers import check_answer
from services.labeling.demonstration_store import check_demonstration
from services.labeling.errors import (
    AnswerExportedError,
    AnswerSupersededError,
    InvalidFieldError,
    RequestIdReusedError,
)
from services.labeling.labeler_store import AnswerKey
from services.labeling.project_store import ProjectRecord
from services.labeling.site_store import Item
from services.labeling.tasks import ONBOARDING_PURPOSES, TaskKind
from services.labeling.web.answer_forms import (
    AnswerFields,
    answer_of,
    demonstration_of,
    fields_of_comparison,
    marks,
    missing_in_comparison,
    missing_in_text,
    read_fields,
    words_of_answer,
)
from services.labeling.web.call import Call
from services.labeling.web.item_page import (
    AXIS_WORDS,
    FLAG_WORDS,
    ItemView,
    kind_of,
    page_version,
    slots_of,
    text_of,
)
from services.labeling.web.pages import ALL_PEOPLE, PageTable
from services.labeling.web.pages_work import desk_of, may_talk, read_nonce
from services.labeling.web.problems import PageError
from services.labeling.web.work_desk import Desk

table = PageTable()

PAGE_ENTRIES = 30
_MAX_PAGE = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """An answered item that its labeler opens again."""

    project: ProjectRecord
    item: Item
    key: AnswerKey
    fields: AnswerFields
    readings: tuple[str, ...]
    is_correctable: bool


@table.get("/work/{project}/history", roles=ALL_PEOPLE)
async def show_history(call: Call) -> Response:
    """The labeler's answers, newest first."""
    desk = desk_of(call)
    number = call.query_integer("page", default=1, minimum=1, maximum=_MAX_PAGE)
    project = await call.read(lambda: desk.projects.project(call.path("project")))
    entries = await call.read(
        lambda: desk.own.history(
            desk.labeler_id, project=project.name, limit=PAGE_ENTRIES + 1, offset=(number - 1) * PAGE_ENTRIES
        )
    )
    return await call.render(
        "labeler_history.html",
        project=project,
        entries=[
            (
                entry,
                f"Wrote {len(entry.text.split())} words"
                if entry.comparison is None
                else words_of_answer(fields_of_comparison(entry.comparison)),
            )
            for entry in entries[:PAGE_ENTRIES]
        ],
        number=number,
        has_more=len(entries) > PAGE_ENTRIES,
        corrected=call.query("done", max_chars=20) == "corrected",
    )


@table.get("/work/{project}/item/{item}", roles=ALL_PEOPLE)
async def show_answer(call: Call) -> Response:
    """An earlier answer in the form that made it."""
    desk = desk_of(call)
    item = await _item(call, desk)
    if not item.is_answered and not item.is_skipped:
        return call.redirect(f"/work/{item.project}")
    opened = await _open(call, desk, item)
    return await _answer_page(call, desk, opened, opened.fields)


@table.post("/work/{project}/item/{item}", roles=ALL_PEOPLE)
async def correct(call: Call) -> Response:
    """Record a new answer in place of an earlier one; both are kept."""
    desk = desk_of(call)
    opened = await _open(call, desk, await _item(call, desk))
    nonce = read_nonce(call)
    read = read_fields(call.form, num_candidates=len(opened.item.candidates))
    fields, problems = read.fields, read.problems
    try:
        if not problems:
            problems = await _record(call, desk, opened, fields, nonce)
    except InvalidFieldError as error:
        problems = {error.field: error.problem}
    except (AnswerSupersededError, RequestIdReusedError):
        raise PageError(409, "This answer was changed in another window. Open it again to see it.") from None
    except AnswerExportedError:
        raise PageError(409, "This answer has been exported by now and stands.") from None
    if problems:
        return await _answer_page(call, desk, opened, fields, errors=problems)
    return call.redirect(f"/work/{opened.project.name}/history?done=corrected")


async def _record(
    call: Call, desk: Desk, opened: _Opened, fields: AnswerFields, nonce: str
) -> Mapping[str, str]:
    """Record a correction; returns what is missing in one that is not complete."""
    item, answer_id = opened.item, opened.key.answer_id
    if opened.key.kind is TaskKind.COMPARE:
        problems = missing_in_comparison(fields, opened.project.settings)
        if problems:
            return problems
        answer = answer_of(fields, lease_id=item.lease_id, readings=opened.readings)
        check_answer(answer, field="answer")
        await call.write(
            lambda: desk.correct_comparison(answer_id, answer, nonce=nonce),
            then=call.site.answers_recorded.announce,
        )
        return {}
    original = item.candidates[0] if item.kind is TaskKind.EDIT else None
    problems = missing_in_text(fields, original=original)
    if problems:
        return problems
    draft = demonstration_of(fields, lease_id=item.lease_id)
    check_demonstration(draft)
    await call.write(lambda: desk.correct_text(answer_id, draft, nonce=nonce))
    return {}


async def _item(call: Call, desk: Desk) -> Item:
    item = await call.read(lambda: desk.item(call.path("project"), call.path("item")))
    # Answers of the onboarding stand, and an item that was skipped has none.
    if item.is_skipped or item.purpose in ONBOARDING_PURPOSES:
        raise PageError(404)
    return item


async def _open(call: Call, desk: Desk, item: Item) -> _Opened:
    def work() -> _Opened:
        project = desk.projects.project(item.project)
        key = desk.own.answer_key(item.lease_id, desk.labeler_id)
        if key.kind is not TaskKind.COMPARE:
            text = desk.texts.own_demonstration(key.answer_id, desk.labeler_id)
            return _Opened(
                project=project,
                item=item,
                key=key,
                fields=AnswerFields(text=text.text, note=text.note),
                readings=(),
                is_correctable=True,
            )
        answer = desk.items.own_answer(key.answer_id, desk.labeler_id)
        fields = fields_of_comparison(answer)
        readings = tuple(slot.reading for slot in fields.slots)
        return _Opened(
            project=project,
            item=item,
            key=key,
            fields=fields,
            readings=readings if any(readings) else (),
            is_correctable=desk.items.is_correctable(answer),
        )

    return await call.read(work)


async def _answer_page(
    call: Call,
    desk: Desk,
    opened: _Opened,
    fields: AnswerFields,
    *,
    errors: Mapping[str, str] | None = None,
) -> Response:
    item, project = opened.item, opened.project
    view = ItemView(
        project=project,
        item=item.lease_id,
        kind=kind_of(item.kind, len(item.candidates)),
        document=item.document,
        slots=slots_of(item.candidates, fields, opened.readings),
        fields=fields,
        text=text_of(item.kind, item.candidates, fields),
        marks=tuple(marks(no_indifference=project.settings.no_indifference)),
        action=f"/work/{project.name}/item/{item.lease_id}",
        nonce=call.request_id,
        page_version=page_version(call.site),
        revision=0,
        errors=errors or {},
        is_correction=True,
        is_correctable=opened.is_correctable,
        may_skip=False,
        previous=await call.read(
            lambda: desk.own.previous(desk.labeler_id, project=project.name, lease_id=item.lease_id)
        ),
    )
    return await call.render(
        "work_item.html",
        status=400 if errors else 200,
        page=view,
        errors=errors or {},
        skip_reasons={},
        skip_sent="",
        flag_words=FLAG_WORDS,
        axis_words=AXIS_WORDS,
        may_talk=may_talk(call),
    )
