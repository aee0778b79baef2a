"""A labeler's messages: what researchers and they say to each other about an item."""

from __future__ import annotations

from starlette.responses import Response

from services.labeling.accounts import Role
from services.labeling.errors import InvalidFieldError, RequestIdReusedError
from services.labeling.limits import MAX_NOTE_CHARS
from services.labeling.message_store import Thread, check_message
from services.labeling.site_store import Item
from services.labeling.tasks import ONBOARDING_PURPOSES
from services.labeling.web.call import Call
from services.labeling.web.pages import PageTable
from services.labeling.web.pages_work import desk_of, read_nonce
from services.labeling.web.problems import PageError
from services.labeling.web.work_desk import Desk, needs_reading

table = PageTable()

_LABELERS = frozenset({Role.LABELER})


@table.get("/inbox", roles=_LABELERS, menu="Messages")
async def show_threads(call: Call) -> Response:
    """All threads, the last spoken in first."""
    desk = desk_of(call)

    def work() -> list[tuple[Thread, str | None]]:
        threads = desk.messages.threads(reader=desk.labeler_id, labeler_id=desk.labeler_id)
        return [(thread, desk.own.lease_of_task(thread.task_id, desk.labeler_id)) for thread in threads]

    return await call.render("labeler_inbox.html", threads=await call.read(work))


@table.get("/inbox/{item}", roles=_LABELERS)
async def show_thread(call: Call) -> Response:
    """What was said about one item, and the form to say something."""
    desk = desk_of(call)
    return await _thread_page(call, desk, await _item(call, desk))


@table.post("/inbox/{item}", roles=_LABELERS)
async def say(call: Call) -> Response:
    """Say something about an item."""
    desk = desk_of(call)
    item = await _item(call, desk)
    nonce = read_nonce(call)
    try:
        text = call.form.text("text", max_chars=MAX_NOTE_CHARS)
        check_message(text)
        await call.write(lambda: desk.say(item, text, nonce=nonce))
    except InvalidFieldError as error:
        return await _thread_page(call, desk, item, problem=error.problem)
    except RequestIdReusedError:
        raise PageError(409, "This form was sent before with other words. Load the page again.") from None
    return call.redirect(f"/inbox/{item.lease_id}#end")


async def _item(call: Call, desk: Desk) -> Item:
    item = await call.read(lambda: desk.items.item(call.path("item"), desk.labeler_id))
    if item.purpose in ONBOARDING_PURPOSES and not item.is_answered:
        raise PageError(404)  # nobody helps with an item of the onboarding
    project = await call.read(lambda: desk.projects.project(item.project))
    if needs_reading(project, item):
        raise PageError(404)  # the thread shows the document, which is to be read later
    return item


async def _thread_page(call: Call, desk: Desk, item: Item, *, problem: str = "") -> Response:
    messages = await call.write(
        lambda: desk.messages.read(task_id=item.task_id, labeler_id=desk.labeler_id, reader=desk.labeler_id)
    )
    project = await call.read(lambda: desk.projects.project(item.project))
    return await call.render(
        "labeler_thread.html",
        status=400 if problem else 200,
        project=project,
        item=item.lease_id,
        document=item.document,
        may_open=item.is_answered and item.purpose not in ONBOARDING_PURPOSES,
        messages=messages,
        errors={"text": problem} if problem else {},
        sent=call.form.text("text", max_chars=10 * MAX_NOTE_CHARS) if problem else "",
        nonce=call.request_id,
    )
