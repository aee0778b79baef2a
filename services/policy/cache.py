"""Holds the keys and values of running sequences and attends to them.

The unit is the *cohort*: prompts whose reading ended in the same step, each with the same number of *lanes*,
the responses being written to it. A cohort stores a prompt's keys and values once for all its lanes, and
because its lanes have all written equally many tokens, a step writes one column for all of them. Rows are
padded only to the longest prompt of their cohort; the scheduler puts prompts of similar length together.

The engine makes cohorts; ``prefill_layout`` fills them and ``DecodeLayout`` reads them, each a layout whose
``attend`` the model's attention (``andon.modeling.attention``) calls in every layer. Tensors are allocated
when the first prompt is stored, from the shapes the model itself brings, so no architecture is named here.
Paging and sharing of prefixes between different prompts are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andon.modeling.attention import AttentionCall

# A cohort is copied together when at least this share of its prompts has finished: seldom enough that copying
# costs less than reading the finished rows on would. A GPU hardly notices them, and records the step anew.
_COMPACTION_SHARES = {"cpu": 0.25, "cuda": 0.5}

FINISHED = -1  # stands in ``Cohort.slots`` for a lane whose response has ended


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer. ``rows`` = prompts x key heads, prompt-major."""

    prompt_keys: (
        Tensor  # [rows, head_size, prompt_capacity]: transposed, which makes the product with a query faster
    )
    prompt_values: Tensor  # [rows, prompt_capacity, value_size]
    response_keys: Tensor  # [rows * lanes, response_capacity, head_size]
    response_values: Tensor  # [rows * lanes, response_capacity, value_size]


