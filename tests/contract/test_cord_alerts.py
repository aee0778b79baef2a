"""The door for alerts: what Alertmanager posts pulls the cord once, and nobody else gets anything done."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from andon.client.cord import CordClient
from services.labeling.accounts import Role
from services.labeling.cord import MAX_REASON_CHARS, CordEvent
from services.labeling.cord_store import CordStore
from services.labeling.service import now_us
from services.labeling.web import alert_door
from tests.alertmanager import Alertmanager, find_alertmanager
from tests.cord import cord_locked, metric, wait_until
from tests.site import SiteUnderTest, StartSite
from tests.tokens import TOKENS

MAX_BODY_BYTES = 64 * 1024
JSON = "application/json"


def alert(
    name: str = "AndonRewardSpike",
    *,
    fingerprint: str = "1a2b3c4d5e6f7081",
    starts_at: str = "2026-03-01T23:04:05.123456789Z",
    status: str = "firing",
    cord: str | None = "pull",
    **annotations: str,
) -> dict[str, Any]:
    """As Alertmanager writes one."""
    labels = {"alertname": name, "namespace": "andon", "severity": "critical"}
    return {
        "status": status,
        "labels": labels if cord is None else {**labels, "andon_cord": cord},
        "annotations": annotations,
        "startsAt": starts_at,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph?g0.expr=up",
        "fingerprint": fingerprint,
    }


def message(*alerts: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "receiver": "andon-cord",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {"alertname": "AndonRewardSpike"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "version": "4",
        "groupKey": '{}:{alertname="AndonRewardSpike"}',
        "truncatedAlerts": 0,
        **fields,
    }


class Door:
    """The door, and what came of it."""

    def __init__(self, site: SiteUnderTest) -> None:
        self.site = site
        self.client = site.stranger()
        self._cord = CordStore(site.database, clock=now_us)

    def post(self, content: object, *, token: str | None = "service", **headers: str) -> httpx.Response:
        sent = {"Content-Type": JSON, **headers}
        if token is not None:
            sent["Authorization"] = f"Bearer {TOKENS.get(token, token)}"
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.client.post("/alerts", content=body, headers=sent)

    def events(self) -> list[CordEvent]:
        return self._cord.events_after(0)

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.site, name, **labels)

    def alerts(self, result: str) -> float:
        return self.metric("andon_cord_webhook_alerts_total", result=result)


@pytest.fixture
def door(start_site: StartSite) -> Door:
    return Door(start_site(database_lock_wait_s=0.3, web_max_body_bytes=MAX_BODY_BYTES))


def test_a_firing_alert_with_the_label_pulls_the_cord(door: Door) -> None:
    told = {
        "summary": "The reward jumped.",
        "description": "It rose by 9 MADs.",
        "runbook_url": "https://r/x",
    }
    answer = door.post(message(alert(**told)))
    assert answer.status_code == 200
    assert answer.json() == {"pulled": 1, "repeated": 0, "ignored": 0}
    (event,) = door.events()
    assert (event.action.value, event.actor) == ("pull", "alertmanager")
    assert event.reason == "AndonRewardSpike: The reward jumped.\nIt rose by 9 MADs.\nRunbook: https://r/x"
    assert door.metric("andon_cord_pulled") == 1
    assert door.metric("andon_cord_events_total", action="pull") == 1
    assert door.alerts("pulled") == 1


def test_what_still_fires_is_repeated_and_pulls_once(door: Door) -> None:
    door.post(message(alert(summary="one")))
    for again in (
        alert(summary="one"),
        alert(summary="other words"),
        # The same moment as another replica may write it.
        alert(starts_at="2026-03-02T00:04:05.123456+01:00"),
    ):
        assert door.post(message(again)).json() == {"pulled": 0, "repeated": 1, "ignored": 0}
    assert door.alerts("repeated") == 3
    release = door.site.person("rita", Role.RESEARCHER).submit("/cord/release", {"reason": "looked"})
    assert release.status_code == 303
    assert door.post(message(alert())).json()["repeated"] == 1
    assert door.metric("andon_cord_pulled") == 0  # a released cord stays released while the same alert fires
    # Another alert, and the same one when it begins anew, are further pulls.
    others = [alert(fingerprint="other"), alert(starts_at="2026-03-02T08:00:00Z")]
    assert door.post(message(*others)).json() == {"pulled": 2, "repeated": 0, "ignored": 0}
    assert [event.action.value for event in door.events()] == ["pull", "release", "pull", "pull"]


def test_what_is_none_of_the_cord_s_business_is_counted(door: Door) -> None:
    alerts = [
        alert(status="resolved"),
        alert(cord=None),
        alert(cord="release"),
        alert(cord="PULL"),
        alert(cord=""),
    ]
    assert door.post(message(*alerts)).json() == {"pulled": 0, "repeated": 0, "ignored": 5}
    assert door.post(message()).json() == {"pulled": 0, "repeated": 0, "ignored": 0}
    assert door.post(message(alert(cord=None), alert())).json() == {"pulled": 1, "repeated": 0, "ignored": 1}
    assert door.alerts("ignored") == 6
    assert len(door.events()) == 1


def test_an_alert_that_says_too_much_or_too_little_pulls_all_the_same(door: Door) -> None:
    nameless = alert(fingerprint="2")
    del nameless["labels"]["alertname"]
    bare = alert(fingerprint="3")
    del bare["annotations"]
    chatty = alert(fingerprint="1", summary="a\x00b" + "x" * (MAX_REASON_CHARS + 10), description="unread")
    assert door.post(message(chatty, nameless, bare)).json()["pulled"] == 3
    reasons = [event.reason for event in door.events()]
    assert reasons[0].startswith("AndonRewardSpike: a\ufffdbxxx")
    assert len(reasons[0]) == MAX_REASON_CHARS
    assert reasons[1:] == ["an alert without a name", "AndonRewardSpike"]


@pytest.mark.parametrize("token", ["admin", "service"])
def test_programs_are_let_in(door: Door, token: str) -> None:
    assert door.post(message(alert()), token=token).status_code == 200


def test_nobody_else_is(door: Door) -> None:
    site = door.site
    expired = site.tokens.make(name="old", role=Role.SERVICE, created_by="test", wanted_lifetime_us=1).secret
    ended = site.tokens.make(name="ended", role=Role.SERVICE, created_by="test").secret
    site.tokens.revoke_all("ended", actor="test")
    admin = site.person("root", Role.ADMIN)
    session = admin.cookies["andon"]
    good = TOKENS["service"]
    refused: list[tuple[str, dict[str, str] | list[tuple[str, str]], int, str]] = [
        ("none", {}, 401, "MISSING_TOKEN"),
        ("unknown", {"Authorization": f"Bearer {'x' * 43}"}, 401, "INVALID_TOKEN"),
        ("expired", {"Authorization": f"Bearer {expired}"}, 401, "INVALID_TOKEN"),
        ("revoked", {"Authorization": f"Bearer {ended}"}, 401, "INVALID_TOKEN"),
        ("a session's", {"Authorization": f"Bearer {session}"}, 401, "INVALID_TOKEN"),
        ("no scheme", {"Authorization": good}, 401, "INVALID_TOKEN"),
        ("basic", {"Authorization": f"Basic {good}"}, 401, "INVALID_TOKEN"),
        ("empty", {"Authorization": ""}, 401, "INVALID_TOKEN"),
        ("too long", {"Authorization": f"Bearer {'x' * 5000}"}, 401, "INVALID_TOKEN"),
        ("twice", [("Authorization", f"Bearer {good}")] * 2, 401, "INVALID_TOKEN"),
        ("in the address", {"X-Authorization": f"Bearer {good}"}, 401, "MISSING_TOKEN"),
        ("a labeler", {"Authorization": f"Bearer {TOKENS['lara']}"}, 403, "ROLE_NOT_ALLOWED"),
        ("a researcher", {"Authorization": f"Bearer {TOKENS['rita']}"}, 403, "ROLE_NOT_ALLOWED"),
    ]
    body = json.dumps(message(alert())).encode()
    for words, headers, status, reason in refused:
        given = headers if isinstance(headers, list) else list(headers.items())
        # Also with an admin's session and its CSRF token: cookies count for nothing here.
        for client, more in ((door.client, {}), (admin, {"X-CSRF-Token": admin.csrf_of("/cord")})):
            sent = [*given, *more.items(), ("Content-Type", JSON)]
            answer = client.post("/alerts", params={"token": good}, content=body, headers=sent)
            assert (answer.status_code, answer.json()["reason"]) == (status, reason), words
            assert "set-cookie" not in answer.headers, words
            assert "location" not in answer.headers, words
            assert ("www-authenticate" in answer.headers) == (status == 401), words
            assert not [token for token in TOKENS.values() if token in answer.text], words
    assert door.events() == []
    assert door.alerts("refused") == 2 * len(refused)


def test_only_json_of_alertmanager_s_version_is_understood(door: Door) -> None:
    good = message(alert())
    without = {name: value for name, value in alert().items() if name != "fingerprint"}
    bodies: list[tuple[object, str, int, str]] = [
        (good, "application/x-www-form-urlencoded", 415, "NOT_JSON"),
        (good, "text/plain", 415, "NOT_JSON"),
        (good, "", 415, "NOT_JSON"),
        (good, f"{JSON}, text/plain", 415, "NOT_JSON"),
        (b"", JSON, 400, "INVALID_ALERTS"),
        (b"{", JSON, 400, "INVALID_ALERTS"),
        (b"\xff\xfe", JSON, 400, "INVALID_ALERTS"),
        (b'{"version": "4", "alerts": "' + b"\\ud800" + b'"}', JSON, 400, "INVALID_ALERTS"),
        (b"[" * 30_000, JSON, 400, "INVALID_ALERTS"),
        ([], JSON, 400, "INVALID_ALERTS"),
        ({"version": "4"}, JSON, 400, "INVALID_ALERTS"),
        ({**good, "version": "5"}, JSON, 400, "INVALID_ALERTS"),
        ({**good, "version": 4}, JSON, 400, "INVALID_ALERTS"),
        ({**good, "alerts": {}}, JSON, 400, "INVALID_ALERTS"),
        (message(without), JSON, 400, "INVALID_ALERTS"),
        (message(alert(), {**alert(), "fingerprint": ""}), JSON, 400, "INVALID_ALERTS"),
        (message({**alert(), "fingerprint": "x" * 201}), JSON, 400, "INVALID_ALERTS"),
        (message({**alert(), "startsAt": "yesterday"}), JSON, 400, "INVALID_ALERTS"),
        (message({**alert(), "startsAt": "2026-03-01T23:04:05"}), JSON, 400, "INVALID_ALERTS"),  # where?
        (message({**alert(), "startsAt": 5}), JSON, 400, "INVALID_ALERTS"),
        (message({**alert(), "status": "burning"}), JSON, 400, "INVALID_ALERTS"),
        (message({**alert(), "labels": {"andon_cord": 1}}), JSON, 400, "INVALID_ALERTS"),
        (message({**alert(), "labels": None}), JSON, 400, "INVALID_ALERTS"),
    ]
    for content, media_type, status, reason in bodies:
        answer = door.post(content, **{"Content-Type": media_type})
        assert (answer.status_code, answer.json()["reason"]) == (status, reason), (content, media_type)
        assert len(answer.content) < 500
    # A message is taken whole or not at all.
    assert door.events() == []
    assert door.alerts("refused") == len(bodies)
    assert door.post(good, **{"Content-Type": f"{JSON}; charset=utf-8"}).json()["pulled"] == 1


def test_large_and_slow_bodies_are_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    large = message(alert(summary="x" * MAX_BODY_BYTES))
    answer = door.post(large)
    assert (answer.status_code, answer.json()["reason"]) == (413, "BODY_TOO_LARGE")

    monkeypatch.setattr(alert_door, "_BODY_TIMEOUT_S", 0.2)
    url = httpx.URL(door.site.url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as slow:
        head = [
            "POST /alerts HTTP/1.1",
            f"Host: {url.host}",
            f"Authorization: Bearer {TOKENS['service']}",
            f"Content-Type: {JSON}",
            "Content-Length: 1000",
        ]
        slow.sendall("\r\n".join([*head, "", "{"]).encode())
        assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert door.post(message(alert())).json()["pulled"] == 1


def test_other_methods_and_addresses_are_no_door(door: Door) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = door.client.request(
            method, "/alerts", headers={"Authorization": f"Bearer {TOKENS['service']}"}
        )
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST"), method
        assert "access-control-allow-origin" not in answer.headers
        assert "set-cookie" not in answer.headers
    headers = {"Authorization": f"Bearer {TOKENS['service']}", "Content-Type": JSON}
    for path in ("/alerts/", "/alerts/x", "//alerts", "/ALERTS"):
        answer = door.client.post(
            f"{door.site.url}{path}", content=json.dumps(message(alert())), headers=headers
        )
        assert answer.status_code in (404, 405), path
    assert door.events() == []


def test_its_answers_carry_the_site_s_headers(door: Door) -> None:
    for answer in (door.post(message(alert())), door.post(message(), token=None), door.client.get("/alerts")):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == JSON


def test_it_is_asked_under_any_host_name(start_site: StartSite) -> None:
    door = Door(start_site(web_public_url="https://labels.example.org"))
    headers = {
        "Authorization": f"Bearer {TOKENS['service']}",
        "Content-Type": JSON,
        "Host": "andon-labeling:8054",
    }
    address = f"http://127.0.0.1:{door.site.service.ready_facts['web_port']}"
    with httpx.Client(base_url=address, trust_env=False) as client:
        content = json.dumps(message(alert()))
        assert client.post("/alerts", content=content, headers=headers).json()["pulled"] == 1
        assert client.get("/sign-in", headers={"Host": "andon-labeling:8054"}).status_code == 421


def test_a_database_that_does_not_answer_is_a_503_and_the_repetition_pulls(door: Door) -> None:
    with cord_locked(door.site):
        answer = door.post(message(alert()))
    assert (answer.status_code, answer.json()["reason"]) == (503, "DATABASE_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) > 0
    assert door.alerts("refused") == 0
    assert door.events() == []
    assert door.post(message(alert())).json()["pulled"] == 1


def test_many_at_once_pull_once(door: Door) -> None:
    door.post(message(alert(fingerprint="warm")))

    def post(_number: int) -> dict[str, int]:
        with httpx.Client(base_url=door.site.url, trust_env=False, timeout=30) as client:
            answer = client.post(
                "/alerts",
                content=json.dumps(message(alert())),
                headers={"Authorization": f"Bearer {TOKENS['service']}", "Content-Type": JSON},
            )
            found: dict[str, int] = answer.json()
            return found

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(post, range(16)))
    assert sum(one["pulled"] for one in told) == 1
    assert sum(one["repeated"] for one in told) == 15
    assert len(door.events()) == 2


# A real Alertmanager


@pytest.fixture
def alertmanager(door: Door, tmp_path: Path) -> Iterator[Alertmanager]:
    if find_alertmanager() is None:
        pytest.skip("Alertmanager is not installed (Debian: apt-get install prometheus-alertmanager)")
    url = f"{door.site.url}/alerts"
    with Alertmanager(tmp_path / "alertmanager", webhook_url=url, token=TOKENS["service"]) as running:
        yield running


def test_a_real_alertmanager_pulls_once_however_often_it_repeats(
    door: Door, alertmanager: Alertmanager
) -> None:
    with CordClient(door.site.running.target, token=TOKENS["service"]) as client:
        words = client.watch(timeout_s=60)
        assert not next(words).pulled
        labels = {"alertname": "AndonRewardSpike", "andon_cord": "pull"}
        alertmanager.tell(
            {"labels": {"alertname": "AndonQueueLong"}, "annotations": {"summary": "Not the cord's."}},
            {"labels": labels, "annotations": {"summary": "The reward jumped."}},
        )
        pulled = next(word for word in words if word.pulled)
        assert pulled.actor == "alertmanager"
        assert pulled.reason == "AndonRewardSpike: The reward jumped."
    wait_until(lambda: door.alerts("repeated") >= 1)
    # It ends, and begins anew.
    alertmanager.tell({"labels": labels, "endsAt": datetime.now(UTC).isoformat()})
    ignored = door.alerts("ignored")
    wait_until(lambda: door.alerts("ignored") > ignored)
    assert len(door.events()) == 1


def test_a_real_alertmanager_repeats_until_the_database_is_back(
    door: Door, alertmanager: Alertmanager
) -> None:
    with cord_locked(door.site):
        alertmanager.tell({"labels": {"alertname": "AndonSignFlipped", "andon_cord": "pull"}})
        wait_until(lambda: door.metric("andon_labeling_database_failures_total") >= 1)
        assert door.events() == []
    wait_until(lambda: door.alerts("pulled") == 1)
    assert [event.reason for event in door.events()] == ["AndonSignFlipped"]
    assert door.alerts("refused") == 0
