import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging as hf_logging

from andon.errors import AndonError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from andon.modeling import linear
from andon.modeling.architecture_check import check_architecture
from andon.modeling.attention import ATTENTION_NAME
from andon.modeling.errors import UnsupportedArchitectureError
from andon.modeling.forward import final_scores, response_statistics
from andon.modeling.loading import (
    describe,
    freeze,
    grow_vocabulary,
    load_causal_lm,
    load_scorer,
    new_causal_lm,
    read_normalization,
    save_model,
    scorer_from_causal_lm,
)
from andon.modeling.manifest import ManifestDraft
from andon.modeling.normalization import NO_NORMALIZATION, Normalization
from andon.modeling.sequences import PromptGroup, pack
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from andon.modeling.weight_codec import model_weights, weights_sha256

GROUPS = [PromptGroup([4, 5, 6, 2], [[7, 8, 3], [9, 3]])]


def logprobs(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return response_statistics(model, pack(GROUPS), temperature=1.0).logprobs


def test_a_stored_model_comes_back_and_plain_transformers_read_it(
    architecture: dict[str, Any], codec: TextCodec, tmp_path: Path
) -> None:
    model = new_causal_lm(architecture, codec, 0)
    store = ModelStore(tmp_path)
    stored = store.publish(
        "sft", lambda folder: save_model(model, codec, folder), manifest=ManifestDraft(kind="causal_lm")
    )
    loaded = load_causal_lm(stored.path)
    assert torch.equal(logprobs(loaded), logprobs(model))
    # One digest, from whichever side it is looked at; files may name tensors otherwise than memory does.
    assert stored.version.weights_sha256 == weights_sha256(model_weights(loaded))
    assert ATTENTION_NAME not in (stored.path / "config.json").read_text()
    plain = AutoModelForCausalLM.from_pretrained(stored.path)
    assert plain.config._attn_implementation == "sdpa"
    assert plain.config.eos_token_id == codec.eos_token_id
    assert TextCodec.load(stored.path).fingerprint == codec.fingerprint


def test_a_frozen_model_takes_no_gradients_and_has_its_large_weights_laid_out(
    monkeypatch: pytest.MonkeyPatch, codec: TextCodec, tmp_path: Path
) -> None:
    monkeypatch.setattr(linear, "has_slow_default", linear.has_operator)
    monkeypatch.setattr(linear, "_FEWEST_TO_ORDER", 32 * 128)
    model = new_causal_lm(
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, codec, seed=1
    )
    digest = weights_sha256(model_weights(model))
    frozen = freeze(model)
    assert frozen is model
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert weights_sha256(model_weights(frozen)) == digest
    if linear.has_operator():
        assert frozen.transformer.h[0].mlp.c_fc.weight.stride() == (1, 32)
        assert frozen.transformer.h[0].attn.c_proj.weight.stride() == (32, 1)
    save_model(frozen, codec, tmp_path)
    assert weights_sha256(model_weights(load_causal_lm(tmp_path))) == digest


def test_the_seed_decides_the_weights_and_disturbs_no_other_randomness(codec: TextCodec) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    digests = [weights_sha256(model_weights(new_causal_lm(architecture, codec, seed))) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(2), expected)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("architecture", "field"),
    [
        ({"model_type": "gpt2", "n_layers": 2}, "n_layers"),
        ({"model_type": "gtp2"}, "model_type"),
        ({}, "model_type"),
    ],
)
def test_unknown_architectures_and_keys_are_refused(
    architecture: dict[str, Any], field: str, codec: TextCodec
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        new_causal_lm(architecture, codec, 0)
    assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_ARCHITECTURE", field)


def test_a_description_names_the_facts(codec: TextCodec) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    facts = describe(new_causal_lm(architecture, codec, 0))
    embeddings = (codec.vocab_size + 16) * 8
    layer = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
    assert facts.parameter_count == embeddings + layer + 2 * 8
    assert (facts.architecture, facts.vocab_size, facts.max_sequence_tokens, facts.dtype, facts.device) == (
        "GPT2LMHeadModel",
        codec.vocab_size,
        16,
        "float32",
        "cpu",
    )


@pytest.mark.parametrize("extra_layers", [0, 2])
def test_a_scorer_begins_as_its_language_model_with_a_small_head(
    architecture: dict[str, Any], codec: TextCodec, tmp_path: Path, extra_layers: int
) -> None:
    model = new_causal_lm(architecture, codec, 0)
    save_model(model, codec, tmp_path / "lm")
    scorer = scorer_from_causal_lm(tmp_path / "lm", extra_layers=extra_layers, seed=1)
    batch = pack(GROUPS)
    hidden = [
        trunk.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
        ).last_hidden_state
        for trunk in (model, scorer)
    ]
    torch.testing.assert_close(hidden[0], hidden[1])
    assert scorer.config.num_hidden_layers == 2 + extra_layers
    assert scorer.score.weight.shape == (1, 32)
    assert scorer.score.weight.std().item() == pytest.approx((1 / 33) ** 0.5, rel=0.4)

    normalization = Normalization(method="reference_zero", bias=0.25)
    save_model(scorer, codec, tmp_path / "scorer", normalization=normalization)
    loaded = load_scorer(tmp_path / "scorer")
    assert read_normalization(loaded) == normalization
    weights = loaded.state_dict()
    assert set(weights) == set(scorer.state_dict())
    assert all(torch.equal(weights[name], weight) for name, weight in scorer.state_dict().items())
    # Where weights lie in memory decides, on some processors, how their products are rounded.
    torch.testing.assert_close(final_scores(loaded, batch), final_scores(scorer, batch))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer")
    assert plain.config.pad_token_id == codec.pad_token_id


