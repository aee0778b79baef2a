"""Decides whether a stream of weights is taken into use.

The servicer hands over the stream of UpdateWeights. The header is checked against the model in use before
room is made for its bytes. All bytes, in chunks or in the sender's memory, are checked when they are there;
then the runner copies them into the model when the calls that arrived before have ended. A delta is put into
the model at the same moment, checked there, and taken back if it is wrong. Whatever goes wrong, the old
weights stay. One update at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

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
    dtype_name,
    load_weights,
    model_weights,
    tensors_in,
)
from andon.modeling.weight_delta import apply_delta, decode_delta
from andon.rpc.convert import model_version_from_proto
from services.policy.errors import ModelNotLoadedError, ModelVersionConflictError, WeightsBaseMismatchError
from services.policy.metrics import PolicyMetrics
from services.policy.runner import SamplingRunner
from services.policy.served_model import ServedModel

Way = Literal["full", "delta", "shared_memory"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """An update that is in use."""

    model: ModelVersion
    apply_s: float  # from the header's arrival


class WeightReceiver:
    """Receives weights for the runner's model."""

    def __init__(self, runner: SamplingRunner, metrics: PolicyMetrics) -> None:
        self._runner = runner
        self._metrics = metrics
        self.lock = asyncio.Lock()  # held while a model is being replaced, by an update or by LoadModel

    async def receive(self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightUpdate:
        """Take a whole stream into use. Raises the errors that the contract names."""
        async with self.lock:
            try:
                update = await self._receive(stream)
            except AndonError as error:
                self._metrics.weight_update_ended(error.reason)
                raise
            return update

    async def _receive(self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightUpdate:
        header = await _first_part(stream)
        start_s = self._runner.clock()
        served = self._runner.served
        if served is None:
            raise ModelNotLoadedError
        if header.model.is_same_name(served.version):
            if header.model.weights_sha256 == served.version.weights_sha256:
                self._metrics.weight_update_ended("unchanged")
                return WeightUpdate(model=served.version, apply_s=self._runner.clock() - start_s)
            raise ModelVersionConflictError(
                model=str(served.version),
                active_sha256=served.version.weights_sha256,
                offered_sha256=header.model.weights_sha256,
            )
        own = model_weights(served.model)
        size_bytes = check_header(
            header, expected_shapes={name: tuple(tensor.shape) for name, tensor in own.items()}
        )
        apply: Callable[[ServedModel], None]
        if header.base is not None:
            _check_base(header, served.version, own)
            data = await _chunks_of(stream, header)
            # Decoding and hashing read all bytes: not on the event loop.
            changes = await _aside(lambda: decode_delta(data, header.tensors))

            def apply(active: ServedModel) -> None:
                apply_delta(model_weights(active.model), changes, checksum=header.checksum)
        else:
            state = await self._all_of(stream, header, size_bytes)

            def apply(active: ServedModel) -> None:
                load_weights(active.model, state)

        def replace(active: ServedModel | None) -> ServedModel:
            if active is None:
                raise ModelNotLoadedError
            apply(active)
            return active.with_version(header.model)

        replaced = await asyncio.wrap_future(self._runner.replace(replace))
        apply_s = self._runner.clock() - start_s
        self._metrics.weights_taken(way_of(header), size_bytes=header.size_bytes, seconds=apply_s)
        self._metrics.model.loaded(replaced.version)
        return WeightUpdate(model=replaced.version, apply_s=apply_s)

    async def _all_of(
        self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest], header: WeightsHeader, size_bytes: int
    ) -> dict[str, Tensor]:
        """Checked tensors of all bytes, wherever they come from."""
        if header.memory is None:
            data = await _chunks_of(stream, header)
            state = tensors_in(data, header.tensors)
        else:
            await _expect_end(stream)
            state = tensors_in(map_shared_memory(header.memory, size_bytes), header.tensors)
        await _aside(lambda: check_weights(state, header.checksum))
        return state


def way_of(header: WeightsHeader) -> Way:
    """How the bytes of an update come."""
    if header.base is not None:
        return "delta"
    return "full" if header.memory is None else "shared_memory"


def _check_base(header: WeightsHeader, active: ModelVersion, own: dict[str, Tensor]) -> None:
    """Raise WeightsBaseMismatchError unless the delta is to exactly what is in use."""
    if header.base != active:
        raise WeightsBaseMismatchError(active=active, base=str(header.base))
    for spec in header.tensors:
        if dtype_name(spec.name, own[spec.name]) != spec.dtype or not own[spec.name].is_contiguous():
            raise WeightsBaseMismatchError(active=active, base=f"{header.base} in {spec.dtype}")


async def _chunks_of(
    stream: AsyncIterator[policy_pb2.UpdateWeightsRequest], header: WeightsHeader
) -> bytearray:
    buffer = ChunkBuffer(header.size_bytes)
    async for message in stream:
        if message.WhichOneof("part") != "chunk":
            raise _malformed("a message after the header is no chunk")
        buffer.add(message.chunk.offset_bytes, message.chunk.data)
    return buffer.finish()


async def _expect_end(stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> None:
    async for _ in stream:
        raise _malformed("a message follows the header of weights in shared memory")


async def _aside(work: Callable[[], T]) -> T:
    """Do work that takes long in another thread."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


async def _first_part(stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightsHeader:
    async for message in stream:
        if message.WhichOneof("part") != "header":
            raise _malformed("the first message is no header")
        return _header_of(message.header)
    raise _malformed("the stream is empty")


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
