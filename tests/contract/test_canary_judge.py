"""One step of a rollout, judged as Argo's Job judges it: real policy, reward and reference servers."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from andon.client.cord import CordClient
from andon.rpc.server import RunningServer
from services.canary.decisions import Kind
from services.canary.judge import Judge, Judgement
from services.canary.judge_config import JudgeConfig
from tests.alertmanager_api import AlertmanagerApi, alertmanager
from tests.canary_models import BETTER, EQUAL, FLIPPED, HACKED, STABLE
from tests.canary_world import CanaryWorld, canary_world
from tests.tokens import TOKENS

__all__ = ["alertmanager", "canary_world"]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120


def settings(world: CanaryWorld, **changes: Any) -> dict[str, Any]:
    shared = world.config.model_dump(
        include={*JudgeConfig.model_fields} - {"stable_targets", "canary_targets", "labeling_token"}
    )
    return {
        **shared,
        "stable_targets": [world.stable.target],
        "canary_targets": [world.canary.target],
        "canary_metrics_port": world.canary.metrics_port,
        "steps": [10, 50],
        "step": 2,
        "least_s": 0.1,
        "longest_s": 60.0,
        "ready_s": 30.0,
        **changes,
    }


@contextmanager
def judging(world: CanaryWorld, **changes: Any) -> Iterator[Judge]:
    judge = Judge(JudgeConfig(**settings(world, **changes)))
    try:
        yield judge
    finally:
        judge.close()


def judged(world: CanaryWorld, **changes: Any) -> Judgement:
    with judging(world, **changes) as judge:
        return judge.judge()


class Judging(threading.Thread):
    """A judge at work while the test does something else."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    def run(self) -> None:
        self.judgement = self._judge.judge()

    def outcome(self) -> Judgement:
        self.join(TIMEOUT_S)
        assert not self.is_alive()
        return self.judgement