class Cohort:
    """Prompts that began together, and the responses being written to them."""

    def __init__(
        self,
        *,
        prompt_lengths: Sequence[int],
        slots: NDArray[np.int64],
        response_capacity: int,
        device: torch.device,
    ) -> None:
        """``slots`` [prompts, lanes] names each lane's sequence; ``response_capacity`` counts cached
        tokens.
        """
        self.prompt_lengths = np.asarray(prompt_lengths, dtype=np.int64)
        self.slots = slots
        self.response_capacity = response_capacity
        self.written = 0  # response tokens of each lane in the cache
        self.device = device
        self._compaction_share = _COMPACTION_SHARES.get(device.type, 0.5)
        self._prompt_capacity = int(self.prompt_lengths.max())
        self._layers: dict[int, LayerCache] = {}
        self._biases: dict[int | None, Tensor | None] = {}
        self._padding_bias = self._make_padding_bias()
        self._lane_rows: Tensor | None = None
        self._live_lanes: Tensor | None = None

    @property
    def num_prompts(self) -> int:
        """Prompts in the cache, finished ones not yet removed included."""
        return int(self.slots.shape[0])

    @property
    def num_lanes(self) -> int:
        """Responses per prompt."""
        return int(self.slots.shape[1])

    @property
    def live_slots(self) -> NDArray[np.int64]:
        """The slots of running sequences in the order of the cohort's rows in a step's batch, [live]."""
        flat = self.slots.reshape(-1)
        live: NDArray[np.int64] = flat[flat != FINISHED]
        return live

    def finish(self, slots: NDArray[np.int64]) -> bool:
        """Take these sequences out; whether what is left was copied together, which is done when it pays."""
        self.slots[np.isin(self.slots, slots)] = FINISHED
        live_prompts = (self.slots != FINISHED).any(axis=1)
        num_live = int(live_prompts.sum())
        pays = 0 < num_live <= (1 - self._compaction_share) * self.num_prompts
        if pays:
            self._keep_prompts(live_prompts)
        self._index_lanes()
        return pays

    def advance(self) -> None:
        """Note that every layer has stored the token of this step."""
        self.written += 1
        self._biases.clear()

    def store_prompts(self, layer_index: int, first_prompt: int, keys: Tensor, values: Tensor) -> None:
        """Keep a layer's keys and values of neighbouring prompts of one length.

        ``keys`` [prompts, key_heads, length, head_size], ``values`` [prompts, key_heads, length, value_size].
        """
        num_prompts, num_heads, length, _ = keys.shape
        cache = self._cache_of(layer_index, keys, values)
        rows = slice(first_prompt * num_heads, (first_prompt + num_prompts) * num_heads)
        cache.prompt_keys[rows, :, :length].view(num_prompts, num_heads, -1, length).copy_(
            keys.transpose(2, 3)
        )
        cache.prompt_values[rows, :length].view(num_prompts, num_heads, length, -1).copy_(values)

    def store_tokens(
        self, layer_index: int, prompts: Tensor, places: Tensor, keys: Tensor, values: Tensor
    ) -> None:
        """Keep a layer's keys and values of any tokens of any prompts.

        ``prompts`` and ``places`` [tokens] int64 say whose they are and where they stand there; ``keys`` [1,
        key_heads, tokens, head_size], ``values`` [1, key_heads, tokens, value_size].
        """
        cache = self._cache_of(layer_index, keys, values)
        num_heads = keys.shape[1]
        for_keys = cache.prompt_keys.view(self.num_prompts, num_heads, -1, self._prompt_capacity)
        for_values = cache.prompt_values.view(self.num_prompts, num_heads, self._prompt_capacity, -1)
        # Indices on both sides of a slice put the tokens first: [tokens, key_heads, size].
        for_keys.permute(0, 3, 1, 2)[prompts, places] = keys[0].transpose(0, 1)
        for_values.transpose(1, 2)[prompts, places] = values[0].transpose(0, 1)

    def layers(self) -> dict[int, LayerCache]:
        """What is kept, by layer; the tensors stay in use until prompts are copied together."""
        return {index: replace(cache) for index, cache in self._layers.items()}

    @property
    def prompt_capacity(self) -> int:
        """Columns of the longest prompt that began with the cohort."""
        return self._prompt_capacity

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """Store one token of each live lane and attend to everything before it.

        ``query`` [heads, live, head_size], ``key`` and ``value`` [key_heads, live, size] in the model's type;
        returns [live, heads, value_size].
        """
        if (
            self._lane_rows is not None
        ):  # finished lanes repeat a live one's numbers; nobody reads their result
            query = query.index_select(1, self._lane_rows)
            key = key.index_select(1, self._lane_rows)
            value = value.index_select(1, self._lane_rows)
        output = attend_step(
            self._layers[call.layer_index],
            query,
            key,
            value,
            num_prompts=self.num_prompts,
            column=self.written,
            end=self.written + 1,
            bias=self._bias(call.sliding_window),
            scaling=call.scaling,
        )
        return output if self._live_lanes is None else output.index_select(0, self._live_lanes)

    def _cache_of(self, layer_index: int, keys: Tensor, values: Tensor) -> LayerCache:
        """The layer's cache, made for such ``keys`` and ``values`` [.., key_heads, .., size] if need be."""
        cache = self._layers.get(layer_index)
        if cache is not None:
            return cache
        rows = self.num_prompts * keys.shape[1]
        response_rows = rows * self.num_lanes
        # Padding is read (with weight zero), so it must be finite: zeros. Response columns are written before
        # read.
        cache = self._layers[layer_index] = LayerCache(
            prompt_keys=keys.new_zeros(rows, keys.shape[3], self._prompt_capacity),
            prompt_values=values.new_zeros(rows, self._prompt_capacity, values.shape[3]),
            response_keys=keys.new_empty(response_rows, self.response_capacity, keys.shape[3]),
            response_values=values.new_empty(response_rows, self.response_capacity, values.shape[3]),
        )
        return cache

    def _keep_prompts(self, kept: NDArray[np.bool_]) -> None:
        """Copy the rows of the kept prompts together. Columns stay: a cohort's longest prompt may be gone."""
        before = self.num_prompts
        index = torch.from_numpy(kept.nonzero()[0]).to(self.device)
        self.slots = self.slots[kept]
        self.prompt_lengths = self.prompt_lengths[kept]
        for cache in self._layers.values():
            for name in ("prompt_keys", "prompt_values", "response_keys", "response_values"):
                stored: Tensor = getattr(cache, name)
                kept_rows = stored.view(before, -1, *stored.shape[1:]).index_select(0, index)
                setattr(cache, name, kept_rows.flatten(0, 1))
        self._biases.clear()
        self._padding_bias = self._make_padding_bias()

    def _index_lanes(self) -> None:
        live = self.slots.reshape(-1) != FINISHED
        if live.all():
            self._lane_rows = self._live_lanes = None
            return
        lane_rows = np.where(live, live.cumsum() - 1, 0)
        self._lane_rows = torch.from_numpy(lane_rows).to(self.device)
        self._live_lanes = torch.from_numpy(live.nonzero()[0]).to(self.device)

    def _make_padding_bias(self) -> Tensor | None:
        """0 where a prompt has a token and in all response columns, minus infinity in padding: [prompts, 1,
        columns].

        None when nothing is padded.
        """
        lengths = torch.from_numpy(self.prompt_lengths).to(self.device)
        if int(self.prompt_lengths.min()) == self._prompt_capacity:
            return None
        columns = torch.arange(self._prompt_capacity + self.response_capacity, device=self.device)
        padding = (columns >= lengths[:, None]) & (columns < self._prompt_capacity)
        return (
            torch.zeros(padding.shape, dtype=torch.float32, device=self.device)
            .masked_fill_(padding, -torch.inf)
            .unsqueeze(1)
        )

    def _bias(self, sliding_window: int | None) -> Tensor | None:
        """What is added to this step's scores, [prompts, 1, columns] float32, or None; the same in many
        layers.
        """
        if sliding_window not in self._biases:
            self._biases[sliding_window] = self._make_bias(sliding_window)
        return self._biases[sliding_window]

    def _make_bias(self, sliding_window: int | None) -> Tensor | None:
        end = self._prompt_capacity + self.written + 1
        padding = None if self._padding_bias is None else self._padding_bias[:, :, :end]
        if sliding_window is None or int(self.prompt_lengths.max()) + self.written < sliding_window:
            return padding
        lengths = torch.from_numpy(self.prompt_lengths).to(self.device)[:, None]
        columns = torch.arange(end, device=self.device)
        positions = torch.where(
            columns < self._prompt_capacity, columns, columns - self._prompt_capacity + lengths
        )
        too_old = (positions <= lengths + self.written - sliding_window).unsqueeze(1)
        bias = (
            torch.zeros(too_old.shape, dtype=torch.float32, device=self.device)
            if padding is None
            else padding
        )
        return bias.masked_fill(too_old, -torch.inf)


