"""Decides how each call of the reward service is answered: check, queue, compute, convert.

A call keeps the model it was checked against, so that loading another one in the meantime neither breaks
nor mixes it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import structlog

from andon.api.common.v1 import model_pb2
from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as reward_grpc
from andon.modeling.normalization import Normalization, NormalizationMethod
from andon.rpc.convert import (
    check_required_model,
    model_info_to_proto,
    model_version_from_proto,
    model_version_to_proto,
    timing_to_proto,
)
from andon.rpc.worker import ModelWorker
from services.reward.config import RewardConfig
from services.reward.errors import ModelNotLoadedError, ScoresNotFiniteError
from services.reward.metrics import RewardMetrics
from services.reward.requests import groups_of
from services.reward.scorer import RewardModel, load_reward_model, score_summaries

_METHODS: dict[NormalizationMethod, reward_pb2.NormalizationMethod.ValueType] = {
    "none": reward_pb2.NORMALIZATION_METHOD_UNSPECIFIED,
    "reference_zero": reward_pb2.NORMALIZATION_METHOD_REFERENCE_ZERO,
    "policy_unit": reward_pb2.NORMALIZATION_METHOD_POLICY_UNIT,
}

_log = structlog.stdlib.get_logger("services.reward")


class RewardServicer(reward_grpc.RewardServiceServicer):
    """Implements ``andon.api.reward.v1.RewardService``."""

    def __init__(self, config: RewardConfig, worker: ModelWorker, metrics: RewardMetrics) -> None:
        self._config = config
        self._worker = worker
        self._metrics = metrics
        # One thread, because a tokenizer must not be used by two; a thread, because a large request takes
        # long and the event loop has other calls to answer meanwhile.
        self._tokenizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward-tokenizer")
        self._served: RewardModel | None = None

    def close(self) -> None:
        """End the thread that tokenizes."""
        self._tokenizing.shutdown()

    async def load(self, name: str) -> RewardModel:
        """Load a model in the model thread and take it into use. On an error the old one stays in use."""
        try:
            timed = await self._worker.run(lambda: load_reward_model(name, self._config))
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

    async def Score(
        self,
        request: reward_pb2.ScoreRequest,
        context: grpc.aio.ServicerContext[reward_pb2.ScoreRequest, reward_pb2.ScoreResponse],
    ) -> reward_pb2.ScoreResponse:
        """Score every summary of every document."""
        served = self._in_use()
        if request.HasField("required_model"):
            check_required_model(model_version_from_proto(request.required_model), served.version)
        groups = await asyncio.get_running_loop().run_in_executor(
            self._tokenizing, lambda: groups_of(request.items, encoder=served.codec, limits=served.limits)
        )
        try:
            timed = await self._worker.run(
                lambda: score_summaries(
                    served,
                    groups,
                    token_budget=self._config.token_budget,
                    between_batches=self._worker.check_caller,
                )
            )
        except ScoresNotFiniteError as error:
            self._metrics.not_finite.inc()
            _log.error("scores_not_finite", **error.metadata)
            raise
        self._metrics.answered(timed.value)
        return reward_pb2.ScoreResponse(
            items=[
                reward_pb2.ItemScores(
                    summaries=[
                        reward_pb2.SummaryScore(
                            score=summary.score, raw_score=summary.raw_score, token_count=summary.token_count
                        )
                        for summary in row
                    ]
                )
                for row in timed.value
            ],
            model=model_version_to_proto(served.version),
            normalization=_normalization_to_proto(served.normalization),
            timing=timing_to_proto(queue_s=timed.queue_s, compute_s=timed.compute_s),
            tokenizer_fingerprint=served.codec.fingerprint,
        )

    async def LoadModel(
        self,
        request: reward_pb2.LoadModelRequest,
        context: grpc.aio.ServicerContext[reward_pb2.LoadModelRequest, reward_pb2.LoadModelResponse],
    ) -> reward_pb2.LoadModelResponse:
        """Load a model and answer once it is in use."""
        served = await self.load(request.model)
        return reward_pb2.LoadModelResponse(
            info=_info_of(served), normalization=_normalization_to_proto(served.normalization)
        )

    async def GetModelInfo(
        self,
        request: reward_pb2.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[reward_pb2.GetModelInfoRequest, reward_pb2.GetModelInfoResponse],
    ) -> reward_pb2.GetModelInfoResponse:
        """Describe the model in use."""
        served = self._in_use()
        return reward_pb2.GetModelInfoResponse(
            info=_info_of(served), normalization=_normalization_to_proto(served.normalization)
        )

    def _in_use(self) -> RewardModel:
        if self._served is None:
            raise ModelNotLoadedError
        return self._served


def _info_of(served: RewardModel) -> model_pb2.ModelInfo:
    return model_info_to_proto(
        served.facts,
        version=served.version,
        eos_token_id=served.codec.eos_token_id,
        tokenizer_fingerprint=served.codec.fingerprint,
        load_time=served.load_time,
    )


def _normalization_to_proto(normalization: Normalization) -> reward_pb2.Normalization:
    return reward_pb2.Normalization(
        method=_METHODS[normalization.method], gain=normalization.gain, bias=normalization.bias
    )
