"""What a training stage may ask of the run it belongs to.

The run registry (``services.trainer.runs``) implements ``StageContext``; every stage is written against it
and is tested with a small fake of it. A stage computes; the run keeps the record, the checkpoints and the
controls. A stage therefore never looks at signals, clocks, the cord or the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from andon.client.labeling import LabelingClient
    from andon.client.policy import PolicyClient
    from andon.client.reference import ReferenceClient
    from andon.client.reward import RewardClient
    from andon.modeling.store import ModelStore
    from andon.modeling.versions import ModelVersion
    from services.trainer.guards.guard import Alarm, Finding
    from services.trainer.ranks import Ranks

# What a checkpoint holds: tensors, numbers, text, and lists and dicts of these, so that
# torch.load(weights_only=True) reads it back.
StageState = dict[str, Any]

# How weights go to a sampler: all bytes or what changed over gRPC, or memory that both see.
WeightsWay = Literal["full", "delta", "shared_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageClients:
    """The services a stage may call; None or empty where no target is configured."""

    policy: tuple[PolicyClient, ...] = field(default=())  # one per replica
    reference: ReferenceClient | None = None
    reward: RewardClient | None = None
    labeling: LabelingClient | None = None
    call_timeout_s: float = 600.0  # deadline of one call
    patience_s: float = 120.0  # how long a stage waits for a service that does not answer


class RunHalted(Exception):  # noqa: N818 - not an error
    """The run must leave its stage now; the stage lets it pass."""


class RunStopped(RunHalted):
    """Somebody ended the run for good; nothing more may be published."""


class RunInterrupted(RunHalted):
    """The process ends; the run continues from the checkpoint that was just written."""


class StageContext(Protocol):
    """The run, as its stage sees it. All calls come from the run's own thread unless they say so."""

    @property
    def run_id(self) -> str:
        """Names the run."""

    @property
    def store(self) -> ModelStore:
        """Where models are read from and published to."""

    @property
    def threads(self) -> int:
        """How many CPU threads torch may use."""

    @property
    def device(self) -> str:
        """Where the models of the stage live, for example "cpu" or "cuda:0"."""

    @property
    def ranks(self) -> Ranks:
        """The processes that train together; this one leads them."""

    @property
    def clients(self) -> StageClients:
        """The other services."""

    def restored_state(self) -> StageState | None:
        """What the last good checkpoint holds, on the CPU; None on a fresh start."""

    def step_done(
        self,
        *,
        step: int,
        total: int,
        phase: str,
        metrics: Mapping[str, float],
        state: Callable[[], StageState],
        checkpoint: bool = False,
    ) -> None:
        """Report that ``step`` of ``total`` steps are done; call it after every optimizer step or policy
        update.

        Saves ``state()`` as a checkpoint at the configured interval or when ``checkpoint`` is set, then obeys
        the controls as ``obey`` does. ``phase`` is "train" or "validate" (SFT, reward model) or "update"
        (PPO). Metric names carry their units. A value that is not finite fails the run before anything is
        saved; leave out a metric that is undefined.
        """

    def obey(self, state: Callable[[], StageState]) -> None:
        """Obey pause, stop, the end of the process and the cord; call it between the smaller steps of a long
        step.

        ``state()`` must describe this very point, so that a restored run goes on here. Returns at once when
        nothing is asked. A pause or a pulled cord saves a checkpoint and blocks until it is lifted; a stop
        raises ``RunStopped``, the end of the process ``RunInterrupted``, both after saving a checkpoint.
        """

    def asked_to_halt(self) -> bool:
        """Whether ``obey`` would not return at once. From any thread: what works beside the run's own thread
        begins nothing while this holds.
        """

    def published(self, model: ModelVersion, *, stored: bool) -> None:
        """Record that a version was written: to the store (``stored``) or only to the samplers."""

    def weights_sent(self, way: WeightsWay, size_bytes: int, seconds: float) -> None:
        """Count weights that a sampler acknowledged, by how they went. Called from any thread."""

    def guards_checked(self, findings: Sequence[Finding], *, seconds: float) -> None:
        """Show what the guards found at an update, and how long they took."""

    def alarm(self, alarms: Sequence[Alarm]) -> None:
        """Record alarms, and pull the cord where one says so.

        Returns at once. Where an alarm holds, the next ``obey`` stands still until it is lifted; returning
        from there means that a person overruled the guards.
        """

    def when_cord_holds(self, act: Callable[[], None]) -> None:
        """Have ``act`` called from the run's thread each time the cord begins to hold the run."""

    def waiting(self, message: str) -> None:
        """Tell watchers what the run waits for, such as a service that does not answer; empty: it goes on."""


class Stage(Protocol):
    """A kind of training. Constructed as ``StageClass(config, context)``."""

    def run(self) -> ModelVersion:
        """Train, from ``context.restored_state()`` if there is one; return the version that was stored."""
