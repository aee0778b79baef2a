"""A model store with two tiny models, and real services around them: what PPO tests run in."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from andon.client.trainer import ModelPublished, Progress, Run, RunEvent, RunState, TrainerClient
from andon.modeling.loading import new_causal_lm, save_model, scorer_from_causal_lm
from andon.modeling.manifest import ManifestDraft
from andon.modeling.normalization import Normalization
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from andon.modeling.versions import ModelVersion
from andon.rpc.server import RunningServer
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService
from services.reward.config import RewardConfig
from services.reward.service import RewardService
from services.trainer.config import TrainerConfig
from services.trainer.service import TrainerService

TIMEOUT_S = 120
WORDS = ["the", "cat", "dog", "sat", "ran", "home", "mat", "."]
ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_positions": 64,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}

Serve = Callable[..., RunningServer]


class World:
    """A store with two tiny models, prompts, and the services around them."""

    def __init__(self, folder: Path, serve: Serve, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "store")
        self._serve = serve
        self._loop = loop
        self._stack = stack
        self.settings: dict[str, Any] = {}  # further ones of every service, set before it is started
        self.objects: dict[
            type, Any
        ] = {}  # what serves, the newest of each kind, so that a test can spoil it
        self.codec = word_level_codec(WORDS, max_document_tokens=8)
        self.publish_policy(seed=1)
        self._publish_reward(seed=2)
        self.prompts = folder / "prompts.jsonl"
        chance = random.Random(0)
        self.prompts.write_text(
            "".join(
                json.dumps({"id": str(number), "document": " ".join(chance.choices(WORDS, k=3 + number % 6))})
                + "\n"
                for number in range(10)
            )
        )

    def publish_policy(self, *, seed: int, codec: TextCodec | None = None) -> ModelVersion:
        model = new_causal_lm(ARCHITECTURE, codec or self.codec, seed)
        stored = self.store.publish(
            "sft",
            lambda folder: save_model(model, codec or self.codec, folder),
            manifest=ManifestDraft(kind="causal_lm"),
        )
        return stored.version

    def _publish_reward(self, *, seed: int) -> None:
        scorer = scorer_from_causal_lm(self.store.resolve("sft/1").path, seed=seed)
        normalization = Normalization(method="reference_zero", gain=1.0, bias=0.25)
        self.store.publish(
            "reward",
            lambda folder: save_model(scorer, self.codec, folder, normalization=normalization),
            manifest=ManifestDraft(kind="reward_model", normalization=normalization),
        )

    def serve_models(self, *, replicas: int = 1) -> None:
        common: dict[str, Any] = {
            "port": 0,
            "metrics_port": 0,
            "store": self.store.root,
            **self.settings,
        }
        policy = PolicyConfig(model="sft/1", **common)
        self.policies = [self._serve_one(PolicyService, policy) for _ in range(replicas)]
        self.reference = self._serve_one(ReferenceService, ReferenceConfig(model="sft/1", **common))
        self.reward = self._serve_one(RewardService, RewardConfig(model="reward/1", **common))

    def serve_trainer(self, runs: str = "runs", **settings: Any) -> TrainerClient:
        config = TrainerConfig(
            port=0,
            metrics_port=0,
            store=self.store.root,
            runs=self.folder / runs,
            policy_targets=[policy.target for policy in self.policies],
            reference_target=self.reference.target,
            reward_target=self.reward.target,
            **{
                "threads": 1,
                "peer_patience_s": 60.0,
                "watch_cord": False,
                **self.settings,
                **settings,
            },
        )
        self.trainer = self._serve_one(TrainerService, config)
        return self._stack.enter_context(TrainerClient(self.trainer.target))

    def restart(self, running: RunningServer, service: type, config: Any) -> RunningServer:
        """The same port, a new process's memory."""
        port = running.port
        self.stop(running)
        return self._serve_one(service, config.model_copy(update={"port": port}))

    def stop(self, running: RunningServer) -> None:
        asyncio.run_coroutine_threadsafe(running.stop(grace_s=5.0), self._loop).result(TIMEOUT_S)

    def config(self, **changes: Any) -> dict[str, Any]:
        return {
            "prompts": str(self.prompts),
            "policy": "sft/1",
            "reference": "sft/1",
            "reward_model": "reward/1",
            "updates": 4,
            "batch_prompts": 6,
            "samples_per_prompt": 2,
            "minibatches": 2,
            "epochs": 2,
            "learning_rate": 1e-3,
            "temperature": 0.9,
            "max_new_tokens": 8,
            "token_budget": 64,
            "checkpoint_interval": 1,
            **changes,
        }

    def _serve_one(self, service: type, config: Any) -> RunningServer:
        registry = CollectorRegistry()
        self.objects[service] = service(config, registry)
        return self._serve(self.objects[service], config, registry)


@pytest.fixture
def world(tmp_path: Path, serve: Serve, server_loop: asyncio.AbstractEventLoop) -> Iterator[World]:
    torch.set_num_threads(1)
    with ExitStack() as stack:
        yield World(tmp_path, serve, server_loop, stack)


def finish(client: TrainerClient, run: Run, *, after_sequence: int = 0) -> list[RunEvent]:
    events = list(client.watch_run(run.run_id, after_sequence=after_sequence, stream_timeout_s=TIMEOUT_S))
    ended = client.get(run.run_id)
    assert ended.state is RunState.SUCCEEDED, ended.status_message
    return events


def numbers(events: list[RunEvent]) -> dict[int, dict[str, float]]:
    """What every update reported, but for the times."""
    return {
        event.event.step: {
            name: value for name, value in event.event.metrics.items() if not name.endswith("_seconds")
        }
        for event in events
        if isinstance(event.event, Progress)
    }


def published(events: list[RunEvent], *, stored: bool) -> list[ModelVersion]:
    return [
        event.event.model
        for event in events
        if isinstance(event.event, ModelPublished) and event.event.stored is stored
    ]