def attend_step(
    cache: LayerCache,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_prompts: int,
    column: int | Tensor,
    end: int,
    bias: Tensor | None,
    scaling: float,
) -> Tensor:
    """Store one token of every lane of a cohort in a layer's cache, and attend to prompts and responses.

    ``query`` [heads, prompts * lanes, head_size], ``key`` and ``value`` [key_heads, prompts * lanes, size].
    ``column`` of the responses takes the token, a number or a [1] int64 tensor; columns up to ``end`` are
    read, and ``bias`` [prompts, 1, prompt_capacity + end] is added to the scores. Returns [prompts * lanes,
    heads, value_size].
    """
    prompts, key_heads = num_prompts, key.shape[0]
    lanes = key.shape[1] // prompts
    rows, group = prompts * key_heads, query.shape[0] // key_heads
    prompt_capacity = cache.prompt_values.shape[1]
    for stored, token in ((cache.response_keys, key), (cache.response_values, value)):
        ordered = token.view(key_heads, prompts, lanes, -1).transpose(0, 1)
        if isinstance(column, Tensor):
            stored.index_copy_(1, column, ordered.reshape(rows * lanes, 1, -1))
        else:
            stored[:, column].view(prompts, key_heads, lanes, -1).copy_(ordered)
    # [key_heads, group, prompts, lanes, size] -> [prompts, key_heads, lanes, group, size]
    queries = (
        query.view(key_heads, group, prompts, lanes, -1).permute(2, 0, 3, 1, 4).contiguous().mul_(scaling)
    )
    to_prompt = torch.bmm(queries.view(rows, lanes * group, -1), cache.prompt_keys)
    to_response = torch.bmm(
        queries.view(rows * lanes, group, -1), cache.response_keys[:, :end].transpose(1, 2)
    ).view(rows, lanes * group, end)
    scores = torch.cat((to_prompt, to_response), dim=2)
    if bias is not None:
        scores.view(prompts, -1, scores.shape[2]).add_(bias)
    # Softmax in float32 whatever the model's type, as the reference implementations do.
    shares = torch.softmax(scores, dim=2, dtype=torch.float32).to(value.dtype)
    output = torch.bmm(shares[:, :, :prompt_capacity], cache.prompt_values)
    output.view(rows * lanes, group, -1).add_(
        torch.bmm(
            shares[:, :, prompt_capacity:].view(rows * lanes, group, end), cache.response_values[:, :end]
        )
    )
    output = output.view(prompts, key_heads, lanes, group, -1).permute(0, 2, 1, 3, 4)
    return output.reshape(prompts * lanes, key_heads * group, -1)


class CachedSequences(Protocol):
    """Sequences that a step gives one token each."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """See ``Cohort.attend``."""
        ...


@dataclass(slots=True)
class DecodeLayout:
    """Attention of one new token per running sequence, cohort after cohort."""

    cohorts: Sequence[CachedSequences]
    sizes: Sequence[int]  # live sequences of each cohort

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """``query`` [1, heads, sequences, size], the others [1, key_heads, ...]; [1, sequences, heads,
        size].
        """
        outputs = []
        start = 0
        for cohort, size in zip(self.cohorts, self.sizes, strict=True):
            end = start + size
            outputs.append(
                cohort.attend(query[0, :, start:end], key[0, :, start:end], value[0, :, start:end], call)
            )
            start = end
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0)
