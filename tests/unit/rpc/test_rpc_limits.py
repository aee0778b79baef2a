"""A bucket of calls for each caller."""

import pytest

from andon.errors import ResourceExhaustedError
from andon.rpc.errors import error_to_status
from andon.rpc.limits import CallLimiter, peer_address


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def admitted(limiter: CallLimiter, caller: str, calls: int) -> int:
    count = 0
    for _ in range(calls):
        try:
            limiter.admit(caller)
        except ResourceExhaustedError:
            continue
        count += 1
    return count


def test_a_burst_then_the_rate_and_never_more_than_the_burst():
    clock = Clock()
    limiter = CallLimiter(calls_per_second=2, burst=5, clock=clock)
    assert admitted(limiter, "a", 20) == 5
    clock.now_s += 1.5
    assert admitted(limiter, "a", 20) == 3
    clock.now_s += 3600
    assert admitted(limiter, "a", 20) == 5


def test_in_the_long_run_the_rate_holds():
    clock = Clock()
    limiter = CallLimiter(calls_per_second=3, burst=1, clock=clock)
    total = 0
    for _ in range(1000):
        total += admitted(limiter, "a", 1)
        clock.now_s += 0.1
    assert total == pytest.approx(3 * 100, abs=60)
    assert total <= 3 * 100 + 1


def test_callers_do_not_pay_for_each_other():
    limiter = CallLimiter(calls_per_second=1, burst=2, clock=Clock())
    assert admitted(limiter, "a", 9) == 2
    assert admitted(limiter, "b", 9) == 2


def test_who_waits_as_long_as_told_is_let_in():
    clock = Clock()
    limiter = CallLimiter(calls_per_second=7, burst=1, clock=clock)
    limiter.admit("a")
    with pytest.raises(ResourceExhaustedError) as raised:
        limiter.admit("a")
    assert raised.value.reason == "RATE_LIMITED"
    wait_s = float(raised.value.metadata["retry_after_s"])
    assert 1 / 7 <= wait_s < 1 / 7 + 0.002
    names = [detail.TypeName() for detail in error_to_status(raised.value).details]
    assert names == ["google.rpc.ErrorInfo", "google.rpc.RetryInfo"]
    clock.now_s += wait_s
    limiter.admit("a")


def test_who_has_not_called_for_longest_is_forgotten_first():
    limiter = CallLimiter(calls_per_second=1, burst=1, clock=Clock(), max_callers=2)
    for caller in ("a", "b", "a", "c"):
        admitted(limiter, caller, 1)
    assert admitted(limiter, "a", 1) == 0, "a is remembered"
    assert admitted(limiter, "b", 1) == 1, "b was forgotten"


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:10.0.0.7:51234", "ipv4:10.0.0.7"), ("ipv6:%5B::1%5D:5", "ipv6:%5B::1%5D"), ("unix", "unix")],
)
def test_a_port_is_no_part_of_an_address(peer, address):
    assert peer_address(peer) == address
