"""The policy service as a client sees it: samples, new weights, the model in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal, Protocol

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.api.policy.v1 import policy_service_pb2_grpc as policy_grpc
from andon.client.channel import ChannelOptions
from andon.client.connection import TRACK_HEADER, ServiceConnection, Upload, new_request_id
from andon.client.values import (
    CallTiming,
    ModelInfo,
    TextOrIds,
    model_info_from_proto,
    prompt_to_proto,
    timing_from_proto,
)
from andon.modeling.versions import ModelVersion
from andon.rpc.convert import duration_to_seconds, model_version_from_proto, model_version_to_proto

FinishReason = Literal["eos", "stop", "length", "unspecified"]

_FINISH_REASONS: dict[int, FinishReason] = {
    policy_pb2.FINISH_REASON_EOS: "eos",
    policy_pb2.FINISH_REASON_STOP: "stop",
    policy_pb2.FINISH_REASON_LENGTH: "length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How tokens are drawn."""

    max_new_tokens: int  # the end-of-sequence token included
    samples_per_prompt: int = 1
    temperature: float = 1.0  # 0 takes the most probable token
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None  # drawn by the service when None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One response and the version that wrote it."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]  # nats, one per token, at the sampling temperature
    finish_reason: FinishReason
    model: ModelVersion
    first_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSamples:
    """The responses to one prompt."""

    prompt_token_ids: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """The answer to one call."""

    results: tuple[PromptSamples, ...]  # in the order of the prompts
    model: ModelVersion
    seed: int
    timing: CallTiming
    applied: SamplingParameters  # what the engine drew with; every token that ends a response named
    tokenizer_fingerprint: str

    @property
    def queue_s(self) -> float:
        """From arrival to the first model work."""
        return self.timing.queue_s

    @property
    def compute_s(self) -> float:
        """Model work on this call."""
        return self.timing.compute_s


class TensorSpecLike(Protocol):
    """One tensor of a set of weights."""

    @property
    def name(self) -> str:
        """The parameter's name in the state dictionary."""
        ...

    @property
    def dtype(self) -> str:
        """One of "float32", "bfloat16" and "float16"."""
        ...

    @property
    def shape(self) -> Sequence[int]:
        """The sizes of its dimensions."""
        ...


class SharedMemoryLike(Protocol):
    """Memory that a process on the same host can read."""

    @property
    def process_id(self) -> int:
        """Whose it is."""
        ...

    @property
    def descriptor(self) -> int:
        """Its number there."""
        ...

    @property
    def name(self) -> str:
        """What proves that it is the one that was meant."""
        ...


class WeightsHeaderLike(Protocol):
    """What ``andon.modeling.weight_codec`` says about a set of weights before their bytes."""

    @property
    def model(self) -> ModelVersion:
        """The version being sent, with its digest."""
        ...

    @property
    def tensors(self) -> Sequence[TensorSpecLike]:
        """All tensors, in the order of their bytes."""
        ...

    @property
    def size_bytes(self) -> int:
        """The bytes that follow in all, or that lie in memory."""
        ...

    @property
    def checksum(self) -> str:
        """Of all bytes of the new weights."""
        ...

    @property
    def base(self) -> ModelVersion | None:
        """What the bytes are a delta to."""
        ...

    @property
    def memory(self) -> SharedMemoryLike | None:
        """Where the bytes lie, when none follow."""
        ...


class WeightsChunkLike(Protocol):
    """A piece of the weights' bytes."""

    @property
    def offset_bytes(self) -> int:
        """Where the piece begins."""
        ...

    @property
    def data(self) -> bytes:
        """The bytes themselves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsAcknowledgement:
    """A replica's word that it uses new weights."""

    model: ModelVersion  # with its digest; the receiver found the checksum right
    apply_s: float


class OfferedWeights:
    """Weights that a replica receives and checks, but does not use before they are committed."""

    def __init__(
        self,
        begin: Callable[
            [Iterator[policy_pb2.UpdateWeightsRequest]], Upload[policy_pb2.UpdateWeightsResponse]
        ],
        messages: Iterator[policy_pb2.UpdateWeightsRequest],
    ) -> None:
        self._is_committed: SimpleQueue[bool] = SimpleQueue()
        self._upload = begin(self._with_decision(messages))
        # Whatever ends the call lets the thread go that makes its requests.
        self._upload.on_end(lambda: self._is_committed.put(False))

    def commit(self) -> WeightsAcknowledgement:
        """Have the replica use them, and wait until it does. Raises as ``PolicyClient.update_weights``."""
        self._is_committed.put(True)
        return _acknowledgement(self._upload.result())

    def withdraw(self) -> None:
        """Have the replica forget them; without effect on what was committed and acknowledged."""
        self._upload.cancel()

    def _with_decision(
        self, messages: Iterator[policy_pb2.UpdateWeightsRequest]
    ) -> Iterator[policy_pb2.UpdateWeightsRequest]:
        yield from messages
        if self._is_committed.get():
            yield policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit())


