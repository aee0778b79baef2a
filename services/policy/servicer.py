"""Decides how each call of the policy service is answered: check, sample, convert."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc.aio
import structlog

from andon.api.common.v1 import model_pb2
from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.api.policy.v1 import policy_service_pb2_grpc as policy_grpc
from andon.rpc.convert import (
    model_info_to_proto,
    model_version_from_proto,
    model_version_to_proto,
    seconds_to_duration,
    timing_to_proto,
)
from services.policy.backends.backend import Backend, Capabilities, LogprobBasis, Served, check_parameters
from services.policy.call import CallOutcome, FinishedSequence, FinishReason, SampleCall
from services.policy.config import PolicyConfig
from services.policy.errors import ModelNotLoadedError
from services.policy.requests import check_not_empty, parameters_of, prompts_of
from services.policy.stopping import cut_at_stop

_FINISH_REASONS = {
    FinishReason.EOS: policy_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: policy_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: policy_pb2.FINISH_REASON_LENGTH,
}

_LOGPROB_BASES = {
    LogprobBasis.EXACT: policy_pb2.LOGPROB_BASIS_EXACT,
    LogprobBasis.PLAIN: policy_pb2.LOGPROB_BASIS_PLAIN,
    LogprobBasis.DRAWN: policy_pb2.LOGPROB_BASIS_DRAWN,
}

T = TypeVar("T")

_log = structlog.stdlib.get_logger("services.policy")


class PolicyServicer(policy_grpc.PolicyServiceServicer):
    """Implements ``andon.api.policy.v1.PolicyService``."""

    def __init__(self, config: PolicyConfig, backend: Backend) -> None:
        self._config = config
        self._backend = backend
        # Texts of a large call keep a thread busy for a while; the event loop has other calls to answer. One
        # thread, because a tokenizer is not made for two that encode.
        self._text_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy-text")

    def close(self) -> None:
        """End the thread that works on texts."""
        self._text_thread.shutdown()

    async def Sample(
        self,
        request: policy_pb2.SampleRequest,
        context: grpc.aio.ServicerContext[policy_pb2.SampleRequest, policy_pb2.SampleResponse],
    ) -> policy_pb2.SampleResponse:
        """Write responses to prompts."""
        arrival_s = self._backend.clock()
        served = self._in_use()
        check_not_empty(request)
        parameters = parameters_of(
            request.parameters,
            num_prompts=len(request.prompts),
            limits=self._backend.limits,
            vocab_size=served.limits.vocab_size,
            max_samples=self._config.max_samples_per_call,
            max_new_tokens=min(self._config.max_new_tokens, served.limits.max_sequence_tokens),
        )
        check_parameters(parameters, self._backend.capabilities)
        prompts = await self._on_texts(
            lambda: prompts_of(
                request.prompts,
                parameters,
                encoder=served.codec,
                model_limits=served.limits,
                limits=self._backend.limits,
            )
        )
        call = SampleCall(
            call_id=self._backend.next_id(),
            prompts=prompts,
            parameters=parameters,
            required_model=(
                model_version_from_proto(request.required_model)
                if request.HasField("required_model")
                else None
            ),
            tokenizer_fingerprint=served.codec.fingerprint,
            arrival_s=arrival_s,
        )
        outcome = await self._backend.sample(call)
        return await self._on_texts(lambda: _response(call, outcome, decode=served.codec.decode))

    async def UpdateWeights(
        self,
        request_iterator: AsyncIterator[policy_pb2.UpdateWeightsRequest],
        context: grpc.aio.ServicerContext[policy_pb2.UpdateWeightsRequest, policy_pb2.UpdateWeightsResponse],
    ) -> policy_pb2.UpdateWeightsResponse:
        """Take new weights into use."""
        update = await self._backend.update_weights(request_iterator)
        _log.info("weights_updated", model=str(update.model), apply_s=round(update.apply_s, 4))
        return policy_pb2.UpdateWeightsResponse(
            model=model_version_to_proto(update.model), apply_duration=seconds_to_duration(update.apply_s)
        )

    async def LoadModel(
        self,
        request: policy_pb2.LoadModelRequest,
        context: grpc.aio.ServicerContext[policy_pb2.LoadModelRequest, policy_pb2.LoadModelResponse],
    ) -> policy_pb2.LoadModelResponse:
        """Load a model and answer once it is in use."""
        return policy_pb2.LoadModelResponse(info=_info_of(await self._backend.load_model(request.model)))

    async def GetModelInfo(
        self,
        request: policy_pb2.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[policy_pb2.GetModelInfoRequest, policy_pb2.GetModelInfoResponse],
    ) -> policy_pb2.GetModelInfoResponse:
        """Describe the model in use."""
        return policy_pb2.GetModelInfoResponse(
            info=_info_of(self._in_use()), capabilities=_capabilities_of(self._backend.capabilities)
        )

    def _in_use(self) -> Served:
        served = self._backend.served
        if served is None:
            raise ModelNotLoadedError
        return served

    async def _on_texts(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._text_thread, work)


def _response(
    call: SampleCall, outcome: CallOutcome, *, decode: Callable[[list[int]], str]
) -> policy_pb2.SampleResponse:
    per_prompt = call.parameters.samples_per_prompt
    model = model_version_to_proto(outcome.model)
    results = [
        policy_pb2.PromptSamples(
            prompt_token_ids=prompt,
            samples=[
                _sample(
                    sequence,
                    model=model,
                    stop_texts=call.parameters.stop_texts,
                    first_token_s=None if outcome.first_token_s is None else outcome.first_token_s[index],
                    decode=decode,
                )
                for sequence in outcome.sequences[index * per_prompt : (index + 1) * per_prompt]
            ],
        )
        for index, prompt in enumerate(call.prompts)
    ]
    return policy_pb2.SampleResponse(
        results=results,
        model=model,
        seed=call.parameters.seed,
        timing=timing_to_proto(queue_s=outcome.queue_s, compute_s=outcome.compute_s),
        applied_parameters=_applied_parameters(call, outcome.sequences[0]),
        tokenizer_fingerprint=call.tokenizer_fingerprint,
    )


def _applied_parameters(call: SampleCall, sequence: FinishedSequence) -> policy_pb2.SamplingParameters:
    """What the engine drew with, not what was asked for; all sequences of a call share it."""
    parameters = call.parameters
    return policy_pb2.SamplingParameters(
        samples_per_prompt=parameters.samples_per_prompt,
        temperature=sequence.temperature,
        top_p=sequence.top_p,
        max_new_tokens=parameters.max_new_tokens,
        stop=parameters.stop_texts,
        stop_token_ids=sequence.end_token_ids,
        seed=parameters.seed,
    )


def _sample(
    sequence: FinishedSequence,
    *,
    model: model_pb2.ModelVersion,
    stop_texts: tuple[str, ...],
    first_token_s: float | None,
    decode: Callable[[list[int]], str],
) -> policy_pb2.Sample:
    token_ids = sequence.token_ids.tolist()
    text, _ = cut_at_stop(decode(token_ids), stop_texts)
    return policy_pb2.Sample(
        token_ids=token_ids,
        text=text,
        logprobs=sequence.logprobs.tolist(),
        finish_reason=_FINISH_REASONS[sequence.finish_reason],
        model=model,
        first_token_duration=None if first_token_s is None else seconds_to_duration(first_token_s),
    )


def _info_of(served: Served) -> model_pb2.ModelInfo:
    return model_info_to_proto(
        served.facts,
        version=served.version,
        eos_token_id=served.codec.eos_token_id,
        tokenizer_fingerprint=served.codec.fingerprint,
        load_time=served.load_time,
    )


def _capabilities_of(capabilities: Capabilities) -> policy_pb2.SamplerCapabilities:
    return policy_pb2.SamplerCapabilities(
        backend=capabilities.backend,
        takes_weights=capabilities.takes_weights,
        loads_models=capabilities.loads_models,
        logprob_basis=_LOGPROB_BASES[capabilities.logprob_basis],
        takes_token_ids=capabilities.takes_token_ids,
        takes_stop_token_ids=capabilities.takes_stop_token_ids,
        max_stop_texts=capabilities.max_stop_texts,
        min_temperature=capabilities.min_temperature,
    )
