"""The parts that a check is made of, one by one: expressions, policies, quantities, values of settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from andon.deploy.network import denials
from andon.deploy.objects import Cluster, look_at, matches
from andon.deploy.promql import series_in
from andon.deploy.rules.security import quantity
from andon.deploy.rules.settings import takes
from andon.deploy.schemas import shape_findings


@pytest.mark.parametrize(
    ("expression", "series"),
    [
        ("up", {"up"}),
        ("sum by (job, track) (rate(andon_a_total[5m]))", {"andon_a_total"}),
        ('andon_a{job=~"x_total", b!="andon_c"} > 3', {"andon_a"}),
        ("a_ratio and on (namespace) b_ratio unless c", {"a_ratio", "b_ratio", "c"}),
        ("job:andon_a:rate5m offset 1h", {"job:andon_a:rate5m"}),
        (
            "histogram_quantile(0.95, sum by (le) (rate(a_seconds_bucket[$__rate_interval])))",
            {"a_seconds_bucket"},
        ),
        ('label_replace(a, "dst", "$1", "src", "(b.*)")', {"a"}),
        ("a * on (x) group_left (version) b", {"a", "b"}),
        ('a{x="{{args.stable}}"} / ignoring(track) b > bool 1e3', {"a", "b"}),
        ("max_over_time((a > 0)[30m:1m])", {"a"}),
        ("a # and b\n + c", {"a", "c"}),
        ("time() - a_timestamp_seconds > -Inf", {"a_timestamp_seconds"}),
    ],
)
def test_series_of_an_expression(expression: str, series: set[str]) -> None:
    assert series_in(expression) == series


@pytest.mark.parametrize(
    ("selector", "labels", "found"),
    [
        ({}, {"a": "1"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_label_selectors(selector: dict[str, Any], labels: dict[str, str], found: bool) -> None:
    assert matches(selector, labels) is found


@pytest.mark.parametrize(
    ("text", "number"), [("250m", 0.25), ("2", 2.0), ("1Gi", 1073741824.0), ("1k", 1000.0), ("x", 0.0)]
)
def test_quantities(text: str, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("schema", "text", "is_taken"),
    [
        ({"type": "integer", "minimum": 1}, "4", True),
        ({"type": "integer", "minimum": 1}, "0", False),
        ({"type": "integer"}, "four", False),
        ({"type": "number"}, "0.5", True),
        ({"type": "boolean"}, "yes", True),
        ({"type": "boolean"}, "perhaps", False),
        ({"type": "string"}, "4", True),
        ({"type": "array", "items": {"type": "string"}}, "a:1,b:2", True),
        ({"type": "array", "items": {"type": "string"}}, '["a:1"]', True),
        ({"type": "array", "items": {"type": "integer"}}, "5,25,50", True),
        ({"type": "array", "items": {"type": "integer"}}, "50", True),
        ({"type": "array", "items": {"type": "integer"}}, "5,25,half", False),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", True),
        ({"enum": ["float32", "bfloat16"]}, "float16", False),
    ],
)
def test_values_as_services_read_them(schema: dict[str, Any], text: str, is_taken: bool) -> None:
    assert takes(json.dumps(schema), text) is is_taken


def _deployment(name: str, port: int) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": name, "ports": [{"name": "grpc", "containerPort": port}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def _policy(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def _denied(*policies: dict[str, Any], port: int = 1000) -> list[str]:
    cluster: Cluster = look_at([_deployment("caller", 2000), _deployment("callee", 1000), *policies])
    caller, callee = cluster.pods
    return list(denials(cluster, caller, callee, port))


CALLER, CALLEE = ({"podSelector": {"matchLabels": {"app": name}}} for name in ("caller", "callee"))
DENY_ALL = _policy("deny", podSelector={}, policyTypes=["Ingress", "Egress"])


def test_without_policies_everything_passes() -> None:
    assert _denied() == []


def test_a_default_denies_both_ways() -> None:
    assert _denied(DENY_ALL) == ["Egress", "Ingress"]


def test_both_sides_must_let_a_call_pass() -> None:
    out = _policy(
        "out", policyTypes=["Egress"], egress=[{"to": [CALLEE], "ports": [{"port": 1000}]}], **CALLER
    )
    into = _policy("in", ingress=[{"from": [CALLER], "ports": [{"port": "grpc"}]}], **CALLEE)
    assert _denied(DENY_ALL, out) == ["Ingress"]
    assert _denied(DENY_ALL, into) == ["Egress"]
    assert _denied(DENY_ALL, out, into) == []
    assert _denied(DENY_ALL, out, into, port=1001) == ["Egress", "Ingress"]


def test_another_namespace_or_block_of_addresses_is_somebody_else() -> None:
    other = {"namespaceSelector": {}, **CALLER}
    block = {"ipBlock": {"cidr": "0.0.0.0/0"}}
    into = _policy("in", ingress=[{"from": [other, block]}], **CALLEE)
    assert _denied(into) == ["Ingress"]


def test_a_range_of_ports_and_udp() -> None:
    ranged = _policy("in", ingress=[{"ports": [{"port": 900, "endPort": 1000}]}], **CALLEE)
    udp = _policy("in", ingress=[{"ports": [{"port": 1000, "protocol": "UDP"}]}], **CALLEE)
    assert _denied(ranged) == []
    assert _denied(udp) == ["Ingress"]


def test_shapes_are_told_by_version() -> None:
    manifest = {
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1beta3",
        "kind": "FlowSchema",
        "metadata": {"name": "calls"},
    }
    (finding,) = shape_findings([manifest], ("1.28", "1.37"))
    # It was served until 1.31.
    assert "no schema" in finding.message
    assert "(Kubernetes 1.37)" in finding.message
