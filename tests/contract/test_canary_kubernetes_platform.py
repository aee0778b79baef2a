"""The controller's words on a fake Kubernetes, through ``open_cluster`` as the service opens it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from andon.errors import DataLossError, FailedPreconditionError, UnavailableError
from services.canary.decisions import Decision, Kind
from services.canary.gates.gate import GateRule
from services.canary.kubernetes_platform import KubernetesOptions, OpenedCluster, open_cluster
from services.canary.platform import Platform, RecordedDecision, Track
from services.canary.rollout import Phase, Rollout, RolloutSpec
from tests.canary_cluster import fill_store
from tests.kubernetes_api import FakeKubernetes
from tests.kubernetes_objects import CONFIG_MAPS, EVENTS
from tests.kubernetes_workloads import CANARY, Workloads, role_rules

SPEC = RolloutSpec(
    candidate="policy/2",
    gates=(
        GateRule(name="reward", boundary=-0.1, lowest=-1.0, highest=1.0, equal=0.0),
        GateRule(name="errors", boundary=-0.01, lowest=-1.0, highest=0.5),
    ),
)


@pytest.fixture
def api() -> Iterator[FakeKubernetes]:
    with FakeKubernetes(rules=role_rules()) as running:
        yield running


@pytest.fixture
def workloads(api: FakeKubernetes) -> Workloads:
    return Workloads(api)


@pytest.fixture
def cluster(api: FakeKubernetes, workloads: Workloads, tmp_path: Path) -> OpenedCluster:
    fill_store(tmp_path / "store")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    return open_cluster(KubernetesOptions(store=tmp_path / "store", kubeconfig=kubeconfig))


@pytest.fixture
def platform(cluster: OpenedCluster) -> Platform:
    """Of the leader, who has loaded."""
    assert cluster.leadership.step()
    assert cluster.platform.load() is None
    return cluster.platform


def _rollout() -> Rollout:
    begun = Rollout.begin(SPEC, rollout_id="r1", stable="policy/1", now_s=1_700_000_000.25)
    return begun.after({"reward": [0.25, -0.5, 1.0], "errors": [0.0]})


def _decision(kind: Kind, *, time_s: float = 10.0, step: int = 0) -> RecordedDecision:
    numbers = {"reward": {"mean": 0.25, "count": 3.0}}
    decision = Decision(kind=kind, reason="nothing got worse at 5 % of the traffic", numbers=numbers)
    return RecordedDecision(rollout_id="r1", time_s=time_s, phase="observing", step=step, decision=decision)


def test_a_rollout_with_its_evidence_comes_back_to_the_bit(platform: Platform) -> None:
    rollout = _rollout()
    assert platform.save(rollout, revision=0) == 1
    stored = platform.load()
    assert stored is not None
    assert stored.rollout == rollout
    assert stored.revision == 1
    later = stored.rollout.at_step(1, reason="on", now_s=1_700_000_100.125)
    assert platform.save(later, revision=1) == 2
    again = platform.load()
    assert again is not None
    assert (again.rollout, again.revision) == (later, 2)


def test_another_revision_is_a_conflict_by_the_name_that_the_platform_promises(platform: Platform) -> None:
    platform.save(_rollout(), revision=0)
    with pytest.raises(FailedPreconditionError) as conflict:
        platform.save(replace(_rollout(), phase=Phase.HELD), revision=0)
    assert conflict.value.reason == "ROLLOUT_CONFLICT"


def test_a_decision_is_recorded_and_told_once(api: FakeKubernetes, platform: Platform) -> None:
    advance = _decision(Kind.ADVANCE)
    platform.record(advance)
    platform.record(_decision(Kind.ADVANCE, time_s=99.0))  # taken again after a crash
    platform.record(_decision(Kind.ADVANCE, step=1))
    platform.record(_decision(Kind.ROLL_BACK, step=1))
    kept = platform.decisions()
    assert [(one.decision.kind, one.step, one.time_s) for one in kept] == [
        (Kind.ADVANCE, 0, 10.0),
        (Kind.ADVANCE, 1, 10.0),
        (Kind.ROLL_BACK, 1, 10.0),
    ]
    assert kept[0] == advance
    events = api.objects.list(EVENTS)[0]
    assert sorted((event["reason"], event["type"]) for event in events) == [
        ("RolloutAdvanced", "Normal"),
        ("RolloutAdvanced", "Normal"),
        ("RolloutRolledBack", "Warning"),
    ]
    told = next(event for event in events if "step 1:" in event["message"])
    assert "nothing got worse" in told["message"]
    assert '"mean": 0.25' in told["message"]
    assert told["involvedObject"]["name"] == CANARY


def test_looking_on_may_be_decided_again_and_again(platform: Platform) -> None:
    for time_s in (1.0, 2.0, 2.0):
        platform.record(_decision(Kind.CONTINUE, time_s=time_s))
    assert [one.time_s for one in platform.decisions()] == [1.0, 2.0]


def test_a_record_that_cannot_be_read_is_not_overwritten(api: FakeKubernetes, platform: Platform) -> None:
    platform.save(_rollout(), revision=0)
    record = api.objects.get(CONFIG_MAPS, "andon-rollout")
    record["data"]["rollout.json"] = record["data"]["rollout.json"].replace("deploying", "flying")
    api.objects.replace(CONFIG_MAPS, "andon-rollout", record)
    with pytest.raises(DataLossError, match="flying"):
        platform.load()


def test_the_tracks(workloads: Workloads, platform: Platform) -> None:
    assert platform.stable_version() == "policy/1"
    platform.deploy("policy/2")
    readiness = platform.readiness(Track.CANARY)
    assert readiness.is_complete
    assert readiness.problem == ""
    assert [one.target for one in platform.replicas(Track.CANARY)] == ["10.0.0.3:50051"]
    platform.route(25)
    assert platform.routed() == 25
    assert workloads.weights() == (75, 25)
    platform.remove()
    assert not platform.readiness(Track.CANARY).is_complete
    assert platform.replicas(Track.CANARY) == []


def test_the_alias_in_the_manifest_is_followed_to_a_version(api: FakeKubernetes, tmp_path: Path) -> None:
    Workloads(api, stable_model="policy@stable")
    fill_store(tmp_path / "store")
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    opened = open_cluster(KubernetesOptions(store=tmp_path / "store", kubeconfig=kubeconfig))
    assert opened.platform.stable_version() == "policy/1"


def test_without_the_lead_nothing_is_changed_and_the_caller_may_ask_another(
    workloads: Workloads, cluster: OpenedCluster
) -> None:
    assert cluster.platform.load() is None
    with pytest.raises(UnavailableError) as refused:
        cluster.platform.route(5)
    assert refused.value.reason == "NOT_LEADER"
    assert workloads.weights() == (100, 0)