@contextmanager
def process(world: CanaryWorld, **changes: Any) -> Iterator[subprocess.Popen[str]]:
    """The judge as its pod runs it."""
    path = world.folder / "judge.json"
    path.write_text(json.dumps(settings(world, **changes), default=str))
    with subprocess.Popen(
        [sys.executable, "-m", "services.canary.judge", "--config", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as judge:
        try:
            yield judge
        finally:
            judge.kill()


def test_a_better_version_may_be_promoted_and_the_process_says_so(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(BETTER)
    with process(canary_world) as judge:
        out, told = judge.communicate(timeout=TIMEOUT_S)
    assert judge.returncode == 0, out + told
    (line,) = out.splitlines()
    result = json.loads(line)
    assert (result["good"], result["decision"]) == (True, "promote")
    assert (result["stable"], result["candidate"]) == (STABLE, BETTER)
    assert "better: score" in result["reason"]
    assert {gate["verdict"] for gate in result["gates"].values()} == {"passed"}
    assert result["gates"]["score"]["mean"] > 0.25
    assert result["rollback_error_rate"] == pytest.approx(0.025)  # 0.05 over two steps
    assert result["promotion_error_rate"] == pytest.approx(0.05)
    assert '"judge_goes_on"' in told  # progress
    assert canary_world.percent == 0  # it changes nothing
    assert canary_world.served(canary_world.stable) == STABLE
    assert canary_world.alias() is None


def test_a_step_before_the_last_asks_for_no_proof(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(EQUAL)
    # Bounds so far away that no proof comes in time; the mean lies above the boundary all the same.
    judgement = judged(canary_world, step=1, boundaries={"score": -1.0}, left_out_gates=["latency"])
    assert judgement.is_good
    assert judgement.decision.kind is Kind.ADVANCE
    assert "nothing looks worse than allowed at 10 %" in judgement.decision.reason


def test_an_equal_version_may_be_promoted(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(EQUAL)
    judgement = judged(canary_world, boundaries={"score": -1.0}, left_out_gates=["latency", "calls"])
    assert judgement.decision.kind is Kind.PROMOTE, judgement.decision.reason


def test_the_same_version_in_new_pods_may_be_promoted(canary_world: CanaryWorld) -> None:
    judgement = judged(canary_world, boundaries={"score": -1.0}, left_out_gates=["latency", "calls"])
    values = judgement.to_values()
    assert (values["stable"], values["candidate"]) == (STABLE, STABLE)
    assert judgement.is_good, judgement.decision.reason


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    ("candidate", "gates"),
    [(FLIPPED, {"score"}), (HACKED, {"repetition", "kl"})],
    ids=["sign-flipped", "over-optimised"],
)
def test_a_worse_version_may_not_go_on(
    canary_world: CanaryWorld, candidate: str, gates: set[str], step: int
) -> None:
    canary_world.serve_canary(candidate)
    judgement = judged(canary_world, step=step)
    assert not judgement.is_good
    assert "worse than allowed" in judgement.decision.reason
    failed = {name for name, gate in judgement.to_values()["gates"].items() if gate["verdict"] == "failed"}
    assert failed
    assert failed <= gates


def test_a_worse_version_ends_the_process_with_1(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(FLIPPED)
    with process(canary_world) as judge:
        out, told = judge.communicate(timeout=TIMEOUT_S)
    assert judge.returncode == 1, told
    result = json.loads(out)
    assert (result["good"], result["decision"]) == (False, "roll_back")
    assert "worse than allowed: score" in result["reason"]


def test_missing_data_is_never_good_news(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(BETTER)
    canary_world.stop(canary_world.reward)
    for step in (1, 2):
        judgement = judged(canary_world, step=step, longest_s=2.0)
        assert not judgement.is_good
        assert "too little was seen of score" in judgement.decision.reason
        assert judgement.problems["reward"] > 0


def test_an_undecided_version_may_not_go_on(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(EQUAL)
    # All texts are of one length, so the mean lies above the boundary, and nothing would ever prove it.
    left_out = ["score", "kl", "longer", "repetition", "latency", "calls"]
    judgement = judged(canary_world, longest_s=1.0, boundaries={"shorter": -1e-9}, left_out_gates=left_out)
    assert not judgement.is_good
    assert "not shown to be good enough: shorter" in judgement.decision.reason
    assert judged(
        canary_world, step=1, longest_s=1.0, boundaries={"shorter": -1e-9}, left_out_gates=left_out
    ).is_good


def test_a_canary_that_is_not_there_is_waited_for_and_then_not_let_go_on(canary_world: CanaryWorld) -> None:
    canary_world.stop(canary_world.canary)
    judgement = judged(canary_world, ready_s=1.0)
    assert not judgement.is_good
    assert judgement.to_values()["candidate"] is None
    assert re.search(r"cannot be reached.*, after \d+ s$", judgement.decision.reason)


def test_a_canary_that_crashes_may_not_go_on(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(BETTER)
    with judging(canary_world, least_s=50.0, call_timeout_s=2.0) as judge:
        working = Judging(judge)
        working.start()
        assert canary_world.faults.sampled.wait(TIMEOUT_S)
        canary_world.stop(canary_world.canary)
        judgement = working.outcome()
    assert not judgement.is_good
    assert "worse than allowed: calls" in judgement.decision.reason


def test_a_canary_that_lies_may_not_go_on(canary_world: CanaryWorld) -> None:
    canary_world.faults.claims = BETTER  # and serves stable's weights
    judgement = judged(canary_world)
    assert not judgement.is_good
    assert f"claims to serve {BETTER} and answers exactly as {STABLE} does" in judgement.decision.reason


def with_cord(labeling: RunningServer) -> dict[str, Any]:
    return {
        "labeling_target": labeling.target,
        "labeling_token": SecretStr(TOKENS["service"]),
        "watch_cord": True,
    }


def test_a_pulled_cord_ends_it_at_once(canary_world: CanaryWorld, labeling: RunningServer) -> None:
    canary_world.serve_canary(BETTER)
    with (
        CordClient(labeling.target, token=TOKENS["lara"]) as cord,
        judging(canary_world, least_s=50.0, look_interval_s=50.0, **with_cord(labeling)) as judge,
    ):
        working = Judging(judge)
        working.start()
        assert canary_world.faults.sampled.wait(TIMEOUT_S)
        cord.pull(actor="lara", reason="rude")
        judgement = working.outcome()
        assert not judgement.is_good
        assert "the cord is pulled by lara: rude" in judgement.decision.reason
        # As long as it is pulled, none begins.
        judgement = judged(canary_world, **with_cord(labeling))
        assert "the cord is pulled by lara: rude" in judgement.decision.reason


def test_nothing_is_good_before_the_cord_was_heard(
    canary_world: CanaryWorld, labeling: RunningServer
) -> None:
    canary_world.serve_canary(EQUAL)
    canary_world.stop(labeling)
    judgement = judged(canary_world, step=1, ready_s=1.0, **with_cord(labeling))
    assert not judgement.is_good
    assert re.fullmatch("the cord has not been heard, after [0-9]+ s", judgement.decision.reason)


def test_a_firing_alert_ends_it(canary_world: CanaryWorld, alertmanager: str) -> None:
    canary_world.serve_canary(BETTER)
    AlertmanagerApi.alerts = [{"labels": {"alertname": "AndonSlowCanary", "track": "canary"}}]
    judgement = judged(canary_world, least_s=50.0, alertmanager_url=alertmanager)
    assert not judgement.is_good
    assert "the alert AndonSlowCanary fires" in judgement.decision.reason


def test_sigterm_ends_the_process_with_1_and_a_last_word(canary_world: CanaryWorld) -> None:
    canary_world.serve_canary(BETTER)
    canary_world.faults.delay_s = 15.0  # a round of probes that takes long
    with process(canary_world) as judge:
        assert judge.stderr is not None
        told = next(line for line in judge.stderr if '"judge_begins"' in line)
        judge.send_signal(signal.SIGTERM)
        out, rest = judge.communicate(timeout=TIMEOUT_S)
    assert judge.returncode == 1, told + rest
    assert json.loads(out)["reason"] == "the judge was told to end (SIGTERM)"


def test_names_that_lead_nowhere_are_no_replicas(canary_world: CanaryWorld) -> None:
    judgement = judged(canary_world, canary_targets=["andon-policy-canary.invalid:50051"], ready_s=0.1)
    assert not judgement.is_good
    assert "andon-policy-canary.invalid" in judgement.decision.reason or (
        "canary has no replica" in judgement.decision.reason
    )
