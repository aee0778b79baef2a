"""Decides whether a stream of weights is taken into use.

The servicer hands over the stream of UpdateWeights. The header is checked against the model in use before
room is made for its bytes. New weights, from chunks, from the sender's memory or made from those in use by a
delta, are checked beside the model when all bytes are there. Where the sender wants to decide later, they are
kept until it commits. Then they take the place of the model's when the calls that arrived before have ended.
Whatever goes wrong, the old weights stay. One update at a time, and one that is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Literal, TypeAlias

from torch import Tensor
from transformers import PreTrainedModel

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.errors import AndonError, InvalidArgumentError
from andon.modeling.shared_memory import SharedMemoryAddress, map_shared_memory
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import (
    ChunkBuffer,
    TensorSpec,
    WeightsHeader,
    check_header,
    check_weights,
    copied,
    dtype_name,
    exchange_weights,
    made_ready,
    own_tensors,
    tensors_in,
)
from andon.modeling.weight_delta import decode_delta, with_changes
from andon.rpc.convert import model_version_from_proto
from services.policy.errors import (
    ModelNotLoadedError,
    ModelVersionConflictError,
    ShuttingDownError,
    WeightsBaseMismatchError,
    WeightsNotCommittedError,
    WeightsOvertakenError,
)
from services.policy.metrics import PolicyMetrics
from services.policy.runner import SamplingRunner
from services.policy.served_model import ServedModel

Way = Literal["full", "delta", "shared_memory"]

_Messages: TypeAlias = AsyncIterator[policy_pb2.UpdateWeightsRequest]
_Why: TypeAlias = Callable[[ModelVersion], AndonError]  # why weights of this version are given up


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """An update that is in use."""

    model: ModelVersion
    apply_s: float  # from the header's arrival, or the commit's


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrived:
    """What opened a stream, and its weights, found right and ready for ``model``.

    ``ready`` is None for weights that are in use already.
    """

    header: WeightsHeader
    start_s: float  # when the header came
    model: PreTrainedModel
    own: dict[str, Tensor]  # the model's tensors
    ready: dict[str, Tensor] | None

    @property
    def awaits_commit(self) -> bool:
        """Whether the sender has still to say that they are to be used."""
        return self.header.awaits_commit and self.ready is not None


class WeightReceiver:
    """Receives weights for the runner's model."""

    def __init__(self, runner: SamplingRunner, metrics: PolicyMetrics) -> None:
        self._runner = runner
        self._metrics = metrics
        self.lock = asyncio.Lock()  # held while a model is being replaced, by an update or by LoadModel
        self._kept: asyncio.Future[_Why] | None = None  # of the stream that waits for its commit
        self._closed = False

    async def receive(self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightUpdate:
        """Take a whole stream into use. Raises the errors that the contract names."""
        messages = aiter(stream)
        try:
            async with self.lock:
                self._give_up_kept(lambda model: WeightsOvertakenError(model=model))
                arrived = await self._arrived(messages)
                if not arrived.awaits_commit:
                    return await self._use(arrived, arrived.start_s)
            await self._until_committed(messages, arrived.header.model)
            begin_s = self._runner.clock()
            async with self.lock:
                return await self._use(arrived, begin_s)
        except (WeightsNotCommittedError, asyncio.CancelledError):
            self._metrics.weight_update_ended("withdrawn")
            raise
        except AndonError as error:
            self._metrics.weight_update_ended(error.reason)
            raise

    def close(self) -> None:
        """Keep no weights any longer: the service ends."""
        self._closed = True
        self._give_up_kept(lambda model: ShuttingDownError())

    async def _arrived(self, messages: _Messages) -> _Arrived:
        header = await _first_part(messages)
        start_s = self._runner.clock()
        served = self._served_before(header)
        own = own_tensors(served.model)
        if served.version == header.model:
            return _Arrived(header=header, start_s=start_s, model=served.model, own=own, ready=None)
        size_bytes = check_header(
            header, expected_shapes={name: tuple(tensor.shape) for name, tensor in own.items()}
        )
        if header.memory is not None:
            data: memoryview | mmap = map_shared_memory(header.memory, size_bytes)
        else:
            if header.base is not None:
                _check_base_types(header, served.version, own)
            data = await _chunks_of(messages, header)
        if not header.awaits_commit:
            await _expect_end(messages)

        def ready() -> dict[str, Tensor]:
            # The sender's memory is copied before it is looked at: what is used is what was checked.
            received = copied(data) if isinstance(data, mmap) else data
            if header.base is not None:
                state = with_changes(own, decode_delta(received, header.tensors))
            else:
                state = tensors_in(received, header.tensors)
            check_weights(state, header.checksum)
            return made_ready(own, state)

        # It reads all bytes: not on the event loop.
        return _Arrived(
            header=header,
            start_s=start_s,
            model=served.model,
            own=own,
            ready=await asyncio.get_running_loop().run_in_executor(None, ready),
        )

    async def _until_committed(self, messages: _Messages, model: ModelVersion) -> None:
        """Wait for the commit. Raises WeightsNotCommittedError, WeightsOvertakenError, ShuttingDownError."""
        if self._closed:
            raise ShuttingDownError
        kept = self._kept = asyncio.get_running_loop().create_future()
        message = asyncio.ensure_future(_next(messages))
        try:
            await asyncio.wait([message, kept], return_when=asyncio.FIRST_COMPLETED)
            if kept.done():
                raise kept.result()(model)
            last = message.result()
        finally:
            message.cancel()
            if self._kept is kept:
                self._kept = None
        if last is None:
            raise WeightsNotCommittedError(model=model)
        if last.WhichOneof("part") != "commit":
            raise _malformed("a message behind the last byte is no commit")

    def _give_up_kept(self, why: _Why) -> None:
        kept, self._kept = self._kept, None
        if kept is not None and not kept.done():
            kept.set_result(why)

    async def _use(self, arrived: _Arrived, start_s: float) -> WeightUpdate:
        header, ready = arrived.header, arrived.ready
        served = self._served_before(header)
        if ready is None or served.version == header.model:
            self._metrics.weight_update_ended("unchanged")
            return WeightUpdate(model=served.version, apply_s=self._runner.clock() - start_s)

        def replace(active: ServedModel | None) -> ServedModel:
            if active is None or active.model is not arrived.model:  # LoadModel came before the commit
                raise WeightsOvertakenError(model=header.model)
            exchange_weights(arrived.own, ready)
            return active.with_version(header.model)

        replaced = await asyncio.wrap_future(self._runner.replace(replace))
        apply_s = self._runner.clock() - start_s
        self._metrics.weights_taken(way_of(header), size_bytes=header.size_bytes, seconds=apply_s)
        self._metrics.model.loaded(replaced.version)
        return WeightUpdate(model=replaced.version, apply_s=apply_s)

    def _served_before(self, header: WeightsHeader) -> ServedModel:
        """What is in use, to which the header's weights may follow, now."""
        served = self._runner.served
        if served is None:
            raise ModelNotLoadedError
        if header.model.is_same_name(served.version):
            if header.model.weights_sha256 != served.version.weights_sha256:
                raise ModelVersionConflictError(
                    model=str(served.version),
                    active_sha256=served.version.weights_sha256,
                    offered_sha256=header.model.weights_sha256,
                )
        elif header.base is not None and header.base != served.version:
            raise WeightsBaseMismatchError(active=served.version, base=str(header.base))
        return served


def way_of(header: WeightsHeader) -> Way:
    """How the bytes of an update come."""
    if header.base is not None:
        return "delta"
    return "full" if header.memory is None else "shared_memory"


def _check_base_types(header: WeightsHeader, active: ModelVersion, own: Mapping[str, Tensor]) -> None:
    """Raise WeightsBaseMismatchError unless the delta is between the types that are in use."""
    for spec in header.tensors:
        if dtype_name(spec.name, own[spec.name]) != spec.dtype:
            raise WeightsBaseMismatchError(active=active, base=f"{header.base} in {spec.dtype}")


async def _next(messages: _Messages) -> policy_pb2.UpdateWeightsRequest | None:
    """The next message; None when the sender has ended the stream."""
    return await anext(messages, None)


async def _first_part(messages: _Messages) -> WeightsHeader:
    message = await _next(messages)
    if message is None:
        raise _malformed("the stream is empty")
    if message.WhichOneof("part") != "header":
        raise _malformed("the first message is no header")
    return _header_of(message.header)


async def _chunks_of(messages: _Messages, header: WeightsHeader) -> memoryview:
    buffer = ChunkBuffer(header.size_bytes)
    while not buffer.is_full and (message := await _next(messages)) is not None:
        if message.WhichOneof("part") != "chunk":
            raise _malformed("a message that should hold a chunk does not")
        buffer.add(message.chunk.offset_bytes, message.chunk.data)
    return buffer.finish()


async def _expect_end(messages: _Messages) -> None:
    if await _next(messages) is not None:
        raise _malformed("the stream goes on behind its last byte")


def _header_of(message: policy_pb2.WeightsHeader) -> WeightsHeader:
    model = model_version_from_proto(message.model)
    if not model.family or model.version < 1:
        raise _malformed(f"{model} does not name a version")
    return WeightsHeader(
        model=model,
        tensors=tuple(
            TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tuple(tensor.shape))
            for tensor in message.tensors
        ),
        size_bytes=message.size_bytes,
        checksum=message.checksum,
        base=model_version_from_proto(message.base) if message.HasField("base") else None,
        awaits_commit=message.awaits_commit,
        memory=(
            SharedMemoryAddress(
                process_id=message.memory.process_id,
                descriptor=message.memory.descriptor,
                name=message.memory.name,
            )
            if message.HasField("memory")
            else None
        ),
    )


def _malformed(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="WEIGHTS_MALFORMED")