def test_new_layers_learn(codec: TextCodec, tmp_path: Path) -> None:
    architecture = {"model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 1}
    architecture |= {"num_attention_heads": 2, "intermediate_size": 64}
    save_model(new_causal_lm(architecture, codec, 0), codec, tmp_path)
    scorer = scorer_from_causal_lm(tmp_path, extra_layers=1, seed=1)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in scorer.named_parameters()}
    for _ in range(3):
        scores = final_scores(scorer, pack(GROUPS))
        optimizer.zero_grad()
        (scores[1] - scores[0]).backward()
        optimizer.step()
    unmoved = [
        name
        for name, parameter in scorer.named_parameters()
        if ".1." in name and "norm" not in name and torch.equal(parameter, before[name])
    ]
    assert unmoved == []


def test_what_cannot_be_a_reward_model_is_refused(codec: TextCodec, tmp_path: Path) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    model = new_causal_lm(architecture, codec, 0)
    save_model(model, codec, tmp_path)
    with pytest.raises(FailedPreconditionError):
        load_scorer(tmp_path)  # a language model has two labels by default, and no head
    config = AutoConfig.from_pretrained(tmp_path)
    config.num_labels = 1
    config.save_pretrained(tmp_path)
    with pytest.raises(FailedPreconditionError) as caught:
        load_scorer(tmp_path)
    assert caught.value.reason == "WEIGHTS_MISSING"
    config.pad_token_id = config.eos_token_id
    config.save_pretrained(tmp_path)
    with pytest.raises(FailedPreconditionError) as caught:
        scorer_from_causal_lm(tmp_path, seed=0)
    assert caught.value.reason == "NO_PAD_TOKEN"


def test_a_model_without_normalization_has_the_identity(codec: TextCodec) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    assert read_normalization(new_causal_lm(architecture, codec, 0)) == NO_NORMALIZATION


