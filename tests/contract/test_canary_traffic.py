"""What callers see of a rollout: real policy servers behind a real Envoy, under load all the time."""

import threading
from collections.abc import Callable
from typing import Self

import pytest

from andon.client.canary import RolloutPhase
from andon.client.policy import PolicyClient, SamplingParameters
from andon.errors import AndonError
from tests.canary_models import BETTER, FLIPPED, STABLE, make_documents
from tests.canary_world import CanaryWorld, canary_world, follow
from tests.envoy import StartEnvoy, start_envoy

__all__ = ["canary_world", "start_envoy"]

CALLERS = 3
PARAMETERS = SamplingParameters(max_new_tokens=4)


class Traffic:
    """Callers who sample without a pause, with the retries that every client has."""

    def __init__(self, target: str) -> None:
        self.versions: list[str] = []  # of all answers, in order
        self.failures: list[str] = []
        self._target = target
        self._documents = make_documents()
        self._leave = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number: int) -> None:
        with PolicyClient(self._target) as client:
            while not self._leave.is_set():
                number += CALLERS
                document = self._documents[number % len(self._documents)]
                try:
                    answer = client.sample([document], PARAMETERS, timeout_s=30.0)
                except AndonError as error:
                    self.failures.append(f"{error.reason}: {error.message}")
                else:
                    self.versions.append(str(answer.model))

    def later(self, count: int) -> set[str]:
        """The versions of the next so many answers."""
        begin, waiting = len(self.versions), threading.Event()
        while len(self.versions) < begin + count and not self.failures:
            waiting.wait(0.02)
        return set(self.versions[begin:])


@pytest.fixture
def target(canary_world: CanaryWorld, start_envoy: StartEnvoy) -> str:
    running = start_envoy(canary_world.stable.port, canary_world.canary.port, 0)
    assert running.folder == canary_world.routes  # the controller moves these weights
    return running.target


@pytest.mark.parametrize(
    ("candidate", "end", "served"),
    [(BETTER, RolloutPhase.PROMOTED, BETTER), (FLIPPED, RolloutPhase.ROLLED_BACK, STABLE)],
    ids=["promotion", "roll-back"],
)
def test_no_call_fails_while_a_version_is_shipped_or_taken_back(
    canary_world: CanaryWorld, target: str, candidate: str, end: RolloutPhase, served: str
) -> None:
    client = canary_world.start_controller()
    with Traffic(target) as traffic:
        assert traffic.later(20) == {STABLE}
        client.start(canary_world.wish(candidate, least_step_s=2.0))
        assert follow(client)[-1].phase is end
        wait_for(lambda: traffic.later(50) == {served})
    assert traffic.failures == []
    assert {STABLE, served} <= set(traffic.versions) <= {STABLE, candidate}


def test_no_call_fails_when_the_canary_dies(canary_world: CanaryWorld, target: str) -> None:
    client = canary_world.start_controller()
    with Traffic(target) as traffic:
        client.start(canary_world.wish(BETTER, step_percents=(50,), least_step_s=30.0))
        follow(client, until=lambda rollout: rollout.phase is RolloutPhase.OBSERVING)
        wait_for(lambda: BETTER in traffic.later(20))
        canary_world.stop(canary_world.canary)
        assert follow(client)[-1].phase is RolloutPhase.ROLLED_BACK
        wait_for(lambda: traffic.later(50) == {STABLE})
    assert traffic.failures == []


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(50):
        if holds():
            return
    pytest.fail("not within 50 looks")
