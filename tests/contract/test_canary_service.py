"""Whole rollouts over gRPC: real policy, reward and reference services, candidates of known quality."""

import pytest

from andon.client.canary import CanaryClient, RolloutPhase
from andon.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tests.canary_models import BETTER, EQUAL, FLIPPED, HACKED, STABLE
from tests.canary_world import CanaryWorld, canary_world, follow

__all__ = ["canary_world"]


def gate(rollout, name):
    return next(gate for gate in rollout.gates if gate.name == name)


def assert_rolled_back(world: CanaryWorld, client: CanaryClient) -> None:
    assert client.get().phase is RolloutPhase.ROLLED_BACK
    assert world.percent == 0
    assert world.served(world.stable) == STABLE
    assert world.alias() in (None, STABLE)
    assert next(client.decisions()).kind == "roll_back"


def test_a_better_version_is_promoted_step_by_step(canary_world: CanaryWorld) -> None:
    client = canary_world.start_controller()
    started = client.start(canary_world.wish(BETTER), request_id="r")
    assert (started.stable, started.candidate, started.canary_percent) == (STABLE, BETTER, 0)
    assert client.start(canary_world.wish(BETTER), request_id="r").rollout_id == started.rollout_id
    seen = follow(client)
    end = seen[-1]
    assert end.phase is RolloutPhase.PROMOTED, end.reason
    assert {rollout.canary_percent for rollout in seen} == {0, 10, 50}
    assert canary_world.percent == 0
    assert canary_world.served(canary_world.stable) == BETTER
    assert canary_world.alias() == BETTER
    assert [decision.kind for decision in client.decisions()] == ["promote", "advance", "advance"]
    assert [gate.verdict for gate in end.gates] == ["passed"] * len(end.gates)
    assert gate(end, "score").mean > 0.25
    assert gate(end, "score").is_better
    assert "better: score" in end.reason
    assert next(client.decisions()).numbers["score"]["count"] == gate(end, "score").observations


@pytest.mark.parametrize(
    ("candidate", "gates"),
    [(FLIPPED, {"score"}), (HACKED, {"repetition", "kl"})],
    ids=["sign-flipped", "over-optimised"],
)
def test_a_worse_version_is_rolled_back(canary_world: CanaryWorld, candidate: str, gates: set[str]) -> None:
    client = canary_world.start_controller()
    client.start(canary_world.wish(candidate))
    end = follow(client)[-1]
    assert_rolled_back(canary_world, client)
    failed = {gate.name for gate in end.gates if gate.verdict == "failed"}
    assert failed, end.reason
    assert failed <= gates
    assert "worse than allowed" in end.reason


def test_an_equal_version_is_held_as_configured_and_a_person_promotes_it(canary_world: CanaryWorld) -> None:
    client = canary_world.start_controller()
    wish = canary_world.wish(
        EQUAL,
        when_equal="hold",
        longest_step_s=8.0,
        boundaries={"score": -1.0},  # so wide that few pairs show it, also on a busy machine
        left_out_gates=("latency", "calls"),
    )
    client.start(wish)
    held = follow(client, until=lambda rollout: rollout.phase is RolloutPhase.HELD or rollout.phase.is_final)
    assert held[-1].phase is RolloutPhase.HELD, held[-1].reason
    assert canary_world.percent == 50
    client.promote(actor="rita", reason="looked at it")
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.PROMOTED
    assert "rita said so: looked at it" in end.reason
    assert canary_world.served(canary_world.stable) == EQUAL


def test_a_slow_version_is_rolled_back(canary_world: CanaryWorld) -> None:
    canary_world.faults.delay_s = 0.15
    client = canary_world.start_controller(probes_per_look=16)
    client.start(canary_world.wish(EQUAL))
    end = follow(client)[-1]
    assert_rolled_back(canary_world, client)
    assert gate(end, "latency").verdict == "failed", end.reason


def test_a_version_that_fails_its_calls_is_rolled_back(canary_world: CanaryWorld) -> None:
    client = canary_world.start_controller()
    client.start(canary_world.wish(EQUAL))
    follow(client, until=lambda rollout: rollout.phase is RolloutPhase.OBSERVING)
    canary_world.faults.fails = True
    end = follow(client)[-1]
    assert_rolled_back(canary_world, client)
    assert gate(end, "calls").verdict == "failed", end.reason


