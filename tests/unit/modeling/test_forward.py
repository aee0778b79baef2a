import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from andon.modeling import forward
from andon.modeling.forward import (
    ResponseStatistics,
    final_scores,
    head_statistics,
    response_statistics,
    token_statistics,
    token_values,
)
from andon.modeling.loading import (
    load_causal_lm,
    load_scorer,
    new_causal_lm,
    save_model,
    scorer_from_causal_lm,
)
from andon.modeling.sequences import PromptGroup, pack
from andon.modeling.text import TextCodec

GROUPS = [
    PromptGroup([4, 5, 6, 7, 8, 9, 10, 2], [[4, 5, 3], [7, 8, 9, 10, 3], [3]]),
    PromptGroup([11, 12, 13, 2], [[14, 15, 3]]),
    PromptGroup([5] * 20, [[6, 7, 8, 9, 10, 11, 12, 3]]),
    PromptGroup([9, 2], [[9, 9, 9], [8, 3]]),
]


def sequences() -> list[tuple[list[int], list[int]]]:
    return [(list(group.prompt), list(response)) for group in GROUPS for response in group.responses]


def stirred(model: PreTrainedModel) -> PreTrainedModel:
    """With weights large enough that a wrong neighbour or position would be seen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


@pytest.fixture
def saved_lm(architecture: dict[str, Any], codec: TextCodec, tmp_path: Path) -> Path:
    save_model(stirred(new_causal_lm(architecture, codec, 0)), codec, tmp_path)
    return tmp_path


@pytest.fixture
def saved_scorer(saved_lm: Path, codec: TextCodec, tmp_path: Path) -> Path:
    folder = tmp_path / "scorer"
    save_model(stirred(scorer_from_causal_lm(saved_lm, extra_layers=1, seed=0)), codec, folder)
    return folder


def right_padded(pad: int) -> tuple[Tensor, Tensor]:
    rows = [prompt + response for prompt, response in sequences()]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def test_logprobs_and_gradients_are_those_of_separate_sequences(saved_lm: Path) -> None:
    packed_model = load_causal_lm(saved_lm)
    plain = AutoModelForCausalLM.from_pretrained(saved_lm, attn_implementation="eager")
    statistics = response_statistics(packed_model, pack(GROUPS), temperature=0.7, entropy=True)
    logprobs, entropies = [], []
    for prompt, response in sequences():
        logits = plain(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / 0.7
        distribution = torch.distributions.Categorical(logits=logits)
        logprobs.append(distribution.log_prob(torch.tensor(response)))
        entropies.append(distribution.entropy())
    assert statistics.entropies is not None
    torch.testing.assert_close(statistics.logprobs, torch.cat(logprobs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.entropies, torch.cat(entropies), rtol=1e-5, atol=1e-5)

    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, len(statistics.logprobs), generator=generator) / 10
    ((statistics.logprobs * weights[0]).sum() + (statistics.entropies * weights[1]).sum()).backward()
    ((torch.cat(logprobs) * weights[0]).sum() + (torch.cat(entropies) * weights[1]).sum()).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in packed_model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text
        )


def test_autocast_computes_the_same_up_to_its_rounding(saved_lm: Path) -> None:
    """Rotary positions leave queries and keys in float32 beside values in bfloat16."""

    def gradients(enabled: bool) -> tuple[Tensor, Tensor]:
        model = load_causal_lm(saved_lm)
        batch = pack([PromptGroup(prompt, [response, response[:1]]) for prompt, response in sequences()])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logprobs = response_statistics(model, batch, temperature=0.7).logprobs
        logprobs.mean().backward()  # type: ignore[no-untyped-call]
        return logprobs.detach(), torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        )

    (logprobs, gradient), (expected, expected_gradient) = gradients(True), gradients(False)
    assert (logprobs - expected).abs().max() <= 0.05 * expected.abs().max()
    assert (gradient - expected_gradient).norm() <= 0.1 * expected_gradient.norm()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_plain_padded_forward_pass_gives_the_same_logprobs(saved_lm: Path, attention: str) -> None:
    with torch.inference_mode():
        statistics = response_statistics(load_causal_lm(saved_lm), pack(GROUPS), temperature=1.0)
        plain = AutoModelForCausalLM.from_pretrained(saved_lm, attn_implementation=attention)
        ids, mask = right_padded(pad=0)
        logprobs = plain(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected = [
        logprobs[row, len(prompt) - 1 + place, token]
        for row, (prompt, response) in enumerate(sequences())
        for place, token in enumerate(response)
    ]
    torch.testing.assert_close(statistics.logprobs, torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_plain_padded_forward_pass_gives_the_same_scores(saved_scorer: Path, attention: str) -> None:
    with torch.inference_mode():
        scores = final_scores(load_scorer(saved_scorer), pack(GROUPS))
        plain = AutoModelForSequenceClassification.from_pretrained(
            saved_scorer, attn_implementation=attention
        )
        ids, mask = right_padded(pad=plain.config.pad_token_id)
        expected = plain(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert scores.std() > 0.01
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_values_are_read_before_each_token(saved_scorer: Path) -> None:
    scorer = load_scorer(saved_scorer)
    with torch.inference_mode():
        values = token_values(scorer, pack(GROUPS))
        expected = []
        for prompt, response in sequences():
            for place in range(len(response)):
                so_far = [*prompt, *response[:place]]
                whole = pack([PromptGroup(so_far[:-1], [so_far[-1:]])])
                expected.append(final_scores(scorer, whole))
    torch.testing.assert_close(values, torch.cat(expected), rtol=0, atol=1e-5)


def test_score_gradients_are_those_of_separate_sequences(saved_scorer: Path) -> None:
    scorer, alone = load_scorer(saved_scorer), load_scorer(saved_scorer)
    weights = torch.linspace(-1, 1, len(sequences()))
    (final_scores(scorer, pack(GROUPS)) * weights).sum().backward()
    for weight, (prompt, response) in zip(weights, sequences(), strict=True):
        (final_scores(alone, pack([PromptGroup(prompt, [response])])) * weight).sum().backward()
    for parameter, expected in zip(scorer.parameters(), alone.parameters(), strict=True):
        assert (parameter.grad is None) == (expected.grad is None)
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["06_response_logprobs_T1", "06_response_logprobs_T0.7"])
def test_golden_logprobs_and_entropies(shared_dir: Path, name: str) -> None:
    vector = json.loads((shared_dir / "golden" / f"{name}.json").read_text())
    query_length, ids = vector["inputs"]["query_length"], torch.tensor(vector["inputs"]["input_ids"])
    logits = torch.tensor(vector["inputs"]["logits"])[:, query_length - 1 : -1]
    statistics = token_statistics(
        logits.reshape(-1, logits.shape[-1]),
        ids[:, query_length:].reshape(-1),
        temperature=vector["inputs"]["temperature"],
        entropy=True,
    )
    tolerance = vector["tolerance"]["float32"]
    assert statistics.entropies is not None
    for computed, key in ((statistics.logprobs, "logprobs"), (statistics.entropies, "entropies")):
        expected = torch.tensor(vector["outputs"][key]).reshape(-1)
        torch.testing.assert_close(computed, expected, **tolerance)


def test_token_statistics_gradients_against_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 9000, generator=generator) * 3  # more rows than are worked on at a time
    targets = torch.randint(9000, (40,), generator=generator)
    weights = torch.randn(2, 40, generator=generator)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    statistics = token_statistics(ours, targets, temperature=0.7, entropy=True)
    assert statistics.entropies is not None
    ((statistics.logprobs * weights[0]) + (statistics.entropies * weights[1])).sum().backward()
    distribution = torch.distributions.Categorical(logits=theirs / 0.7)
    ((distribution.log_prob(targets) * weights[0]) + (distribution.entropy() * weights[1])).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert token_statistics(logits, targets, temperature=1.0).entropies is None


def test_half_precision_logits_are_reduced_in_single_precision() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([0, 1, 2, 3])
    statistics = token_statistics(logits, targets, temperature=1.0)
    assert statistics.logprobs.dtype == torch.float32
    expected = logits.double().log_softmax(-1)[torch.arange(4), targets]
    torch.testing.assert_close(statistics.logprobs.double(), expected, rtol=0, atol=1e-5)


def test_a_model_with_another_attention_is_refused(saved_lm: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved_lm)
    with pytest.raises(TypeError, match="attn_implementation"):
        response_statistics(model, pack(GROUPS), temperature=1.0)


def test_dropout_is_the_callers_choice(codec: TextCodec) -> None:
    architecture = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = new_causal_lm({**architecture, "attn_pdrop": 0.5, "resid_pdrop": 0.5}, codec, 0)
    batch = pack(GROUPS)
    first, second = (response_statistics(model, batch, temperature=1.0).logprobs for _ in range(2))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    trained = copy.deepcopy(model).train()
    first, second = (response_statistics(trained, batch, temperature=1.0).logprobs for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("entropy", [True, False])
def test_a_head_in_parts_gives_the_same_and_never_all_logits(
    monkeypatch: pytest.MonkeyPatch, entropy: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(9, (11,), generator=generator)
    rows: list[int] = []

    def head(part: Tensor) -> Tensor:
        rows.append(len(part))
        return part @ weight.t()

    def of(statistics: ResponseStatistics) -> list[Tensor]:
        values = [statistics.logprobs]
        if statistics.entropies is not None:
            values.append(statistics.entropies)
        total = sum((value.double() * torch.arange(1, 12)).sum() for value in values)
        return [*values, *torch.autograd.grad(total, (states, weight))]

    whole = of(token_statistics(head(states), targets, temperature=0.7, entropy=entropy))
    rows.clear()
    monkeypatch.setattr(forward, "_ON_CPU", forward._Sizes(in_float32=9, at_all=4 * 9))
    monkeypatch.setattr(forward, "_FEWEST_ROWS_OF_LOGITS", 1)
    parts = of(head_statistics(head, states, targets, vocab_size=9, temperature=0.7, entropy=entropy))
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-6)
    assert sorted(rows) == [3, 3, 4, 4, 4, 4]  # each part once forwards, once backwards


def test_a_model_that_changes_its_heads_output_is_asked_for_its_logits(codec: TextCodec) -> None:
    architecture = {
        "model_type": "granite",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "logits_scaling": 3.0,
    }
    model = stirred(new_causal_lm(architecture, codec, 0))
    batch = pack(GROUPS)
    logprobs = response_statistics(model, batch, temperature=1.0).logprobs
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
    ).logits[0]
    expected = torch.log_softmax(logits[batch.predict_index], -1).gather(1, batch.target_ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected, rtol=1e-4, atol=1e-4)
