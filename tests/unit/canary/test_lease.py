"""Who leads, against a fake API over HTTP: contention, pauses, lost answers, clocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from andon.errors import InvalidArgumentError
from services.canary.cluster_errors import NotLeaderError
from services.canary.kubernetes_calls import KubernetesCalls, connect
from services.canary.lease import LeaseLeadership, LeaseTimes
from tests.kubernetes_api import NAMESPACE, Call, FakeKubernetes
from tests.kubernetes_objects import LEASES

TIMES = LeaseTimes(duration_s=15, renew_deadline_s=10.0, retry_period_s=2.0)
LEASE = "andon-canary"


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def api() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as running:
        yield running


@pytest.fixture
def candidate(api: FakeKubernetes, tmp_path: Path) -> Callable[..., LeaseLeadership]:
    def make(identity: str, clock: Clock) -> LeaseLeadership:
        client = connect(kubeconfig=api.write_kubeconfig(tmp_path / f"{identity}.json"))
        client.user_agent = identity
        calls = KubernetesCalls(client, namespace=NAMESPACE, timeout_s=5.0)
        return LeaseLeadership(calls, name=LEASE, times=TIMES, identity=identity, clock=clock)

    return make


def _record(api: FakeKubernetes) -> dict[str, object]:
    record: dict[str, object] = api.objects.get(LEASES, LEASE)["spec"]
    return record


def test_the_first_takes_it_and_the_second_waits(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first, second = candidate("first", clock), candidate("second", clock)
    assert not first.is_leader()
    assert first.step()
    assert not second.step()
    assert _record(api)["holderIdentity"] == "first"
    assert _record(api)["leaseDurationSeconds"] == 15
    assert _record(api)["leaseTransitions"] == 0
    for _ in range(20):  # renewed in time it never changes hands
        clock.now_s += 2
        assert first.step()
        assert not second.step()
    assert _record(api)["leaseTransitions"] == 0


def test_a_dead_holder_is_followed_after_the_duration_and_not_before(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first, second = candidate("first", clock), candidate("second", clock)
    assert first.step()
    assert not second.step()  # sees the record now
    clock.now_s += 9.9
    assert first.is_leader()
    clock.now_s += 0.1
    assert not first.is_leader()  # its deadline, 5 seconds before anybody may follow
    clock.now_s += 4.9
    assert not second.step()
    clock.now_s += 0.1
    assert second.step()
    assert _record(api)["leaseTransitions"] == 1


def test_a_candidate_counts_from_when_it_saw_the_record_whatever_the_wall_clock_says(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    """A record with times of long ago, by a holder whose wall clock is wrong."""
    clock = Clock()
    api.objects.create(
        LEASES,
        {
            "metadata": {"name": LEASE},
            "spec": {
                "holderIdentity": "other",
                "leaseDurationSeconds": 15,
                "acquireTime": "2001-01-01T00:00:00.000000Z",
                "renewTime": "2001-01-01T00:00:00.000000Z",
                "leaseTransitions": 3,
            },
        },
    )
    late = candidate("late", clock)
    assert not late.step()
    clock.now_s += 14.9
    assert not late.step()
    clock.now_s += 0.1
    assert late.step()
    assert _record(api)["leaseTransitions"] == 4


def test_a_holder_that_stood_still_finds_another_and_its_old_term_is_refused(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first, second = candidate("first", clock), candidate("second", clock)
    assert first.step()
    term = first.term()
    assert term is not None
    first.confirm(term)
    second.step()
    clock.now_s += 15
    assert second.step()
    assert first.term() is None
    with pytest.raises(NotLeaderError, match="second"):
        first.confirm(term)
    assert not first.step()
    assert _record(api)["holderIdentity"] == "second"


def test_a_clock_that_stood_still_with_the_machine_is_found_out_by_asking(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    """The first one's clock does not see the pause: it still believes, and must not be believed."""
    stopped, running = Clock(), Clock()
    first, second = candidate("first", stopped), candidate("second", running)
    assert first.step()
    term = first.term()
    assert term is not None
    second.step()
    running.now_s += 15
    assert second.step()
    assert first.is_leader()  # by its own clock
    with pytest.raises(NotLeaderError, match="second"):
        first.confirm(term)
    assert not first.step()  # and at its next attempt it sees it by itself
    assert not first.is_leader()


