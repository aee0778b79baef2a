"""Decides which requests for samples are served, and turns them into token ids and parameters.

The servicer calls it before anything is queued. Pure: messages in, values or errors out.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

from andon.api.common.v1 import sequence_pb2
from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.rpc.sequences import SequenceEncoder, SequenceLimits, check_length, prompt_token_ids
from services.policy.call import SamplingParameters
from services.policy.errors import InvalidSampleRequestError
from services.policy.scheduler import Limits

# Logits lie within some thousands; divided by these they are still far from what float32 can hold. The
# reference service takes the same range, so that what was sampled can be scored.
MIN_TEMPERATURE = 1e-4
MAX_TEMPERATURE = 1e4

MAX_STOP_TEXTS = 16
MAX_STOP_TEXT_CHARACTERS = 256
MAX_STOP_TOKENS = 16


def parameters_of(
    message: policy_pb2.SamplingParameters,
    *,
    num_prompts: int,
    limits: Limits,
    vocab_size: int,
    max_samples: int,
    max_new_tokens: int,
) -> SamplingParameters:
    """Check and complete the parameters; a missing seed is drawn. Raises InvalidSampleRequestError."""
    samples_per_prompt = message.samples_per_prompt or 1
    temperature = message.temperature if message.HasField("temperature") else 1.0
    top_p = message.top_p if message.HasField("top_p") else 1.0
    if not 1 <= samples_per_prompt <= limits.running_sequences:
        raise _invalid(
            "samples_per_prompt", samples_per_prompt, f"must lie in [1, {limits.running_sequences}]"
        )
    if num_prompts * samples_per_prompt > max_samples:
        raise InvalidSampleRequestError(
            f"{num_prompts} prompts with {samples_per_prompt} samples each are more than {max_samples}; "
            "send several calls",
            reason="TOO_MANY_SAMPLES",
            field="prompts",
            max_samples=max_samples,
        )
    if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise _invalid(
            "temperature", temperature, f"must be 0 or lie in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}]"
        )
    if math.isnan(top_p) or not 0 < top_p <= 1:
        raise _invalid("top_p", top_p, "must lie in (0, 1]")
    if not 1 <= message.max_new_tokens <= max_new_tokens:
        raise _invalid("max_new_tokens", message.max_new_tokens, f"must lie in [1, {max_new_tokens}]")
    if len(message.stop) > MAX_STOP_TEXTS or any(
        not 1 <= len(text) <= MAX_STOP_TEXT_CHARACTERS for text in message.stop
    ):
        raise _invalid(
            "stop",
            len(message.stop),
            f"takes up to {MAX_STOP_TEXTS} texts of 1 to {MAX_STOP_TEXT_CHARACTERS} characters",
        )
    if len(message.stop_token_ids) > MAX_STOP_TOKENS:
        raise _invalid("stop_token_ids", len(message.stop_token_ids), f"takes up to {MAX_STOP_TOKENS} ids")
    for token_id in message.stop_token_ids:
        if not 0 <= token_id < vocab_size:
            raise _invalid("stop_token_ids", token_id, f"must lie in the vocabulary [0, {vocab_size})")
    return SamplingParameters(
        samples_per_prompt=samples_per_prompt,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=message.max_new_tokens,
        stop_texts=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        seed=message.seed if message.HasField("seed") else secrets.randbits(63),
    )


def prompts_of(
    messages: Iterable[sequence_pb2.Prompt],
    parameters: SamplingParameters,
    *,
    encoder: SequenceEncoder,
    model_limits: SequenceLimits,
    limits: Limits,
) -> tuple[tuple[int, ...], ...]:
    """The prompts' token ids. Raises InvalidArgumentError with the place of the first mistake."""
    prompts = []
    for index, message in enumerate(messages):
        field = f"prompts[{index}]"
        ids = prompt_token_ids(message, encoder=encoder, limits=model_limits, field=field)
        check_length(
            prompt_tokens=len(ids),
            response_tokens=parameters.max_new_tokens,
            limits=model_limits,
            field=field,
        )
        if not limits.admits(
            prompt_tokens=len(ids),
            samples_per_prompt=parameters.samples_per_prompt,
            max_new_tokens=parameters.max_new_tokens,
        ):
            raise InvalidSampleRequestError(
                f"{field} and its samples do not fit into the cache of {limits.cache_tokens} tokens",
                reason="SEQUENCE_TOO_LONG",
                field=field,
                cache_tokens=limits.cache_tokens,
            )
        prompts.append(tuple(ids))
    return tuple(prompts)


def check_not_empty(request: policy_pb2.SampleRequest) -> None:
    """Raise EMPTY_REQUEST for a request without prompts."""
    if not request.prompts:
        raise InvalidSampleRequestError("the request has no prompts", reason="EMPTY_REQUEST", field="prompts")


def _invalid(field: str, value: object, rule: str) -> InvalidSampleRequestError:
    return InvalidSampleRequestError(
        f"{field} is {value}; it {rule}", field=f"parameters.{field}", value=value
    )
