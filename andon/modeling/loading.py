"""Decides how Hugging Face models are made, loaded and saved so that packed rows can pass through them.

Every model here has ``attn_implementation="andon"``; what is saved is plain Hugging Face and loads anywhere
with the implementation of the reader's choice. Services and training stages come here for models; names of
the store are resolved before, by ``store.ModelStore``.

Transformers makes and loads models under settings that hold for the whole process: torch's default type,
whether weights are tied, how much is logged. Two threads that load at once would keep each other's, and
models with untied weights. So one thread at a time does it here, and the others wait.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from andon.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from andon.modeling.activations import use_fast_activations
from andon.modeling.architecture_check import check_architecture, note_plain_head
from andon.modeling.attention import ATTENTION_NAME
from andon.modeling.errors import UnsupportedArchitectureError
from andon.modeling.last_layer import compute_what_is_read
from andon.modeling.linear import order_weights, use_fast_products
from andon.modeling.normalization import CONFIG_KEY, NO_NORMALIZATION, Normalization
from andon.modeling.store import WEIGHTS_NAME
from andon.modeling.text import TextCodec
from andon.modeling.weight_codec import model_weights, weights_sha256

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# The modules that write to the residual stream, by the names that Hugging Face's decoders give them.
_RESIDUAL_OUTPUTS = frozenset(
    {"c_proj", "o_proj", "out_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2"}
)

# Reentrant: a new head is drawn around the loading of its trunk.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """Facts about a loaded model that services report."""

    architecture: str
    parameter_count: int
    vocab_size: int
    max_sequence_tokens: int
    dtype: str
    device: str


def load_causal_lm(
    source: str | Path, *, dtype: str = "float32", device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Load a language model from a folder or by its public name, in evaluation mode.

    Raises NotFoundError MODEL_NOT_FOUND, UnsupportedArchitectureError.
    """
    return _prepare(_load(AutoModelForCausalLM, source, dtype), device)


def load_scorer(
    source: str | Path, *, dtype: str = "float32", device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Load a sequence-classification model with one output, in evaluation mode.

    Raises NotFoundError MODEL_NOT_FOUND, FailedPreconditionError NOT_A_REWARD_MODEL,
    UnsupportedArchitectureError.
    """
    model = _load(AutoModelForSequenceClassification, source, dtype)
    if model.config.num_labels != 1:
        raise FailedPreconditionError(
            f"{source} has {model.config.num_labels} outputs, a reward model has one",
            reason="NOT_A_REWARD_MODEL",
            model=source,
        )
    return _prepare(model, device)


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, for one who only passes through it: no gradients, and weights laid out for speed.

    Others may not share its weights, nor write to them.
    """
    order_weights(model)
    frozen: PreTrainedModel = model.requires_grad_(False)
    return frozen


def new_causal_lm(architecture: Mapping[str, Any], codec: TextCodec, seed: int) -> PreTrainedModel:
    """A language model with random weights.

    ``architecture`` is a Hugging Face configuration with ``model_type``; the vocabulary and the special
    tokens are the codec's. Raises InvalidArgumentError INVALID_ARCHITECTURE for unknown types and keys.
    """
    values = dict(architecture)
    model_type = values.pop("model_type", None)
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise InvalidArgumentError(
            f"unknown model_type {model_type!r}", reason="INVALID_ARCHITECTURE", field="model_type"
        ) from error
    allowed = set(known.to_dict()) | set(known.attribute_map)
    if unknown := sorted(set(values) - allowed):
        raise InvalidArgumentError(
            f"a {model_type} has no {', '.join(unknown)}", reason="INVALID_ARCHITECTURE", field=unknown[0]
        )
    config = AutoConfig.for_model(
        model_type,
        **values,
        vocab_size=codec.vocab_size,
        bos_token_id=codec.tokenizer.bos_token_id,
        eos_token_id=codec.eos_token_id,
        pad_token_id=codec.pad_token_id,
    )
    with _drawn_from(seed):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=ATTENTION_NAME, dtype=torch.float32
        )
    return _prepare(model, "cpu")


