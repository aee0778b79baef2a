"""Which stages exist, how each is configured and how it is made. Read by the runner alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from services.trainer.run_records import StageName
from services.trainer.stages.context import Stage, StageContext
from services.trainer.stages.ppo import PpoStage
from services.trainer.stages.ppo_config import PpoConfig
from services.trainer.stages.reward_model import RewardModelConfig, RewardModelStage
from services.trainer.stages.sft import SftConfig, SftStage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKind:
    """One kind of training."""

    config_type: type[BaseModel]
    build: Callable[[Any, StageContext], Stage]  # Any: an instance of config_type
    checkpoint_interval: Callable[[Any], int | None] = lambda _config: None  # in steps; None saves by time


STAGES: Mapping[StageName, StageKind] = {
    StageName.SFT: StageKind(config_type=SftConfig, build=SftStage),
    StageName.REWARD_MODEL: StageKind(config_type=RewardModelConfig, build=RewardModelStage),
    StageName.PPO: StageKind(
        config_type=PpoConfig,
        build=PpoStage,
        checkpoint_interval=lambda config: int(config.checkpoint_interval),
    ),
}
