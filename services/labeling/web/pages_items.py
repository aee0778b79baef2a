"""Items that researchers read: those on which people differ, flagged ones, and one with all that was said.

An item opens blind: the candidates in an order of the reviewer's own, without their sources, and no answers.
Answers and sources are sent once the reviewer has given an answer of their own, or has asked for them, which
is recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import Response

from services.labeling.answers import AXES, Choice, Comparison, Flag, Origin, tiers_of
from services.labeling.errors import InvalidFieldError, LeaseAlreadyAnsweredError
from services.labeling.flag_store import FlagFilter
from services.labeling.limits import MAX_NOTE_CHARS
from services.labeling.message_store import Message, check_message
from services.labeling.onboarding_store import Stage
from services.labeling.project_store import ProjectRecord
from services.labeling.review_store import ItemFilter, ReviewItem
from services.labeling.web.call import Call
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.research_desk import (
    MAX_LABELER_CHARS,
    batches_of,
    desk_of,
    project_of,
    render_in_project,
    request_of,
    wanted_batch,
)
from services.labeling.web.research_words import decision_in_words, letters_of, tiers_in_letters

table = PageTable()

PAGE_ITEMS = 25
_MAX_PAGE = 4_000
_MAX_ID = 2**63 - 1
FLAG_WORDS: Mapping[Flag, str] = {
    Flag.HARMFUL: "harmful",
    Flag.MADE_UP: "made up",
    Flag.PERSONAL_DATA: "personal data",
    Flag.CANNOT_JUDGE: "can't judge",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRating:
    """What somebody says of one candidate by itself."""

    letter: str
    axes: tuple[tuple[str, int], ...]
    flags: tuple[str, ...]
    naive_reading: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownAnswer:
    """One answer in the reviewer's letters."""

    answer: Comparison
    decision: str
    order: str  # in which the labeler saw the candidates
    ratings: tuple[ShownRating, ...]
    is_right: bool | None  # None where the right answer is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who had the item: their answers and what was said to them about it."""

    labeler_id: str
    answers: tuple[ShownAnswer, ...]  # corrected ones too, oldest first
    messages: tuple[Message, ...]
    may_be_written_to: bool


@table.get("/projects/{project}/disagreements", roles=RESEARCHERS)
async def show_disagreements(call: Call) -> Response:
    """Items on which labelers differ, the most divided first."""
    project = await project_of(call)
    batches = await batches_of(call, project)
    wanted = ItemFilter(
        batch=wanted_batch(call, batches),
        labeler_id=call.query("labeler", max_chars=MAX_LABELER_CHARS),
        only_flagged=bool(call.query("flagged")),
    )
    number = call.query_integer("page", default=1, minimum=1, maximum=_MAX_PAGE)
    items = await call.read(
        lambda: desk_of(call).review.divided_items(
            project.name, wanted, offset=(number - 1) * PAGE_ITEMS, limit=PAGE_ITEMS + 1
        )
    )
    return await render_in_project(
        call,
        "researcher_disagreements.html",
        project,
        "disagreements",
        batches=batches,
        wanted=wanted,
        items=items[:PAGE_ITEMS],
        number=number,
        has_more=len(items) > PAGE_ITEMS,
    )


@table.get("/projects/{project}/items/{item}", roles=RESEARCHERS)
async def show_item(call: Call) -> Response:
    """One item, blind until the reviewer has judged it or asks for the answers."""
    project = await project_of(call)
    return await _item_page(call, project, done=call.query("done", max_chars=20))


@table.post("/projects/{project}/items/{item}/reveal", roles=RESEARCHERS)
async def reveal(call: Call) -> Response:
    """Show the answers before the reviewer has judged, and note that."""
    project = await project_of(call)
    task_id, reviewer = call.path_integer("item"), call.user.name
    await call.write(lambda: desk_of(call).review.reveal(project.name, task_id, reviewer=reviewer))
    return call.redirect(_path(project, task_id))


@table.post("/projects/{project}/items/{item}/judge", roles=RESEARCHERS)
async def judge(call: Call) -> Response:
    """Put the item on the reviewer's own work page."""
    project = await project_of(call)
    desk, task_id, reviewer = desk_of(call), call.path_integer("item"), call.user.name
    duration_us = round(call.site.config.default_lease_s * 1e6)
    try:
        await call.write(
            lambda: desk.review.lease_for_review(
                project.name, task_id, reviewer=reviewer, duration_us=duration_us
            )
        )
    except LeaseAlreadyAnsweredError:
        return call.redirect(_path(project, task_id))
    if project.settings.onboarding.is_needed and not await _is_admitted(call, project):
        # Whoever may admit others need not be screened.
        await call.write(lambda: desk.onboarding.overrule(project.name, reviewer, admit=True, actor=reviewer))
    return call.redirect(f"/work/{project.name}")


@table.post("/projects/{project}/items/{item}/message", roles=RESEARCHERS)
async def write_message(call: Call) -> Response:
    """Say something to a labeler about the item."""
    project = await project_of(call)
    desk, task_id, author = desk_of(call), call.path_integer("item"), call.user.name
    labeler_id = call.form.text("labeler_id", max_chars=MAX_LABELER_CHARS)
    typed = call.form.secret("text", max_chars=10 * MAX_NOTE_CHARS)
    # A thread belongs to an item of this project, and only to somebody who had it.
    await call.read(lambda: desk.review.item(project.name, task_id, reviewer=author))
    try:
        text = call.form.text("text", max_chars=MAX_NOTE_CHARS)
        check_message(text)
    except InvalidFieldError as error:
        return await _item_page(
            call, project, status=400, problem=error.problem, typed=typed, typed_to=labeler_id
        )
    request = request_of(call, "site.write_message", str(task_id), labeler_id, text)
    await call.write(
        lambda: desk.messages.write(request, task_id=task_id, labeler_id=labeler_id, author=author, text=text)
    )
    return call.redirect(f"{_path(project, task_id)}?done=sent")


