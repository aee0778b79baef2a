"""Decides how prompts pass through the model into the cache.

Prompts stand in one row without padding. The engine makes a layout for every forward pass; the model's
attention (``andon.modeling.attention``) calls it in every layer. Keys and values lie in the ``Cohort``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from andon.modeling.attention import AttentionCall
from andon.modeling.last_layer import RowSelection
from andon.modeling.trees import Tree
from andon.modeling.varlen_attention import VarlenAttention, can_attend
from services.policy.cache import Cohort


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRun:
    """Neighbouring prompts of one length in a packed row."""

    first_prompt: int  # in the cohort
    num_prompts: int
    length: int


class PrefillLayout:
    """Attention of packed prompts: each attends causally to itself; keys and values are kept in the cohort.

    A ``ReadingLayout``: of each prompt only the last token's logits are wanted.
    """

    def __init__(self, *, cohort: Cohort, runs: Sequence[PromptRun]) -> None:
        """``runs`` in the order of the row."""
        last_tokens = np.concatenate([[run.length] * run.num_prompts for run in runs]).cumsum() - 1
        last = torch.from_numpy(last_tokens).to(cohort.device)
        self.rows = RowSelection.of(last, int(last_tokens[-1]) + 1)
        self._cohort = cohort
        self._runs = runs
        self._lengths = [run.length for run in runs for _ in range(run.num_prompts)]
        self._band_masks: dict[tuple[int, int], Tensor] = {}

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """``query`` [1, heads, tokens, size], the others [1, key_heads, tokens, size]; [1, tokens, heads,
        size].
        """
        if can_attend(query, call):
            return self._attend_by_kernel(self._varlen, query, key, value, call)
        lengths = [run.length for run in self._runs]
        return self._attend(query, key, value, lengths, call)

    def attend_read(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """As ``attend``, with the query of each prompt's last token alone: [1, heads, prompts, size]."""
        if can_attend(query, call):
            return self._attend_by_kernel(self._varlen_of_last, query, key, value, call)
        return self._attend(query, key, value, [1] * len(self._runs), call)

    def _attend_by_kernel(
        self,
        varlen: VarlenAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        call: AttentionCall,
    ) -> Tensor:
        """All prompts in one call, whatever their lengths."""
        self._cohort.store_tokens(call.layer_index, *self._token_places, key, value)
        return varlen.attend(query, key, value, call)

    @cached_property
    def _token_places(self) -> tuple[Tensor, Tensor]:
        """Of each token of the row, its prompt in the cohort and its place there, [tokens] int64 each."""
        lengths = np.asarray(self._lengths)
        prompts = self._runs[0].first_prompt + np.repeat(np.arange(len(lengths)), lengths)
        places = np.concatenate([np.arange(length) for length in lengths])
        device = self._cohort.device
        return torch.from_numpy(prompts).to(device), torch.from_numpy(places).to(device)

    @cached_property
    def _varlen(self) -> VarlenAttention:
        return VarlenAttention(self._trees, device=self._cohort.device)

    @cached_property
    def _varlen_of_last(self) -> VarlenAttention:
        read = (np.cumsum(self._lengths) - 1).tolist()
        return VarlenAttention(self._trees, read=read, device=self._cohort.device)

    @property
    def _trees(self) -> list[Tree]:
        return [Tree(prompt_tokens=length, response_tokens=()) for length in self._lengths]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_queries: Sequence[int],
        call: AttentionCall,
    ) -> Tensor:
        """``num_queries`` counts, for each run, the queries of a prompt: all its tokens or the last one."""
        outputs = []
        query_start = start = 0
        for run, count in zip(self._runs, num_queries, strict=True):
            query_end, end = query_start + run.num_prompts * count, start + run.num_prompts * run.length
            queries, keys, values = (
                rows[0, :, begin:past].view(-1, run.num_prompts, length, rows.shape[3]).transpose(0, 1)
                for rows, begin, past, length in (
                    (query, query_start, query_end, count),
                    (key, start, end, run.length),
                    (value, start, end, run.length),
                )
            )
            self._cohort.store_prompts(call.layer_index, run.first_prompt, keys, values)
            banded = call.sliding_window is not None and call.sliding_window < run.length
            mask = self._band_mask(run.length, call.sliding_window, query.device)[-count:] if banded else None
            attended = functional.scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                is_causal=not banded and count > 1,  # the last token sees all of its prompt
                scale=call.scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            outputs.append(attended.transpose(1, 2).flatten(0, 1))
            query_start, start = query_end, end
        return torch.cat(outputs).unsqueeze(0)

    def _band_mask(self, length: int, sliding_window: int | None, device: torch.device) -> Tensor:
        """True where a token may look: not ahead, and fewer than ``sliding_window`` tokens back. [length,
        length].
        """
        window = length if sliding_window is None else sliding_window
        mask = self._band_masks.get((length, window))
        if mask is None:
            distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
            mask = self._band_masks[length, window] = (distance >= 0) & (distance < window)
        return mask
