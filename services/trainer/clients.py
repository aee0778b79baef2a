"""Which connections a run holds.

Opened when a run begins and closed when it leaves its thread, which ends all calls.
"""

from __future__ import annotations

from andon.client.channel import ChannelOptions
from andon.client.cord import CordClient
from andon.client.labeling import LabelingClient
from andon.client.policy import PolicyClient
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from services.trainer.config import TrainerConfig
from services.trainer.stages.context import StageClients


class RunClients:
    """The connections of one run. Nothing connects before the first call."""

    def __init__(self, config: TrainerConfig) -> None:
        options = ChannelOptions(max_message_bytes=config.max_message_bytes)
        self._policy = tuple(PolicyClient(target, options=options) for target in config.policy_targets)
        self._reference = ReferenceClient(config.reference_target, options=options)
        self._reward = RewardClient(config.reward_target, options=options)
        self._labeling = LabelingClient(
            config.labeling_target, options=options, token=config.token_for_labeling()
        )
        self._stage_clients = StageClients(
            policy=self._policy,
            reference=self._reference,
            reward=self._reward,
            labeling=self._labeling,
            call_timeout_s=config.call_timeout_s,
            patience_s=config.peer_patience_s,
        )

    @property
    def stage_clients(self) -> StageClients:
        """What the stage may call."""
        return self._stage_clients

    def close(self) -> None:
        """End calls in progress and close all."""
        for client in (*self._policy, self._reference, self._reward, self._labeling):
            client.close()


def open_cord_client(config: TrainerConfig) -> CordClient:
    """A connection that listens for long and must notice a dead peer sooner than the cord's patience ends."""
    return CordClient(
        config.labeling_target,
        options=ChannelOptions(
            keepalive_s=max(10.0, config.cord_hold_s / 3),
            keepalive_timeout_s=max(1.0, config.cord_hold_s / 3),
        ),
        token=config.token_for_labeling(),
    )
