"""The reference service as a client sees it: log-probabilities under the frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from andon.api.reference.v1 import reference_service_pb2 as reference_pb2
from andon.api.reference.v1 import reference_service_pb2_grpc as reference_grpc
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
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import model_version_from_proto, model_version_to_proto


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProbs:
    """The answer to one request for log-probabilities."""

    items: tuple[tuple[tuple[float, ...], ...], ...]  # [item][response][token], nats
    model: ModelVersion
    queue_s: float
    compute_s: float
    applied_temperature: float
    tokenizer_fingerprint: str


class ReferenceClient(ServiceConnection):
    """Calls the reference service."""

    def __init__(self, target: str, *, options: ChannelOptions | None = None) -> None:
        super().__init__(target, service_name="andon.api.reference.v1.ReferenceService", options=options)
        self._stub = reference_grpc.ReferenceServiceStub(self.channel)

    def logprobs(
        self,
        items: Sequence[Item],
        *,
        temperature: float = 1.0,
        required_model: ModelVersion | None = None,
        timeout_s: float = 600.0,
        wait_for_ready: bool = False,
    ) -> LogProbs:
        """Log-probability of every token of every response.

        Many items go out as several calls, all answered by one version: the first call's.
        """
        rows: list[tuple[tuple[float, ...], ...]] = []
        queue_s = compute_s = 0.0
        model = required_model
        applied_temperature, fingerprint = temperature, ""
        for batch in item_batches(items):
            request = reference_pb2.LogProbsRequest(
                request_id=new_request_id(),
                items=[
                    reference_pb2.LogProbsItem(
                        prompt=prompt_to_proto(prompt),
                        responses=[response_to_proto(response) for response in responses],
                    )
                    for prompt, responses in batch
                ],
                temperature=temperature,
                required_model=None if model is None else model_version_to_proto(model),
            )
            answer = self.unary(
                self._stub.LogProbs, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready
            )
            rows.extend(
                tuple(tuple(response.logprobs) for response in item.responses) for item in answer.items
            )
            model = model_version_from_proto(answer.model)
            applied_temperature, fingerprint = answer.applied_temperature, answer.tokenizer_fingerprint
            timing = timing_from_proto(answer.timing)
            queue_s, compute_s = queue_s + timing.queue_s, compute_s + timing.compute_s
        if model is None:
            raise RuntimeError("item_batches yields at least one batch")
        return LogProbs(
            items=tuple(rows),
            model=model,
            queue_s=queue_s,
            compute_s=compute_s,
            applied_temperature=applied_temperature,
            tokenizer_fingerprint=fingerprint,
        )

    def load_model(self, name: str, *, timeout_s: float = 600.0, wait_for_ready: bool = False) -> ModelInfo:
        """Makes the service use a version from the model store."""
        answer = self.unary(
            self._stub.LoadModel,
            reference_pb2.LoadModelRequest(model=name),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return model_info_from_proto(answer.info)

    def model_info(self, *, timeout_s: float = 30.0, wait_for_ready: bool = False) -> ModelInfo:
        """Describes the model in use."""
        answer = self.unary(
            self._stub.GetModelInfo,
            reference_pb2.GetModelInfoRequest(),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return model_info_from_proto(answer.info)
