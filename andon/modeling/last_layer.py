"""Lets the last layer compute only what somebody reads.

Of a packed row, scores are read at one token per response and log-probabilities where response tokens are
predicted. Layers below must pass every token on, because later tokens attend to it; of the last layer only
the keys and values of the other tokens are needed, about a sixth of its work. Hugging Face's layers know no
such thing, but they begin with the attention: the layer runs once over the rows that nobody reads, is left
as soon as it hands over their keys and values, and then runs over the rows that are read. ``loading``
installs this in every model; a caller asks for it by passing a ``ReadingLayout``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from andon.modeling.attention import AttentionCall, AttentionLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSelection:
    """Which of the N tokens of a packed row are read."""

    read: Tensor  # [M] int64, ascending, each once
    rest: Tensor  # [N - M] int64, ascending
    place: Tensor  # [N] int64: where a token stands once those that are read come first

    @classmethod
    def of(cls, index: Tensor, num_tokens: int) -> RowSelection:
        """``index`` names the tokens that are read, in any order, repeated or not."""
        is_read = torch.zeros(num_tokens, dtype=torch.bool, device=index.device)
        is_read[index] = True
        read, rest = is_read.nonzero()[:, 0], (~is_read).nonzero()[:, 0]
        place = torch.empty(num_tokens, dtype=torch.int64, device=index.device)
        place[torch.cat([read, rest])] = torch.arange(num_tokens, device=index.device)
        return cls(read=read, rest=rest, place=place)

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.place)


@runtime_checkable
class ReadingLayout(AttentionLayout, Protocol):
    """A layout whose caller reads the last layer's output at some tokens only; the others' are undefined."""

    @property
    def rows(self) -> RowSelection:
        """What is read, at least one token."""
        ...

    def attend_read(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """Attention of the tokens that are read.

        query: [1, query heads, M, head size], of the tokens that are read; key, value: [1, key heads, N, head
        size], of all tokens in the row's order. Returns [1, M, query heads, head size].
        """
        ...


def compute_what_is_read(last_layer: nn.Module) -> None:
    """Have a model's last layer obey ``ReadingLayout``; other layouts see no difference."""
    last_layer.register_forward_pre_hook(_select_rows, with_kwargs=True)
    last_layer.register_forward_hook(_put_rows_back, with_kwargs=True)


def _select_rows(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    layout = kwargs.get("layout")
    if not isinstance(layout, ReadingLayout):
        return None
    rows = layout.rows
    if len(rows.rest) == 0:
        return None
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    ordered: Tensor = _Reorder.apply(hidden[0], rows)  # type: ignore[no-untyped-call]
    read, rest = torch.split(ordered, [len(rows.read), len(rows.rest)])

    def arguments(
        part: Tensor, index: Tensor, part_layout: AttentionLayout
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        others = {name: _of_rows(value, index, rows) for name, value in kwargs.items()}
        others["layout"] = part_layout
        if not args:
            return (), others | {"hidden_states": part[None]}
        return (part[None], *(_of_rows(value, index, rows) for value in args[1:])), others

    capture = _Capture()
    rest_args, rest_kwargs = arguments(rest, rows.rest, capture)
    with suppress(_CapturedSignal):  # the way out of the layer
        layer.forward(*rest_args, **rest_kwargs)
    return arguments(read, rows.read, _LastLayer(layout, *capture.captured))


def _put_rows_back(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """What follows in the model expects N rows; those that nobody reads are zero."""
    layout = kwargs.get("layout")
    if not isinstance(layout, _LastLayer):
        return None
    if isinstance(output, tuple):
        return (_scattered(output[0], layout.rows), *output[1:])
    return _scattered(output, layout.rows)


def _scattered(hidden: Tensor, rows: RowSelection) -> Tensor:
    """[1, M, D] to [1, N, D]."""
    whole = hidden.new_zeros((1, rows.num_tokens, hidden.shape[2]))
    return whole.index_copy(1, rows.read, hidden)


def _of_rows(value: Any, index: Tensor, rows: RowSelection) -> Any:
    """The part of a layer's argument that belongs to some tokens: rotary angles, positions and so on."""
    if isinstance(value, Tensor) and value.shape[:2] == (1, rows.num_tokens):
        return value.index_select(1, index)
    if isinstance(value, tuple):
        return tuple(_of_rows(item, index, rows) for item in value)
    return value


class _CapturedSignal(Exception):  # noqa: N818 - not an error
    """Leaves a layer whose keys and values are known."""


class _Capture:
    """Stands for the attention of the rows that nobody reads."""

    def __init__(self) -> None:
        self.captured: tuple[Tensor, Tensor]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """Keep keys and values; raises _CapturedSignal."""
        self.captured = key, value
        raise _CapturedSignal


class _LastLayer:
    """Attention of the rows that are read, over all rows."""

    def __init__(self, layout: ReadingLayout, rest_key: Tensor, rest_value: Tensor) -> None:
        self.rows = layout.rows
        self._layout = layout
        self._rest_key, self._rest_value = rest_key, rest_value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """See ``ReadingLayout.attend_read``; all three are those of the rows that are read."""
        keys, values = self._whole(key, self._rest_key), self._whole(value, self._rest_value)
        return self._layout.attend_read(query, keys, values, call)

    def _whole(self, read: Tensor, rest: Tensor) -> Tensor:
        """[1, heads, N, size], in the row's order."""
        both = torch.cat([read[0].transpose(0, 1), rest[0].transpose(0, 1)])
        restored: Tensor = _Restore.apply(both, self.rows)  # type: ignore[no-untyped-call]
        return restored.transpose(0, 1)[None]


class _Reorder(torch.autograd.Function):
    """Rows that are read first, then the others. Its gradient is a selection too, where torch would sum."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, rows: RowSelection) -> Tensor:  # Any: torch's context
        ctx.place = rows.place
        return whole.index_select(0, torch.cat([rows.read, rows.rest]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.place), None


class _Restore(torch.autograd.Function):
    """The inverse of ``_Reorder``."""

    @staticmethod
    def forward(ctx: Any, ordered: Tensor, rows: RowSelection) -> Tensor:
        ctx.order = torch.cat([rows.read, rows.rest])
        return ordered.index_select(0, rows.place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.order), None
