"""Real policy, reward, reference and canary services around the models of ``canary_models``."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from andon.client.canary import CanaryClient, RolloutState, RolloutWish
from andon.client.policy import PolicyClient
from andon.envoy import read_canary_percent, write_routes
from andon.errors import InternalError
from andon.modeling.store import ModelStore
from andon.rpc.convert import model_version_to_proto
from andon.rpc.server import RunningServer
from services.canary.config import CanaryConfig
from services.canary.service import CanaryService
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService
from services.reward.config import RewardConfig
from services.reward.service import RewardService
from tests.canary_models import RESPONSE_TOKENS, STABLE, make_documents, make_store

TIMEOUT_S = 120

Serve = Callable[..., RunningServer]


@dataclass
class Faults:
    """What is wrong with a policy process; may change while it runs."""

    delay_s: float = 0.0  # before every sample
    fails: bool = False
    claims: str = ""  # the version that it says it serves, whatever it was told to load
    sampled: threading.Event = field(default_factory=threading.Event)  # since it was last cleared


class FaultyPolicyService(PolicyService):
    """The policy service, with faults between its door and the rest."""

    def __init__(self, config: PolicyConfig, registry: CollectorRegistry, faults: Faults) -> None:
        super().__init__(config, registry)
        self._faults = faults
        self._store = ModelStore(config.store)

    def register(self, server: grpc.aio.Server) -> Any:
        honest = self._servicer
        sample, get_info, load = honest.Sample, honest.GetModelInfo, honest.LoadModel

        async def sample_badly(request: Any, context: Any) -> Any:
            self._faults.sampled.set()
            await asyncio.sleep(self._faults.delay_s)
            if self._faults.fails:
                raise InternalError("out of memory", reason="SAMPLING_FAILED")
            if not self._faults.claims:
                return await sample(request, context)
            request.ClearField("required_model")
            return self._lying(await sample(request, context))

        async def load_badly(request: Any, context: Any) -> Any:
            if not self._faults.claims:
                return await load(request, context)
            answer = type(await load(type(request)(model=STABLE), context))()
            answer.info.CopyFrom((await get_info(None, context)).info)
            answer.info.model.CopyFrom(self._claim())
            return answer

        async def get_info_badly(request: Any, context: Any) -> Any:
            answer = await get_info(request, context)
            if self._faults.claims:
                answer.info.model.CopyFrom(self._claim())
            return answer

        for name, method in (
            ("Sample", sample_badly),
            ("LoadModel", load_badly),
            ("GetModelInfo", get_info_badly),
        ):
            setattr(honest, name, method)
        return super().register(server)

    def _claim(self) -> Any:
        return model_version_to_proto(self._store.resolve(self._faults.claims).version)

    def _lying(self, answer: Any) -> Any:
        answer.model.CopyFrom(self._claim())
        for result in answer.results:
            for sample in result.samples:
                sample.model.CopyFrom(self._claim())
        return answer


class CanaryWorld:
    """Both sides, their judges, and the controller."""

    def __init__(self, folder: Path, serve: Serve, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        self.folder = folder
        self._serve = serve
        self._loop = loop
        self._stack = stack
        self.faults = Faults()  # of the canary
        self.store = make_store(folder / "store")
        self.routes = folder / "envoy"
        self.routes.mkdir()
        write_routes(self.routes, 0)
        self.prompts = folder / "prompts.jsonl"
        self.prompts.write_text(
            "".join(
                json.dumps({"id": str(number), "document": document}) + "\n"
                for number, document in enumerate(make_documents())
            )
        )
        common: dict[str, Any] = {"port": 0, "metrics_port": 0, "store": self.store.root}
        self.reference = self._start(ReferenceService, ReferenceConfig(model="sft/1", **common))
        self.reward = self._start(RewardService, RewardConfig(model="reward/1", **common))
        policy = PolicyConfig(model=STABLE, **common)
        self.stable = self._start(PolicyService, policy)
        registry = CollectorRegistry()
        self.canary = serve(FaultyPolicyService(policy, registry, self.faults), policy, registry)
        self.config = CanaryConfig(
            port=0,
            metrics_port=0,
            store=self.store.root,
            stable_targets=[self.stable.target],
            canary_targets=[self.canary.target],
            stable_metrics_urls=[f"http://127.0.0.1:{self.stable.metrics_port}/metrics"],
            canary_metrics_urls=[f"http://127.0.0.1:{self.canary.metrics_port}/metrics"],
            routes_folder=self.routes,
            record_folder=folder / "record",
            prompts=str(self.prompts),
            reward_target=self.reward.target,
            reference_target=self.reference.target,
            labeling_target=None,
            watch_cord=False,
            look_interval_s=0.05,
            probes_per_look=48,
            parallel_probes=4,
            temperature=1.0,
            max_new_tokens=RESPONSE_TOKENS,
            call_timeout_s=20.0,
        )

    def start_controller(self, **settings: Any) -> CanaryClient:
        """The controller, as another process would start it."""
        self.registry = CollectorRegistry()
        config = self.config.model_copy(update=settings)
        self.controller = self._serve(CanaryService(config, self.registry), config, self.registry)
        return self._stack.enter_context(CanaryClient(self.controller.target))

    def stop(self, running: RunningServer) -> None:
        asyncio.run_coroutine_threadsafe(running.stop(grace_s=2.0), self._loop).result(TIMEOUT_S)

    def serve_canary(self, version: str) -> None:
        """Have the canary's process load a version, as a cluster would that gives it new pods."""
        with PolicyClient(self.canary.target) as client:
            client.load_model(version)

    def wish(self, candidate: str, **changes: Any) -> RolloutWish:
        return RolloutWish(
            **{
                "candidate": candidate,
                "step_percents": (10, 50),
                "least_step_s": 0.1,
                "longest_step_s": 60.0,
                "ready_s": 30.0,
                **changes,
            }
        )

    def served(self, running: RunningServer) -> str:
        """What a policy process says that it serves."""
        with PolicyClient(running.target) as client:
            return str(client.model_info().model)

    @property
    def percent(self) -> int:
        return read_canary_percent(self.routes)

    def alias(self) -> str | None:
        found = self.store.aliases().get("policy@stable")
        return None if found is None else str(found)

    def _start(self, service: Any, config: Any) -> RunningServer:
        registry = CollectorRegistry()
        return self._serve(service(config, registry), config, registry)


def follow(
    client: CanaryClient, *, until: Callable[[RolloutState], bool] | None = None
) -> list[RolloutState]:
    """The rollout as a watcher sees it, to its end or until something holds."""
    seen: list[RolloutState] = []
    timer = threading.Timer(TIMEOUT_S, client.close)
    timer.start()
    try:
        for rollout in client.watch():
            seen.append(rollout)
            if until is not None and until(rollout):
                break
    finally:
        timer.cancel()
    return seen


@pytest.fixture
def canary_world(
    tmp_path: Path, serve: Serve, server_loop: asyncio.AbstractEventLoop
) -> Iterator[CanaryWorld]:
    with ExitStack() as stack:
        yield CanaryWorld(tmp_path, serve, server_loop, stack)
