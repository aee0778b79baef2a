"""The door at which Prometheus Alertmanager pulls the cord: ``POST /alerts``, a webhook's receiver.

A door for a program, no page: it asks for a bearer token as the RPCs do and knows neither sessions nor
cookies, so that no browser can be made to act here; it answers JSON and redirects nobody. Which alerts pull
is decided in :mod:`services.labeling.alerts`. Alertmanager repeats what was answered with 5xx and nothing
else, so whatever may be better in a moment is answered with 503. It is asked under any host name:
Alertmanager comes from inside, where the site has another one.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from andon.errors import AndonError, ResourceExhaustedError, UnauthenticatedError
from andon.rpc.auth import METADATA_KEY, AccessPolicy, authenticate
from services.labeling.accounts import Role
from services.labeling.alerts import ACTOR, read_alerts, reason_of, request_of
from services.labeling.cord import CordAction, check_cord_act
from services.labeling.web.problems import PageError, page_error_of
from services.labeling.web.security import media_type_of, read_body

if TYPE_CHECKING:
    from services.labeling.web.site import Site

PATH = "/alerts"
ROLES = frozenset({Role.SERVICE, Role.ADMIN})
_MEDIA_TYPE = "application/json"
_BODY_TIMEOUT_S = 10.0
_REASONS = {
    405: "METHOD_NOT_ALLOWED",
    408: "BODY_TOO_SLOW",
    413: "BODY_TOO_LARGE",
    415: "NOT_JSON",
    500: "UNEXPECTED",
}

_log = structlog.stdlib.get_logger(__name__)


class AlertDoor:
    """Answers everything that is sent to its path, as an ASGI application."""

    def __init__(self, site: Site) -> None:
        self._cord = site.cord
        self._metrics = site.metrics
        self._site_metrics = site.site_metrics
        self._access = AccessPolicy(authenticator=site.authenticator, roles_by_method={PATH: ROLES})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        start_s = time.monotonic()
        response, reason = await self._answer(request)
        if 400 <= response.status_code < 500:
            self._metrics.webhook_alerts.labels("refused").inc()
        seconds = time.monotonic() - start_s
        method = "POST" if request.method == "POST" else "other"
        self._site_metrics.requests.labels(PATH, method, str(response.status_code)).inc()
        self._site_metrics.seconds.labels(PATH).observe(seconds)
        _log.info("alerts_answered", status=response.status_code, reason=reason, seconds=round(seconds, 6))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> tuple[Response, str]:
        try:
            done = await self._take(request)
            return JSONResponse({result: done[result] for result in ("pulled", "repeated", "ignored")}), ""
        except PageError as error:
            problem, reason = error, _REASONS[error.status]
        except ResourceExhaustedError as error:
            problem, reason = PageError(503, headers={"Retry-After": "2"}), error.reason
        except AndonError as error:
            problem, reason = page_error_of(error), error.reason
            if isinstance(error, UnauthenticatedError):
                problem.headers["WWW-Authenticate"] = "Bearer"
        except ClientDisconnect:
            return Response(status_code=400), "CLIENT_GONE"
        except Exception:  # noqa: BLE001 - the last place that can turn a defect into an answer
            _log.exception("alerts_unexpected_error")
            problem, reason = PageError(500), _REASONS[500]
        content = {"reason": reason, "error": problem.words}
        return JSONResponse(content, status_code=problem.status, headers=problem.headers), reason

    async def _take(self, request: Request) -> Counter[str]:
        """Do what a message asks for; counts its alerts by what became of them."""
        if request.method != "POST":
            raise PageError(405, "Alerts are posted here.", headers={"Allow": "POST"})
        given = [(METADATA_KEY, value) for value in request.headers.getlist(METADATA_KEY)]
        caller = await authenticate(self._access, PATH, given)
        if media_type_of(request) != _MEDIA_TYPE:
            raise PageError(415, f"Alerts come as {_MEDIA_TYPE}.")
        message = read_alerts(await read_body(request, timeout_s=_BODY_TIMEOUT_S))
        done: Counter[str] = Counter()
        for alert in message.alerts:
            result = "ignored"
            if alert.pulls:
                reason = reason_of(alert)
                check_cord_act(actor=ACTOR, reason=reason)
                acted = await self._cord.act(request_of(alert), CordAction.PULL, actor=ACTOR, reason=reason)
                result = "repeated" if acted.repeated else "pulled"
                _log.info("alert_taken", result=result, caller=caller.name, event_number=acted.event.number)
            self._metrics.webhook_alerts.labels(result).inc()
            done[result] += 1
        return done