def scorer_from_causal_lm(
    source: str | Path,
    *,
    extra_layers: int = 0,
    extra_layers_gain: float = 0.0,
    seed: int,
    dtype: str = "float32",
) -> PreTrainedModel:
    """A reward model on a language model: its trunk, ``extra_layers`` new layers, a new head.

    The head is drawn from N(0, 1/(width + 1)) (Stiennon et al. 2020); the new layers are drawn
    as the architecture draws its own, and what they add to the residual stream is multiplied by
    ``extra_layers_gain``: at 0 they start out passing on what they get.

    Raises FailedPreconditionError NO_PAD_TOKEN when the model has no padding token of its own, without which
    plain transformers would read the score at the wrong token.
    """
    config = load_config(source)
    if config.pad_token_id is None or config.pad_token_id == config.eos_token_id:
        raise FailedPreconditionError(
            f"{source} has no padding token of its own", reason="NO_PAD_TOKEN", model=source
        )
    num_layers = config.num_hidden_layers
    config.num_labels = 1
    _add_layers(config, extra_layers)
    with _drawn_from(seed):
        model = _load(AutoModelForSequenceClassification, source, dtype, config=config, new_head=True)
        _start_new_parts(model, first_new_layer=num_layers, gain=extra_layers_gain)
    return _prepare(model, "cpu")


def deepened_scorer(
    scorer: PreTrainedModel, *, extra_layers: int, extra_layers_gain: float, seed: int
) -> PreTrainedModel:
    """A copy of a reward model with further layers on top of its trunk and a new head, on the same device.

    Layers and head start as those of ``scorer_from_causal_lm``.
    """
    config = copy.deepcopy(scorer.config)
    num_layers = config.num_hidden_layers
    _add_layers(config, extra_layers)
    with _drawn_from(seed):
        deeper = AutoModelForSequenceClassification.from_config(
            config, attn_implementation=ATTENTION_NAME, dtype=scorer.dtype
        )
        deeper.load_state_dict(scorer.state_dict(), strict=False)  # all but the new layers
        _start_new_parts(deeper, first_new_layer=num_layers, gain=extra_layers_gain)
    return _prepare(deeper, scorer.device)


@contextmanager
def only_last_layers_learn(scorer: PreTrainedModel, num_layers: int | None) -> Iterator[None]:
    """Within, only a reward model's last ``num_layers`` layers and its head take gradients; None: all do."""
    if num_layers is None:
        yield
        return
    layers = _layers(scorer)
    learning = {id(parameter) for parameter in layers[len(layers) - num_layers :].parameters()}
    frozen = [
        parameter
        for parameter in scorer.base_model.parameters()
        if parameter.requires_grad and id(parameter) not in learning
    ]
    for parameter in frozen:
        parameter.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(requires_grad=True)


def _add_layers(config: PretrainedConfig, extra_layers: int) -> None:
    num_layers = config.num_hidden_layers
    config.num_hidden_layers = num_layers + extra_layers
    for name, values in config.to_dict().items():
        # Per-layer settings, such as layer_types: new layers are as the last one.
        if name.startswith("layer") and isinstance(values, list) and len(values) == num_layers:
            setattr(config, name, [*values, *values[-1:] * extra_layers])


@torch.no_grad()
def _start_new_parts(scorer: PreTrainedModel, *, first_new_layer: int, gain: float) -> None:
    head = scorer.score.weight
    head.normal_(0.0, (head.shape[1] + 1) ** -0.5)
    for layer in _layers(scorer)[first_new_layer:]:
        _scale_outputs(layer, gain)


def grow_vocabulary(model: PreTrainedModel, codec: TextCodec) -> None:
    """Give a language model embeddings and special tokens for all of the codec's tokens."""
    if codec.vocab_size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(codec.vocab_size)
    for config in (model.config, model.generation_config):
        config.pad_token_id = codec.pad_token_id
        config.eos_token_id = codec.eos_token_id


