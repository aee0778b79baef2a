"""Signing in at an OpenID Connect provider and coming back."""

from __future__ import annotations

import base64
import binascii
import hmac
import json

import structlog
from starlette.responses import RedirectResponse, Response

from andon.errors import UnauthenticatedError
from services.labeling.accounts import new_secret
from services.labeling.oidc import OidcProvider, SignInAttempt
from services.labeling.web.call import Call
from services.labeling.web.pages import PUBLIC, PageTable
from services.labeling.web.pages_access import begin_session
from services.labeling.web.problems import PageError
from services.labeling.web.session import local_path

table = PageTable()

_ATTEMPT_LIFETIME_S = 600
_MAX_TARGET_CHARS = 1000
_MAX_COOKIE_CHARS = 4000
_MAX_CODE_CHARS = 4000
_CALLBACK = "/sign-in/oidc/callback"

_log = structlog.stdlib.get_logger(__name__)


@table.get("/sign-in/oidc", roles=PUBLIC)
async def leave(call: Call) -> Response:
    """Send the browser to the provider, and let it remember what for."""
    provider = _provider(call)
    attempt = SignInAttempt(state=new_secret(), nonce=new_secret(), verifier=new_secret())
    target = local_path(call.request.query_params.get("next", "/"))
    url = await provider.authorization_url(attempt, redirect_uri=call.site.site_url() + _CALLBACK)
    response = RedirectResponse(url, status_code=303)
    kept = {
        "state": attempt.state,
        "nonce": attempt.nonce,
        "verifier": attempt.verifier,
        "next": target if len(target) <= _MAX_TARGET_CHARS else "/",
    }
    value = base64.urlsafe_b64encode(json.dumps(kept).encode()).decode("ascii")
    call.cookies.set(response, call.cookies.sign_in_elsewhere, value, max_age_s=_ATTEMPT_LIFETIME_S)
    return response


@table.get(_CALLBACK, roles=PUBLIC)
async def come_back(call: Call) -> Response:
    """Check that this browser left for the provider, and whom the provider names; begin a session."""
    site, provider = call.site, _provider(call)
    attempt, target = _attempt_of(call)
    query = call.request.query_params
    if attempt is None or not hmac.compare_digest(query.get("state", "").encode(), attempt.state.encode()):
        raise PageError(401, "This sign-in was not begun in this browser, or too long ago.")
    code = query.get("code", "")
    if not code or len(code) > _MAX_CODE_CHARS:
        _log.info("oidc_came_back_without_code")
        raise PageError(401, "Your organisation did not let you in.")
    try:
        identity = await provider.identity(code, attempt, redirect_uri=site.site_url() + _CALLBACK)
        user = await call.write(lambda: site.accounts.account_of(identity))
    except UnauthenticatedError:
        site.site_metrics.sign_ins.labels("refused").inc()
        raise
    site.site_metrics.sign_ins.labels("accepted").inc()
    response = await begin_session(call, user.name, target=target)
    call.cookies.delete(response, call.cookies.sign_in_elsewhere)
    return response


def _provider(call: Call) -> OidcProvider:
    if call.site.oidc is None:
        raise PageError(404)
    return call.site.oidc


def _attempt_of(call: Call) -> tuple[SignInAttempt | None, str]:
    raw = call.request.cookies.get(call.cookies.sign_in_elsewhere, "")
    try:
        kept = json.loads(base64.urlsafe_b64decode(raw[:_MAX_COOKIE_CHARS]))
        attempt = SignInAttempt(
            state=str(kept["state"]), nonce=str(kept["nonce"]), verifier=str(kept["verifier"])
        )
        return attempt, local_path(str(kept["next"]))
    except (ValueError, binascii.Error, TypeError, KeyError):
        return None, "/"