def test_an_own_lead_that_ran_out_is_taken_again_as_another_term(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first = candidate("first", clock)
    assert first.step()
    before = first.term()
    clock.now_s += 2
    first.step()
    assert first.term() == before  # a renewal is the same term
    clock.now_s += 10
    assert first.step()
    assert first.term() not in (None, before)
    assert _record(api)["leaseTransitions"] == 1


def test_a_removed_lease_is_made_anew_and_the_old_term_ends(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first, second = candidate("first", clock), candidate("second", clock)
    assert first.step()
    term = first.term()
    assert term is not None
    api.objects.delete(LEASES, LEASE)
    with pytest.raises(NotLeaderError, match="nobody"):
        first.confirm(term)
    assert second.step()
    with pytest.raises(NotLeaderError, match="second"):
        first.confirm(term)
    assert not first.step()


def test_the_renewal_counts_from_before_it_was_sent(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    """An answer that takes 4 seconds leaves 6 of the 10."""
    clock = Clock()
    first = candidate("first", clock)
    assert first.step()

    def slow(call: Call) -> None:
        if call.verb == "update":
            clock.now_s += 4

    api.before = slow
    clock.now_s += 2
    assert first.step()
    clock.now_s += 5.9
    assert first.is_leader()
    clock.now_s += 0.1
    assert not first.is_leader()


@pytest.mark.parametrize("fault", ["server_error", "unavailable", "throttled", "reset_before"])
def test_failures_leave_the_lead_until_its_deadline(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership], fault: str
) -> None:
    clock = Clock()
    first = candidate("first", clock)
    assert first.step()
    injected = api.inject(fault, plural="leases", times=100)  # type: ignore[arg-type]
    for _ in range(4):
        clock.now_s += 2
        assert first.step()
    clock.now_s += 2
    assert not first.step()
    assert len(injected.hits) == 5
    injected.times = 0
    assert first.step()


def test_a_renewal_whose_answer_was_lost_is_no_loss_of_the_lead(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first = candidate("first", clock)
    assert first.step()
    term = first.term()
    lost = api.inject("reset_after", verb="update", plural="leases")
    clock.now_s += 2
    assert first.step()
    assert len(lost.hits) == 1
    clock.now_s += 2
    assert first.step()
    assert first.term() == term


def test_a_claim_whose_answer_was_lost_is_no_lead_yet(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first = candidate("first", clock)
    api.inject("reset_after", verb="create", plural="leases")
    assert not first.step()
    assert _record(api)["holderIdentity"] == "first"
    assert first.step()


@pytest.mark.parametrize("verb", ["create", "update"])
def test_of_two_that_write_at_once_one_leads(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership], verb: str
) -> None:
    """The second reads, then the first writes, then the second writes."""
    clock = Clock()
    first, second = candidate("first", clock), candidate("second", clock)
    if verb == "update":
        old = candidate("old", clock)
        old.step()
        first.step()
        second.step()
        clock.now_s += 15

    def between(call: Call) -> None:
        if call.caller == "second" and call.verb == verb:
            api.before = None
            assert first.step()

    api.before = between
    assert not second.step()
    assert first.is_leader()
    assert _record(api)["holderIdentity"] == "first"


def test_a_stopped_holder_gives_it_back_at_once(
    api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]
) -> None:
    clock = Clock()
    first, second = candidate("first", clock), candidate("second", clock)
    assert first.step()
    assert not second.step()
    first.stop()
    assert not first.is_leader()
    assert second.step()
    first.stop()  # again: nothing is taken from the other
    assert _record(api)["holderIdentity"] == "second"


@pytest.mark.parametrize("seed", range(6))
def test_never_two_at_once(api: FakeKubernetes, candidate: Callable[..., LeaseLeadership], seed: int) -> None:
    """Three candidates of random habits: pauses, faults, clocks that run up to a fifth apart.

    The deadline is two thirds of the duration, so rates may differ by half before two could overlap.
    """
    draws = random.Random(seed)
    truth_s = 0.0
    clocks = [Clock(draws.uniform(0, 1e6)) for _ in range(3)]
    rates = [draws.uniform(0.9, 1.1) for _ in range(3)]
    candidates = [candidate(f"c{number}", clock) for number, clock in enumerate(clocks)]
    next_s = [draws.uniform(0, 2) for _ in range(3)]
    held = [0] * 3
    while truth_s < 400:
        number = min(range(3), key=next_s.__getitem__)
        passed_s, truth_s = next_s[number] - truth_s, next_s[number]
        for clock, rate in zip(clocks, rates, strict=True):
            clock.now_s += passed_s * rate
        if draws.random() < 0.2:
            kind = draws.choice(["reset_after", "reset_before", "server_error", "other_writer"])
            api.inject(kind, plural="leases", verb=draws.choice(["get", "update"]))  # type: ignore[arg-type]
        candidates[number].step()
        leaders = [place for place, one in enumerate(candidates) if one.is_leader()]
        assert len(leaders) <= 1
        for place in leaders:
            held[place] += 1
        next_s[number] += draws.choice([2, 2, 2, 2, 2, 2, 2, draws.uniform(5, 40)])
    assert sum(held) > 0


def test_in_its_own_thread(api: FakeKubernetes, candidate: Callable[..., LeaseLeadership]) -> None:
    first = candidate("first", Clock())
    first.start()
    with api.objects.changed:
        assert api.objects.changed.wait_for(lambda: bool(api.objects.list(LEASES)[0]), 30)
    first.stop()
    assert "holderIdentity" not in _record(api)
    assert not first.is_leader()


@pytest.mark.parametrize(
    ("duration_s", "deadline_s", "retry_s"), [(10, 10.0, 2.0), (15, 2.0, 2.0), (15, 10.0, 0.0)]
)
def test_times_that_would_let_two_lead_are_refused(
    duration_s: int, deadline_s: float, retry_s: float
) -> None:
    with pytest.raises(InvalidArgumentError):
        LeaseTimes(duration_s=duration_s, renew_deadline_s=deadline_s, retry_period_s=retry_s)
