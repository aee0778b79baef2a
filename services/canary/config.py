"""Decides what the canary service can be told: where the samplers run, what to probe, whom to ask.

The judge (``judge_config``) shares what is said about evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, model_validator

from andon.modeling.stores.location import StoreLocation
from andon.rpc.config import Port, ProgramConfig, ServerConfig

# Settings of the other platform, which would be ignored.
_STATIC_ONLY = frozenset(
    {
        "stable_targets",
        "canary_targets",
        "stable_metrics_urls",
        "canary_metrics_urls",
        "routes_folder",
        "record_folder",
    }
)
_KUBERNETES_ONLY = frozenset({"namespace", "kubeconfig", "kube_context", "canary_replicas"})


class EvidenceConfig(ProgramConfig):
    """How both sides are looked at, and what stops the line."""

    store: StoreLocation = "andon-home/store"
    """The model store, a folder or s3://bucket/prefix; a promotion moves policy@stable in it."""
    prompts: str | None = None
    """Documents that both sides are probed with: a JSONL file, a folder or hf:NAME. Without any nothing is
    shown.
    """
    reward_target: str = "127.0.0.1:50053"
    """The reward service."""
    reference_target: str = "127.0.0.1:50052"
    """The reference service."""
    labeling_target: str | None = "127.0.0.1:50054"
    """The labeling service: the cord, and people who compare."""
    labeling_token: SecretStr | None = None
    """Bearer token of the labeling service, with the role "service"; better in the environment than in a
    flag. ANDON_TOKEN when left out.
    """
    watch_cord: bool = True
    """Whether a pulled cord rolls back. Without it only people at the controller's own door can."""
    cord_unheard_s: float = Field(default=120.0, gt=0)
    """How long the cord may go unheard before a rollout is rolled back."""
    project: str = ""
    """Project of the labeling service whose labelers compare canary with stable; its default one when left
    out.
    """
    alertmanager_url: str | None = None
    """Alertmanager; a firing alert that the matchers take rolls back."""
    alert_matchers: list[str] = Field(default=['track="canary"'], min_length=1)
    """Which alerts do, as Alertmanager writes matchers; all of them have to fit."""

    look_interval_s: float = Field(default=10.0, gt=0)
    """Time between two looks at a rollout."""
    probes_per_look: int = Field(default=8, ge=1, le=256)
    """Prompts that both sides answer at each look."""
    parallel_probes: int = Field(default=2, ge=1, le=64)
    """How many of them at the same time."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the probes."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Of the probes."""
    call_timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one call to another service."""

    @model_validator(mode="after")
    def _check_cord(self) -> EvidenceConfig:
        if self.watch_cord and self.labeling_target is None:
            raise ValueError("watch_cord needs labeling_target")
        return self

    def token_for_labeling(self) -> str | None:
        """The token in clear, for the connection only."""
        return None if self.labeling_token is None else self.labeling_token.get_secret_value()


class CanaryConfig(EvidenceConfig, ServerConfig):
    """Settings of ``python -m services.canary``."""

    port: Port = 50056
    """gRPC port; 0 takes a free one and says which in the ready line."""
    metrics_port: Port = 9106
    """Prometheus port; 0 takes a free one."""
    platform: Literal["kubernetes", "static"] = "static"
    """Where the samplers run: in a cluster, or in processes that run already."""

    namespace: str | None = None
    """Kubernetes: of all objects; the pod's own when left out."""
    kubeconfig: Path | None = None
    """Kubernetes: credentials outside of a pod."""
    kube_context: str | None = None
    """Kubernetes: context of the kubeconfig; its current one when left out."""
    canary_replicas: int = Field(default=1, ge=1)
    """Kubernetes: replicas of the canary while a rollout goes on."""

    stable_targets: list[str] = Field(default=["127.0.0.1:50051"], min_length=1)
    """Static: every replica of stable by itself."""
    canary_targets: list[str] = Field(default=["127.0.0.1:50061"], min_length=1)
    """Static: every replica of the canary."""
    stable_metrics_urls: list[str] = Field(default=[])
    """Static: where each replica of stable shows its metrics, in the same order; none: not read."""
    canary_metrics_urls: list[str] = Field(default=[])
    """Static: the same for the canary. Without them the calls of users are no evidence."""
    routes_folder: Path = Path("andon-home/envoy")
    """Static: folder of Envoy's table of routes."""
    record_folder: Path = Path("andon-home/canary")
    """Static: folder of the record; one controller at a time may use it."""

    @model_validator(mode="after")
    def _check_platform(self) -> CanaryConfig:
        ignored = _STATIC_ONLY if self.platform == "kubernetes" else _KUBERNETES_ONLY
        given = sorted(ignored & self.model_fields_set)
        if given:
            raise ValueError(f"{', '.join(given)}: not used with platform {self.platform}")
        for side in ("stable", "canary"):
            targets, urls = getattr(self, f"{side}_targets"), getattr(self, f"{side}_metrics_urls")
            if urls and len(urls) != len(targets):
                raise ValueError(f"{side}_targets and {side}_metrics_urls must name the same replicas")
        return self
