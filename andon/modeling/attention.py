"""The seam between Hugging Face's models and our own attention over packed rows.

A model loaded with ``attn_implementation="andon"`` hands the queries, keys and values of every layer to the
``AttentionLayout`` that its caller passed as ``layout=``. ``tree_layout`` has the one of training and
scoring; the sampler has layouts of its own, with a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from andon.modeling.errors import UnsupportedArchitectureError

ATTENTION_NAME = "andon"

# What some architectures ask of an attention function and a layout cannot give; None means "not asked".
_UNSUPPORTED_OPTIONS = ("softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """What a layer asks of its attention, beside queries, keys and values."""

    layer_index: int
    scaling: float
    sliding_window: int | None = None  # how far back a token sees, itself included
    dropout: float = 0.0


class AttentionLayout(Protocol):
    """Computes one layer's attention over a packed row."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """Attention of one layer.

        query: [1, query heads, N, head size]; key, value: [1, key heads, N, head size]. Returns
        [1, N, query heads, head size].
        """
        ...


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: AttentionLayout | None = None,
    **options: Any,  # whatever an architecture passes on; only the unsupported ones matter
) -> tuple[Tensor, None]:
    """The attention function that Hugging Face models call; everything is left to ``layout``."""
    if layout is None:
        raise TypeError('a model with attn_implementation="andon" must be called with layout=')
    asked = [name for name in _UNSUPPORTED_OPTIONS if options.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if asked:
        raise UnsupportedArchitectureError(
            f"attention with {', '.join(asked)} is not supported on packed rows",
            architecture=type(module).__name__,
        )
    output = layout.attend(
        *_in_one_type(query, key, value),
        AttentionCall(
            layer_index=_layer_index(module),
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            sliding_window=sliding_window,
            dropout=dropout,
        ),
    )
    return output, None


def _in_one_type(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Under autocast in its type: rotary positions leave queries and keys in that of the embeddings."""
    kind = query.device.type
    if not torch.is_autocast_enabled(kind):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise UnsupportedArchitectureError(
            "its attention layers do not know their index", architecture=type(module).__name__
        )
    return index


AttentionInterface.register(ATTENTION_NAME, packed_attention)
