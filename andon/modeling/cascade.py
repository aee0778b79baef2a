"""Attention over a packed row of trees on the CPU, in two steps that are joined.

A token attends to its own part of its tree, and a response's token to the prompt that it continues. A prompt
over itself and a response over itself are plain causal sequences: long ones, and equally long neighbours, are
attended where they stand; short ones are brought into padded groups of similar length. All responses of a
tree attend to their prompt in one rectangle without a mask, in which nothing is computed in vain. Their two
softmaxes become one by log-sum-exps, and the backward pass of each step needs no more than the joined output
and log-sum-exp. The literature calls this cascade or shared-prefix attention. ``tree_layout`` uses it where
``can_attend`` says so; index tensors are made once per row, not per layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from andon.modeling import dense_attention
from andon.modeling.attention import AttentionCall
from andon.modeling.trees import Tree

# Segments share a group while the shorter has at least this share of the longer one's tokens, or while they
# differ by so few tokens that padding is less work than another call.
_GROUP_RATIO = 0.85
_GROUP_SLACK_TOKENS = 8
# Tokens from which on a kernel call costs less than to copy them into groups.
_FEWEST_TOKENS_OF_A_RUN = 96
# The position of a padded query: behind every key, so that its softmax is defined.
_BEHIND_ALL = 1 << 30


def can_attend(query: Tensor, call: AttentionCall) -> bool:
    """Whether this module computes such attention."""
    return call.sliding_window is None and call.dropout == 0.0 and dense_attention.can_attend(query)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Queries that attend to the same neighbouring tokens."""

    queries: range  # among those that are read
    keys: range  # tokens of the row


