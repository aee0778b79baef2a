"""How the peers read sequences: in padded batches, one pass per batch.

Shared by scripts in the peers' environment and by the benchmark on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def padded(
    sequences: Sequence[Sequence[int]], pad_token_id: int, *, left: bool, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [batch, longest] int64."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_token_id)
    mask = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        begin = longest - len(sequence) if left else 0
        ids[row, begin : begin + len(sequence)] = torch.tensor(sequence)
        mask[row, begin : begin + len(sequence)] = 1
    return ids.to(device), mask.to(device)


def in_batches(
    sequences: Sequence[Sequence[int]],
    size: int,
    call: Callable[[Tensor, Tensor], Tensor],
    *,
    pad_token_id: int,
    left: bool,
    device: str = "cpu",
) -> Callable[[], None]:
    """What calls ``call`` with every batch; the batches are made here, so making them is not timed."""
    batches = [
        padded(sequences[begin : begin + size], pad_token_id, left=left, device=device)
        for begin in range(0, len(sequences), size)
    ]

    def run() -> None:
        with torch.inference_mode():
            for ids, mask in batches:
                call(ids, mask)

    return run


def scores(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """[batch] float32."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, 0].float()


def logprobs(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    *,
    response: int,
    temperature: float,
    select: Callable[[Tensor, Tensor], Tensor],
    **options: int,
) -> Tensor:
    """[batch, response], as TRL computes them: logits, then a part of them, then ``select``."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, **options)
    logits = output.logits[:, -response - 1 : -1]
    logits /= temperature
    return select(logits, ids[:, -response:])
