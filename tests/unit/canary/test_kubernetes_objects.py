"""What is read from objects and changed in them, by examples written out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from andon.errors import DataLossError
from services.canary.cluster_errors import ClusterShapeError
from services.canary.kubernetes_objects import (
    address_of,
    canary_percent_of,
    deployment_patch,
    model_of,
    route_patch,
    state_of,
)
from services.canary.kubernetes_record import (
    MAX_DECISIONS,
    MAX_LOG_BYTES,
    StoredState,
    decisions_in,
    empty_record,
    stored_state,
    with_decision,
    with_state,
)


def deployment(*, wanted: int = 2, generation: int = 3, env: Any = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "andon-policy", "generation": generation},
        "spec": {
            "replicas": wanted,
            "template": {
                "spec": {
                    "containers": [
                        {"name": "proxy"},
                        {
                            "name": "policy",
                            "env": env or [{"name": "ANDON_POLICY_MODEL", "value": "policy/1"}],
                        },
                    ]
                }
            },
        },
        "status": {"observedGeneration": generation, **status},
    }


def pod(*, ready: bool = True, ip: str = "10.0.0.1", **container: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p1"},
        "spec": {
            "containers": [
                {"name": "proxy", "ports": [{"name": "grpc", "containerPort": 1}]},
                {
                    "name": "policy",
                    "ports": [
                        {"name": "grpc", "containerPort": 50051},
                        {"name": "metrics", "containerPort": 9101},
                    ],
                },
            ]
        },
        "status": {
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "policy", "ready": ready, "restartCount": 0, **container}],
        },
    }


# --- Deployments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "ready", "says"),
    [
        ({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}, 2, ""),
        ({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}, 1, "1 of 2"),
        ({"replicas": 2, "updatedReplicas": 2}, 0, "0 of 2"),
        # Of three, one is old; two are ready, one of which may be the old one.
        ({"replicas": 3, "updatedReplicas": 2, "readyReplicas": 2}, 1, "1 older"),
        # All are ready, but an old one still answers calls: not done.
        ({"replicas": 3, "updatedReplicas": 2, "readyReplicas": 3}, 1, "1 older"),
        ({"replicas": 2, "readyReplicas": 2}, 0, "2 older"),
        ({}, 0, "0 of 2"),
        # The controller has not looked at the last change: what it says is about the one before.
        (
            {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2},
            0,
            "not been looked at",
        ),
    ],
)
def test_ready_means_new_ready_and_alone(status: dict[str, int], ready: int, says: str) -> None:
    state = state_of(deployment(**status), [])
    assert (state.wanted, state.ready) == (2, ready)
    assert says in state.message
    assert bool(state.message) == bool(says)


def test_nothing_wanted_is_ready_when_nothing_runs() -> None:
    assert state_of(deployment(wanted=0), []).message == ""
    gone = state_of(deployment(wanted=0, replicas=1, updatedReplicas=1, readyReplicas=1), [])
    assert (gone.wanted, gone.ready) == (0, 0)


def test_why_it_is_not_ready_is_told() -> None:
    crashing = pod(
        ready=False,
        restartCount=4,
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        lastState={"terminated": {"exitCode": 137}},
    )
    status = {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1}
    message = state_of(deployment(**status), [pod(), crashing]).message
    assert message == "pod p1: CrashLoopBackOff, 4 restarts, last exit code 137"

    late = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": "timed out",
    }
    assert "ProgressDeadlineExceeded" in state_of(deployment(**status, conditions=[late]), []).message


def test_a_change_of_model_and_replicas_is_minimal() -> None:
    now = deployment()
    assert deployment_patch(now, model="policy/1", replicas=2) is None
    assert deployment_patch(now, replicas=0) == {"spec": {"replicas": 0}}
    patch = deployment_patch(now, model="policy/2", replicas=2)
    variable = {"name": "ANDON_POLICY_MODEL", "value": "policy/2", "valueFrom": None}
    assert patch == {"spec": {"template": {"spec": {"containers": [{"name": "policy", "env": [variable]}]}}}}


def test_a_model_from_elsewhere_is_replaced_but_not_read() -> None:
    source = {"configMapKeyRef": {"name": "x", "key": "model"}}
    now = deployment(env=[{"name": "ANDON_POLICY_MODEL", "valueFrom": source}])
    assert deployment_patch(now, model="policy/2") is not None
    with pytest.raises(ClusterShapeError, match="ANDON_POLICY_MODEL"):
        model_of(now)
    now["spec"]["template"]["spec"]["containers"].pop()
    with pytest.raises(ClusterShapeError, match="no container"):
        model_of(now)


# --- Pods --------------------------------------------------------------------------------------------------


def test_where_a_pod_serves() -> None:
    address = address_of(pod())
    assert address is not None
    assert (address.target, address.metrics_url) == ("10.0.0.1:50051", "http://10.0.0.1:9101/metrics")
    six = address_of(pod(ip="fd00::1"))
    assert six is not None
    assert (six.target, six.metrics_url) == ("[fd00::1]:50051", "http://[fd00::1]:9101/metrics")


def test_a_pod_that_is_not_ready_or_is_going_serves_nowhere() -> None:
    going = pod()
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    for one in (going, pod(ready=False), pod(ip=""), {**pod(), "status": {}}):
        assert address_of(one) is None


def test_a_pod_without_named_ports_is_a_mistake_of_its_manifest() -> None:
    unnamed = pod()
    unnamed["spec"]["containers"][1]["ports"].pop()
    with pytest.raises(ClusterShapeError, match="metrics"):
        address_of(unnamed)


# --- routes ------------------------------------------------------------------------------------------------


def route(*rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"metadata": {"name": "r"}, "spec": {"rules": [{"backendRefs": refs} for refs in rules]}}


def _percent(one: dict[str, Any]) -> int:
    return canary_percent_of(one, stable="s", canary="c")


@pytest.mark.parametrize(
    ("weights", "percent"),
    [
        ((100, 0), 0),
        ((95, 5), 5),
        ((0, 100), 100),
        ((9, 1), 10),
        ((999, 1), 1),  # a little is not none
        ((0, 0), 0),
        ((None, None), 50),  # weights that are not written are 1
        ((None, 0), 0),
    ],
)
def test_the_canarys_share(weights: tuple[int | None, int | None], percent: int) -> None:
    refs: list[dict[str, Any]] = [{"name": "s"}, {"name": "c"}]
    for ref, weight in zip(refs, weights, strict=True):
        if weight is not None:
            ref["weight"] = weight
    assert _percent(route(refs)) == percent


def test_of_several_rules_the_largest_share_counts_and_all_are_changed() -> None:
    only_canary = [{"name": "c", "weight": 7}]
    first = [{"name": "s", "weight": 90}, {"name": "c", "weight": 10}]
    second = [{"name": "c", "weight": 40, "port": 1}, {"name": "s", "weight": 60, "filters": []}]
    one = route(only_canary, first, second)
    assert _percent(one) == 40
    patch = route_patch(one, stable="s", canary="c", canary_percent=25)
    assert patch == {
        "spec": {
            "rules": [
                {"backendRefs": [{"name": "c", "weight": 7}]},
                {"backendRefs": [{"name": "s", "weight": 75}, {"name": "c", "weight": 25}]},
                {
                    "backendRefs": [
                        {"name": "c", "weight": 25, "port": 1},
                        {"name": "s", "weight": 75, "filters": []},
                    ]
                },
            ]
        }
    }
    assert first[1]["weight"] == 10  # what was read stays as it was
    assert route_patch({**one, **patch}, stable="s", canary="c", canary_percent=25) is None


def test_a_route_without_both_backends_is_a_mistake_of_its_manifest() -> None:
    for one in (route(), route([{"name": "s"}]), {"metadata": {"name": "r"}, "spec": {}}):
        with pytest.raises(ClusterShapeError, match="both"):
            _percent(one)


# --- the record --------------------------------------------------------------------------------------------


def test_a_rollout_comes_back_as_it_was_stored() -> None:
    record = empty_record("andon-rollout")
    assert stored_state(record) is None
    state = StoredState(revision=4, rollout={"phase": "OBSERVING", "means": [0.1, -2.5e-9]})
    assert stored_state(with_state(record, state)) == state


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format":2,"revision":1,"rollout":{}}', '{"format":1,"rollout":{}}', "null"]
)
def test_what_cannot_be_read_is_not_taken_for_no_rollout(text: str) -> None:
    record = {**empty_record("andon-rollout"), "data": {"rollout.json": text}}
    with pytest.raises(DataLossError, match="andon-rollout"):
        stored_state(record)


def test_numbers_that_have_no_json_are_not_stored() -> None:
    with pytest.raises(ValueError, match="JSON"):
        with_state(empty_record("r"), StoredState(revision=1, rollout={"mean": float("nan")}))


def test_a_decision_is_logged_once() -> None:
    once = with_decision(empty_record("r"), key="a", decision={"kind": "hold"})
    assert once is not None
    assert with_decision(once, key="a", decision={"kind": "hold"}) is None
    twice = with_decision(once, key="b", decision={"kind": "promote"})
    assert twice is not None
    assert decisions_in(twice) == [{"kind": "hold"}, {"kind": "promote"}]


def test_the_log_is_bounded_in_number_and_in_size() -> None:
    record = empty_record("r")
    for number in range(MAX_DECISIONS + 5):
        record = with_decision(record, key=str(number), decision={"n": number}) or record
    kept = decisions_in(record)
    assert (len(kept), kept[0], kept[-1]) == (MAX_DECISIONS, {"n": 5}, {"n": MAX_DECISIONS + 4})

    record = empty_record("r")
    for number in range(8):
        record = with_decision(record, key=str(number), decision={"text": "x" * 100_000}) or record
    assert len(decisions_in(record)) == 5
    assert len(record["data"]["decisions.jsonl"]) <= MAX_LOG_BYTES
