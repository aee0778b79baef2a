"""New weights on their way from the trainer to policy services, by every way and through every accident."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from andon.client.policy import WeightsChunkLike, WeightsHeaderLike
from andon.errors import AndonError, DataLossError, FailedPreconditionError
from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import WeightsChunk
from tests.weight_sending import TIMEOUT_S, PolicyProcess, RoadTo, Trainer, assert_serves, elsewhere


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_one_host_weights_go_through_shared_memory(start, store: ModelStore, dtype: str) -> None:
    replica = start(dtype=dtype)
    trainer = Trainer(store, replica.path)
    for _ in range(4):  # more versions than there are pieces of memory
        version = trainer.learn_and_publish()
        assert_serves(replica, trainer, version, dtype)
    assert replica.path.ways == ["shared", *["shared, offered"] * 3]
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
    assert replica.path.ways == ["shared", "full", *["delta, offered"] * 3]
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
    assert one.path.ways == ["shared", "full", "delta, offered", "delta, offered"]
    assert other.path.ways == ["shared", "full", "delta, offered", "full, offered"]
    for replica in (one, other):
        assert_serves(replica, trainer, version, "bfloat16")


def test_a_replica_that_was_given_another_model_gets_all_weights(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    replica.path.load_model("sft/2")  # by a person, behind the trainer's back
    version = trainer.learn_and_publish()
    assert replica.path.ways == ["shared", "full", "delta, offered", "delta", "full"]
    assert replica.updates("WEIGHTS_BASE_MISMATCH") == 2
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
    assert replica.updates("WEIGHTS_BASE_MISMATCH") == 2  # of the offer, and of the delta
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())


def test_a_delta_in_another_type_than_the_served_is_refused(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    version = trainer.learn_and_publish()
    image = trainer.publisher.prepare("policy", 9, trainer.weights).image("float32")
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
    replica.path.spoil = spoil
    version = trainer.learn()
    with pytest.raises(DataLossError) as caught:
        trainer.publisher.bring_to_current(replica.path)
    assert caught.value.reason == reason
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())
    replica.path.spoil = lambda chunks: chunks
    trainer.publish()
    assert replica.path.ways == ["shared", "full", "delta, offered", "delta", "full"]
    assert_serves(replica, trainer, version, "bfloat16")


def test_a_delta_with_a_wrong_checksum_of_the_whole_changes_nothing(start, store: ModelStore) -> None:
    replica = start(dtype="bfloat16")
    replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    before = replica.weights()
    replica.path.alter = lambda header: dataclasses.replace(elsewhere(header), checksum="0" * 32)
    trainer.learn()
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
    replica.path.alter = lambda header: dataclasses.replace(header, checksum="0" * 32)
    version = trainer.learn()
    with pytest.raises(DataLossError):
        trainer.publisher.bring_to_current(replica.path)
    assert all(torch.equal(replica.weights()[name], tensor) for name, tensor in before.items())
    replica.path.alter = lambda header: header
    trainer.publish()
    assert replica.path.ways == ["shared", "shared, offered", "delta", "full"]
    assert_serves(replica, trainer, version)


def test_a_chunk_behind_a_header_of_shared_memory_is_malformed(start, store: ModelStore) -> None:
    replica = start()
    image = Trainer(store).prepare().image("float32")
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
        weights = trainer.publisher.prepare("policy", 9, trainer.weights)
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
