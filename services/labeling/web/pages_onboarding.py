"""How labelers come into a project, as researchers see it: the items, the attempts, and overruling them."""

from __future__ import annotations

from collections import defaultdict

from starlette.responses import Response

from services.labeling.limits import check_batch, check_labeler
from services.labeling.onboarding_store import AdmissionRecord
from services.labeling.project_store import ProjectRecord
from services.labeling.quality.records import Purpose
from services.labeling.task_lines import MAX_PROBLEMS, TaskDefaults, TaskLines
from services.labeling.tasks import MAX_TASKS_PER_SUBMISSION
from services.labeling.web.call import Call
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.pages_batches import submit_lines
from services.labeling.web.research_desk import (
    MAX_TYPED_CHARS,
    TypedForm,
    desk_of,
    project_of,
    render_in_project,
)
from services.labeling.web.research_words import tiers_in_letters
from services.labeling.web.settings_forms import MAX_NAME_CHARS

table = PageTable()

_MAX_LABELER_CHARS = 200
_PURPOSES = (Purpose.TRAINING, Purpose.SCREENING, Purpose.GOLD)


@table.get("/projects/{project}/onboarding", roles=RESEARCHERS)
async def show_onboarding(call: Call) -> Response:
    """Items with a known answer and everybody's attempts."""
    project = await project_of(call)
    return await _onboarding_page(
        call,
        project,
        done=call.query("done", max_chars=20),
        num_added=call.query_integer("added", default=0, minimum=0, maximum=MAX_TASKS_PER_SUBMISSION),
    )


@table.post("/projects/{project}/onboarding/items", roles=RESEARCHERS)
async def add_items(call: Call) -> Response:
    """Take in items that were pasted, all or none."""
    project = await project_of(call)
    typed = TypedForm(call.form)
    typed.text("tasks", max_chars=MAX_TYPED_CHARS)
    batch = typed.text("batch", max_chars=MAX_NAME_CHARS)
    typed.check(lambda: check_batch(batch))
    purpose = Purpose(typed.choice("purpose", tuple(one.value for one in _PURPOSES)))
    lines: TaskLines | None = None
    if not typed.errors:
        lines = await submit_lines(call, project, batch, typed.values["tasks"], TaskDefaults(purpose=purpose))
        if lines is not None and not lines.problems:
            return call.redirect(f"/projects/{project.name}/onboarding?done=added&added={len(lines.drafts)}")
        if lines is None:
            typed.errors["batch"] = "this batch is closed; name another one"
    return await _onboarding_page(
        call, project, upload=typed.values, errors=typed.errors, lines=lines, status=400
    )


@table.post("/projects/{project}/onboarding/decide", roles=RESEARCHERS)
async def decide(call: Call) -> Response:
    """Let a labeler in, or keep them out, whatever the screening said."""
    project = await project_of(call)
    typed = TypedForm(call.form)
    labeler_id = typed.text("labeler_id", max_chars=_MAX_LABELER_CHARS)
    typed.check(lambda: check_labeler(labeler_id))
    decision = typed.choice("decision", ("admit", "refuse"))
    if not typed.errors and await call.read(lambda: call.site.accounts.find_user(labeler_id)) is None:
        typed.errors["labeler_id"] = "there is no account of this name"
    if typed.errors:
        return await _onboarding_page(call, project, errors=typed.errors, decided=typed.values, status=400)
    desk, actor = desk_of(call), call.user.name
    await call.write(
        lambda: desk.onboarding.overrule(project.name, labeler_id, admit=decision == "admit", actor=actor)
    )
    return call.redirect(f"/projects/{project.name}/onboarding?done=decided")


def by_labeler(attempts: list[AdmissionRecord]) -> dict[str, list[AdmissionRecord]]:
    """Everybody's attempts, the last one first."""
    found: defaultdict[str, list[AdmissionRecord]] = defaultdict(list)
    for attempt in attempts:
        found[attempt.labeler_id].insert(0, attempt)
    return dict(found)


async def _onboarding_page(
    call: Call,
    project: ProjectRecord,
    *,
    upload: dict[str, str] | None = None,
    decided: dict[str, str] | None = None,
    errors: dict[str, str] | None = None,
    lines: TaskLines | None = None,
    done: str = "",
    num_added: int = 0,
    status: int = 200,
) -> Response:
    desk = desk_of(call)
    items = await call.read(lambda: desk.known_items.items(project.name, _PURPOSES))
    attempts = await call.read(lambda: desk.onboarding.attempts(project.name))
    return await render_in_project(
        call,
        "researcher_onboarding.html",
        project,
        "onboarding",
        status=status,
        items=items,
        expected={
            item.task_id: tiers_in_letters(item.expected, range(len(item.candidates))) for item in items
        },
        num_items={purpose.value: sum(item.purpose is purpose for item in items) for purpose in _PURPOSES},
        attempts=by_labeler(attempts),
        upload=upload or {"tasks": "", "batch": f"{project.name[:80]}.onboarding", "purpose": "training"},
        decided=decided or {"labeler_id": ""},
        errors=errors or {},
        lines=lines,
        max_problems=MAX_PROBLEMS,
        purposes=_PURPOSES,
        done=done,
        num_added=num_added,
        nonce=call.request_id,
    )
