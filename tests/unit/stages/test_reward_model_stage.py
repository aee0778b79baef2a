"""The reward-model stage, with real tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from andon.client.policy import SamplingParameters
from andon.corpus.loaders import load_comparisons
from andon.corpus.records import ComparisonRecord
from andon.modeling.normalization import Normalization
from andon.modeling.store import ModelStore
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError
from services.trainer.stages.comparisons import group_by_document, split_by_document
from services.trainer.stages.context import RunInterrupted, StageClients
from services.trainer.stages.reward_model import RewardModelConfig, RewardModelStage
from services.trainer.stages.sft import SftConfig, SftStage

from .conftest import TINY_GPT2, FakeContext, write_rows

OTHER_SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CALM_GPT2 = {**TINY_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def reward_config(source: str, **changes: Any) -> RewardModelConfig:
    values: dict[str, Any] = {
        "base_model": "sft@latest",
        "comparisons": source,
        "epochs": 2,
        "batch_comparisons": 16,
        "token_budget": 200,
        "learning_rate": 3e-3,
        "validation_share": 0.2,
        "validation_interval": 4,
        **changes,
    }
    return RewardModelConfig(**values)


@pytest.fixture
def with_base(context: FakeContext, documents_source: str) -> FakeContext:
    """A run whose store holds a briefly trained language model."""
    config = SftConfig(
        data=documents_source,
        architecture=CALM_GPT2,
        tokenizer={"kind": "words"},
        steps=3,
        learning_rate=1e-2,
        batch_tokens=400,
    )
    SftStage(config, FakeContext(context.store, run_id="run-0")).run()
    return context


@dataclass
class RecordedAnswers:
    """Stands in for the labeling service's client."""

    records: list[ComparisonRecord]
    batches: list[str]

    def export_comparisons(self, *, batch: str) -> Iterator[ComparisonRecord]:
        self.batches.append(batch)
        yield from self.records


@dataclass
class ParrotPolicy:
    """Stands in for the policy service's client: repeats the first words of each document."""

    asked: list[SamplingParameters]

    def sample(self, prompts: list[str], parameters: SamplingParameters, *, wait_for_ready: bool) -> Any:
        self.asked.append(parameters)
        assert wait_for_ready

        @dataclass
        class Sample:
            text: str

        @dataclass
        class Result:
            samples: list[Sample]

        @dataclass
        class Answer:
            results: list[Result]

        return Answer(
            [Result([Sample(" ".join(prompt.split()[: 2 + i % 3]))]) for i, prompt in enumerate(prompts)]
        )


class PlainScorer:
    """Raw scores by transformers alone, without packing and without our loader."""

    def __init__(self, store: ModelStore, name: str) -> None:
        folder = store.resolve(name).path
        self._model = AutoModelForSequenceClassification.from_pretrained(folder)
        self._codec = TextCodec.load(folder)

    def __call__(self, document: str, summary: str) -> float:
        ids = torch.tensor([self._codec.encode_document(document) + self._codec.encode_summary(summary)])
        with torch.no_grad():
            return float(self._model(input_ids=ids).logits[0, 0])


