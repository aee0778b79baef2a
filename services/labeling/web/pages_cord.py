"""The cord on the site: its state, pulling it, and, for researchers, letting training go on."""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from services.labeling.cord import MAX_REASON_CHARS, CordAction, check_cord_act, is_pulled
from services.labeling.errors import CordNotPulledError, InvalidFieldError
from services.labeling.requests import RepeatableRequest
from services.labeling.web.call import Call
from services.labeling.web.pages import ALL_PEOPLE, RESEARCHERS, PageTable

table = PageTable()

HISTORY_EVENTS = 50
_MAX_NONCE_CHARS = 100
_MAX_EVENT_NUMBER = 10**18


@table.get("/cord", roles=ALL_PEOPLE)
async def show_cord(call: Call) -> Response:
    """State, history and the forms."""
    done = call.query("done", max_chars=20)
    return await _cord_page(call, done=done if done in ("pulled", "released") else "")


@table.post("/cord/pull", roles=ALL_PEOPLE)
async def pull_cord(call: Call) -> Response:
    """Stop training."""
    return await _act(call, CordAction.PULL)


@table.post("/cord/release", roles=RESEARCHERS)
async def release_cord(call: Call) -> Response:
    """Let training go on."""
    return await _act(call, CordAction.RELEASE)


async def _act(call: Call, action: CordAction) -> Response:
    site, actor = call.site, call.user.name
    try:
        reason = call.form.text("reason", max_chars=MAX_REASON_CHARS)
        nonce = call.form.text("nonce", max_chars=_MAX_NONCE_CHARS)
        check_cord_act(actor=actor, reason=reason)
        await site.cord.act(
            _request(actor, nonce or call.request_id, action, reason), action, actor=actor, reason=reason
        )
    except InvalidFieldError as error:
        return await _cord_page(call, problem=f"{error.problem[0].upper()}{error.problem[1:]}.", status=400)
    except CordNotPulledError:
        return await _cord_page(call, problem="Nobody has pulled the cord, so training may run.", status=409)
    return call.redirect("/cord?done=" + ("pulled" if action is CordAction.PULL else "released"))


def _request(actor: str, nonce: str, action: CordAction, reason: str) -> RepeatableRequest:
    # The nonce of the form makes a double click one act; another person's nonce is another one.
    digest = hashlib.sha256("\n".join((action.value, reason)).encode()).hexdigest()
    name = hashlib.sha256("\n".join((actor, nonce)).encode()).hexdigest()
    return RepeatableRequest(method=f"site.cord.{action.value}", request_id=name, digest=digest)


async def _cord_page(call: Call, *, done: str = "", problem: str = "", status: int = 200) -> Response:
    last = await call.site.cord.last()
    before = call.query_integer("before", default=0, minimum=1, maximum=_MAX_EVENT_NUMBER) or None
    events = await call.site.cord.newest_events(HISTORY_EVENTS + 1, before=before)
    return await call.render(
        "cord.html",
        status=status,
        events=events[:HISTORY_EVENTS],
        before=before,
        older_before=events[HISTORY_EVENTS - 1].number if len(events) > HISTORY_EVENTS else None,
        last=last,
        is_pulled=is_pulled(last),
        may_release=call.user.role in RESEARCHERS,
        done=done,
        problem=problem,
        nonce=call.request_id,
    )
