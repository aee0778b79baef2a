"""The reward service as a client sees it: scores of summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from andon.api.reward.v1 import reward_service_pb2 as reward_pb2
from andon.api.reward.v1 import reward_service_pb2_grpc as reward_grpc
from andon.client.batches import Item, item_batches
from andon.client.channel import ChannelOptions
from andon.client.connection import ServiceConnection, new_request_id
from andon.client.values import (
    ModelInfo,
    model_info_from_proto,
    prompt_to_proto,
    response_to_proto,
    timing_from_proto,
)
from andon.modeling.normalization import Normalization, NormalizationMethod
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import model_version_from_proto, model_version_to_proto

_METHODS: dict[int, NormalizationMethod] = {
    reward_pb2.NORMALIZATION_METHOD_UNSPECIFIED: "none",
    reward_pb2.NORMALIZATION_METHOD_REFERENCE_ZERO: "reference_zero",
    reward_pb2.NORMALIZATION_METHOD_POLICY_UNIT: "policy_unit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryScore:
    """The score of one summary; the larger, the better people would like it."""

    score: float
    raw_score: float
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The answer to one request for scores."""

    items: tuple[tuple[SummaryScore, ...], ...]  # [document][summary]
    model: ModelVersion
    normalization: Normalization
    queue_s: float
    compute_s: float
    tokenizer_fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelInfo:
    """The reward model in use."""

    info: ModelInfo
    normalization: Normalization


class RewardClient(ServiceConnection):
    """Calls the reward service."""

    def __init__(self, target: str, *, options: ChannelOptions | None = None) -> None:
        super().__init__(target, service_name="andon.api.reward.v1.RewardService", options=options)
        self._stub = reward_grpc.RewardServiceStub(self.channel)

    def score(
        self,
        items: Sequence[Item],
        *,
        required_model: ModelVersion | None = None,
        timeout_s: float = 600.0,
        wait_for_ready: bool = False,
    ) -> Scores:
        """Scores the summaries of each (document, summaries) item.

        Many items go out as several calls, all answered by one version: the first call's.
        """
        rows: list[tuple[SummaryScore, ...]] = []
        queue_s = compute_s = 0.0
        model = required_model
        normalization: Normalization | None = None
        fingerprint = ""
        for batch in item_batches(items):
            request = reward_pb2.ScoreRequest(
                request_id=new_request_id(),
                items=[
                    reward_pb2.ScoreItem(
                        document=prompt_to_proto(document),
                        summaries=[response_to_proto(summary) for summary in summaries],
                    )
                    for document, summaries in batch
                ],
                required_model=None if model is None else model_version_to_proto(model),
            )
            answer = self.unary(self._stub.Score, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready)
            rows.extend(
                tuple(
                    SummaryScore(
                        score=summary.score, raw_score=summary.raw_score, token_count=summary.token_count
                    )
                    for summary in item.summaries
                )
                for item in answer.items
            )
            model = model_version_from_proto(answer.model)
            normalization = _normalization(answer.normalization)
            fingerprint = answer.tokenizer_fingerprint
            timing = timing_from_proto(answer.timing)
            queue_s, compute_s = queue_s + timing.queue_s, compute_s + timing.compute_s
        if model is None or normalization is None:
            raise RuntimeError("item_batches yields at least one batch")
        return Scores(
            items=tuple(rows),
            model=model,
            normalization=normalization,
            queue_s=queue_s,
            compute_s=compute_s,
            tokenizer_fingerprint=fingerprint,
        )

    def load_model(
        self, name: str, *, timeout_s: float = 600.0, wait_for_ready: bool = False
    ) -> RewardModelInfo:
        """Makes the service use a version from the model store."""
        answer = self.unary(
            self._stub.LoadModel,
            reward_pb2.LoadModelRequest(model=name),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return RewardModelInfo(
            info=model_info_from_proto(answer.info), normalization=_normalization(answer.normalization)
        )

    def model_info(self, *, timeout_s: float = 30.0, wait_for_ready: bool = False) -> RewardModelInfo:
        """Describes the reward model in use."""
        answer = self.unary(
            self._stub.GetModelInfo,
            reward_pb2.GetModelInfoRequest(),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return RewardModelInfo(
            info=model_info_from_proto(answer.info), normalization=_normalization(answer.normalization)
        )


def _normalization(normalization: reward_pb2.Normalization) -> Normalization:
    return Normalization(
        method=_METHODS.get(normalization.method, "none"), gain=normalization.gain, bias=normalization.bias
    )
