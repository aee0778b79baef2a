"""Weights that a replica has received and checked, but uses only when the trainer commits them."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import services.policy.weight_receiver
from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.client.policy import OfferedWeights, WeightsHeaderLike
from andon.client.policy import _weight_messages as weight_messages
from andon.errors import AndonError, DataLossError, FailedPreconditionError, UnavailableError
from andon.modeling.store import ModelStore
from services.trainer.outgoing_weights import OutgoingWeights
from tests.weight_sending import TIMEOUT_S, PolicyProcess, Replica, RoadTo, Trainer, assert_serves, elsewhere


def serves_the_same(replica: Replica, before: dict[str, torch.Tensor]) -> bool:
    now = replica.weights()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def offer(replica: Replica, weights: OutgoingWeights, **options: Any) -> OfferedWeights:
    """All bytes of weights in bfloat16, in chunks."""
    image = weights.image("bfloat16")
    return replica.path.offer_weights(image.header(weights.version), image.chunks(), **options)


@pytest.fixture
def replica(start: Callable[..., Replica]) -> Replica:
    return start(dtype="bfloat16")


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_offered_is_used_when_it_is_published(
    replica: Replica, store: ModelStore, shared: bool
) -> None:
    if not shared:
        replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    old, before = trainer.learn_and_publish(), replica.weights()
    prepared = trainer.prepare()
    asked = len(replica.path.ways)
    assert serves_the_same(replica, before)
    assert replica.path.model_info().model == old
    version = trainer.publisher.set_current(prepared)
    assert serves_the_same(replica, before)  # named, not published
    trainer.publish()
    assert len(replica.path.ways) == asked  # nothing was sent once more
    assert_serves(replica, trainer, version, "bfloat16")
    assert [way for way, _ in trainer.sent] == (["shared_memory"] * 2 if shared else ["full", "delta"])
    assert replica.updates("ok") == 2


def test_weights_are_offered_from_the_first_update_on(replica: Replica, store: ModelStore) -> None:
    trainer = Trainer(store, replica.path)
    trainer.publish()  # the model that the run begins with
    version = trainer.learn_and_publish()
    assert replica.path.ways == ["shared, offered"]
    assert_serves(replica, trainer, version, "bfloat16")


@pytest.mark.parametrize("how", ["withdraw", "prepare", "roll_back"])
def test_what_is_not_published_is_forgotten(replica: Replica, store: ModelStore, how: str) -> None:
    trainer = Trainer(store, replica.path)
    version, before = trainer.learn_and_publish(), replica.weights()
    prepared = trainer.prepare()
    wait_for(lambda: replica.keeps_an_offer)
    if how == "prepare":  # the next one takes its place
        prepared = trainer.prepare()
    elif how == "withdraw":
        trainer.publisher.withdraw()
    else:
        trainer.publisher.roll_back()  # to a version that this store has not: it keeps what it serves
    # The next offer may overtake this one before the replica hears that it is withdrawn.
    wait_for(lambda: replica.updates("withdrawn") + replica.updates("WEIGHTS_OVERTAKEN") == 1)
    assert serves_the_same(replica, before)
    assert replica.path.model_info().model == version
    del prepared  # with its memory, which replicas may read until then
    assert_serves(replica, trainer, trainer.learn_and_publish(), "bfloat16")


def test_a_later_update_overtakes_an_offer(replica: Replica, store: ModelStore) -> None:
    one, other = Trainer(store), Trainer(store)
    other.learn()
    offered = offer(replica, one.prepare())
    wait_for(lambda: replica.keeps_an_offer)
    later = other.prepare()
    image = later.image("bfloat16")
    replica.path.update_weights(image.header(later.version), image.chunks())
    with pytest.raises(FailedPreconditionError) as caught:
        offered.commit()
    assert caught.value.reason == "WEIGHTS_OVERTAKEN"
    assert_serves(replica, other, later.version, "bfloat16")


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_that_was_loaded_meanwhile_gets_the_weights_anew(
    replica: Replica, store: ModelStore, shared: bool
) -> None:
    if not shared:
        replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    version = trainer.learn()
    wait_for(lambda: replica.keeps_an_offer)
    replica.path.load_model("sft/2")
    trainer.publish()
    assert replica.path.ways == (
        ["shared", "shared, offered", "shared"]
        if shared
        else ["shared", "full", "delta, offered", "delta", "full"]
    )
    assert_serves(replica, trainer, version, "bfloat16")
    assert replica.updates("WEIGHTS_OVERTAKEN" if shared else "WEIGHTS_BASE_MISMATCH") >= 1


def test_what_the_trainer_does_with_its_memory_after_the_check_does_not_reach_the_replica(
    replica: Replica, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Trainer(store).prepare()
    image = weights.image("bfloat16")
    right = {name: tensor.clone() for name, tensor in image.tensors.items()}
    check = services.policy.weight_receiver.check_weights

    def check_and_overwrite(state: dict[str, torch.Tensor], checksum: str) -> None:
        check(state, checksum)
        image.fill({name: torch.zeros_like(tensor) for name, tensor in right.items()})

    monkeypatch.setattr(services.policy.weight_receiver, "check_weights", check_and_overwrite)
    header = dataclasses.replace(image.header(weights.version), memory=image.address)
    replica.path.offer_weights(header, iter(())).commit()
    assert not any(tensor.any() for tensor in image.tensors.values())
    assert serves_the_same(replica, right)


def test_an_offer_whose_time_ran_out_is_sent_anew(
    replica: Replica, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()

    def in_a_hurry(header: WeightsHeaderLike, chunks: Any, **options: Any) -> OfferedWeights:
        return RoadTo.offer_weights(replica.path, header, chunks, timeout_s=0.2)

    monkeypatch.setattr(replica.path, "offer_weights", in_a_hurry)
    version = trainer.learn()
    wait_for(lambda: replica.updates("withdrawn") == 1)
    trainer.publish()
    assert replica.path.ways == ["shared", "shared, offered", "shared"]
    assert_serves(replica, trainer, version, "bfloat16")


def test_a_replica_that_was_killed_between_offer_and_publication_gets_the_weights_anew(
    store: ModelStore, tmp_path: Path
) -> None:
    process = PolicyProcess(store.root, tmp_path / "log")
    try:
        with RoadTo(f"127.0.0.1:{process.port}") as path:
            trainer = Trainer(store, path)
            trainer.publish()
            version = trainer.learn()
            assert path.ways == ["shared, offered"]
            process.kill()
            publishing = threading.Thread(target=trainer.publish)
            publishing.start()
            process.start()
            publishing.join(TIMEOUT_S)
            assert path.model_info().model == version
            assert path.ways[-1] == "shared"
    finally:
        process.kill()


def test_a_service_that_ends_does_not_wait_for_a_commit(
    replica: Replica, store: ModelStore, server_loop: asyncio.AbstractEventLoop
) -> None:
    offered = offer(replica, Trainer(store).prepare())
    wait_for(lambda: replica.keeps_an_offer)
    begin_s = time.monotonic()
    asyncio.run_coroutine_threadsafe(replica.server.stop(grace_s=TIMEOUT_S), server_loop).result(TIMEOUT_S)
    assert time.monotonic() - begin_s < TIMEOUT_S / 2
    with pytest.raises(UnavailableError):
        offered.commit()


def test_a_sender_that_is_gone_leaves_nothing(replica: Replica, store: ModelStore) -> None:
    with RoadTo(replica.path.target) as dying:
        weights = Trainer(store).prepare()
        image = weights.image("bfloat16")
        dying.offer_weights(image.header(weights.version), image.chunks())
        wait_for(lambda: replica.keeps_an_offer)
    wait_for(lambda: not replica.keeps_an_offer)
    assert replica.updates("withdrawn") == 1


COMMIT = policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit())


@pytest.mark.parametrize(
    ("announced", "more", "reason"),
    [
        (True, [], "WEIGHTS_NOT_COMMITTED"),
        (True, ["chunk"], "WEIGHTS_MALFORMED"),
        (False, ["commit"], "WEIGHTS_MALFORMED"),
    ],
)
def test_a_stream_that_ends_otherwise_than_it_said_changes_nothing(
    replica: Replica, store: ModelStore, announced: bool, more: list[str], reason: str
) -> None:
    before = replica.weights()
    weights = Trainer(store).prepare()
    image = weights.image("bfloat16")
    messages = [
        *weight_messages(image.header(weights.version), image.chunks(), awaits_commit=announced),
        *(
            COMMIT if part == "commit" else policy_pb2.UpdateWeightsRequest(chunk=policy_pb2.WeightsChunk())
            for part in more
        ),
    ]
    with pytest.raises(AndonError) as caught:
        replica.path.upload(replica.path._stub.UpdateWeights, messages, timeout_s=TIMEOUT_S)
    assert caught.value.reason == reason
    assert serves_the_same(replica, before)
    assert replica.updates("withdrawn" if reason == "WEIGHTS_NOT_COMMITTED" else reason) == 1


def test_a_commit_in_the_middle_of_the_bytes_is_malformed(replica: Replica, store: ModelStore) -> None:
    before = replica.weights()
    weights = Trainer(store).prepare()
    image = weights.image("bfloat16")
    header, *_ = weight_messages(image.header(weights.version), image.chunks(), awaits_commit=True)
    with pytest.raises(AndonError) as caught:
        replica.path.upload(replica.path._stub.UpdateWeights, [header, COMMIT], timeout_s=TIMEOUT_S)
    assert caught.value.reason == "WEIGHTS_MALFORMED"
    assert serves_the_same(replica, before)


def test_an_offer_that_begins_with_its_commit_or_says_nothing_is_malformed(replica: Replica) -> None:
    for messages in ([COMMIT], []):
        with pytest.raises(AndonError) as caught:
            replica.path.upload(replica.path._stub.UpdateWeights, messages, timeout_s=TIMEOUT_S)
        assert caught.value.reason == "WEIGHTS_MALFORMED"
    assert replica.updates("WEIGHTS_MALFORMED") == 2


@pytest.mark.parametrize("shared", [True, False])
def test_offered_weights_that_are_no_numbers_are_refused_and_the_next_ones_taken(
    replica: Replica, store: ModelStore, shared: bool
) -> None:
    if not shared:
        replica.path.alter = elsewhere
    trainer = Trainer(store, replica.path)
    trainer.learn_and_publish()
    before, right = replica.weights(), {name: tensor.clone() for name, tensor in trainer.weights.items()}
    next(iter(trainer.weights.values())).view(-1)[0] = torch.nan
    trainer.learn()
    wait_for(lambda: replica.updates("WEIGHTS_NOT_FINITE") == 1)  # before anybody has committed
    with pytest.raises(DataLossError) as caught:
        trainer.publisher.bring_to_current(replica.path)
    assert caught.value.reason == "WEIGHTS_NOT_FINITE"
    assert serves_the_same(replica, before)
    trainer.weights.update(right)
    assert_serves(replica, trainer, trainer.learn_and_publish(), "bfloat16")


def test_an_offer_of_what_is_in_use_already_succeeds_without_effect(
    replica: Replica, store: ModelStore
) -> None:
    trainer = Trainer(store)
    weights = trainer.prepare()
    first, second = offer(replica, weights).commit(), offer(replica, weights).commit()
    assert first.model == second.model == weights.version
    assert replica.updates("ok") == replica.updates("unchanged") == 1
