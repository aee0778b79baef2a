"""Decides what the judge can be told: both sides, which step of a rollout it is, and how sure one must be."""

from __future__ import annotations

from pydantic import Field, model_validator

from andon.rpc.config import Port
from services.canary.config import EvidenceConfig
from services.canary.gates.gate import ErrorRates
from services.canary.gates.standard import chosen_gates
from services.canary.rollout import RolloutSpec
from services.canary.sides import Address


class JudgeConfig(EvidenceConfig):
    """Settings of ``python -m services.canary.judge``."""

    stable_targets: list[str] = Field(default=["127.0.0.1:50051"], min_length=1)
    """Where stable answers, host:port; every address of a name is a replica."""
    canary_targets: list[str] = Field(default=["127.0.0.1:50061"], min_length=1)
    """Where the canary answers, in the same way."""
    canary_metrics_port: Port | None = None
    """Where the canary's replicas show their metrics. Without it the calls of users are no evidence."""
    tls_server_name: str | None = None
    """What the certificates of both sides name; the replicas are dialled by address."""

    steps: list[int] = Field(default=[50])
    """The canary's shares of the traffic in the whole rollout, in percent."""
    step: int = Field(default=1, ge=1)
    """Which of them is judged, from 1. The last asks for proof at every gate, those before it for means
    above the boundaries.
    """
    promotion_error_rate: float = Field(default=0.05, gt=0, lt=1)
    """How often the whole rollout may promote a version of which some mean lies at its boundary or below.
    The last step's proof is at this rate.
    """
    rollback_error_rate: float = Field(default=0.05, gt=0, lt=1)
    """How often the whole rollout may be rolled back by a failed gate although no mean lies below its
    boundary. Divided among the steps, and within each among the gates.
    """
    boundaries: dict[str, float] = Field(default={})
    """Other boundaries than the standard ones, by gate."""
    left_out_gates: list[str] = Field(default=[])
    """Standard gates that do not count."""
    ask_people: bool = False
    """Whether labelers compare the two sides."""
    least_s: float = Field(default=60.0, ge=0)
    """How long the judge looks at least."""
    longest_s: float = Field(default=1800.0, gt=0)
    """And at most: what has not been shown by then is not let go on."""
    ready_s: float = Field(default=600.0, gt=0)
    """How long both sides, and the cord, may take until they answer."""

    @model_validator(mode="after")
    def _check_step(self) -> JudgeConfig:
        if self.step > len(self.steps):
            raise ValueError(f"step {self.step} of {len(self.steps)} steps")
        if self.prompts is None:
            raise ValueError("prompts: without documents to probe both sides with nothing can be shown")
        if self.ask_people and self.labeling_target is None:
            raise ValueError("ask_people needs labeling_target")
        stable, canary = self.addresses("stable"), self.addresses("canary")
        if set(stable) & set(canary):
            raise ValueError("stable_targets and canary_targets must not share an address")
        self.spec("policy/1")  # whatever the candidate is, the rest has to fit
        return self

    def addresses(self, side: str) -> list[Address]:
        """Of ``stable`` or ``canary``. Raises ValueError."""
        targets: list[str] = getattr(self, f"{side}_targets")
        return [Address.parse(target) for target in targets]

    @property
    def rates(self) -> ErrorRates:
        """Of this step. A rollout promotes by its last step's word and is rolled back by any step's."""
        return ErrorRates(
            promotion=self.promotion_error_rate, rollback=self.rollback_error_rate / len(self.steps)
        )

    def spec(self, candidate: str) -> RolloutSpec:
        """The rollout of which the judge sees one step. Raises ValueError for what makes none."""
        return RolloutSpec(
            candidate=candidate,
            steps=tuple(self.steps),
            gates=chosen_gates(
                with_people=self.ask_people, boundaries=self.boundaries, left_out=self.left_out_gates
            ),
            rates=self.rates,
            least_s=self.least_s,
            longest_s=self.longest_s,
            ready_s=self.ready_s,
        )
