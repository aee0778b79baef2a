"""Decides what a server's numbers mean, by asking it for some before the first caller does.

Neither protocol says whether log-probabilities are of plain or of tempered logits, and vLLM answers either,
by its ``--logprobs-mode``. So the most probable tokens after one prompt are asked for at two temperatures:
plain log-probabilities do not change between them, those of the drawn distribution have their distances
divided by the temperature. Numbers that are neither, or that greedy decoding contradicts, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from andon.modeling.text import TextCodec
from services.policy.backends.backend import LogprobBasis
from services.policy.backends.inference_server import InferenceServer, SampleOrder, ServerModel
from services.policy.errors import BackendAnswerInvalidError, UnsupportedByBackendError

LOW_TEMPERATURE = 0.25
TOP_TOKENS = 5  # a text-generation-inference server gives no more by default
# Half-precision logits of one prompt differ by some hundredths between batches, and a low temperature
# multiplies that.
TOLERANCE_NATS = 0.3
# The two readings must lie so far apart that noise cannot exchange them.
MIN_CONTRAST_NATS = 2 * TOLERANCE_NATS
# Rounding of TOP_TOKENS probabilities that add up to 1.
MAX_MASS = 1.01
PROBE_TEXTS = (
    "The cat sat on the mat, and the dog, 12 years old, looked at it. \u201cWhy?\u201d\n\nNobody knew.",
    "W\u00e4hrend   zwei Leerzeichen z\u00e4hlen: a1 b22 c333!",
)


async def probe_logprobs(server: InferenceServer, model: ServerModel, codec: TextCodec) -> LogprobBasis:
    """What the server's log-probabilities are of.

    Raises BackendAnswerInvalidError when it reads a prompt with another tokenizer or gives no token ids, and
    UnsupportedByBackendError when its numbers are of no use.
    """
    plain: Mapping[int, float] = {}
    for text in PROBE_TEXTS:
        prompt = tuple(codec.encode_document(text))
        server.check_prompt(prompt, field="the prompt template")
        plain = await _distribution(server, model, prompt, temperature=1.0)
        low = await _distribution(server, model, prompt, temperature=LOW_TEMPERATURE)
        basis = classify(plain, low)
        if basis is not None:
            break
    else:
        raise UnsupportedByBackendError(
            backend=server.name, problem="what its log-probabilities are of cannot be told from its answers"
        )
    greedy = await _distribution(server, model, prompt, temperature=0.0)
    most_probable = max(plain, key=lambda token: plain[token])
    if abs(greedy.get(most_probable, -math.inf) - plain[most_probable]) > TOLERANCE_NATS:
        raise UnsupportedByBackendError(
            backend=server.name,
            problem="its log-probabilities of greedy decoding are not those of temperature 1",
        )
    return basis


def classify(plain: Mapping[int, float], low: Mapping[int, float]) -> LogprobBasis | None:
    """Which basis explains what was given at temperature 1 and at ``LOW_TEMPERATURE``; None for neither.

    Both map the most probable tokens to their log-probabilities.
    """
    common = plain.keys() & low.keys()
    if len(common) < 2:
        return None
    first = max(common, key=lambda token: plain[token])
    error_plain = max(abs(low[token] - plain[token]) for token in common)
    error_drawn = max(
        abs((low[token] - low[first]) - (plain[token] - plain[first]) / LOW_TEMPERATURE) for token in common
    )
    errors = {LogprobBasis.PLAIN: error_plain, LogprobBasis.DRAWN: error_drawn}
    best = min(errors, key=lambda basis: errors[basis])
    is_clear = errors[best] <= TOLERANCE_NATS and max(errors.values()) >= MIN_CONTRAST_NATS
    return best if is_clear else None


async def _distribution(
    server: InferenceServer, model: ServerModel, prompt: tuple[int, ...], *, temperature: float
) -> Mapping[int, float]:
    written = await server.write(
        SampleOrder(
            model=model.names[0],
            prompt=prompt,
            max_new_tokens=1,
            temperature=temperature,
            top_p=1.0,
            seed=1,
            top_logprobs=TOP_TOKENS,
        )
    )
    if written.prompt_token_ids is None:
        raise BackendAnswerInvalidError(
            backend=server.name, problem="it does not say which token ids it read and wrote"
        )
    if written.prompt_token_ids != prompt:
        raise BackendAnswerInvalidError(
            backend=server.name, problem="it reads a text as other token ids than the model's tokenizer"
        )
    top = written.top_logprobs[0] if written.top_logprobs else {}
    if len(top) < 2 or not all(math.isfinite(value) for value in top.values()):
        raise BackendAnswerInvalidError(
            backend=server.name, problem="it does not give the log-probabilities of the most probable tokens"
        )
    if max(top.values()) > 1e-3 or math.fsum(map(math.exp, top.values())) > MAX_MASS:
        raise UnsupportedByBackendError(
            backend=server.name, problem="its log-probabilities are logits: they do not add up to 1"
        )
    return top
