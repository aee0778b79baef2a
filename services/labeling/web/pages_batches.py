"""Batches as researchers see them: their rules, their progress, and the tasks that come in by a form."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.errors import BatchClosedError, BatchNotFoundError
from services.labeling.limits import check_batch
from services.labeling.project_store import BatchRecord, ProjectRecord
from services.labeling.projects import BatchSettings
from services.labeling.quality.records import Purpose
from services.labeling.task_lines import MAX_PROBLEMS, TaskDefaults, TaskLines, read_task_lines
from services.labeling.tasks import MAX_OVERLAP, MAX_TASKS_PER_SUBMISSION
from services.labeling.web.call import Call
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.research_desk import (
    MAX_TYPED_CHARS,
    TypedForm,
    batch_of,
    desk_of,
    project_of,
    render_in_project,
    request_of,
)
from services.labeling.web.settings_forms import (
    MAX_NAME_CHARS,
    batch_values,
    check_name_in_address,
    read_batch,
    state_of,
)

table = PageTable()

_MAX_STATE_CHARS = 64


@table.get("/projects/{project}/new-batch", roles=RESEARCHERS)
async def show_new_batch(call: Call) -> Response:
    """The form of a new batch."""
    project = await project_of(call)
    values = {"batch": "", **batch_values(BatchSettings(calibration_share=0.1))}
    return await render_in_project(
        call, "researcher_new_batch.html", project, "overview", values=values, errors={}
    )


@table.post("/projects/{project}/new-batch", roles=RESEARCHERS)
async def make_batch(call: Call) -> Response:
    """Make a batch."""
    project = await project_of(call)
    desk, actor = desk_of(call), call.user.name
    typed = TypedForm(call.form)
    name = typed.text("batch", max_chars=MAX_NAME_CHARS)
    settings = read_batch(typed)
    typed.check(lambda: check_batch(name))
    typed.check(lambda: check_name_in_address(name, field="batch"))
    if not typed.errors and await _exists(call, name):
        typed.errors["batch"] = "there is a batch of this name already, here or in another project"
    if typed.errors:
        return await render_in_project(
            call,
            "researcher_new_batch.html",
            project,
            "overview",
            status=400,
            values=typed.values,
            errors=typed.errors,
        )
    await call.write(lambda: desk.projects.create_batch(project.name, name, settings, actor=actor))
    return call.redirect(f"{_path(project, name)}?done=made")


@table.get("/projects/{project}/batches/{batch}", roles=RESEARCHERS)
async def show_batch(call: Call) -> Response:
    """Progress, rules and the form for tasks."""
    project = await project_of(call)
    batch = await batch_of(call, project)
    return await _batch_page(
        call,
        project,
        batch,
        done=call.query("done", max_chars=20),
        num_added=call.query_integer("added", default=0, minimum=0, maximum=MAX_TASKS_PER_SUBMISSION),
    )


@table.post("/projects/{project}/batches/{batch}/rules", roles=RESEARCHERS)
async def change_rules(call: Call) -> Response:
    """Change who gets what; leases that run are not touched."""
    project = await project_of(call)
    batch = await batch_of(call, project)
    typed = TypedForm(call.form)
    settings = read_batch(typed)
    seen = call.form.text("state", max_chars=_MAX_STATE_CHARS)
    if typed.errors:
        return await _batch_page(call, project, batch, values=typed.values, errors=typed.errors, status=400)
    if seen != state_of(batch.settings):
        return await _batch_page(call, project, batch, values=typed.values, is_outdated=True, status=409)
    if settings == batch.settings:
        return call.redirect(f"{_path(project, batch.name)}?done=same")
    desk, actor = desk_of(call), call.user.name
    await call.write(lambda: desk.projects.update_batch(batch.name, settings, actor=actor))
    return call.redirect(f"{_path(project, batch.name)}?done=saved")


@table.post("/projects/{project}/batches/{batch}/tasks", roles=RESEARCHERS)
async def add_tasks(call: Call) -> Response:
    """Take in tasks that were pasted, all or none."""
    project = await project_of(call)
    batch = await batch_of(call, project)
    typed = TypedForm(call.form)
    typed.text("tasks", max_chars=MAX_TYPED_CHARS)
    overlap = typed.integer("overlap", minimum=1, maximum=MAX_OVERLAP, default=1)
    purpose = Purpose(typed.choice("purpose", tuple(Purpose)))
    lines: TaskLines | None = None
    if not typed.errors:
        lines = await submit_lines(
            call,
            project,
            batch.name,
            typed.values["tasks"],
            TaskDefaults(overlap_count=overlap, purpose=purpose),
        )
        if lines is not None and not lines.problems:
            return call.redirect(f"{_path(project, batch.name)}?done=added&added={len(lines.drafts)}")
    return await _batch_page(
        call,
        project,
        batch,
        upload=typed.values,
        errors=typed.errors,
        lines=lines,
        is_closed=lines is None and not typed.errors,
        status=400,
    )


async def submit_lines(
    call: Call, project: ProjectRecord, batch: str, text: str, defaults: TaskDefaults
) -> TaskLines | None:
    """Read tasks and add them where all lines are sound; None for a batch that is closed."""
    site, desk, actor = call.site, desk_of(call), call.user.name
    lines = await call.read(
        lambda: read_task_lines(text, defaults, max_text_chars=site.config.max_text_chars)
    )
    if lines.problems:
        return lines
    request = request_of(
        call, "site.submit_tasks", project.name, batch, text, str(defaults.overlap_count), defaults.purpose
    )
    try:
        submitted = await call.write(
            lambda: site.labeling.submit_tasks(request, batch, lines.drafts, project=project.name)
        )
    except BatchClosedError:
        return None
    if not submitted.repeated:
        number = len(lines.drafts)
        site.metrics.tasks_submitted.inc(number)
        await call.write(
            lambda: desk.history.note(
                actor=actor, action="batch.add_tasks", subject=batch, detail={"tasks": number}
            )
        )
    return lines


async def _exists(call: Call, name: str) -> bool:
    try:
        await call.read(lambda: desk_of(call).projects.batch(name))
    except BatchNotFoundError:
        return False
    return True


async def _batch_page(
    call: Call,
    project: ProjectRecord,
    batch: BatchRecord,
    *,
    values: dict[str, str] | None = None,
    upload: dict[str, str] | None = None,
    errors: dict[str, str] | None = None,
    lines: TaskLines | None = None,
    done: str = "",
    num_added: int = 0,
    is_outdated: bool = False,
    is_closed: bool = False,
    status: int = 200,
) -> Response:
    desk = desk_of(call)
    progress = await call.read(lambda: desk.progress.batches(project.name))
    labelers = await call.read(lambda: desk.progress.labelers(project.name, batch=batch.name))
    return await render_in_project(
        call,
        "researcher_batch.html",
        project,
        "overview",
        status=status,
        batch=batch,
        progress=next(one for one in progress if one.batch == batch.name),
        labelers=labelers,
        values=batch_values(batch.settings) if values is None else values,
        upload={"tasks": "", "overlap": "1", "purpose": "ordinary"} if upload is None else upload,
        errors=errors or {},
        is_rules_open=values is not None,
        lines=lines,
        max_problems=MAX_PROBLEMS,
        purposes=list(Purpose),
        done=done,
        num_added=num_added,
        is_outdated=is_outdated,
        is_closed=is_closed,
        state=state_of(batch.settings),
        nonce=call.request_id,
        max_body_mib=call.site.config.web_max_body_bytes / 2**20,
    )


def _path(project: ProjectRecord, batch: str) -> str:
    return f"/projects/{project.name}/batches/{batch}"