@table.get("/projects/{project}/flags", roles=RESEARCHERS)
async def show_flags(call: Call) -> Response:
    """Candidates that somebody flagged, newest first."""
    project = await project_of(call)
    batches = await batches_of(call, project)
    name = call.query("flag")
    flag = next((one for one in Flag if one.value == name), None)
    before = call.query_integer("before", default=0, minimum=0, maximum=_MAX_ID)
    wanted = FlagFilter(batch=wanted_batch(call, batches), flag=flag, with_seen=bool(call.query("seen")))
    found = await call.read(
        lambda: desk_of(call).flags.flagged_answers(
            project.name, wanted, before_id=before or None, limit=PAGE_ITEMS + 1
        )
    )
    return await render_in_project(
        call,
        "researcher_flags.html",
        project,
        "flags",
        batches=batches,
        wanted=wanted,
        flag_words=FLAG_WORDS,
        found=[
            (
                one,
                [
                    (one.answer.candidates[position], [FLAG_WORDS[each] for each in rating.flags])
                    for position, rating in enumerate(one.answer.ratings)
                    if rating.flags
                ],
            )
            for one in found[:PAGE_ITEMS]
        ],
        has_more=len(found) > PAGE_ITEMS,
    )


@table.post("/projects/{project}/flags/{answer}/seen", roles=RESEARCHERS)
async def note_flag_seen(call: Call) -> Response:
    """Take a flagged answer from the queue."""
    project = await project_of(call)
    number, reviewer = call.path_integer("answer"), call.user.name
    note = call.form.text("note", max_chars=MAX_NOTE_CHARS)
    await call.write(
        lambda: desk_of(call).flags.note_seen(project.name, number, reviewer=reviewer, note=note)
    )
    return call.redirect(f"/projects/{project.name}/flags")


async def _is_admitted(call: Call, project: ProjectRecord) -> bool:
    attempts = await call.read(lambda: desk_of(call).onboarding.attempts(project.name))
    own = [attempt for attempt in attempts if attempt.labeler_id == call.user.name]
    return bool(own) and own[-1].stage is Stage.ADMITTED


async def _item_page(
    call: Call,
    project: ProjectRecord,
    *,
    done: str = "",
    problem: str = "",
    typed: str = "",
    typed_to: str = "",
    status: int = 200,
) -> Response:
    desk, task_id, reviewer = desk_of(call), call.path_integer("item"), call.user.name
    item = await call.read(lambda: desk.review.item(project.name, task_id, reviewer=reviewer))
    own_us = item.own_answer_us(reviewer)
    is_open = own_us is not None or item.reveal_us is not None
    people: list[Person] = []
    if is_open:
        threads = await call.read(lambda: desk.review.threads_of_item(project.name, task_id))
        for labeler_id in threads:
            await call.write(
                functools.partial(desk.messages.read, task_id=task_id, labeler_id=labeler_id, reader=reviewer)
            )
        people = _people(item, threads)
    return await render_in_project(
        call,
        "researcher_item.html",
        project,
        "disagreements",
        status=status,
        item=item,
        is_open=is_open,
        judged_blind=own_us is not None and (item.reveal_us is None or own_us < item.reveal_us),
        has_judged=own_us is not None,
        letters=letters_of(item.blind_order),
        expected=None if item.expected is None else tiers_in_letters(item.expected, item.blind_order),
        people=people,
        done=done,
        problem=problem,
        typed=typed,
        typed_to=typed_to,
        nonce=call.request_id,
    )


def _people(item: ReviewItem, threads: Mapping[str, list[Message]]) -> list[Person]:
    names = dict.fromkeys(answer.labeler_id for answer in item.answers)
    names.update(dict.fromkeys(text.labeler_id for text in item.texts))
    names.update(dict.fromkeys(skip.labeler_id for skip in item.skips))
    names.update(dict.fromkeys(threads))
    return [
        Person(
            labeler_id=name,
            answers=tuple(_shown(answer, item) for answer in item.answers if answer.labeler_id == name),
            messages=tuple(threads.get(name, ())),
            # Whoever's answers were imported has no page here.
            may_be_written_to=any(
                answer.labeler_id == name and answer.origin is not Origin.IMPORT for answer in item.answers
            )
            or any(text.labeler_id == name for text in item.texts)
            or any(skip.labeler_id == name for skip in item.skips),
        )
        for name in names
    ]


def _shown(answer: Comparison, item: ReviewItem) -> ShownAnswer:
    letters = letters_of(item.blind_order)
    is_right: bool | None = None
    if item.expected is not None:
        tiers = tiers_of(answer.decision, len(item.candidates))
        if isinstance(answer.decision, Choice):
            is_right = answer.decision.best_index in item.expected[0]
        elif tiers is not None:
            is_right = [set(tier) for tier in tiers] == [set(tier) for tier in item.expected]
    return ShownAnswer(
        answer=answer,
        decision=decision_in_words(answer.decision, item.blind_order, preference=answer.preference),
        order=" ".join(letters[position] for position in answer.shown_order),
        ratings=tuple(
            ShownRating(
                letter=letters[position],
                axes=tuple((axis, value) for axis in AXES if (value := getattr(rating, axis)) is not None),
                flags=tuple(FLAG_WORDS[flag] for flag in rating.flags),
                naive_reading=rating.naive_reading,
            )
            for position, rating in enumerate(answer.ratings)
        ),
        is_right=is_right,
    )


def _path(project: ProjectRecord, task_id: int) -> str:
    return f"/projects/{project.name}/items/{task_id}"
