"""A trainer's publisher, the policy services it sends weights to, and roads between them for accidents."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from andon.client.policy import (
    OfferedWeights,
    PolicyClient,
    WeightsAcknowledgement,
    WeightsChunkLike,
    WeightsHeaderLike,
)
from andon.modeling.loading import new_causal_lm
from andon.modeling.store import ModelStore
from andon.modeling.text import word_level_codec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import model_weights, weights_sha256
from andon.rpc.server import RunningServer
from services.policy.backends.builtin import BuiltinBackend
from services.policy.service import PolicyService
from services.trainer.outgoing_weights import OutgoingWeights
from services.trainer.peers import Peers
from services.trainer.stages.context import StageClients
from services.trainer.weight_publisher import WeightPublisher

ARCHITECTURE = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.02,
}
INITIAL = "sft/1"
TIMEOUT_S = 60.0


class Run:
    """As much of a run as ``Peers`` looks at."""

    clients = StageClients(patience_s=TIMEOUT_S)

    def waiting(self, message: str) -> None:
        """Nobody watches."""

    def obey(self, state: Callable[[], dict[str, Any]]) -> None:
        """Nobody asks for anything."""

    def asked_to_halt(self) -> bool:
        """Nobody asks for anything."""
        return False


class RoadTo(PolicyClient):
    """A client whose bytes something may happen to on their way; it notes how they went."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.alter: Callable[[WeightsHeaderLike], WeightsHeaderLike] = lambda header: header
        self.spoil: Callable[[Iterable[WeightsChunkLike]], Iterable[WeightsChunkLike]] = lambda chunks: chunks
        self.ways: list[str] = []  # of every offer

    def update_weights(
        self, header: WeightsHeaderLike, chunks: Iterable[WeightsChunkLike], **options: Any
    ) -> WeightsAcknowledgement:
        self.ways.append(way_of(header))
        return super().update_weights(self.alter(header), self.spoil(chunks), **options)

    def offer_weights(
        self, header: WeightsHeaderLike, chunks: Iterable[WeightsChunkLike], **options: Any
    ) -> OfferedWeights:
        self.ways.append(f"{way_of(header)}, offered")
        return super().offer_weights(self.alter(header), self.spoil(chunks), **options)


def way_of(header: WeightsHeaderLike) -> str:
    return "shared" if header.memory else "delta" if header.base else "full"


class Replica:
    """A running policy service, and the path to it."""

    def __init__(
        self, service: PolicyService, server: RunningServer, path: RoadTo, registry: CollectorRegistry
    ) -> None:
        self.path = path
        self.server = server
        self._service = service
        self._registry = registry

    def weights(self) -> dict[str, Tensor]:
        served = self._service._backend.served
        assert served is not None
        return {name: tensor.clone() for name, tensor in model_weights(served.model).items()}

    @property
    def keeps_an_offer(self) -> bool:
        """Whether checked weights wait for their commit."""
        backend = self._service._backend
        assert isinstance(backend, BuiltinBackend)
        return backend._receiver._kept is not None

    def updates(self, result: str) -> float:
        return self._registry.get_sample_value("andon_policy_weight_updates_total", {"result": result}) or 0

    def bytes_taken(self, way: str) -> float | None:
        return self._registry.get_sample_value("andon_policy_weight_bytes_total", {"way": way})


class Trainer:
    """Weights that learn a little at each step, and their publisher."""

    def __init__(self, store: ModelStore, *paths: RoadTo) -> None:
        self.sent: list[tuple[str, int]] = []
        self.publisher = WeightPublisher(
            paths,
            initial=store.resolve(INITIAL).version,
            peers=Peers(Run()),
            timeout_s=TIMEOUT_S,
            threads=2,
            on_sent=lambda way, size_bytes, seconds: self.sent.append((way, size_bytes)),
        )
        self._generator = torch.Generator().manual_seed(0)
        self._step = 0
        model = new_causal_lm(ARCHITECTURE, word_level_codec([f"w{index}" for index in range(60)]), seed=5)
        self.weights = {name: tensor.clone() for name, tensor in model_weights(model).items()}

    def learn(self) -> ModelVersion:
        """One step, and a version of it."""
        return self.publisher.set_current(self.prepare())

    def prepare(self) -> OutgoingWeights:
        """One step of 3e-6 either way for every weight; what it gives has been offered to the replicas that
        were published to before, as when the guards take long to look.
        """
        self._step += 1
        for tensor in self.weights.values():
            tensor += 3e-6 * torch.randn(tensor.shape, generator=self._generator).sign()
        prepared = self.publisher.prepare("policy", self._step, self.weights)
        wait([known.offer for known in self.publisher._known.values() if known.offer], TIMEOUT_S)
        return prepared

    def publish(self) -> None:
        self.publisher.publish(state=dict)

    def learn_and_publish(self) -> ModelVersion:
        version = self.learn()
        self.publish()
        return version


def elsewhere(header: WeightsHeaderLike) -> WeightsHeaderLike:
    """The header as another host would read it: the sender's process is not there."""
    if header.memory is None:
        return header
    return dataclasses.replace(header, memory=dataclasses.replace(header.memory, process_id=1))


def assert_serves(replica: Replica, trainer: Trainer, version: ModelVersion, dtype: str = "float32") -> None:
    assert replica.path.model_info().model == version
    assert version.weights_sha256 == weights_sha256(trainer.weights)
    served = replica.weights()
    assert served.keys() == trainer.weights.keys()
    for name, tensor in trainer.weights.items():
        assert torch.equal(served[name], tensor.to(getattr(torch, dtype)))


class PolicyProcess:
    """A policy service as a process of its own, which can be killed and started again on its port."""

    def __init__(self, store: Path, log: Path) -> None:
        self._store, self._log = store, log
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [
            *(sys.executable, "-m", "services.policy", f"--port={self.port}", "--metrics-port=0"),
            *(f"--store={self._store}", f"--model={INITIAL}", "--dtype=bfloat16"),
        ]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ANDON_READY "), self._log.read_text()
        self.port = json.loads(line.removeprefix("ANDON_READY "))["port"]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