@pytest.mark.parametrize("load", [load_causal_lm, load_scorer])
def test_what_is_not_there_is_not_found(load: Any, tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", tmp_path):
        with pytest.raises(NotFoundError) as caught:
            load(source)
        assert caught.value.reason == "MODEL_NOT_FOUND"
    with pytest.raises(AndonError) as other:
        load(tmp_path, dtype="int8")
    assert other.value.reason == "INVALID_DTYPE"


def test_the_vocabulary_grows_for_a_padding_token(codec: TextCodec) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    model = new_causal_lm(architecture, codec, 0)
    larger = word_level_codec([*codec.tokenizer.get_vocab(), "another"])
    assert larger.vocab_size == codec.vocab_size + 1
    grow_vocabulary(model, larger)
    assert model.get_input_embeddings().num_embeddings == larger.vocab_size
    assert model.config.vocab_size == larger.vocab_size
    assert model.config.pad_token_id == larger.pad_token_id


def test_bfloat16_is_loaded_as_asked(codec: TextCodec, tmp_path: Path) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
    model = new_causal_lm(architecture, codec, 0)
    save_model(model, codec, tmp_path)
    loaded = load_causal_lm(tmp_path, dtype="bfloat16")
    assert describe(loaded).dtype == "bfloat16"
    torch.testing.assert_close(logprobs(loaded), logprobs(model), rtol=0.02, atol=0.02)


SMALL = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**SMALL, "num_key_value_heads": 1, "intermediate_size": 64}
TIED = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("opt", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
        ("phi", {**SMALL, "intermediate_size": 64}),
        ("mistral", GATED),
        ("qwen3", {**GATED, "head_dim": 16}),
        ("gemma3_text", {**GATED, "head_dim": 16}),
        ("mixtral", {**GATED, "num_local_experts": 2}),
    ],
)
def test_further_architectures_pass_the_check(model_type: str, values: dict[str, Any]) -> None:
    config = AutoConfig.for_model(model_type, **values)
    check_architecture(AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME))


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        (
            "mamba",
            {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        ),  # recurrent
        ("bloom", {"vocab_size": 32, "hidden_size": 32, "n_layer": 2, "n_head": 2}),  # biases by row
        ("gemma2", {**GATED, "head_dim": 16}),  # capped attention logits
    ],
)
def test_architectures_that_mix_rows_are_refused(model_type: str, values: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME)
    with pytest.raises(UnsupportedArchitectureError) as caught:
        check_architecture(model)
    assert caught.value.reason == "UNSUPPORTED_ARCHITECTURE"


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], list[Any]]:
    """``four_threads(work)`` gives what ``work(0)`` to ``work(3)`` return when called at the same moment."""
    # Where this goes wrong, transformers must not stay broken for the tests that follow.
    monkeypatch.setattr(PreTrainedModel, "tie_weights", PreTrainedModel.tie_weights)
    together = threading.Barrier(4)

    def begin(work: Callable[[int], Any], number: int) -> Any:
        together.wait()
        return work(number)

    def run(work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(partial(begin, work), range(4)))

    return run


def test_threads_that_load_at_once_get_whole_models(
    codec: TextCodec, tmp_path: Path, four_threads: Callable[..., list[list[PreTrainedModel]]]
) -> None:
    made = new_causal_lm(TIED, codec, 0)
    save_model(made, codec, tmp_path)
    settings = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    loaded = four_threads(lambda number: [load_causal_lm(tmp_path) for _ in range(8)])
    for model in chain.from_iterable(loaded):
        assert model.lm_head.weight is model.transformer.wte.weight
        assert torch.equal(logprobs(model), logprobs(made))
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == settings


def test_threads_that_draw_weights_at_once_draw_those_of_their_seeds(
    codec: TextCodec, four_threads: Callable[..., list[list[str]]]
) -> None:
    def draw(seed: int) -> list[str]:
        models = [new_causal_lm(TIED, codec, seed) for _ in range(8)]
        return [weights_sha256(model_weights(model)) for model in models]

    alone = [draw(seed) for seed in range(4)]
    assert len({digest for digests in alone for digest in digests}) == 4
    assert four_threads(draw) == alone
