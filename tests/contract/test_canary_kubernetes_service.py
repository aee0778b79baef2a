"""Whole rollouts by the canary service on a fake Kubernetes: real servers, the shipped manifests and Role."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from andon.client.canary import RolloutPhase
from services.canary.config import CanaryConfig
from tests.canary_models import BETTER, FLIPPED, STABLE
from tests.canary_world import CanaryWorld, canary_world, follow
from tests.kubernetes_api import NAMESPACE, FakeKubernetes
from tests.kubernetes_workloads import CANARY, Workloads, role_rules
from tests.kubernetes_workloads import STABLE as STABLE_DEPLOYMENT

__all__ = ["canary_world"]

UNDISTURBED = ("latency", "calls")  # left out: they need many pairs on a busy machine
STATIC_ONLY = {
    "platform",
    "stable_targets",
    "canary_targets",
    "stable_metrics_urls",
    "canary_metrics_urls",
    "routes_folder",
    "record_folder",
}


@pytest.fixture
def workloads(canary_world: CanaryWorld, tmp_path: Path) -> Iterator[Workloads]:
    """The cluster in which ``canary_world``'s controller will act. Pods that run the stable version are its
    stable process, all others its canary's.
    """
    with FakeKubernetes(rules=role_rules()) as api:

        def address(model: str) -> tuple[str, int, int]:
            process = canary_world.stable if model == STABLE else canary_world.canary
            return "127.0.0.1", process.port, process.metrics_port

        workloads = Workloads(api, stable_model=STABLE, address=address)
        canary_world.store.set_alias("policy@stable", STABLE)
        canary_world.config = CanaryConfig(
            **canary_world.config.model_dump(exclude=STATIC_ONLY, exclude_unset=True),
            platform="kubernetes",
            kubeconfig=api.write_kubeconfig(tmp_path / "kubeconfig"),
            namespace=NAMESPACE,
        )
        yield workloads
        canary_world.stop(canary_world.controller)  # before its cluster goes


def test_a_better_version_is_promoted(canary_world: CanaryWorld, workloads: Workloads) -> None:
    canary_world.serve_canary(BETTER)
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER, left_out_gates=UNDISTURBED))
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.PROMOTED, end.reason
    assert "better: score" in end.reason
    assert workloads.routed == [0, 10, 50, 0]
    assert workloads.rolled[2:] == [(CANARY, BETTER, 1), (STABLE_DEPLOYMENT, BETTER, 2), (CANARY, BETTER, 0)]
    assert canary_world.alias() == BETTER
    assert [decision.kind for decision in client.decisions()] == ["promote", "advance", "advance"]
    events = workloads.events()
    assert [event["reason"] for event in events] == ["RolloutAdvanced", "RolloutAdvanced", "RolloutPromoted"]


def test_a_sign_flipped_version_is_rolled_back(canary_world: CanaryWorld, workloads: Workloads) -> None:
    canary_world.serve_canary(FLIPPED)
    client = canary_world.start_controller()
    client.start(canary_world.wish(FLIPPED, left_out_gates=UNDISTURBED))
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.ROLLED_BACK
    assert "worse than allowed: score" in end.reason
    assert workloads.weights() == (100, 0)
    assert workloads.routed[:2] == [0, 10]
    assert workloads.rolled[2:] == [(CANARY, FLIPPED, 1), (CANARY, FLIPPED, 0)]
    assert workloads.model(STABLE_DEPLOYMENT) == STABLE
    assert canary_world.alias() == STABLE
    assert workloads.events()[-1]["reason"] == "RolloutRolledBack"


def test_a_canary_with_stables_weights_gets_no_traffic(
    canary_world: CanaryWorld, workloads: Workloads
) -> None:
    canary_world.faults.claims = BETTER
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER, left_out_gates=UNDISTURBED))
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.ROLLED_BACK
    assert f"claims to serve {BETTER} and answers exactly as {STABLE} does" in end.reason
    assert workloads.routed == [0]


def test_the_next_controller_goes_on(canary_world: CanaryWorld, workloads: Workloads) -> None:
    canary_world.serve_canary(BETTER)
    client = canary_world.start_controller()
    client.start(canary_world.wish(BETTER, left_out_gates=UNDISTURBED))
    follow(client, until=lambda rollout: rollout.phase is RolloutPhase.OBSERVING)
    canary_world.stop(canary_world.controller)
    client = canary_world.start_controller()
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.PROMOTED, end.reason
    assert workloads.rolled[2:] == [(CANARY, BETTER, 1), (STABLE_DEPLOYMENT, BETTER, 2), (CANARY, BETTER, 0)]