class CascadeAttention:
    """The attention of one packed row, or of the part of it that is read."""

    def __init__(self, trees: Sequence[Tree], *, read: Tensor | None = None) -> None:
        """read: [M] int64, ascending tokens whose attention is wanted; None: all."""
        num_tokens = sum(tree.num_tokens for tree in trees)
        segments, self._crossings = _segments_and_crossings(trees, _ranks(read, num_tokens))
        runs, others = _runs(segments)
        self._runs = [_Run.of(run, None if read is None else _mask(run, read)) for run in runs]
        groups = _groups(others)
        self._masks = [None if read is None else _mask(group, read) for group in groups]
        self._queries = _Places([[segment.queries for segment in group] for group in groups])
        self._keys = _Places([[segment.keys for segment in group] for group in groups])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """query: [1, query heads, M, head size] of the tokens that are read; key, value: [1, key heads, N,
        head size]. Returns [1, M, query heads, head size].
        """
        queries, keys, values = (rows[0].transpose(0, 1) for rows in (query, key, value))
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            keys, values = (rows.repeat_interleave(repeats, dim=1) for rows in (keys, values))
        attended: Tensor = _Attend.apply(queries, keys, values, self, call.scaling)  # type: ignore[no-untyped-call]
        return attended[None]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """query: [M, heads, size]; key, value: [N, heads, size]. Returns the output, [M, heads, size], and
        the log-sum-exps of the scores, [M, heads].
        """
        output, logsumexp = dense_attention.empty_result(query)
        for run in self._runs:
            dense_attention.forward_into(
                *(run.of_queries(rows) for rows in (output, logsumexp, query)),
                *(run.of_keys(rows) for rows in (key, value)),
                scaling=scaling,
                is_causal=run.mask is None,
                mask=run.mask,
            )
        own = [
            dense_attention.forward(q, k, v, scaling=scaling, is_causal=mask is None, mask=mask)
            for q, k, v, mask in zip(
                self._queries.there(query),
                self._keys.there(key),
                self._keys.there(value),
                self._masks,
                strict=True,
            )
        ]
        self._queries.back([part for part, _ in own], output)
        self._queries.back([part for _, part in own], logsumexp)
        for crossing in self._crossings:
            asked, seen = _slice(crossing.queries), _slice(crossing.keys)
            crossed, crossed_logsumexp = (
                part[0]
                for part in dense_attention.forward(
                    query[None, asked], key[None, seen], value[None, seen], scaling=scaling
                )
            )
            share = torch.sigmoid(crossed_logsumexp - logsumexp[asked])[..., None]
            output[asked].lerp_(crossed, share.to(output.dtype))
            logsumexp[asked] = torch.logaddexp(logsumexp[asked], crossed_logsumexp)
        return output, logsumexp

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value, from that of the output and what ``forward`` returned."""
        of_query, of_key, of_value = (
            torch.zeros_like(rows, memory_format=torch.contiguous_format) for rows in (query, key, value)
        )
        for run in self._runs:
            of_run = dense_attention.backward(
                *(run.of_queries(rows) for rows in (gradient, query)),
                *(run.of_keys(rows) for rows in (key, value)),
                *(run.of_queries(rows) for rows in (output, logsumexp)),
                scaling=scaling,
                is_causal=run.mask is None,
                mask=run.mask,
            )
            run.of_queries(of_query).copy_(of_run[0])
            run.of_keys(of_key).copy_(of_run[1])
            run.of_keys(of_value).copy_(of_run[2])
        own = [
            dense_attention.backward(*rows, scaling=scaling, is_causal=mask is None, mask=mask)
            for *rows, mask in zip(
                self._queries.there(gradient, with_zeros=True),
                self._queries.there(query),
                self._keys.there(key),
                self._keys.there(value),
                self._queries.there(output),
                self._queries.there(logsumexp),
                self._masks,
                strict=True,
            )
        ]
        self._queries.back([part for part, _, _ in own], of_query)
        self._keys.back([part for _, part, _ in own], of_key)
        self._keys.back([part for _, _, part in own], of_value)
        for crossing in self._crossings:
            asked, seen = _slice(crossing.queries), _slice(crossing.keys)
            crossed = dense_attention.backward(
                gradient[None, asked],
                query[None, asked],
                key[None, seen],
                value[None, seen],
                output[None, asked],
                logsumexp[None, asked],
                scaling=scaling,
            )
            of_query[asked] += crossed[0][0]
            of_key[seen] += crossed[1][0]
            of_value[seen] += crossed[2][0]
        return of_query, of_key, of_value


class _Attend(torch.autograd.Function):
    """Keeps queries, keys, values and output for the backward pass, and no probabilities."""

    @staticmethod
    def forward(  # Any: torch's context
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, cascade: CascadeAttention, scaling: float
    ) -> Tensor:
        output, logsumexp = cascade.forward(query, key, value, scaling)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.cascade, ctx.scaling = cascade, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *ctx.cascade.backward(gradient, *ctx.saved_tensors, ctx.scaling), None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Equally long segments one behind the other: they are attended where they stand."""

    queries: slice
    keys: slice
    length: int  # how many segments
    mask: Tensor | None  # [segments, 1, queries, keys], or None: causal

    @classmethod
    def of(cls, segments: Sequence[_Part], mask: Tensor | None) -> _Run:
        first, last = segments[0], segments[-1]
        return cls(
            queries=slice(first.queries.start, last.queries.stop),
            keys=slice(first.keys.start, last.keys.stop),
            length=len(segments),
            mask=mask,
        )

    def of_queries(self, rows: Tensor) -> Tensor:
        """[rows, ...] to a view, [segments, width, ...]."""
        part = rows[self.queries]
        return part.view(self.length, len(part) // self.length, *part.shape[1:])

    def of_keys(self, rows: Tensor) -> Tensor:
        """[rows, ...] to a view, [segments, width, ...]."""
        part = rows[self.keys]
        return part.view(self.length, len(part) // self.length, *part.shape[1:])


class _Places:
    """Where rows stand in padded groups; a row stands in one place or in none.

    A group is a list of ranges of rows, each of which begins a slot as long as the group's longest range.
    """

    def __init__(self, groups: Sequence[Sequence[range]]) -> None:
        self._shapes = [(len(group), max(len(rows) for rows in group)) for group in groups]
        rows_there: list[int] = []
        places: list[int] = []
        begin = 0
        for group, (slots, width) in zip(groups, self._shapes, strict=True):
            for slot, rows in enumerate(group):
                rows_there += rows
                places += range(begin + slot * width, begin + slot * width + len(rows))
            begin += slots * width
        self._rows = torch.tensor(rows_there, dtype=torch.int64)
        self._places = torch.tensor(places, dtype=torch.int64)
        self._row_of_place = torch.zeros(begin, dtype=torch.int64)  # Padding repeats row 0, a finite value.
        self._row_of_place[self._places] = self._rows
        is_padding = torch.ones(begin, dtype=torch.bool)
        is_padding[self._places] = False
        self._padding = is_padding.nonzero()[:, 0]

    def there(self, rows: Tensor, *, with_zeros: bool = False) -> list[Tensor]:
        """[rows, ...] to [slots, width, ...] of each group; padding has any finite value or zeros."""
        if not self._shapes:
            return []
        placed = rows.index_select(0, self._row_of_place)
        if with_zeros and len(self._padding):
            placed.index_fill_(0, self._padding, 0.0)
        parts = torch.split(placed, [slots * width for slots, width in self._shapes])
        return [part.view(*shape, *part.shape[1:]) for part, shape in zip(parts, self._shapes, strict=True)]

    def back(self, groups: Sequence[Tensor], rows: Tensor) -> None:
        """[slots, width, ...] of each group into those of ``rows``, [rows, ...], that stand in one."""
        if groups:
            parts = [part.flatten(0, 1) for part in groups]
            placed = parts[0] if len(parts) == 1 else torch.cat(parts)
            rows.index_copy_(0, self._rows, placed.index_select(0, self._places))


def _segments_and_crossings(trees: Sequence[Tree], ranks: Sequence[int]) -> tuple[list[_Part], list[_Part]]:
    """The sequences that attend to themselves, and responses that attend to their prompt.

    A prompt and its only response are one sequence. Parts without queries are left out.
    """

    def part(queries: range, keys: range) -> _Part:
        return _Part(queries=range(ranks[queries.start], ranks[queries.stop]), keys=keys)

    segments: list[_Part] = []
    crossings: list[_Part] = []
    begin = 0
    for tree in trees:
        end = begin + tree.num_tokens
        lengths = [tree.prompt_tokens, *tree.response_tokens]
        if len(lengths) <= 2:
            lengths = [tree.num_tokens]
        else:
            prompt = range(begin, begin + tree.prompt_tokens)
            crossings.append(part(range(prompt.stop, end), prompt))
        for length in lengths:
            segments.append(part(range(begin, begin + length), range(begin, begin + length)))
            begin += length
    return [part for part in segments if part.queries], [part for part in crossings if part.queries]


def _ranks(read: Tensor | None, num_tokens: int) -> Sequence[int]:
    """For every token, and for the row's end, how many tokens before it are read."""
    if read is None:
        return range(num_tokens + 1)
    ranks: list[int] = torch.searchsorted(read, torch.arange(num_tokens + 1)).tolist()
    return ranks


def _runs(segments: Sequence[_Part]) -> tuple[list[list[_Part]], list[_Part]]:
    """Equally long neighbours that have the tokens for a call of their own; and all other segments."""
    runs: list[list[_Part]] = []
    for segment in segments:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and (len(last.queries), len(last.keys)) == (len(segment.queries), len(segment.keys))
            and (last.queries.stop, last.keys.stop) == (segment.queries.start, segment.keys.start)
        ):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    are_large = [len(run) * len(run[0].keys) >= _FEWEST_TOKENS_OF_A_RUN for run in runs]
    return (
        [run for run, is_large in zip(runs, are_large, strict=True) if is_large],
        [segment for run, is_large in zip(runs, are_large, strict=True) if not is_large for segment in run],
    )


def _groups(segments: Sequence[_Part]) -> list[list[_Part]]:
    """Segments of similar numbers of keys and queries, longest first."""
    groups: list[list[_Part]] = []
    for segment in sorted(segments, key=lambda segment: (-len(segment.keys), -len(segment.queries))):
        longest = groups[-1][0] if groups else None
        if (
            longest is not None
            and _fits(len(segment.keys), len(longest.keys))
            and _fits(len(segment.queries), len(longest.queries))
        ):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def _fits(tokens: int, longest: int) -> bool:
    small, large = sorted((tokens, longest))
    return small >= large * _GROUP_RATIO or large - small <= _GROUP_SLACK_TOKENS


def _mask(group: Sequence[_Part], read: Tensor) -> Tensor:
    """What queries see of their own segment: [segments, 1, queries, keys] float32, added to scores.

    Padded keys stand behind all tokens.
    """
    positions = torch.full((len(group), max(len(segment.queries) for segment in group)), _BEHIND_ALL)
    for row, segment in enumerate(group):
        positions[row, : len(segment.queries)] = read[_slice(segment.queries)] - segment.keys.start
    keys = torch.arange(max(len(segment.keys) for segment in group))
    is_seen = keys <= positions[:, None, :, None]
    return torch.zeros(is_seen.shape).masked_fill_(~is_seen, float("-inf"))


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)
