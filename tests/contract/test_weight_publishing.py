"""New weights on their way from the trainer to policy services, by every way and through every accident."""

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from andon.client.policy import PolicyClient, WeightsAcknowledgement, WeightsChunkLike, WeightsHeaderLike
from andon.errors import AndonError, DataLossError, FailedPreconditionError
from andon.modeling.loading import new_causal_lm, save_model
from andon.modeling.manifest import ManifestDraft
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import WeightsChunk, model_weights, weights_sha256
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.trainer import peers
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


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return word_level_codec([f"w{index}" for index in range(60)])


@pytest.fixture(scope="module")
def store(codec: TextCodec, tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    torch.set_num_threads(1)
    models = ModelStore(tmp_path_factory.mktemp("store"))
    for seed in (1, 2):
        model = new_causal_lm(ARCHITECTURE, codec, seed=seed)
        models.publish(
            "sft",
            lambda folder, model=model: save_model(model, codec, folder),
            manifest=ManifestDraft(kind="causal_lm"),
        )
    return models


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST_PAUSE_S", 0.01)


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
        self.ways.append("shared" if header.memory else "delta" if header.base else "full")
        return super().update_weights(self.alter(header), self.spoil(chunks), **options)


class Replica:
    """A running policy service, and the path to it."""

    def __init__(self, service: PolicyService, path: RoadTo, registry: CollectorRegistry) -> None:
        self.path = path
        self._service = service
        self._registry = registry

    def weights(self) -> dict[str, Tensor]:
        served = self._service._backend.served
        assert served is not None
        return {name: tensor.clone() for name, tensor in model_weights(served.model).items()}

    def updates(self, result: str) -> float | None:
        return self._registry.get_sample_value("andon_policy_weight_updates_total", {"result": result})

    def bytes_taken(self, way: str) -> float | None:
        return self._registry.get_sample_value("andon_policy_weight_bytes_total", {"way": way})


@pytest.fixture
def start(serve, store: ModelStore) -> Iterator[Callable[..., Replica]]:
    with ExitStack() as clients:

        def start_replica(**values: object) -> Replica:
            fields = {"port": 0, "metrics_port": 0, "store": store.root, "model": INITIAL, **values}
            config, registry = PolicyConfig(**fields), CollectorRegistry()
            service = PolicyService(config, registry)
            running = serve(service, config, registry)
            return Replica(service, clients.enter_context(RoadTo(running.target)), registry)

        yield start_replica


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
        """One step of 3e-6 either way for every weight, and a version of it."""
        self._step += 1
        for tensor in self.weights.values():
            tensor += 3e-6 * torch.randn(tensor.shape, generator=self._generator).sign()
        return self.publisher.set_current("policy", self._step, self.publisher.prepare(self.weights))

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_one_host_weights_go_through_shared_memory(start, store: ModelStore, dtype: str) -> None:
    replica = start(dtype=dtype)
    trainer = Trainer(store, replica.path)
    for _ in range(4):  # more versions than there are pieces of memory
        version = trainer.learn_and_publish()
        assert_serves(replica, trainer, version, dtype)
    assert replica.path.ways == ["shared"] * 4
    size_bytes = sum(tensor.nbytes for tensor in replica.weights().values())
    assert trainer.sent == [("shared_memory", size_bytes)] * 4
    assert replica.bytes_taken("shared_memory") == 4 * size_bytes
    assert replica.updates("ok") == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_between_hosts_only_what_changed_is_sent(start, store: ModelStore, dtype: str) -> None:
    replica = start(dtype=dtype)
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    for _ in range(4):
        version = trainer.learn_and_publish()
        assert_serves(replica, trainer, version, dtype)
    # Shared memory is tried once.
    assert replica.path.ways == ["shared", "full", "delta", "delta", "delta"]
    assert replica.updates("WEIGHTS_NOT_SHARED") == 1
    full = sum(tensor.nbytes for tensor in replica.weights().values())
    ways, sizes = zip(*trainer.sent, strict=True)
    assert ways == ("full", "delta", "delta", "delta")
    assert sizes[0] == full
    assert max(sizes[1:]) < {"float32": full, "bfloat16": full / 8, "float16": full / 4}[dtype]
    assert replica.bytes_taken("delta") == sum(sizes[1:])


def test_two_replicas_at_different_versions_each_get_what_they_need(start, store: ModelStore) -> None:
    one, other = start(dtype="bfloat16"), start(dtype="bfloat16")
    one.path.alter = other.path.alter = elsewhere
    trainer = Trainer(store, one.path, other.path)
    trainer.learn_and_publish()
    trainer.learn()
    trainer.publisher.bring_to_current(one.path)  # the other one misses this version
    version = trainer.learn_and_publish()
    assert one.path.ways == ["shared", "full", "delta", "delta"]
    assert other.path.ways == ["shared", "full", "full"]
    for replica in (one, other):
        assert_serves(replica, trainer, version, "bfloat16")


def test_a_replica_that_was_given_another_model_gets_all_weights(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    replica.path.load_model("sft/2")  # by a person, behind the trainer's back
    version = trainer.learn_and_publish()
    assert replica.path.ways == ["shared", "full", "delta", "full"]
    assert replica.updates("WEIGHTS_BASE_MISMATCH") == 1
    assert_serves(replica, trainer, version, "bfloat16")


def test_a_base_of_the_same_name_with_other_weights_is_no_base(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    before = replica.weights()

    def with_other_base(header: WeightsHeaderLike) -> WeightsHeaderLike:
        if header.base is None:
            raise FailedPreconditionError("enough", reason="ENOUGH")
        return dataclasses.replace(header, base=dataclasses.replace(header.base, weights_sha256="0" * 64))

    replica.path.alter = with_other_base
    with pytest.raises(FailedPreconditionError) as caught:
        trainer.learn_and_publish()
    assert caught.value.reason == "ENOUGH"
    assert replica.updates("WEIGHTS_BASE_MISMATCH") == 1
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())


def test_a_delta_in_another_type_than_the_served_is_refused(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    version = trainer.learn_and_publish()
    image = trainer.publisher.prepare(trainer.weights).image("float32")
    header = dataclasses.replace(
        image.header(ModelVersion("policy", 9, "0" * 64)), size_bytes=0, base=version
    )
    with pytest.raises(FailedPreconditionError) as caught:
        replica.path.update_weights(header, [])
    assert caught.value.reason == "WEIGHTS_BASE_MISMATCH"


def flipped(chunks: Iterable[WeightsChunkLike]) -> Iterator[WeightsChunk]:
    for chunk in chunks:
        middle = len(chunk.data) // 2
        data = chunk.data[:middle] + bytes([chunk.data[middle] ^ 8]) + chunk.data[middle + 1 :]
        yield WeightsChunk(offset_bytes=chunk.offset_bytes, data=data)


def cut_short(chunks: Iterable[WeightsChunkLike]) -> Iterator[WeightsChunk]:
    for chunk in chunks:
        yield WeightsChunk(offset_bytes=chunk.offset_bytes, data=chunk.data[:-1])


@pytest.mark.parametrize(
    ("spoil", "reason"), [(flipped, "WEIGHTS_CHECKSUM_MISMATCH"), (cut_short, "WEIGHTS_TRUNCATED")]
)
def test_a_damaged_delta_changes_nothing_and_all_weights_follow(
    start, store: ModelStore, spoil: Callable[..., Any], reason: str
) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    before = replica.weights()
    version = trainer.learn()
    replica.path.spoil = spoil
    with pytest.raises(DataLossError) as caught:
        trainer.publisher.bring_to_current(replica.path)
    assert caught.value.reason == reason
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())
    replica.path.spoil = lambda chunks: chunks
    trainer.publish()
    assert replica.path.ways == ["shared", "full", "delta", "full"]
    assert_serves(replica, trainer, version, "bfloat16")


def test_a_wrong_checksum_of_the_whole_takes_the_delta_back(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    before = replica.weights()
    trainer.learn()
    replica.path.alter = lambda header: dataclasses.replace(header, checksum="0" * 32)
    with pytest.raises(DataLossError):
        trainer.publisher.bring_to_current(replica.path)
    assert replica.path.ways[-1] == "delta"
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())


def test_shared_memory_with_other_bytes_than_announced_is_refused_and_not_tried_again(
    start, store: ModelStore
) -> None:
    replica = start()
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    before = replica.weights()
    version = trainer.learn()
    replica.path.alter = lambda header: dataclasses.replace(header, checksum="0" * 32)
    with pytest.raises(DataLossError):
        trainer.publisher.bring_to_current(replica.path)
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())
    replica.path.alter = lambda header: header
    trainer.publish()
    assert replica.path.ways == ["shared", "shared", "full"]
    assert_serves(replica, trainer, version)


def test_a_chunk_behind_a_header_of_shared_memory_is_malformed(start, store: ModelStore) -> None:
    replica = start()
    image = Trainer(store).publisher.prepare(Trainer(store).weights).image("float32")
    header = dataclasses.replace(image.header(ModelVersion("policy", 9, "0" * 64)), memory=image.address)
    with pytest.raises(AndonError) as caught:
        replica.path.update_weights(header, image.chunks())
    assert caught.value.reason == "WEIGHTS_MALFORMED"


def test_a_sender_that_dies_in_the_middle_of_a_delta_leaves_the_old_weights(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    version = trainer.learn_and_publish()
    before = replica.weights()
    begun, gone = threading.Event(), threading.Event()

    def stalling(chunks: Iterable[WeightsChunkLike]) -> Iterator[WeightsChunkLike]:
        chunk = next(iter(chunks))
        yield WeightsChunk(offset_bytes=0, data=chunk.data[:100])
        begun.set()
        gone.wait(TIMEOUT_S)

    with RoadTo(replica.path.target) as dying:
        dying.spoil = stalling
        weights = trainer.publisher.prepare(trainer.weights)
        header = dataclasses.replace(
            weights.image("bfloat16").header(ModelVersion("policy", 9, "0" * 64)), base=version
        )
        ended: list[AndonError] = []

        def send() -> None:
            try:
                dying.update_weights(header, weights.image("bfloat16").chunks())
            except AndonError as error:
                ended.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        assert begun.wait(TIMEOUT_S)
    gone.set()
    thread.join(TIMEOUT_S)
    assert len(ended) == 1
    assert replica.path.model_info().model == version
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())
    assert_serves(replica, trainer, trainer.learn_and_publish(), "bfloat16")


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


def test_a_replica_that_serves_another_type_now_gets_that_type(serve, start, store: ModelStore) -> None:
    """Its process was replaced by one with other settings; the path to it is the same."""
    before, after = start(dtype="bfloat16"), start(dtype="float32")
    trainer = Trainer(store, before.path)
    trainer.learn_and_publish()
    version = trainer.learn()
    before.path.channel.close()
    before.path.__dict__.update(after.path.__dict__)
    trainer.publish()
    assert_serves(after, trainer, version, "float32")


@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_replica_that_was_killed_comes_back_and_gets_all_weights(
    store: ModelStore, tmp_path: Path, shared: bool
) -> None:
    replica = PolicyProcess(store.root, tmp_path / "log")
    try:
        with RoadTo(f"127.0.0.1:{replica.port}") as path:
            if not shared:
                path.alter = elsewhere
            trainer = Trainer(store, path)
            trainer.learn_and_publish()
            assert trainer.learn_and_publish() == path.model_info().model
            replica.kill()
            version = trainer.learn()
            publishing = threading.Thread(target=trainer.publish)
            publishing.start()
            replica.start()
            publishing.join(TIMEOUT_S)
            assert path.model_info().model == version
            assert path.ways[-1] == ("shared" if shared else "full")
    finally:
        replica.kill()
