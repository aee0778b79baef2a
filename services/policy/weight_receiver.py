"""Decides whether a stream of weights is taken into use.

The servicer hands over the stream of UpdateWeights. The header is checked against the model in use before
room is made for its bytes; the bytes are checked when all are there; then the runner copies them into the
model when the calls that arrived before have ended. Whatever goes wrong, the old weights stay. One update at
a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from torch import Tensor

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.errors import AndonError, InvalidArgumentError
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import (
    TensorSpec,
    WeightsAssembler,
    WeightsHeader,
    load_weights,
    model_weights,
)
from andon.rpc.convert import model_version_from_proto
from services.policy.errors import ModelNotLoadedError, ModelVersionConflictError
from services.policy.metrics import PolicyMetrics
from services.policy.runner import SamplingRunner
from services.policy.served_model import ServedModel


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
        expected = {name: tuple(tensor.shape) for name, tensor in model_weights(served.model).items()}
        assembler = WeightsAssembler.begin(header, expected_shapes=expected)
        async for message in stream:
            if message.WhichOneof("part") != "chunk":
                raise _malformed("a message after the header is no chunk")
            assembler.add(message.chunk.offset_bytes, message.chunk.data)
        # Hashing takes as long as reading all bytes: not on the event loop.
        state = await asyncio.get_running_loop().run_in_executor(None, assembler.finish)
        replaced = await asyncio.wrap_future(
            self._runner.replace(lambda active: _apply(active, header.model, state))
        )
        apply_s = self._runner.clock() - start_s
        self._metrics.weight_update_ended("ok")
        self._metrics.weight_update_seconds.observe(apply_s)
        self._metrics.model.loaded(replaced.version)
        return WeightUpdate(model=replaced.version, apply_s=apply_s)


def _apply(active: ServedModel | None, version: ModelVersion, state: dict[str, Tensor]) -> ServedModel:
    """Copy the weights into the model in use; they are checked once more, before the first is copied."""
    if active is None:
        raise ModelNotLoadedError
    load_weights(active.model, state)
    return active.with_version(version)


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
    )


def _malformed(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="WEIGHTS_MALFORMED")
