"""Decides how each call of the reference service is answered: check, queue, compute, convert.

A call keeps the model it was checked against, so that loading another one in the meantime neither breaks
nor mixes it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import structlog

from andon.api.common.v1 import model_pb2
from andon.api.reference.v1 import reference_service_pb2 as reference_pb2
from andon.api.reference.v1 import reference_service_pb2_grpc as reference_grpc
from andon.rpc.convert import (
    check_required_model,
    model_info_to_proto,
    model_version_from_proto,
    model_version_to_proto,
    timing_to_proto,
)
from andon.rpc.worker import ModelWorker
from services.reference.config import ReferenceConfig
from services.reference.errors import LogProbsNotFiniteError, ModelNotLoadedError
from services.reference.logprobs import ReferenceModel, load_reference_model, response_logprobs
from services.reference.metrics import ReferenceMetrics
from services.reference.requests import groups_of, temperature_of

_log = structlog.stdlib.get_logger("services.reference")


class ReferenceServicer(reference_grpc.ReferenceServiceServicer):
    """Implements ``andon.api.reference.v1.ReferenceService``."""

    def __init__(self, config: ReferenceConfig, worker: ModelWorker, metrics: ReferenceMetrics) -> None:
        self._config = config
        self._worker = worker
        self._metrics = metrics
        # One thread, because a tokenizer must not be used by two; a thread, because a large request takes
        # long and the event loop has other calls to answer meanwhile.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reference-tokenizer")
        self._served: ReferenceModel | None = None

    def close(self) -> None:
        """End the thread that tokenizes."""
        self._tokenizing.shutdown()

    async def load(self, name: str) -> ReferenceModel:
        """Load a model in the model thread and take it into use. On an error the old one stays in use."""
        try:
            timed = await self._worker.run(lambda: load_reference_model(name, self._config))
        except Exception:
            self._metrics.model.load_failed()
            raise
        self._served = timed.value
        self._metrics.model.loaded(timed.value.version)
        _log.info(
            "model_loaded",
            model=str(timed.value.version),
            architecture=timed.value.facts.architecture,
            parameters=timed.value.facts.parameter_count,
            seconds=round(timed.compute_s, 3),
        )
        return timed.value

    async def LogProbs(
        self,
        request: reference_pb2.LogProbsRequest,
        context: grpc.aio.ServicerContext[reference_pb2.LogProbsRequest, reference_pb2.LogProbsResponse],
    ) -> reference_pb2.LogProbsResponse:
        """Give the log-probability of every token of every response."""
        served = self._in_use()
        if request.HasField("required_model"):
            check_required_model(model_version_from_proto(request.required_model), served.version)
        temperature = temperature_of(request)
        groups = await asyncio.get_running_loop().run_in_executor(
            self._tokenizing, lambda: groups_of(request.items, encoder=served.codec, limits=served.limits)
        )
        try:
            timed = await self._worker.run(
                lambda: response_logprobs(
                    served,
                    groups,
                    temperature=temperature,
                    token_budget=self._config.token_budget,
                    between_batches=self._worker.check_caller,
                )
            )
        except LogProbsNotFiniteError as error:
            self._metrics.not_finite.inc()
            _log.error("logprobs_not_finite", **error.metadata)
            raise
        self._metrics.answered(groups)
        return reference_pb2.LogProbsResponse(
            items=[
                reference_pb2.ItemLogProbs(
                    responses=[reference_pb2.ResponseLogProbs(logprobs=values) for values in row]
                )
                for row in timed.value
            ],
            model=model_version_to_proto(served.version),
            timing=timing_to_proto(queue_s=timed.queue_s, compute_s=timed.compute_s),
            applied_temperature=temperature,
            tokenizer_fingerprint=served.codec.fingerprint,
        )

    async def LoadModel(
        self,
        request: reference_pb2.LoadModelRequest,
        context: grpc.aio.ServicerContext[reference_pb2.LoadModelRequest, reference_pb2.LoadModelResponse],
    ) -> reference_pb2.LoadModelResponse:
        """Load a model and answer once it is in use."""
        served = await self.load(request.model)
        return reference_pb2.LoadModelResponse(info=_info_of(served))

    async def GetModelInfo(
        self,
        request: reference_pb2.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[
            reference_pb2.GetModelInfoRequest, reference_pb2.GetModelInfoResponse
        ],
    ) -> reference_pb2.GetModelInfoResponse:
        """Describe the model in use."""
        return reference_pb2.GetModelInfoResponse(info=_info_of(self._in_use()))

    def _in_use(self) -> ReferenceModel:
        if self._served is None:
            raise ModelNotLoadedError
        return self._served


def _info_of(served: ReferenceModel) -> model_pb2.ModelInfo:
    return model_info_to_proto(
        served.facts,
        version=served.version,
        eos_token_id=served.codec.eos_token_id,
        tokenizer_fingerprint=served.codec.fingerprint,
        load_time=served.load_time,
    )
