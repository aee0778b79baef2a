"""The people of a project, and what researchers and they say to each other."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.web.call import Call
from services.labeling.web.pages import RESEARCHERS, PageTable
from services.labeling.web.pages_onboarding import by_labeler
from services.labeling.web.research_desk import (
    MAX_LABELER_CHARS,
    batches_of,
    desk_of,
    project_of,
    render_in_project,
    wanted_batch,
)

table = PageTable()

_MAX_PEOPLE = 1_000
_MAX_THREADS = 200


@table.get("/projects/{project}/labelers", roles=RESEARCHERS)
async def show_labelers(call: Call) -> Response:
    """Everybody's progress and where they stand in the onboarding."""
    project = await project_of(call)
    desk = desk_of(call)
    batches = await batches_of(call, project)
    batch = wanted_batch(call, batches)
    labelers = await call.read(lambda: desk.progress.labelers(project.name, batch=batch))
    attempts = await call.read(lambda: desk.onboarding.attempts(project.name))
    users = await call.read(lambda: call.site.accounts.list_users(limit=_MAX_PEOPLE))
    return await render_in_project(
        call,
        "researcher_labelers.html",
        project,
        "labelers",
        batches=batches,
        batch=batch,
        labelers=labelers,
        attempts=by_labeler(attempts),
        users={user.name: user for user in users},
        idle=[
            user
            for user in users
            if not user.is_closed and user.name not in {one.labeler_id for one in labelers}
        ],
    )


@table.get("/projects/{project}/messages", roles=RESEARCHERS)
async def show_messages(call: Call) -> Response:
    """Threads about items of the project, the last spoken in first."""
    project = await project_of(call)
    labeler_id = call.query("labeler", max_chars=MAX_LABELER_CHARS)
    threads = await call.read(
        lambda: desk_of(call).messages.threads(
            reader=call.user.name, labeler_id=labeler_id, project=project.name, limit=_MAX_THREADS
        )
    )
    return await render_in_project(
        call, "researcher_messages.html", project, "messages", threads=threads, labeler_id=labeler_id
    )
