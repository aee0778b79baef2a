"""Thousands of made-up requests over HTTP and gRPC: none may end in a defect, and the data stay sound.

The small run stands in the default suite; ``make test-slow`` makes more than 10,000 requests on each engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.labeling_fuzz import PAGES, Fuzzer
from tests.labeling_invariants import broken_invariants
from tests.labeling_rpcs import METHODS
from tests.labeling_world import World, serve_world

MIN_REQUESTS = 10_000
DEFECTS = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE"}


def plain(field: str) -> str:
    return f"{field} of the fuzzer"


def repeat(act: Callable[[Random], None], number: int, *, is_always_the_same: bool) -> None:
    """Let Hypothesis steer ``number`` acts. The server keeps what they did, so nothing can be shrunk."""

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=is_always_the_same,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def run(random: Random) -> None:
        act(random)

    run()


def fuzz(world: World, *, rounds: int, acts_per_round: int, is_always_the_same: bool) -> Fuzzer:
    """Requests of both kinds in turn, so that each meets what the other has made."""
    world.populate(plain)
    fuzzer = Fuzzer(world)
    for _ in range(rounds):
        repeat(fuzzer.send_http, acts_per_round, is_always_the_same=is_always_the_same)
        repeat(fuzzer.send_rpc, acts_per_round, is_always_the_same=is_always_the_same)
    return fuzzer


def check_world(world: World, fuzzer: Fuzzer) -> None:
    """What the service itself counted, logged and kept."""
    log = world.log_path.read_text(encoding="utf-8")
    assert "unexpected_error" not in log
    assert "database_failed" not in log
    codes: dict[str, float] = {}
    statuses: dict[str, float] = {}
    failures = 0.0
    for metric in world.registry.collect():
        for sample in metric.samples:
            if sample.name == "andon_rpc_handled_total":
                code = sample.labels["grpc_code"]
                codes[code] = codes.get(code, 0) + sample.value
            elif sample.name == "andon_site_requests_total":
                status = sample.labels["status"]
                statuses[status] = statuses.get(status, 0) + sample.value
            elif sample.name == "andon_labeling_database_failures_total":
                failures = sample.value
    assert {code: number for code, number in codes.items() if code in DEFECTS and number} == {}
    assert {status: number for status, number in statuses.items() if status >= "500"} == {}
    assert failures == 0
    assert sum(codes.values()) >= fuzzer.num_rpcs
    assert sum(statuses.values()) >= fuzzer.num_http
    assert broken_invariants(world.site.database) == []


def test_a_few_hundred_made_up_requests(server_loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    with serve_world(server_loop, f"sqlite:///{tmp_path}/labeling.sqlite3", tmp_path) as world:
        fuzzer = fuzz(world, rounds=1, acts_per_round=100, is_always_the_same=True)
        check_world(world, fuzzer)
    assert fuzzer.num_http + fuzzer.num_rpcs >= 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_more_than_ten_thousand_made_up_requests(
    server_loop: asyncio.AbstractEventLoop,
    database_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serve_world(server_loop, database_url, tmp_path) as world:
        fuzzer = fuzz(world, rounds=10, acts_per_round=500, is_always_the_same=False)
        check_world(world, fuzzer)
    with capsys.disabled():
        print(f"\n{database_url.partition(':')[0]}: {fuzzer.summary()}")  # noqa: T201 - the count is the result
    assert fuzzer.num_http + fuzzer.num_rpcs >= MIN_REQUESTS
    # It came everywhere, and past the first checks.
    assert {page.path for page in PAGES} <= {page for page, _status in fuzzer.statuses}
    assert {path for path, code in fuzzer.codes if code == "OK"} == set(METHODS)
    succeeded = {page for page, status in fuzzer.statuses if status in (200, 204, 303)}
    assert len(succeeded) >= 0.8 * len({page.path for page in PAGES})
