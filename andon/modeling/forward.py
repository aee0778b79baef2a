"""Decides how a packed row passes through a model and what is read from it.

Log-probabilities and entropies are those of softmax(logits / temperature), natural logarithm, float32. The
language-model head runs on the positions that predict response tokens and nowhere else. Values and scores
come from the head of a sequence-classification model. Called by scorers and training stages with what
``sequences.pack`` made; gradients flow unless the caller switched them off, and dropout is the caller's
business (``model.eval()``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from andon.modeling.architecture_check import PLAIN_HEAD
from andon.modeling.attention import ATTENTION_NAME
from andon.modeling.sequences import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """How much of the logits is handled at once, in values."""

    in_float32: int  # float32 copies of them
    at_all: int  # of the head's product


# On a CPU the copies stay in its cache; a GPU needs large parts to be busy, and has the memory.
_ON_CPU = _Sizes(in_float32=1 << 18, at_all=1 << 22)
_ON_GPU = _Sizes(in_float32=1 << 27, at_all=1 << 27)
# Rows below which the head's product becomes inefficient.
_FEWEST_ROWS_OF_LOGITS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseStatistics:
    """What a model says about the T response tokens of a batch."""

    logprobs: Tensor  # [T] float32
    entropies: Tensor | None  # [T] float32, of the whole distribution each token was drawn from


def response_statistics(
    model: PreTrainedModel, batch: PackedBatch, *, temperature: float, entropy: bool = False
) -> ResponseStatistics:
    """Log-probability (and entropy, in nats) of every response token. ``temperature`` is above 0."""
    _check_attention(model)
    arguments = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        "layout": batch.layout.reading(batch.predict_index),
    }
    if not getattr(model, PLAIN_HEAD, False):
        logits = model(**arguments, logits_to_keep=batch.predict_index).logits[0]
        return token_statistics(logits, batch.target_ids, temperature=temperature, entropy=entropy)
    states = model.base_model(**arguments).last_hidden_state[0].index_select(0, batch.predict_index)
    head = model.get_output_embeddings()
    return head_statistics(
        head,
        states,
        batch.target_ids,
        vocab_size=head.weight.shape[0],
        temperature=temperature,
        entropy=entropy,
    )


def head_statistics(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    target_ids: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    entropy: bool = False,
) -> ResponseStatistics:
    """As ``token_statistics`` of ``head(states)``, of which only a part exists at any time.

    states: [T, width]; target_ids: [T] int64. The backward pass computes each part of the logits once more,
    which costs a third of the head's work and saves a tensor of T times the vocabulary and its gradient.
    """

    def of_part(part: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        statistics = token_statistics(head(part), targets, temperature=temperature, entropy=entropy)
        return statistics.logprobs, statistics.entropies

    rows = max(_FEWEST_ROWS_OF_LOGITS, _sizes_on(states).at_all // vocab_size)
    parts_of_both = torch.split(states, rows), torch.split(target_ids, rows)
    if len(states) <= rows or not torch.is_grad_enabled():
        parts = [of_part(*part) for part in zip(*parts_of_both, strict=True)]
    else:
        parts = [
            checkpoint(of_part, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*parts_of_both, strict=True)
        ]
    logprobs, entropies = zip(*parts, strict=True)
    return ResponseStatistics(
        logprobs=torch.cat(logprobs), entropies=torch.cat(entropies) if entropy else None
    )


def token_statistics(
    logits: Tensor, target_ids: Tensor, *, temperature: float, entropy: bool = False
) -> ResponseStatistics:
    """Log-probability and entropy under softmax(logits / temperature).

    logits: [T, vocabulary], any floating type; target_ids: [T] int64.
    """
    options = (target_ids, temperature, entropy)
    logprobs, entropies = _TokenStatistics.apply(logits, *options)  # type: ignore[no-untyped-call]
    return ResponseStatistics(logprobs=logprobs, entropies=entropies if entropy else None)


def token_values(scorer: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """[T] float32: the value of the state in which each response token is drawn, before the token."""
    return _head_outputs(scorer, batch, batch.predict_index)


def token_scores(scorer: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """[T] float32: the raw output of the head at every response token."""
    return _head_outputs(scorer, batch, batch.token_index)


def final_scores(scorer: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """[R] float32: the raw output of the head at each response's last token."""
    return _head_outputs(scorer, batch, batch.last_token_index)


def _head_outputs(scorer: PreTrainedModel, batch: PackedBatch, index: Tensor) -> Tensor:
    _check_attention(scorer)
    hidden = scorer.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        layout=batch.layout.reading(index),
    ).last_hidden_state[0]
    scores: Tensor = scorer.score(hidden.index_select(0, index))
    return scores[:, 0].float()


def _check_attention(model: PreTrainedModel) -> None:
    """With another attention the model would ignore the layout without a word."""
    if model.config._attn_implementation != ATTENTION_NAME:
        raise TypeError(f'packed rows need a model with attn_implementation="{ATTENTION_NAME}"')


class _TokenStatistics(torch.autograd.Function):
    """Gathers log-probabilities and entropies from logits without a second tensor of the logits' size.

    Legend: z = logits / temperature, p = softmax(z), H = -sum p log p. d logprob[y] / dz = onehot(y) - p and
    dH / dz = -p (log p + H).
    """

    @staticmethod
    def forward(  # ctx is torch's own context object
        ctx: Any, logits: Tensor, target_ids: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        logsumexps, entropies = [], []
        for chunk in torch.split(logits.detach(), _rows_per_chunk(logits)):
            scaled = chunk.float() / temperature
            logsumexp = scaled.logsumexp(-1)
            logsumexps.append(logsumexp)
            if entropy:
                probabilities = (scaled - logsumexp[:, None]).exp_()
                entropies.append(logsumexp - (probabilities * scaled).sum(-1))
        logsumexp = torch.cat(logsumexps)
        entropy_values = torch.cat(entropies) if entropy else logsumexp.new_zeros(())
        targets = logits.detach().gather(1, target_ids[:, None])[:, 0].float() / temperature
        ctx.save_for_backward(logits, target_ids, logsumexp, entropy_values)
        ctx.temperature, ctx.entropy = temperature, entropy
        return targets - logsumexp, entropy_values

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, logprob_gradient: Tensor, entropy_gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        logits, target_ids, logsumexp, entropies = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        rows = _rows_per_chunk(logits)
        for begin in range(0, len(logits), rows):
            part = slice(begin, begin + rows)
            log_probabilities = logits[part].float().div_(ctx.temperature).sub_(logsumexp[part, None])
            probabilities = log_probabilities.exp()
            scale = -logprob_gradient[part, None] / ctx.temperature
            if ctx.entropy:
                slope = log_probabilities.add_(entropies[part, None]).mul_(-entropy_gradient[part, None])
                probabilities.mul_(slope.div_(ctx.temperature).add_(scale))
            else:
                probabilities.mul_(scale)
            probabilities.scatter_add_(1, target_ids[part, None], -scale)
            gradient[part] = probabilities
        return gradient, None, None, None


def _rows_per_chunk(logits: Tensor) -> int:
    return max(1, _sizes_on(logits).in_float32 // logits.shape[1])


def _sizes_on(tensor: Tensor) -> _Sizes:
    return _ON_CPU if tensor.device.type == "cpu" else _ON_GPU
