"""Replaced-token detection: which words are exchanged, and that the phase resumes and teaches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from services.trainer.errors import InvalidConfigError
from services.trainer.stages.context import RunInterrupted
from services.trainer.stages.exchanged_words import Corrupted, WordExchange
from services.trainer.stages.reward_model import RewardModelConfig, RewardModelStage
from services.trainer.stages.sft import SftConfig, SftStage
from services.trainer.stages.summary_detection import fewest_exchanges_first

from .conftest import TINY_GPT2, FakeContext, write_rows

# "1 x 2", "1 y 2", ...: ten different words behind 1, one word before and after.
SUMMARIES = [[1, 10 + index, 2] for index in range(10)]


def test_only_places_with_alternatives_are_exchanged() -> None:
    exchange = WordExchange(SUMMARIES, min_alternatives=8, replaced_share=0.5)
    source = random.Random(0)
    replaced = 0
    for _ in range(400):
        result = exchange.corrupt([1, 13, 2], source)
        assert result.is_place == [False, True, False]
        assert (result.token_ids[0], result.token_ids[2]) == (1, 2)
        assert 10 <= result.token_ids[1] <= 19
        assert result.is_original == [True, result.token_ids[1] == 13, True]
        replaced += not result.is_original[1]
    # Half of the places are drawn anew, and one draw in ten gives the same word: 0.45 of 400.
    assert 150 <= replaced <= 210


def test_a_place_is_judged_by_the_two_originals_before_it() -> None:
    # 20..27 are seen behind (3, 10) only; behind any other word than 10 there is one choice.
    chain = [[3, 10, 20 + j] for j in range(8)] + [[3, 11 + i, 20] for i in range(8)]
    exchange = WordExchange(chain, min_alternatives=8, replaced_share=0.999)
    for seed in range(20):
        result = exchange.corrupt([3, 10, 20], random.Random(seed))
        assert result.is_place == [False, True, True]
        assert result.token_ids[2] in range(20, 28)


def test_too_few_alternatives_leave_no_place() -> None:
    exchange = WordExchange(SUMMARIES[:7], min_alternatives=8, replaced_share=0.5)
    assert exchange.num_contexts == 0
    assert exchange.corrupt([1, 10, 2], random.Random(0)).token_ids == [1, 10, 2]


def config(
    comparisons: str, documents: str, *, summary_detection: dict[str, Any] | None = None, **detection: Any
) -> RewardModelConfig:
    return RewardModelConfig(
        summary_detection=summary_detection,
        base_model="sft@latest",
        comparisons=comparisons,
        extra_layers=2,
        epochs=1,
        batch_comparisons=16,
        token_budget=200,
        learning_rate=3e-3,
        validation_share=0.2,
        token_detection={
            "data": documents,
            "steps": 6,
            "learning_rate": 1e-2,
            "batch_documents": 8,
            "min_alternatives": 3,
            "held_back_layers": 1,
            **detection,
        },
    )


@pytest.fixture
def with_base(context: FakeContext, documents_source: str) -> FakeContext:
    base = SftConfig(
        data=documents_source,
        architecture={**TINY_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        tokenizer={"kind": "words"},
        steps=3,
        learning_rate=1e-2,
        batch_tokens=400,
    )
    SftStage(base, FakeContext(context.store, run_id="run-0")).run()
    return context


SUMMARIES_TOO = {
    "steps": 4,
    "learning_rate": 1e-2,
    "batch_documents": 8,
    "replaced_share": 0.4,
    "frozen_base": True,
}


@pytest.mark.parametrize(
    ("frozen_base", "summaries", "cut_at"),
    [
        *((frozen, None, cut_at) for frozen in (False, True) for cut_at in (3, 6, 8)),
        *((True, SUMMARIES_TOO, cut_at) for cut_at in (3, 6, 8, 10, 12)),
    ],
)
def test_a_run_cut_off_in_any_phase_or_between_ends_with_the_same_bytes(
    with_base: FakeContext,
    comparisons_source: str,
    documents_source: str,
    frozen_base: bool,
    summaries: dict[str, Any] | None,
    cut_at: int,
) -> None:
    chosen = config(
        comparisons_source, documents_source, frozen_base=frozen_base, summary_detection=summaries
    )
    whole = FakeContext(with_base.store, run_id="whole")
    expected = with_base.store.resolve(RewardModelStage(chosen, whole).run())

    cut = FakeContext(with_base.store, run_id="cut", interrupt_at=cut_at)
    with pytest.raises(RunInterrupted):
        RewardModelStage(chosen, cut).run()
    actual = with_base.store.resolve(RewardModelStage(chosen, cut.continued()).run())

    left, right = (load_file(model.path / "model.safetensors") for model in (expected, actual))
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)
    assert {name for name in left if ".h.3." in name}  # two layers of the base model and two extra ones
    phases = [report.phase for report in whole.reports]
    assert phases[:5] == ["token_detection"] * 5
    if summaries is not None:
        assert phases[6:10] == ["summary_detection"] * 3 + ["validate"]
    assert [report.step for report in whole.reports] == list(range(1, len(phases) + 1))
    assert {report.total for report in whole.reports} == {len(phases)}


def test_detection_learns(with_base: FakeContext, comparisons_source: str, tmp_path: Path) -> None:
    # Nearly everybody writes "dog": an exchanged word is mostly a rare one, which a model can see.
    words = ["dog"] * 90 + ["red", "blue", "green", "black", "park", "school", "bank", "shop", "home", "saw"]
    rows = [{"document": "i saw a dog", "summaries": [f"a {word}"]} for word in words]
    source = write_rows(tmp_path / "dogs.jsonl", rows)
    context = FakeContext(with_base.store, run_id="learns")
    RewardModelStage(config(comparisons_source, source, steps=80), context).run()
    losses = [r.metrics["detection_loss_nats"] for r in context.reports if "detection_loss_nats" in r.metrics]
    # A guesser pays log 2 = 0.69; who calls "dog" original and all else exchanged, much less.
    assert sum(losses[:5]) / 5 > 0.6
    assert sum(losses[-5:]) / 5 < 0.45


def test_copies_with_fewer_exchanges_come_first() -> None:
    def with_exchanges(count: int) -> Corrupted:
        originals = [index >= count for index in range(4)]
        return Corrupted(token_ids=[5] * 4, is_place=[True] * 4, is_original=originals)

    copies = [with_exchanges(count) for count in (2, 0, 4, 2)]
    assert fewest_exchanges_first(copies).tiers == ((0, 2), (1, 4), (3,))
    assert fewest_exchanges_first([with_exchanges(0)]).untied_pairs() == []


def test_summary_detection_learns(with_base: FakeContext, comparisons_source: str, tmp_path: Path) -> None:
    words = ["dog"] * 90 + ["red", "blue", "green", "black", "park", "school", "bank", "shop", "home", "saw"]
    rows = [{"document": "i saw a dog", "summaries": [f"a {word}"]} for word in words]
    source = write_rows(tmp_path / "dogs.jsonl", rows)
    context = FakeContext(with_base.store, run_id="learns")
    summaries = {**SUMMARIES_TOO, "steps": 60}
    RewardModelStage(config(comparisons_source, source, summary_detection=summaries), context).run()
    reports = [report for report in context.reports if 6 < report.step <= 66]
    accuracies = [report.metrics["summary_detection_accuracy"] for report in reports]
    # Nearly every exchange makes "dog" a rare word, which any layer can see.
    assert sum(accuracies[-10:]) / 10 > 0.85


@pytest.mark.parametrize(
    ("frozen_base", "summaries", "last", "unmoved_until_then"),
    [
        (False, None, 6, False),
        (True, None, 6, True),
        (True, SUMMARIES_TOO, 10, True),
        (True, {**SUMMARIES_TOO, "frozen_base": False}, 10, False),
    ],
)
def test_a_frozen_base_stays_as_it_was_until_the_comparisons(
    with_base: FakeContext,
    comparisons_source: str,
    documents_source: str,
    frozen_base: bool,
    summaries: dict[str, Any] | None,
    last: int,
    unmoved_until_then: bool,
) -> None:
    base = load_file(with_base.store.resolve("sft@latest").path / "model.safetensors")
    chosen = config(
        comparisons_source, documents_source, frozen_base=frozen_base, summary_detection=summaries
    )
    cut = FakeContext(with_base.store, run_id="cut", interrupt_at=last)
    with pytest.raises(RunInterrupted):
        RewardModelStage(chosen, cut).run()
    state = cut.restored_state()
    assert state is not None
    after_detection = state["model"]
    of_base = [name for name in base if name in after_detection]
    assert len(of_base) > 20
    unmoved = [base[name].equal(after_detection[name]) for name in of_base]
    assert all(unmoved) if unmoved_until_then else not any(unmoved)

    after_all = load_file(
        with_base.store.resolve(RewardModelStage(chosen, cut.continued()).run()).path / "model.safetensors"
    )
    assert not any(base[name].equal(after_all[name]) for name in of_base)


def test_a_frozen_base_leaves_a_layer_to_learn(comparisons_source: str, documents_source: str) -> None:
    with pytest.raises(ValidationError, match="leaves no layer to learn"):
        config(comparisons_source, documents_source, frozen_base=True, held_back_layers=2)


def test_a_frozen_base_of_summary_detection_leaves_a_layer_to_learn(
    comparisons_source: str, documents_source: str
) -> None:
    with pytest.raises(ValidationError, match="leaves no layer to learn without extra_layers"):
        RewardModelConfig(
            comparisons=comparisons_source,
            base_model="sft/1",
            learning_rate=1e-3,
            token_detection={"data": documents_source, "steps": 1, "learning_rate": 1e-3},
            summary_detection={"steps": 1, "learning_rate": 1e-3, "frozen_base": True},
        )


def test_summary_detection_needs_the_data_of_token_detection(comparisons_source: str) -> None:
    with pytest.raises(ValidationError, match="summary_detection needs token_detection"):
        RewardModelConfig(comparisons=comparisons_source, learning_rate=1e-3, summary_detection=SUMMARIES_TOO)


def test_held_back_layers_are_extra_layers(comparisons_source: str, documents_source: str) -> None:
    with pytest.raises(ValidationError, match="more than extra_layers"):
        config(comparisons_source, documents_source, held_back_layers=3)


def test_summaries_without_places_are_refused(
    with_base: FakeContext, comparisons_source: str, documents_source: str
) -> None:
    chosen = config(comparisons_source, documents_source, min_alternatives=500)
    with pytest.raises(InvalidConfigError, match=r"token_detection\.data"):
        RewardModelStage(chosen, FakeContext(with_base.store, run_id="refused")).run()


def test_missing_source_is_named(with_base: FakeContext, comparisons_source: str, tmp_path: Path) -> None:
    chosen = config(comparisons_source, str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(Exception, match="nowhere"):
        RewardModelStage(chosen, FakeContext(with_base.store, run_id="missing")).run()