def test_learns_what_labelers_prefer_and_says_how_well(
    with_base: FakeContext, comparisons_source: str, documents_source: str
) -> None:
    config = reward_config(comparisons_source, epochs=5, references=documents_source, alias="demo")
    version = RewardModelStage(config, with_base).run()

    stored = with_base.store.resolve("reward@demo")
    assert stored.version == version
    draft = stored.manifest.draft
    assert draft.kind == "reward_model"
    (parent,) = draft.parents
    assert (parent.role, str(parent.model)) == ("base", "sft/1")
    comparisons, references = draft.data
    assert (comparisons.kind, comparisons.uri, comparisons.count) == ("comparisons", comparisons_source, 140)
    assert (comparisons.first_id, comparisons.last_id) == ("1", "140")
    assert (references.uri, references.count) == (documents_source, 40)
    metrics = draft.metrics
    # Ann always prefers the second summary, Bob in three of four cases: nobody can be right about both.
    assert metrics["validation_accuracy"] > 0.7
    assert (
        metrics["validation_accuracy_low"]
        < metrics["validation_accuracy"]
        < metrics["validation_accuracy_high"]
    )
    assert metrics["labeler_agreement"] == pytest.approx(0.75)
    assert metrics["labeler_agreement_pairs"] == 60
    assert metrics["comparisons"] == 140
    assert 0 <= metrics["longer_wins_accuracy"] < 0.5  # the preferred one is short
    assert {f"validation_accuracy_confidence_{bucket}" for bucket in ("1_3", "4_6", "7_9")} <= set(metrics)
    first, last = with_base.reports[0].metrics, with_base.reports[-1].metrics
    assert last["loss_nats"] < first["loss_nats"]
    assert first["tokens_per_s"] > 0

    assert draft.normalization is not None
    assert draft.normalization.method == "reference_zero"
    score = PlainScorer(with_base.store, "reward/1")
    raw = [
        score(row["document"], row["summaries"][0])
        for row in map(json.loads, Path(documents_source).read_text().splitlines())
    ]
    rewards = [draft.normalization.apply(score) for score in raw]
    assert sum(rewards) / len(rewards) == pytest.approx(0.0, abs=1e-4)
    config_file = json.loads((stored.path / "config.json").read_text())
    assert Normalization.from_dict(config_file["andon_normalization"]) == draft.normalization


