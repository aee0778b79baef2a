"""Decides whether what a server wrote is an answer to what it was asked, and how the response ended.

The end is found in the tokens themselves, by the rules of the built-in engine, and not taken from the
server's word: servers disagree about what comes first when a response ends for two reasons. An answer that
those rules cannot explain is refused as a whole. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from services.policy.backends.inference_server import WrittenSample
from services.policy.call import FinishedSequence, FinishReason, SampleCall
from services.policy.errors import BackendAnswerInvalidError, LogitsNotFiniteError
from services.policy.stopping import StopTextMatcher

# Rounding may lift the logarithm of a probability next to 1 above 0; more than this is no rounding.
MAX_LOGPROB = 1e-3
# vLLM writes this where a probability is 0; no token that was drawn has it.
MIN_LOGPROB = -9999.0


def finished_sequence(
    written: WrittenSample,
    call: SampleCall,
    *,
    sequence_index: int,
    backend: str,
    model: str,
    end_token_id: int,
    vocab_size: int,
    decode: Callable[[Sequence[int]], str],
) -> FinishedSequence:
    """The response as the service gives it.

    Raises BackendAnswerInvalidError, LogitsNotFiniteError.
    """
    parameters = call.parameters
    prompt = call.prompts[sequence_index // parameters.samples_per_prompt]
    tokens, logprobs = written.token_ids, written.logprobs

    def invalid(problem: str) -> BackendAnswerInvalidError:
        return BackendAnswerInvalidError(backend=backend, problem=problem)

    if written.prompt_token_ids is not None and written.prompt_token_ids != prompt:
        raise invalid("the server read another prompt than it was sent")
    if len(tokens) != len(logprobs):
        raise invalid(f"{len(tokens)} tokens have {len(logprobs)} log-probabilities")
    if not 1 <= len(tokens) <= parameters.max_new_tokens:
        raise invalid(f"{len(tokens)} tokens, where 1 to {parameters.max_new_tokens} were asked for")
    if not all(0 <= token < vocab_size for token in tokens):
        raise invalid(f"a token lies outside of the vocabulary [0, {vocab_size})")
    if not all(math.isfinite(logprob) and logprob > MIN_LOGPROB for logprob in logprobs):
        raise LogitsNotFiniteError(model=model)
    if max(logprobs) > MAX_LOGPROB:
        raise invalid(f"{max(logprobs)} is not the logarithm of a probability")
    end_tokens = (end_token_id, *parameters.stop_token_ids)
    count, reason = _end(tokens, end_tokens=end_tokens, stop_texts=parameters.stop_texts, decode=decode)
    if reason is None:
        if len(tokens) < parameters.max_new_tokens:
            raise invalid(
                f"it ended ({written.finish!r}) after {len(tokens)} of {parameters.max_new_tokens} tokens "
                "without an end-of-sequence token or a stop text"
            )
        reason = FinishReason.LENGTH
    if reason is FinishReason.EOS and count < len(tokens):
        raise invalid(f"it went on after token {tokens[count - 1]}, which ends a response")
    return FinishedSequence(
        call_id=call.call_id,
        sequence_index=sequence_index,
        token_ids=np.asarray(tokens[:count], dtype=np.int32),
        logprobs=np.minimum(np.asarray(logprobs[:count], dtype=np.float32), np.float32(0)),
        finish_reason=reason,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        end_token_ids=end_tokens,
        is_finite=True,
    )


def _end(
    tokens: Sequence[int],
    *,
    end_tokens: Sequence[int],
    stop_texts: Sequence[str],
    decode: Callable[[Sequence[int]], str],
) -> tuple[int, FinishReason | None]:
    """After how many tokens the response ends, and why; None when nothing in it ends it.

    Servers that look for stop texts at the end of what they have written so far miss one inside of a token,
    and go on; the response ends at that token all the same.
    """
    matcher = StopTextMatcher(stop_texts, decode) if stop_texts else None
    for index, token in enumerate(tokens):
        is_stop = matcher is not None and matcher.push(token)
        if token in end_tokens:
            return index + 1, FinishReason.EOS
        if is_stop:
            return index + 1, FinishReason.STOP
    return len(tokens), None
