"""A labeler's way into a project: instructions, feedback on training items, the result of the screening."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.onboarding_store import Stage
from services.labeling.quality.records import Purpose
from services.labeling.tasks import TaskKind
from services.labeling.web.answer_forms import (
    PAIR,
    fields_of_comparison,
    words_of_answer,
    words_of_ranking,
)
from services.labeling.web.call import Call
from services.labeling.web.item_page import slots_of
from services.labeling.web.pages import ALL_PEOPLE, PageTable
from services.labeling.web.pages_work import desk_of
from services.labeling.web.problems import PageError

table = PageTable()

_MAX_VERSION = 2**31 - 1
_RIGHT = 1.0 - 1e-9


@table.get("/work/{project}/instructions", roles=ALL_PEOPLE)
async def show_instructions(call: Call) -> Response:
    """The instructions, and, as long as this version is new to the labeler, a button that says it is read."""
    desk = desk_of(call)
    project = await call.read(lambda: desk.projects.project(call.path("project")))
    if project.instructions_version == 0:
        raise PageError(404)
    is_read = await call.read(lambda: desk.projects.has_read_instructions(project, desk.labeler_id))
    return await call.render("labeler_instructions.html", project=project, is_read=is_read)


@table.post("/work/{project}/instructions", roles=ALL_PEOPLE)
async def note_read(call: Call) -> Response:
    """Note which version was read. A newer one is shown again."""
    desk = desk_of(call)
    project = await call.read(lambda: desk.projects.project(call.path("project")))
    version = call.form.integer("version", minimum=0, maximum=_MAX_VERSION) or 0
    await call.write(lambda: desk.projects.note_instructions_read(project.name, version, desk.labeler_id))
    return call.redirect(f"/work/{project.name}")


@table.get("/work/{project}/feedback/{item}", roles=ALL_PEOPLE)
async def show_feedback(call: Call) -> Response:
    """Whether the answer to a training item was right, and why. Other items' right answers are not told."""
    desk = desk_of(call)
    item = await call.read(lambda: desk.item(call.path("project"), call.path("item")))
    if item.purpose is not Purpose.TRAINING or not item.is_answered:
        raise PageError(404)
    key = await call.read(lambda: desk.own.answer_key(item.lease_id, desk.labeler_id))
    answer = await call.read(lambda: desk.own.comparison(key.answer_id, desk.labeler_id))
    expected = await call.read(lambda: desk.items.expectation(item))
    share = await call.read(lambda: desk.own.share_right(key.answer_id, item.task_id))
    if key.kind is not TaskKind.COMPARE or expected is None or share is None:
        raise PageError(404)
    fields = fields_of_comparison(answer)
    return await call.render(
        "labeler_feedback.html",
        project=await call.read(lambda: desk.projects.project(item.project)),
        document=item.document,
        slots=slots_of(item.candidates, fields, ()),
        is_right=share >= _RIGHT,
        share=share,
        given=words_of_answer(fields),
        right=_words_of_right(expected.tiers),
        explanation=expected.explanation,
    )


@table.get("/work/{project}/result", roles=ALL_PEOPLE)
async def show_result(call: Call) -> Response:
    """How the screening went."""
    desk = desk_of(call)
    project = await call.read(lambda: desk.projects.project(call.path("project")))
    if not project.settings.onboarding.is_needed:
        raise PageError(404)
    step = await call.write(lambda: desk.onboarding.advance(project.name, desk.labeler_id))
    if step.stage not in (Stage.ADMITTED, Stage.MAY_RETRY, Stage.FAILED):
        return call.redirect(f"/work/{project.name}")
    admission = await call.read(lambda: desk.own.admission(project, desk.labeler_id))
    return await call.render(
        "labeler_result.html",
        project=project,
        stage=step.stage.value,
        admission=admission,
        wanted=project.settings.onboarding,
    )


@table.post("/work/{project}/retry", roles=ALL_PEOPLE)
async def retry(call: Call) -> Response:
    """Take the screening once more, where that is allowed."""
    desk = desk_of(call)
    await call.write(lambda: desk.onboarding.retry(call.path("project"), desk.labeler_id))
    return call.redirect(f"/work/{call.path('project')}")


def _words_of_right(tiers: tuple[tuple[int, ...], ...]) -> str:
    if sum(map(len, tiers)) == PAIR:
        return "No difference" if len(tiers) == 1 else f"{'AB'[tiers[0][0]]} is better"
    return words_of_ranking(tiers)
