"""All services in one process, on loopback, so that a fault can be planted into a running one.

They speak real gRPC. Only the process is shared: a patch of a module or of an object then reaches the very
code that serves.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from andon.client.trainer import TrainerClient
from andon.rpc.server import RunningServer
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService
from services.reward.config import RewardConfig
from services.reward.service import RewardService
from services.trainer.config import TrainerConfig
from services.trainer.service import TrainerService

TOKEN = "token-of-the-guard-benchmark"
START_TIMEOUT_S = 300.0
PEER_PATIENCE_S = 20.0  # nobody goes away here; only damaged weights are refused until it ends


class Services:
    """A context manager: leaving it stops everything that was started."""

    def __init__(self, folder: Path, *, store: Path) -> None:
        self.folder = folder
        self._store = store
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self.registries: dict[str, CollectorRegistry] = {}
        self.services: dict[str, Any] = {}  # the objects that serve

    def __enter__(self) -> Services:
        self.folder.mkdir(parents=True, exist_ok=True)
        thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        thread.start()

        def end() -> None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

        self._stack.callback(end)
        return self

    def __exit__(self, *exception: Any) -> None:  # what every context manager is given
        self._stack.__exit__(*exception)

    def start_models(self, *, policy: str, reward: str | None) -> None:
        """Sampler and reference with one model, and a reward service."""
        common: dict[str, Any] = {"port": 0, "metrics_port": 0, "store": self._store, "threads": 1}
        self.policy = self._serve("policy", PolicyService, PolicyConfig(model=policy, **common))
        self.reference = self._serve("reference", ReferenceService, ReferenceConfig(model=policy, **common))
        self.reward = self._serve("reward", RewardService, RewardConfig(model=reward, **common))

    def start_labeling(self) -> None:
        """The labeling service, which holds the cord."""
        tokens = self.folder / "tokens.json"
        tokens.touch(mode=0o600)
        tokens.write_text(json.dumps([{"name": "benchmark", "role": "admin", "token": TOKEN}]))
        config = LabelingConfig(
            port=0,
            metrics_port=0,
            web_port=0,
            database=f"sqlite:///{self.folder}/labeling.sqlite3",
            tokens_file=tokens,
        )
        self.labeling = self._serve("labeling", LabelingService, config)

    def start_trainer(self) -> TrainerClient:
        """A trainer that obeys the cord where there is one."""
        has_cord = hasattr(self, "labeling")
        config = TrainerConfig(
            port=0,
            metrics_port=0,
            store=self._store,
            runs=self.folder / "runs",
            policy_targets=[self.policy.target if hasattr(self, "policy") else "127.0.0.1:1"],
            reference_target=self.reference.target if hasattr(self, "reference") else "127.0.0.1:1",
            reward_target=self.reward.target if hasattr(self, "reward") else "127.0.0.1:1",
            labeling_target=self.labeling.target if has_cord else "127.0.0.1:1",
            labeling_token=TOKEN if has_cord else None,
            watch_cord=has_cord,
            threads=1,
            peer_patience_s=PEER_PATIENCE_S,
        )
        trainer = self._serve("trainer", TrainerService, config)
        return self._stack.enter_context(TrainerClient(trainer.target))

    def _serve(self, name: str, service: Callable[..., Any], config: Any) -> RunningServer:
        registry = self.registries[name] = CollectorRegistry()
        self.services[name] = service(config, registry)
        running = RunningServer(self.services[name], config, registry)
        asyncio.run_coroutine_threadsafe(running.__aenter__(), self._loop).result(START_TIMEOUT_S)

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(running.stop(grace_s=5.0), self._loop).result(START_TIMEOUT_S)

        self._stack.callback(stop)
        return running