def test_a_canary_that_crashes_is_rolled_back(canary_world: CanaryWorld) -> None:
    client = canary_world.start_controller(call_timeout_s=2.0)
    client.start(canary_world.wish(EQUAL))
    follow(client, until=lambda rollout: rollout.phase is RolloutPhase.OBSERVING)
    canary_world.stop(canary_world.canary)
    follow(client)
    assert_rolled_back(canary_world, client)


def test_a_canary_that_lies_about_its_version_gets_no_traffic(canary_world: CanaryWorld) -> None:
    canary_world.faults.claims = BETTER  # and serves stable's weights
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER))
    seen = follow(client)
    assert_rolled_back(canary_world, client)
    assert f"claims to serve {BETTER} and answers exactly as {STABLE} does" in seen[-1].reason
    assert {rollout.canary_percent for rollout in seen} == {0}


def test_a_canary_that_serves_another_version_gets_no_traffic(canary_world: CanaryWorld) -> None:
    canary_world.faults.claims = EQUAL
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER, ready_s=0.5))
    seen = follow(client)
    assert_rolled_back(canary_world, client)
    assert f"serves {EQUAL}, not {BETTER}" in seen[-1].reason
    assert {rollout.canary_percent for rollout in seen} == {0}


def test_without_its_judges_a_version_is_not_promoted(canary_world: CanaryWorld) -> None:
    canary_world.stop(canary_world.reward)
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER, longest_step_s=4.0))
    end = follow(client)[-1]
    assert_rolled_back(canary_world, client)
    assert "too little was seen of score" in end.reason
    assert canary_world.registry.get_sample_value("andon_canary_problems_total", {"of": "reward"}) > 0


def test_a_person_aborts_at_once_and_the_next_rollout_begins(canary_world: CanaryWorld) -> None:
    client = canary_world.start_controller()
    client.start(canary_world.wish(EQUAL, left_out_gates=("calls",), least_step_s=50.0))
    follow(client, until=lambda rollout: rollout.canary_percent == 10)
    with pytest.raises(FailedPreconditionError) as caught:
        client.start(canary_world.wish(BETTER))
    assert caught.value.reason == "ROLLOUT_IN_PROGRESS"
    client.abort(actor="rita", reason="reads badly")
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.ABORTED
    assert "rita said so: reads badly" in end.reason
    assert canary_world.percent == 0
    with pytest.raises(FailedPreconditionError) as caught:
        client.abort(actor="rita", reason="again")
    assert caught.value.reason == "NO_ROLLOUT_IN_PROGRESS"
    assert client.start(canary_world.wish(BETTER)).phase is RolloutPhase.DEPLOYING


@pytest.mark.parametrize("phase", [RolloutPhase.DEPLOYING, RolloutPhase.OBSERVING])
def test_a_controller_that_is_restarted_goes_on(canary_world: CanaryWorld, phase: RolloutPhase) -> None:
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER))
    follow(client, until=lambda rollout: rollout.phase is phase)
    canary_world.stop(canary_world.controller)
    client = canary_world.start_controller()
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.PROMOTED, end.reason
    assert [decision.kind for decision in client.decisions()] == ["promote", "advance", "advance"]


def test_what_cannot_be_shipped_is_refused(canary_world: CanaryWorld) -> None:
    client = canary_world.start_controller()
    with pytest.raises(NotFoundError) as missing:
        client.get()
    assert missing.value.reason == "NO_ROLLOUT"
    assert list(client.decisions()) == []
    for wish, kind, reason in (
        (canary_world.wish("policy/99"), NotFoundError, "MODEL_NOT_FOUND"),
        (canary_world.wish("reward/1"), FailedPreconditionError, "NOT_A_LANGUAGE_MODEL"),
        (canary_world.wish(STABLE), FailedPreconditionError, "ALREADY_STABLE"),
        (canary_world.wish(BETTER, step_percents=(50, 5)), InvalidArgumentError, "INVALID_ROLLOUT"),
        (canary_world.wish(BETTER, boundaries={"beauty": 0.0}), InvalidArgumentError, "INVALID_ROLLOUT"),
        (canary_world.wish(BETTER, left_out_gates=("beauty",)), InvalidArgumentError, "INVALID_ROLLOUT"),
        (canary_world.wish(BETTER, promotion_error_rate=1.5), InvalidArgumentError, "INVALID_ROLLOUT"),
        (canary_world.wish(BETTER, ask_people=True), FailedPreconditionError, "NO_PEOPLE"),
    ):
        with pytest.raises(kind) as caught:
            client.start(wish)
        assert caught.value.reason == reason