def test_the_validation_loss_is_that_of_plain_transformers(
    with_base: FakeContext, comparisons_source: str
) -> None:
    config = reward_config(comparisons_source, epochs=1)
    RewardModelStage(config, with_base).run()
    split = split_by_document(load_comparisons(comparisons_source), held_out_share=0.2, seed=0)
    assert len({record.document for record in split.held_out}) == 12
    score = PlainScorer(with_base.store, "reward/1")
    losses, right = [], []
    for record in split.held_out:
        scores = torch.tensor([score(record.document, candidate.text) for candidate in record.candidates])
        pairs = record.untied_pairs()
        right += [bool(scores[better] > scores[worse]) for better, worse in pairs]
        if record.only_best_known:
            losses.append(-float(scores.log_softmax(0)[record.tiers[0][0]]))
        else:
            own = [-float(logsigmoid(scores[better] - scores[worse])) for better, worse in pairs]
            losses.append(sum(own) / len(own))
    metrics = with_base.reports[-1].metrics
    assert metrics["validation_loss_nats"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert metrics["validation_accuracy"] == pytest.approx(sum(right) / len(right))
    assert metrics["validation_comparisons"] == len(split.held_out)


def test_documents_pass_through_once_however_many_people_compared(
    with_base: FakeContext, comparisons_source: str
) -> None:
    codec = TextCodec.load(with_base.store.resolve("sft/1").path)
    records = load_comparisons(comparisons_source)
    elements = group_by_document(records, codec, max_summary_tokens=20)
    assert len(elements) == 60
    assert sum(len(element.records) for element in elements) == len(records)
    assert {len(element.group.responses) for element in elements} == {2, 4}
    for element in elements:
        for record, places in zip(element.records, element.candidate_places, strict=True):
            for candidate, place in zip(record.candidates, places, strict=True):
                assert codec.decode(element.group.responses[place]) == candidate.text
    cut = group_by_document(records, codec, max_summary_tokens=3)
    assert {len(response) for element in cut for response in element.group.responses} == {3}
    assert all(response[-1] == codec.eos_token_id for element in cut for response in element.group.responses)


def test_held_out_documents_do_not_depend_on_the_order_of_records(comparisons_source: str) -> None:
    records = load_comparisons(comparisons_source)
    split = split_by_document(records, held_out_share=0.25, seed=1)
    backwards = split_by_document(records[::-1], held_out_share=0.25, seed=1)
    assert {record.document for record in split.held_out} == {
        record.document for record in backwards.held_out
    }
    assert len(split.training) + len(split.held_out) == len(records)
    assert not {r.document for r in split.training} & {r.document for r in split.held_out}
    assert split_by_document(records, held_out_share=0.0, seed=1).held_out == []


@pytest.mark.parametrize("step", [2, 5])
@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_an_interrupted_run_ends_with_the_same_weights_bit_for_bit(
    with_base: FakeContext, comparisons_source: str, step: int, coefficient: float
) -> None:
    config = reward_config(comparisons_source, extra_layers=1, language_model_coefficient=coefficient)
    whole = RewardModelStage(config, with_base).run()
    cut_off = FakeContext(with_base.store, run_id="run-2", interrupt_at=step)
    with pytest.raises(RunInterrupted):
        RewardModelStage(config, cut_off).run()
    continued = cut_off.continued()
    resumed = RewardModelStage(config, continued).run()
    assert continued.reports[0].step == step + 1
    assert resumed.version == whole.version + 1
    assert resumed.weights_sha256 == whole.weights_sha256


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(
    with_base: FakeContext, comparisons_source: str
) -> None:
    weights = []
    for token_budget in (1, 100_000):
        config = reward_config(
            comparisons_source,
            epochs=1,
            token_budget=token_budget,
            language_model_coefficient=0.3,
            language_model_responses="all",
        )
        version = RewardModelStage(config, with_base).run()
        weights.append(load_file(with_base.store.resolve(version).path / "model.safetensors"))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "architecture",
    [
        CALM_GPT2,  # its head is its embeddings
        {**CALM_GPT2, "tie_word_embeddings": False},
        {**OTHER_SIZES, "model_type": "gpt_neox", "tie_word_embeddings": False},
        {**OTHER_SIZES, "model_type": "llama", "tie_word_embeddings": True},
    ],
    ids=["gpt2", "gpt2-untied", "gpt-neox", "llama"],
)
def test_the_auxiliary_loss_is_the_base_models_own_on_preferred_summaries(
    context: FakeContext, comparisons_source: str, documents_source: str, architecture: dict[str, Any]
) -> None:
    config = SftConfig(
        data=documents_source,
        architecture=architecture,
        tokenizer={"kind": "words"},
        steps=3,
        learning_rate=1e-2,
    )
    SftStage(config, FakeContext(context.store, run_id="run-0")).run()
    rows = [json.loads(line) for line in Path(comparisons_source).read_text().splitlines()][:1]
    source = write_rows(Path(comparisons_source).with_name("one.jsonl"), rows)
    RewardModelStage(
        reward_config(source, epochs=1, validation_share=0.0, extra_layers=1, language_model_coefficient=0.5),
        context,
    ).run()
    folder = context.store.resolve("sft/1").path
    codec = TextCodec.load(folder)
    preferred = rows[0]["candidates"][rows[0]["tiers"][0][0]]["text"]
    prompt, summary = codec.encode_document(rows[0]["document"]), codec.encode_summary(preferred)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([prompt + summary])).logits[0]
    logprobs = logits.log_softmax(-1)
    nats = -sum(float(logprobs[place - 1, token]) for place, token in enumerate(summary, len(prompt)))
    reported = context.reports[0].metrics["language_model_loss_nats_per_token"]
    # The extra layer passes its input on, so before the first update the trunk is the base model's.
    assert reported == pytest.approx(nats / len(summary), abs=1e-4)
    stored = AutoModelForSequenceClassification.from_pretrained(context.store.resolve("reward/1").path)
    assert stored.config.num_hidden_layers == 3


def test_answers_come_from_the_labeling_service_and_a_resumed_run_sees_no_later_ones(
    with_base: FakeContext, comparisons_source: str
) -> None:
    records = load_comparisons(comparisons_source)
    early = RecordedAnswers(records[:100], [])
    with_base.clients = StageClients(labeling=early)  # type: ignore[arg-type]
    config = reward_config("labeling:first")
    whole = RewardModelStage(config, with_base).run()
    assert early.batches == ["first"]
    use = with_base.store.resolve(whole).manifest.draft.data[0]
    assert (use.uri, use.first_id, use.last_id, use.count) == ("labeling:first", "1", "100", 100)

    cut_off = FakeContext(with_base.store, run_id="run-2", interrupt_at=3, clients=with_base.clients)
    with pytest.raises(RunInterrupted):
        RewardModelStage(config, cut_off).run()
    continued = cut_off.continued()
    continued.clients = StageClients(labeling=RecordedAnswers(records, []))  # type: ignore[arg-type]
    assert RewardModelStage(config, continued).run().weights_sha256 == whole.weights_sha256


