"""What a planted mistake is, and the ways to plant one. The tables stand in the modules beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.manifests import Planting

BASE = "base"
GPU = "overlays/gpu"
PRODUCTION = "overlays/production"
ARGO = "base with gateway, argo-rollouts"
ARGO_MTLS = "base with gateway, argo-rollouts, mtls, gateway-mtls"
GATES = "AnalysisTemplate/andon-policy-gates"
S3 = "base with s3-store"
RUN = "overlays/local and examples/ppo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A change, and what must be said about it."""

    name: str
    plant: Callable[[Planting], object]
    rule: str
    where: str  # generated names without their hash
    says: str
    into: str = BASE
    also: frozenset[str] = frozenset()  # rules that rightly speak of the same change, too


def add_variable(planting: Planting, place: str, name: str, value: str) -> None:
    planting.container(place).setdefault("env", []).append({"name": name, "value": value})


def set_datum(planting: Planting, config_map: str, name: str, value: str | None) -> None:
    """A value of a ConfigMap; None takes it out."""
    data = planting.find(f"ConfigMap/{config_map}")["data"]
    if value is None:
        del data[name]
    else:
        data[name] = value


def argo_step(planting: Planting, number: int) -> Any:
    """The analysis of a step of the Rollout, from 1."""
    steps = planting.find("Rollout/andon-policy")["spec"]["strategy"]["canary"]["steps"]
    return [step for step in steps if "analysis" in step][number - 1]["analysis"]


def database_secret(planting: Planting) -> Any:
    return planting.container("Deployment/andon-labeling")["env"][0]["valueFrom"]["secretKeyRef"]


def backend(planting: Planting, *, rule: int) -> Any:
    return planting.find("GRPCRoute/andon-policy")["spec"]["rules"][rule]["backendRefs"][0]
