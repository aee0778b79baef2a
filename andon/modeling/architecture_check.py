"""Decides whether packed rows pass correctly through a model, by trying it.

Packing rests on three promises of an architecture: tokens are mixed only by its attention, the attention goes
through the registered function, and places are told by ``position_ids``; leaving work of the last layer out
rests on a fourth, that it uses other tokens for nothing but its attention. Recurrent layers, convolutions
over time and biases computed from the row break them silently. So each loaded model reads a short row with
branches, and the same sequences one by one; ``loading`` calls this once per model.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from andon.modeling.attention import AttentionLayout
from andon.modeling.errors import UnsupportedArchitectureError
from andon.modeling.tree_layout import TreeLayout
from andon.modeling.trees import Tree

# The attribute of a language model that says whether its logits are the head's output as it is; some models
# multiply it.
PLAIN_HEAD = "andon_plain_head"

# Above rounding in the type of the weights, below what a wrong neighbour does.
_RELATIVE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


def check_architecture(model: PreTrainedModel) -> None:
    """Raise UnsupportedArchitectureError when sequences in one row would influence each other."""
    vocab_size = model.get_input_embeddings().num_embeddings
    ids = [token % vocab_size for token in (5, 11, 3, 17, 8, 2, 13, 7, 19, 4)]
    first, prompt, left, right = ids[:3], ids[3:6], ids[6:8], ids[8:]
    trees = [
        Tree(prompt_tokens=len(first), response_tokens=()),
        Tree(prompt_tokens=len(prompt), response_tokens=(len(left), len(right))),
    ]
    was_training = model.training
    model.eval()
    try:
        packed = _hidden(model, ids, [0, 1, 2, 0, 1, 2, 3, 4, 3, 4], trees)
        read = _hidden(model, ids, [0, 1, 2, 0, 1, 2, 3, 4, 3, 4], trees, read=[4, 5, 9])
        alone = torch.cat(
            [_hidden_alone(model, sequence) for sequence in (first, prompt + left, prompt + right)]
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} does not hand its attention over: {error}",
            architecture=type(model).__name__,
        ) from error
    finally:
        model.train(was_training)
    places = [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 8, 9]
    tolerance = _RELATIVE_TOLERANCE[model.dtype] * alone.abs().max().item()
    if not (packed[places] - alone).abs().max().item() <= tolerance:
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} lets sequences of one row influence each other",
            architecture=type(model).__name__,
        )
    if not (read - packed[[4, 5, 9]]).abs().max().item() <= tolerance:
        raise UnsupportedArchitectureError(
            f"the last layer of {type(model).__name__} does more with other tokens than attend to them",
            architecture=type(model).__name__,
        )


def note_plain_head(model: PreTrainedModel) -> None:
    """Try whether a language model's logits are its head's output, and set ``PLAIN_HEAD``."""
    head = model.get_output_embeddings()
    if head is None:
        return
    vocab_size = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[5 % vocab_size, 11 % vocab_size]], device=model.device)
    positions = torch.arange(2, device=model.device)[None]
    layout = TreeLayout([Tree(prompt_tokens=2, response_tokens=())], device=model.device)
    arguments = {"input_ids": ids, "position_ids": positions, "use_cache": False, "layout": layout}
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(**arguments).logits
        plain = head(model.base_model(**arguments).last_hidden_state)
    model.train(was_training)
    tolerance = _RELATIVE_TOLERANCE[model.dtype] * logits.abs().max().item()
    setattr(model, PLAIN_HEAD, (logits - plain).abs().max().item() <= tolerance)


def _hidden_alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return _hidden(model, ids, list(range(len(ids))), [Tree(prompt_tokens=len(ids), response_tokens=())])


def _hidden(
    model: PreTrainedModel,
    ids: list[int],
    positions: list[int],
    trees: list[Tree],
    read: list[int] | None = None,
) -> torch.Tensor:
    """[N, width] float32, or [M, width] of the M tokens that are read."""
    layout: AttentionLayout = TreeLayout(trees, device=model.device)
    index = torch.arange(len(ids)) if read is None else torch.tensor(read)
    if read is not None:
        layout = TreeLayout(trees, device=model.device).reading(index.to(model.device))
    with torch.inference_mode():
        output = model.base_model(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=torch.tensor([positions], device=model.device),
            use_cache=False,
            layout=layout,
        )
    hidden: torch.Tensor = output.last_hidden_state[0].float()
    return hidden[index.to(model.device)]