class PolicyClient(ServiceConnection):
    """Calls one policy replica, or all of them when the target is a balanced name."""

    def __init__(
        self,
        target: str,
        *,
        options: ChannelOptions | None = None,
        track: Literal["canary"] | None = None,
    ) -> None:
        """``track`` "canary" asks a target that splits its traffic for the version under trial."""
        super().__init__(
            target,
            service_name="andon.api.policy.v1.PolicyService",
            options=options,
            headers=[] if track is None else [(TRACK_HEADER, track)],
        )
        self._stub = policy_grpc.PolicyServiceStub(self.channel)

    def sample(
        self,
        prompts: Sequence[TextOrIds],
        parameters: SamplingParameters,
        *,
        required_model: ModelVersion | None = None,
        timeout_s: float = 600.0,
        wait_for_ready: bool = False,
    ) -> SampleResult:
        """Writes responses to the prompts, in one call so that the seed covers all of them."""
        request = policy_pb2.SampleRequest(
            request_id=new_request_id(),
            prompts=[prompt_to_proto(prompt) for prompt in prompts],
            parameters=_parameters_to_proto(parameters),
            required_model=None if required_model is None else model_version_to_proto(required_model),
        )
        answer = self.unary(self._stub.Sample, request, timeout_s=timeout_s, wait_for_ready=wait_for_ready)
        return SampleResult(
            results=tuple(_prompt_samples(result) for result in answer.results),
            model=model_version_from_proto(answer.model),
            seed=answer.seed,
            timing=timing_from_proto(answer.timing),
            applied=_parameters_from_proto(answer.applied_parameters),
            tokenizer_fingerprint=answer.tokenizer_fingerprint,
        )

    def update_weights(
        self,
        header: WeightsHeaderLike,
        chunks: Iterable[WeightsChunkLike],
        *,
        timeout_s: float = 600.0,
        wait_for_ready: bool = False,
    ) -> WeightsAcknowledgement:
        """Sends weights to this replica; returns when they are in use.

        Raises FailedPreconditionError WEIGHTS_BASE_MISMATCH or WEIGHTS_NOT_SHARED when the replica needs them
        another way.
        """
        answer = self.upload(
            self._stub.UpdateWeights,
            _weight_messages(header, chunks),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return _acknowledgement(answer)

    def offer_weights(
        self, header: WeightsHeaderLike, chunks: Iterable[WeightsChunkLike], *, timeout_s: float = 600.0
    ) -> OfferedWeights:
        """Begins to send weights to this replica, which uses them once they are committed.

        ``timeout_s`` is for all of it, the time until the commit included; after it the replica forgets them.
        """
        return OfferedWeights(
            lambda messages: self.begin_upload(self._stub.UpdateWeights, messages, timeout_s=timeout_s),
            _weight_messages(header, chunks, awaits_commit=True),
        )

    def load_model(self, name: str, *, timeout_s: float = 600.0, wait_for_ready: bool = False) -> ModelInfo:
        """Makes the service use a version from the model store."""
        answer = self.unary(
            self._stub.LoadModel,
            policy_pb2.LoadModelRequest(model=name),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return model_info_from_proto(answer.info)

    def model_info(self, *, timeout_s: float = 30.0, wait_for_ready: bool = False) -> ModelInfo:
        """Describes the model in use."""
        answer = self.unary(
            self._stub.GetModelInfo,
            policy_pb2.GetModelInfoRequest(),
            timeout_s=timeout_s,
            wait_for_ready=wait_for_ready,
        )
        return model_info_from_proto(answer.info)

    def takes_weights(self, *, timeout_s: float = 30.0) -> bool:
        """Whether its backend can be given new weights in place, as a trainer needs."""
        answer = self.unary(self._stub.GetModelInfo, policy_pb2.GetModelInfoRequest(), timeout_s=timeout_s)
        return answer.capabilities.takes_weights


def _parameters_to_proto(parameters: SamplingParameters) -> policy_pb2.SamplingParameters:
    return policy_pb2.SamplingParameters(
        samples_per_prompt=parameters.samples_per_prompt,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        max_new_tokens=parameters.max_new_tokens,
        stop=parameters.stop,
        stop_token_ids=parameters.stop_token_ids,
        seed=parameters.seed,
    )


def _parameters_from_proto(parameters: policy_pb2.SamplingParameters) -> SamplingParameters:
    return SamplingParameters(
        max_new_tokens=parameters.max_new_tokens,
        samples_per_prompt=parameters.samples_per_prompt,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        stop=tuple(parameters.stop),
        stop_token_ids=tuple(parameters.stop_token_ids),
        seed=parameters.seed,
    )


def _prompt_samples(result: policy_pb2.PromptSamples) -> PromptSamples:
    return PromptSamples(
        prompt_token_ids=tuple(result.prompt_token_ids),
        samples=tuple(
            Sample(
                token_ids=tuple(sample.token_ids),
                text=sample.text,
                logprobs=tuple(sample.logprobs),
                finish_reason=_FINISH_REASONS.get(sample.finish_reason, "unspecified"),
                model=model_version_from_proto(sample.model),
                first_token_s=duration_to_seconds(sample.first_token_duration),
            )
            for sample in result.samples
        ),
    )


def _acknowledgement(answer: policy_pb2.UpdateWeightsResponse) -> WeightsAcknowledgement:
    return WeightsAcknowledgement(
        model=model_version_from_proto(answer.model), apply_s=duration_to_seconds(answer.apply_duration)
    )


def _weight_messages(
    header: WeightsHeaderLike, chunks: Iterable[WeightsChunkLike], *, awaits_commit: bool = False
) -> Iterator[policy_pb2.UpdateWeightsRequest]:
    yield policy_pb2.UpdateWeightsRequest(
        header=policy_pb2.WeightsHeader(
            model=model_version_to_proto(header.model),
            tensors=[
                policy_pb2.TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)
                for tensor in header.tensors
            ],
            size_bytes=header.size_bytes,
            checksum=header.checksum,
            base=None if header.base is None else model_version_to_proto(header.base),
            memory=(
                None
                if header.memory is None
                else policy_pb2.SharedMemory(
                    process_id=header.memory.process_id,
                    descriptor=header.memory.descriptor,
                    name=header.memory.name,
                )
            ),
            awaits_commit=awaits_commit,
        )
    )
    for chunk in chunks:
        yield policy_pb2.UpdateWeightsRequest(
            chunk=policy_pb2.WeightsChunk(offset_bytes=chunk.offset_bytes, data=chunk.data)
        )