def save_model(
    model: PreTrainedModel, codec: TextCodec, folder: Path, *, normalization: Normalization | None = None
) -> None:
    """Write weights, configuration, tokenizer and template so that plain transformers can load them."""
    if normalization is not None:
        setattr(model.config, CONFIG_KEY, normalization.to_dict())
    digest = weights_sha256(model_weights(model))
    with _quiet():
        model.save_pretrained(str(folder))
    codec.save(folder)
    (folder / WEIGHTS_NAME).write_text(json.dumps({"weights_sha256": digest}) + "\n")


def read_normalization(model: PreTrainedModel) -> Normalization:
    """The normalization saved with a reward model; the identity for models that carry none."""
    values = getattr(model.config, CONFIG_KEY, None)
    return NO_NORMALIZATION if values is None else Normalization.from_dict(values)


def describe(model: PreTrainedModel) -> ModelDescription:
    """What services report about a model."""
    parameters = list(model.parameters())
    return ModelDescription(
        architecture=type(model).__name__,
        parameter_count=sum(parameter.numel() for parameter in parameters),
        vocab_size=model.get_input_embeddings().num_embeddings,
        max_sequence_tokens=model.config.max_position_embeddings,
        dtype=str(parameters[0].dtype).removeprefix("torch."),
        device=str(parameters[0].device),
    )


def load_config(source: str | Path) -> PretrainedConfig:
    """The configuration alone, without weights. Raises NotFoundError MODEL_NOT_FOUND."""
    try:
        return AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"no model can be loaded from {source}", reason="MODEL_NOT_FOUND", model=source
        ) from error


def _load(
    auto_class: Any,  # one of transformers' auto classes, which share no typed base
    source: str | Path,
    dtype: str,
    *,
    config: PretrainedConfig | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    if dtype not in DTYPES:
        raise InvalidArgumentError(f"unknown dtype {dtype!r}", reason="INVALID_DTYPE", field="dtype")
    if config is None:
        config = load_config(source)
    try:
        with _quiet():
            model, report = auto_class.from_pretrained(
                str(source),
                config=config,
                dtype=DTYPES[dtype],
                attn_implementation=ATTENTION_NAME,
                output_loading_info=True,
            )
    except KeyError as error:  # architectures that choose among attention classes of their own
        raise UnsupportedArchitectureError(
            f"{config.model_type} models do not take a registered attention", architecture=config.model_type
        ) from error
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"no model can be loaded from {source}: {error}", reason="MODEL_NOT_FOUND", model=source
        ) from error
    missing = sorted(report["missing_keys"])
    if missing and not new_head:
        raise FailedPreconditionError(
            f"{source} is not a {type(model).__name__}: it has no {missing[0]}",
            reason="WEIGHTS_MISSING",
            model=source,
        )
    loaded: PreTrainedModel = model
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Alone, without progress bars and the report of missing weights, which ``_load`` checks itself."""
    with _ONE_AT_A_TIME:
        verbosity, showed_progress = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        try:
            yield
        finally:
            hf_logging.set_verbosity(verbosity)
            if showed_progress:
                hf_logging.enable_progress_bar()


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Alone, with torch's own generators at ``seed``; afterwards they are where they were."""
    with _ONE_AT_A_TIME, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _prepare(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    model.eval()
    use_fast_products(model)
    use_fast_activations(model)
    compute_what_is_read(_layers(model)[-1])
    check_architecture(model)
    note_plain_head(model)
    return model.to(device)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of the trunk's layers."""
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise UnsupportedArchitectureError("its layers cannot be found", architecture=type(model).__name__)


def _scale_outputs(layer: nn.Module, gain: float) -> None:
    """Multiply what a new layer adds to the residual stream; at 0 it begins as the identity.

    Only the last matrices of its branches are touched: all others keep their random weights, and learn as
    soon as those have moved.
    """
    found = False
    for name, module in layer.named_modules():
        if name.rpartition(".")[2] in _RESIDUAL_OUTPUTS:
            found = True
            for parameter in module.parameters():
                parameter.mul_(gain)
    if not found:
        raise UnsupportedArchitectureError(
            "the outputs of its layers are not known by name, so it can have no extra layers",
            architecture=type(layer).__name__,
        )
