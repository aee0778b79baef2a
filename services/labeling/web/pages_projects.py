"""Projects as researchers see them: the list, one project's progress, its settings and its past."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.errors import ProjectExistsError
from services.labeling.progress_store import together
from services.labeling.project_store import ProjectRecord
from services.labeling.projects import ProjectSettings, check_project_name
from services.labeling.web.call import Call
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.research_desk import TypedForm, batches_of, desk_of, project_of, render_in_project
from services.labeling.web.settings_forms import (
    MAX_NAME_CHARS,
    check_name_in_address,
    project_values,
    read_project,
    state_of,
)

table = PageTable()

_MAX_STATE_CHARS = 64
_ACTION_WORDS = {
    "project.create": "made the project",
    "project.update": "changed the settings",
    "project.export": "exported",
    "instructions.write": "wrote instructions",
    "batch.create": "made a batch",
    "batch.update": "changed a batch's rules",
    "batch.add_tasks": "added tasks",
    "batch.import": "imported answers",
    "labeler.admit": "admitted",
    "labeler.refuse": "refused",
    "item.reveal": "looked before judging",
    "flag.seen": "dealt with a flag",
}


@table.get("/projects", roles=RESEARCHERS, menu="Projects")
async def list_projects(call: Call) -> Response:
    """All projects with their progress."""
    desk = desk_of(call)
    projects = await call.read(desk.projects.projects)
    progress = await call.read(desk.progress.projects)
    return await call.render("researcher_projects.html", projects=projects, progress=progress)


@table.get("/new-project", roles=RESEARCHERS)
async def show_new_project(call: Call) -> Response:
    """The form of a new project."""
    values = {"project": "", **project_values(ProjectSettings(), "")}
    return await call.render("researcher_new_project.html", values=values, errors={})


@table.post("/new-project", roles=RESEARCHERS)
async def make_project(call: Call) -> Response:
    """Make a project."""
    typed = TypedForm(call.form)
    name = typed.text("project", max_chars=MAX_NAME_CHARS)
    wanted = read_project(typed)
    typed.check(lambda: check_project_name(name))
    typed.check(lambda: check_name_in_address(name, field="project"))
    if not typed.errors:
        store, actor = desk_of(call).projects, call.user.name
        try:
            await call.write(
                lambda: store.create_project(name, wanted.settings, wanted.instructions, actor=actor)
            )
            return call.redirect(f"/projects/{name}")
        except ProjectExistsError:
            typed.errors["project"] = "there is a project of this name already"
    return await call.render(
        "researcher_new_project.html", status=400, values=typed.values, errors=typed.errors
    )


@table.get("/projects/{project}", roles=RESEARCHERS)
async def show_project(call: Call) -> Response:
    """Live progress, batch by batch and person by person."""
    project = await project_of(call)
    desk = desk_of(call)
    batches = await batches_of(call, project)
    progress = await call.read(lambda: desk.progress.batches(project.name))
    labelers = await call.read(lambda: desk.progress.labelers(project.name))
    return await render_in_project(
        call,
        "researcher_project.html",
        project,
        "overview",
        batches=batches,
        progress={one.batch: one for one in progress},
        total=together(progress),
        labelers=labelers,
    )


@table.get("/projects/{project}/settings", roles=RESEARCHERS)
async def show_settings(call: Call) -> Response:
    """The form with what holds now."""
    project = await project_of(call)
    return await _settings_page(
        call,
        project,
        values=project_values(project.settings, project.instructions),
        errors={},
        done=call.query("done", max_chars=20),
    )


@table.post("/projects/{project}/settings", roles=RESEARCHERS)
async def change_settings(call: Call) -> Response:
    """Change the settings; other instructions become a new version."""
    project = await project_of(call)
    typed = TypedForm(call.form)
    wanted = read_project(typed)
    seen = call.form.text("state", max_chars=_MAX_STATE_CHARS)
    if not typed.errors and seen != state_of(project.settings, project.instructions):
        return await _settings_page(
            call, project, values=typed.values, errors={}, is_outdated=True, status=409
        )
    if typed.errors:
        return await _settings_page(call, project, values=typed.values, errors=typed.errors, status=400)
    # The form cuts the space at the ends, which alone makes no new version.
    is_same_text = wanted.instructions == project.instructions.strip()
    instructions = project.instructions if is_same_text else wanted.instructions
    if wanted.settings != project.settings or not is_same_text:
        store, actor = desk_of(call).projects, call.user.name
        await call.write(
            lambda: store.update_project(project.name, wanted.settings, instructions, actor=actor)
        )
        return call.redirect(f"/projects/{project.name}/settings?done=saved")
    return call.redirect(f"/projects/{project.name}/settings?done=same")


@table.get("/projects/{project}/instructions", roles=RESEARCHERS)
async def show_instructions(call: Call) -> Response:
    """All versions of the instructions and how many have read them."""
    project = await project_of(call)
    versions = await call.read(lambda: desk_of(call).history.instructions(project.name))
    return await render_in_project(
        call, "researcher_instructions.html", project, "settings", versions=versions
    )


@table.get("/projects/{project}/changes", roles=RESEARCHERS)
async def show_changes(call: Call) -> Response:
    """Who did what in the project."""
    project = await project_of(call)
    changes = await call.read(lambda: desk_of(call).history.changes(project.name))
    return await render_in_project(
        call, "researcher_changes.html", project, "changes", changes=changes, action_words=_ACTION_WORDS
    )


async def _settings_page(
    call: Call,
    project: ProjectRecord,
    *,
    values: dict[str, str],
    errors: dict[str, str],
    done: str = "",
    is_outdated: bool = False,
    status: int = 200,
) -> Response:
    return await render_in_project(
        call,
        "researcher_settings.html",
        project,
        "settings",
        status=status,
        values=values,
        errors=errors,
        done=done,
        is_outdated=is_outdated,
        state=state_of(project.settings, project.instructions),
    )
