"""The record of the cord as everybody reads it, and the state as every process tells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from andon.api.labeling.v1 import cord_service_pb2 as cord_pb2
from andon.api.labeling.v1 import cord_service_pb2_grpc as cord_grpc
from andon.cli.main import app
from andon.client.cord import CordClient
from andon.rpc.errors import error_from_rpc
from services.labeling.accounts import Role
from services.labeling.web.pages_cord import HISTORY_EVENTS
from tests.cord import cord_locked, metric, wait_until
from tests.html_pages import HtmlPage
from tests.labeling_world import log_to
from tests.site import SiteUnderTest, StartSite
from tests.tokens import TOKENS

TIMEOUT_S = 30


def client_of(site: SiteUnderTest, name: str = "admin") -> CordClient:
    return CordClient(site.running.target, token=TOKENS[name])


def act(site: SiteUnderTest, number: int) -> None:
    """Pull and release a few times."""
    with client_of(site) as client:
        for each in range(number):
            (client.pull if each % 2 == 0 else client.release)(actor=f"actor-{each}", reason=f"reason {each}")


def gauge(site: SiteUnderTest) -> float:
    return metric(site, "andon_cord_pulled")


def test_the_record_is_read_page_by_page_newest_first(start_site: StartSite) -> None:
    site = start_site()
    with client_of(site, "lara") as client:
        assert list(client.events()) == []
        act(site, 7)
        for page_size in (1, 3, 7, 100, 0):
            events = list(client.events(page_size=page_size))
            assert [event.event_number for event in events] == [7, 6, 5, 4, 3, 2, 1]
        newest = events[0]
        assert (newest.action, newest.actor, newest.reason) == ("pull", "actor-6", "reason 6")
        assert [event.action for event in events[1::2]] == ["release"] * 3
        assert newest.event_time == client.get().event_time


def test_pages_that_were_not_given_out_are_refused(
    start_site: StartSite, connect: Callable[..., grpc.Channel]
) -> None:
    stub: Any = cord_grpc.CordServiceStub(connect(start_site().running))
    for fields in (
        {"page_size": -1},
        {"page_size": 1001},
        {"page_token": "x"},
        {"page_token": "-1"},
        {"page_token": "1.5"},
        {"page_token": "٣"},
        {"page_token": "9" * 19},
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListCordEvents(cord_pb2.ListCordEventsRequest(**fields), timeout=TIMEOUT_S)
        assert error_from_rpc(caught.value).reason == "INVALID_PAGE", fields


def test_the_command_line_shows_the_record(
    start_site: StartSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = start_site()
    monkeypatch.setenv("ANDON_TOKEN", TOKENS["rita"])
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        with log_to(tmp_path / "log"):  # the service shares this process's standard output
            done = CliRunner().invoke(app, ["cord", *arguments, "--labeling-target", site.running.target])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    assert json.loads(run("log", "--json")) == []
    run("pull", "it [bold] rambles")
    run("release", "fixed")
    run("pull", "again")
    told = json.loads(run("log", "--json"))
    assert [(one["event_number"], one["action"], one["actor"], one["reason"]) for one in told] == [
        (3, "pull", "rita", "again"),
        (2, "release", "rita", "fixed"),
        (1, "pull", "rita", "it [bold] rambles"),
    ]
    assert [one["event_number"] for one in json.loads(run("log", "--json", "--limit", "2"))] == [3, 2]
    table = run("log")
    for word in ("pulled", "released", "rita", "it [bold] rambles", told[0]["event_time"][:4]):
        assert word in table
    assert table.index("again") < table.index("rambles")


def test_a_failed_command_says_why(start_site: StartSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = start_site()
    monkeypatch.setenv("ANDON_TOKEN", TOKENS["lara"])
    target = ["--labeling-target", site.running.target]
    assert CliRunner().invoke(app, ["cord", "pull", "it rambles", *target]).exit_code == 0
    refused = CliRunner().invoke(app, ["cord", "release", "never mind", *target])
    assert refused.exit_code != 0
    assert "ROLE_NOT_ALLOWED" in refused.stderr


@pytest.mark.parametrize("role", [Role.RESEARCHER, Role.LABELER])
def test_the_page_shows_the_whole_record(start_site: StartSite, role: Role) -> None:
    site = start_site()
    act(site, HISTORY_EVENTS + 3)
    person = site.person("ann", role)
    page = person.get("/cord").text
    assert page.count("<blockquote") == 1
    assert f"reason {HISTORY_EVENTS + 2}" in page
    assert "reason 2<" not in page
    (older,) = [link for link in HtmlPage(page).links if link.startswith("/cord?before=")]
    page = person.get(older).text
    for number in range(3):
        assert f"actor-{number} " in page
        assert f"reason {number}<" in page
    assert [link for link in HtmlPage(page).links if link.startswith("/cord?before=")] == []
    # The state is that of now, whatever page of the record is shown.
    assert "Pulled." in page
    assert f"actor-{HISTORY_EVENTS + 2}" in page
    for query in ("0", "-1", "x", "1e3", "9" * 30):
        assert person.get(f"/cord?before={query}").status_code == 400


def test_the_gauge_is_right_after_a_restart(start_site: StartSite) -> None:
    site = start_site()
    assert gauge(site) == 0
    with client_of(site) as client:
        client.pull(actor="ann", reason="it rambles")
        assert gauge(site) == 1
        assert gauge(start_site()) == 1
        client.release(actor="bob", reason="fixed")
    assert gauge(site) == 0
    assert gauge(start_site()) == 0


def test_what_another_process_does_is_told_here_too(start_site: StartSite) -> None:
    # Nothing but looking for it can wake this watcher in this test.
    here, there = start_site(cord_keepalive_s=3600, cord_poll_s=0.02), start_site()
    with client_of(here) as watching, client_of(there) as acting:
        words = watching.watch(timeout_s=TIMEOUT_S)
        assert not next(words).pulled
        for _ in range(3):
            number = acting.pull(actor="ann", reason="it rambles").event_number
            heard = next(words)
            assert (heard.pulled, heard.event_number) == (True, number)
            wait_until(lambda: gauge(here) == 1)
            acting.release(actor="bob", reason="fixed")
            assert not next(words).pulled
            wait_until(lambda: gauge(here) == 0)
    # Each process counts what it did itself, so that the sum over processes is right.
    counted = [
        site.running._registry.get_sample_value("andon_cord_events_total", {"action": "pull"})
        for site in (here, there)
    ]
    assert counted == [0, 3]


def test_a_caller_that_goes_away_has_pulled_all_the_same(
    start_site: StartSite, connect: Callable[..., grpc.Channel]
) -> None:
    # Nothing but the pull itself can wake this watcher and set the gauge in this test.
    site = start_site(cord_keepalive_s=3600, cord_poll_s=3600)
    with client_of(site) as watching:
        words = watching.watch(timeout_s=TIMEOUT_S)
        next(words)
        stub: Any = cord_grpc.CordServiceStub(connect(site.running))
        with cord_locked(site):
            request = cord_pb2.PullCordRequest(request_id="1", actor="ann", reason="it rambles")
            call = stub.PullCord.future(request, timeout=TIMEOUT_S)
            wait_until(lambda: metric(site, "andon_labeling_database_calls") == 1)
            call.cancel()
        assert next(words).pulled
        assert gauge(site) == 1
        assert metric(site, "andon_cord_events_total", action="pull") == 1
