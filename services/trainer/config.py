"""What the trainer can be told at its start.

What a run does is told by StartRun: see ``services.trainer.stages``.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from andon.rpc.config import Port
from andon.rpc.store_config import StoreServerConfig
from services.trainer.precision import Precision


class TrainerConfig(StoreServerConfig):
    """The trainer's settings."""

    port: Port = 50055
    """gRPC port."""
    metrics_port: Port = 9105
    """Prometheus port."""
    runs: Path = Path("andon-home/runs")
    """Where runs are kept; one trainer at a time may use it."""
    policy_targets: list[str] = Field(default=["127.0.0.1:50051"], min_length=1)
    """Every policy replica by itself, never a balanced name: each must acknowledge new weights."""
    reference_target: str = "127.0.0.1:50052"
    """The reference service."""
    reward_target: str = "127.0.0.1:50053"
    """The reward service."""
    labeling_target: str = "127.0.0.1:50054"
    """The labeling service, which also holds the cord."""
    labeling_token: SecretStr | None = None
    """Bearer token of the labeling service, with the role "service"; better in ANDON_TRAINER_LABELING_TOKEN
    than in a flag. ANDON_TOKEN when left out.
    """
    threads: int = Field(default=2, ge=1)
    """CPU threads of torch."""
    device: str = "cpu"
    """Where training happens, for example "cuda:0"; with several ranks "cpu", or "cuda" for a GPU each."""
    precision: Precision = "float32"
    """What passes compute in, "float32" or "bfloat16"; weights and optimizer stay in float32. bfloat16 is
    faster on GPUs and slower on most CPUs.
    """
    rank_timeout_s: float = Field(default=1800.0, gt=0)
    """How long a rank waits in the middle of a step for another one, or rank 0 for one that loads a model."""
    auto_resume: bool = True
    """Whether a run that a dead process left behind goes on by itself at the start."""
    auto_resume_limit: int = Field(default=3, ge=1)
    """Starts without a new checkpoint in between after which auto-resume leaves a run to a person."""
    watch_cord: bool = True
    """Whether runs obey the andon cord. Without it nobody but the operator can stop a run."""
    cord_hold_s: float = Field(default=30.0, gt=0)
    """How long the cord may go unheard before the run holds."""
    peer_patience_s: float = Field(default=120.0, ge=0)
    """How long a run waits for a service that does not answer before it fails (it stays resumable)."""
    call_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline of one call to another service."""
    kept_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints of a run stay on disk. With 1 a damaged one cannot be fallen back from."""
    checkpoint_interval_s: float = Field(default=60.0, gt=0)
    """Time between the checkpoints of stages that name no interval in steps."""
    interrupt_grace_s: float = Field(default=60.0, ge=0)
    """How long SIGTERM waits for the run's checkpoint before the process ends without it."""

    def token_for_labeling(self) -> str | None:
        """The token in clear, for the connection only."""
        return None if self.labeling_token is None else self.labeling_token.get_secret_value()