def test_no_service_and_no_answers_are_told_apart(with_base: FakeContext) -> None:
    with pytest.raises(InvalidConfigError, match="no labeling service"):
        RewardModelStage(reward_config("labeling:first"), with_base).run()
    with_base.clients = StageClients(labeling=RecordedAnswers([], []))  # type: ignore[arg-type]
    with pytest.raises(InvalidConfigError, match="no answers yet"):
        RewardModelStage(reward_config("labeling:first"), with_base).run()


def test_normalization_to_the_policys_own_samples(
    with_base: FakeContext, comparisons_source: str, documents_source: str
) -> None:
    config = reward_config(
        comparisons_source,
        epochs=1,
        references=documents_source,
        reference_documents=12,
        normalization="policy_unit",
        sampling_temperature=0.7,
    )
    with pytest.raises(InvalidConfigError, match="no policy service"):
        RewardModelStage(config, with_base).run()
    policy = ParrotPolicy([])
    with_base.clients = StageClients(policy=(policy,))  # type: ignore[arg-type]
    version = RewardModelStage(config, with_base).run()
    (asked,) = policy.asked
    assert (asked.temperature, asked.samples_per_prompt, asked.seed) == (0.7, 1, 0)
    normalization = with_base.store.resolve(version).manifest.draft.normalization
    assert normalization is not None
    rows = [json.loads(line) for line in Path(documents_source).read_text().splitlines()][:12]
    score = PlainScorer(with_base.store, str(version))
    rewards = [
        normalization.apply(score(row["document"], " ".join(row["document"].split()[: 2 + index % 3])))
        for index, row in enumerate(rows)
    ]
    assert sum(rewards) / 12 == pytest.approx(0.0, abs=1e-3)
    assert sum(reward**2 for reward in rewards) / 12 == pytest.approx(1.0, abs=1e-2)


def test_unusable_references_are_told_before_training(
    with_base: FakeContext, comparisons_source: str, tmp_path: Path
) -> None:
    bare = write_rows(tmp_path / "bare.jsonl", [{"document": "a dog", "summaries": []}])
    with pytest.raises(InvalidConfigError) as caught:
        RewardModelStage(reward_config(comparisons_source, references=bare), with_base).run()
    assert caught.value.field == "references"
    assert with_base.reports == []


def test_comparisons_without_any_preference_are_refused(with_base: FakeContext, tmp_path: Path) -> None:
    rows = [
        {"document": f"a dog {index}", "summaries": ["dog", "a"], "choice": None, "id": str(index)}
        for index in range(5)
    ]
    with pytest.raises(InvalidConfigError, match="no preference"):
        RewardModelStage(reward_config(write_rows(tmp_path / "ties.jsonl", rows)), with_base).run()


def test_comparisons_of_their_own_may_be_held_out(with_base: FakeContext, comparisons_source: str) -> None:
    lines = Path(comparisons_source).read_text().splitlines()
    other = Path(comparisons_source).with_name("other.jsonl")
    other.write_text("\n".join(lines[:30]) + "\n")
    version = RewardModelStage(
        reward_config(comparisons_source, epochs=1, validation_comparisons=str(other)), with_base
    ).run()
    metrics = with_base.store.resolve(version).manifest.draft.metrics
    assert metrics["training_comparisons"] == 140
    assert metrics["validation_comparisons"] == 30


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"normalization": "reference_zero"}, "needs references"),
        ({"normalization": "policy_unit"}, "needs references"),
        ({"validation_share": 1.0}, "less than 1"),
        ({"extra_layers": -1}, "greater than or equal to 0"),
        ({"margin": 1}, "Extra inputs"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        reward_config("somewhere", **changes)
