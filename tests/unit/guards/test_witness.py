"""The guard ``hacking``: what raises it, what must not, how often it errs, and the model behind it."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from andon.modeling.loading import new_causal_lm, save_model, scorer_from_causal_lm
from andon.modeling.manifest import ManifestDraft
from andon.modeling.normalization import Normalization
from andon.modeling.sequences import PromptGroup
from andon.modeling.store import LocatedModel, ModelStore
from andon.modeling.text import TextCodec, word_level_codec
from services.trainer.errors import InvalidConfigError
from services.trainer.guards.config import DEFAULT_RULES
from services.trainer.guards.guard import Finding, GuardName, UpdateFacts, WitnessReading
from services.trainer.guards.witness import FEWEST_PROMPTS, HackingGuard, HackingWitness
from services.trainer.guards.witness_model import WitnessModel, mean_by_prompt

THRESHOLD = DEFAULT_RULES[GuardName.HACKING].threshold
Levels = Sequence[float]


def looks(training: Levels, witness: Levels, *, seed: int, prompts: int = 16) -> list[WitnessReading]:
    """One look per level: scores of standard deviation 1 around it, correlated as two reward models are."""
    chance = np.random.default_rng(seed)
    readings = []
    for level, other in zip(training, witness, strict=True):
        common, one, two = chance.normal(size=(3, prompts))
        readings.append(
            WitnessReading(
                training=level + 0.7 * common + 0.714 * one, witness=other + 0.7 * common + 0.714 * two
            )
        )
    return readings


def statistics(readings: Sequence[WitnessReading]) -> list[float]:
    witness, found = HackingWitness(), []
    for reading in readings:
        witness = witness.after(reading.training, reading.witness)
        if (statistic := witness.statistic) is not None:
            found.append(statistic)
    return found


def test_a_witness_that_stays_while_the_score_climbs_hardly_ever_alarms() -> None:
    """The hardest case without a fall: every earlier stretch is one that the score has risen from."""
    climb = np.linspace(0, 20, 200).tolist()
    largest = [max(statistics(looks(climb, [0.0] * 200, seed=seed))) for seed in range(30)]
    assert sum(value > THRESHOLD for value in largest) <= 1
    assert max(largest) > THRESHOLD / 2  # chance does move it: the limit is not out of all reach


def test_a_healthy_run_in_which_both_rise_shows_next_to_nothing() -> None:
    rise = np.linspace(0, 2, 40).tolist()
    for seed in range(20):
        assert max(statistics(looks(rise, [0.5 * level for level in rise], seed=seed))) < THRESHOLD / 2


def test_a_run_that_goes_wrong_from_its_beginning_is_noticed_within_a_few_looks() -> None:
    """As with exchanged labels: what the reward model likes is what people do not."""
    training = [0.5 * update for update in range(8)]
    needed = []
    for seed in range(40):
        found = statistics(looks(training, [-level for level in training], seed=seed))
        needed.append(2 + next(i for i, value in enumerate(found) if value > THRESHOLD))
    assert np.median(needed) <= 5
    assert max(needed) < 8


def test_a_witness_that_falls_while_the_score_rises_is_noticed_soon() -> None:
    training = [0.1 * update for update in range(40)]
    witness = [0.0] * 20 + [-0.1 * update for update in range(1, 21)]
    delays = []
    for seed in range(40):
        found = statistics(looks(training, witness, seed=seed, prompts=64))
        first_statistic = len(training) - len(found)
        assert max(found[: 20 - first_statistic]) <= THRESHOLD
        delays.append(next(i for i, value in enumerate(found) if value > THRESHOLD) + first_statistic - 20)
    assert np.median(delays) <= 10
    assert max(delays) < 16


def test_a_rise_and_fall_of_the_witness_is_compared_with_its_best_time() -> None:
    """Over-optimisation: the witness ends no lower than it began."""
    training = [0.1 * update for update in range(40)]
    witness = [0.1 * min(update, 39 - update) for update in range(40)]
    for seed in range(10):
        found = statistics(looks(training, witness, seed=seed, prompts=64))
        assert max(found[:19]) < THRESHOLD < found[-1]


def test_a_fall_of_both_is_no_hacking() -> None:
    fall = [-0.1 * update for update in range(40)]
    for seed in range(10):
        assert max(statistics(looks(fall, fall, seed=seed, prompts=64))) < THRESHOLD / 2


def test_by_hand() -> None:
    """Means 0 then 2 against 0 then -1, each of eight prompts at the level plus and minus 1."""
    spread = np.array([-1.0, 1.0] * 4)
    witness, found = HackingWitness(), []
    for level, other in [(0, 0)] * 4 + [(2, -1)] * 4:
        witness = witness.after(level + spread, other + spread)
        found.append(witness.statistic)
    # Standard deviation sqrt(8/7), so the fall is sqrt(7/8) deviations. A look's squared error is 1/8; the
    # difference of two stretches has 1/4 for one look each, 1/8 for two, 1/16 for four.
    by_looks = {looks: math.sqrt(7 / 8) * math.sqrt(4 * looks) for looks in (1, 2, 4)}
    assert found[0] is None
    assert found[1:4] == [0, 0, 0]
    assert found[4:] == pytest.approx([by_looks[1], by_looks[2], by_looks[2], by_looks[4]])
    divergence = witness.divergence
    assert divergence is not None
    assert divergence.witness_gain == pytest.approx(-math.sqrt(7 / 8))
    assert divergence.training_gain == pytest.approx(2 * math.sqrt(7 / 8))
    assert divergence.fall_errors == pytest.approx(4 * math.sqrt(7 / 8))
    assert (divergence.looks, divergence.looks_since) == (4, 4)


def examine(guard: HackingGuard, facts: UpdateFacts, readings: Sequence[WitnessReading]) -> list[Finding]:
    found = [guard.examine(replace(facts, witness=reading)) for reading in readings]
    return [finding for finding in found if finding is not None]


HACKED = looks([0.0] * 8 + [3.0] * 8, [0.0] * 8 + [-3.0] * 8, seed=1)


def test_the_guard_alarms_says_why_and_forgets_when_overruled(make_update: Callable[..., Any]) -> None:
    facts = make_update().facts
    guard = HackingGuard(THRESHOLD)
    assert guard.examine(facts) is None  # nobody looked
    last = examine(guard, facts, HACKED)[-1]
    assert last.alarming
    assert re.search(r"the training score changed by \+[34]\..*, the witness's by -[34]\.", last.message)
    guard.acknowledge()
    assert guard.examine(replace(facts, witness=HACKED[-1])) is None
    assert not any(found.alarming for found in examine(guard, facts, HACKED[-8:]))


def test_the_guard_goes_on_from_a_checkpoint(make_update: Callable[..., Any]) -> None:
    facts = make_update().facts
    whole, first = HackingGuard(THRESHOLD), HackingGuard(THRESHOLD)
    expected = examine(whole, facts, HACKED)
    examine(first, facts, HACKED[:11])
    second = HackingGuard(THRESHOLD)
    second.restore(json.loads(json.dumps(first.state())))
    assert examine(second, facts, HACKED[11:]) == expected[-5:]
    assert HackingWitness(**json.loads(json.dumps(asdict(whole._witness)))) == whole._witness


def test_scores_that_are_no_numbers_alarm_and_are_not_remembered(make_update: Callable[..., Any]) -> None:
    facts = make_update().facts
    guard = HackingGuard(THRESHOLD)
    odd = replace(HACKED[0], witness=np.full(16, math.nan))
    (found,) = examine(guard, facts, [odd])
    assert found.alarming
    assert guard.state() == HackingGuard(THRESHOLD).state()


def test_a_look_at_too_few_prompts_is_none(make_update: Callable[..., Any]) -> None:
    few = looks([0.0] * 20, [0.0] * 20, seed=1, prompts=FEWEST_PROMPTS - 1)
    assert examine(HackingGuard(THRESHOLD), make_update().facts, few) == []


def test_a_witness_that_tells_nothing_apart_never_alarms() -> None:
    witness = HackingWitness()
    for level in range(20):
        witness = witness.after(np.linspace(level, level + 1, 8), np.zeros(8))
    assert witness.statistic == 0.0


# --- the model ---------------------------------------------------------------------------------------------

WORDS = ["the", "cat", "dog", "sat", "ran", "home"]
NORMALIZATION = Normalization(method="reference_zero", gain=2.0, bias=-0.5)
DOCUMENTS = ["the cat sat", "dog ran home the dog"]
SUMMARIES = [["cat sat", "home"], ["dog", "the dog ran"]]


def publish(folder: Path, codec: TextCodec, *, positions: int = 32) -> LocatedModel:
    architecture = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": positions}
    store = ModelStore(folder / "store")
    base = store.publish(
        "base",
        lambda place: save_model(new_causal_lm(architecture, codec, 3), codec, place),
        manifest=ManifestDraft(kind="causal_lm"),
    )
    scorer = scorer_from_causal_lm(base.path, seed=4)
    stored = store.publish(
        "reward",
        lambda place: save_model(scorer, codec, place, normalization=NORMALIZATION),
        manifest=ManifestDraft(kind="reward_model", normalization=NORMALIZATION),
    )
    return store.locate(str(stored.version))


@pytest.mark.parametrize("own_words", [WORDS, ["home", "ran", "sat", "dog", "the", "cat"]])
def test_the_witness_scores_the_texts_whatever_its_vocabulary(tmp_path: Path, own_words: list[str]) -> None:
    policy_codec = word_level_codec(WORDS, max_document_tokens=8)
    own_codec = word_level_codec(own_words, max_document_tokens=8)
    model = publish(tmp_path, own_codec)
    groups = [
        PromptGroup(
            prompt=policy_codec.encode_document(document),
            responses=[policy_codec.encode_summary(text) for text in texts],
        )
        for document, texts in zip(DOCUMENTS, SUMMARIES, strict=True)
    ]
    witness = WitnessModel(
        model,
        policy_codec=policy_codec,
        documents={tuple(group.prompt): document for group, document in zip(groups, DOCUMENTS, strict=True)},
        max_new_tokens=8,
        token_budget=16,
        device="cpu",
    )
    batches: list[None] = []
    rows = witness.scores(groups, between_batches=lambda: batches.append(None))
    assert len(batches) > 1
    # As anybody would who loads it with transformers, one text at a time.
    plain = AutoModelForSequenceClassification.from_pretrained(model.source).eval()
    for document, texts, row in zip(DOCUMENTS, SUMMARIES, rows, strict=True):
        for text, score in zip(texts, row, strict=True):
            ids = [*own_codec.encode_document(document), *own_codec.encode_summary(text)]
            with torch.no_grad():
                raw = float(plain(input_ids=torch.tensor([ids])).logits)
            assert score == pytest.approx(2.0 * raw - 0.5, abs=1e-5)
    assert mean_by_prompt(rows) == pytest.approx([sum(row) / 2 for row in rows])


def test_a_text_too_long_for_another_vocabulary_ends_where_the_room_ends(tmp_path: Path) -> None:
    policy_codec = word_level_codec(WORDS, max_document_tokens=8)
    own_codec = word_level_codec(WORDS[::-1], max_document_tokens=8)
    model = publish(tmp_path, own_codec, positions=12)
    document, summary = "the cat sat", "dog ran home the cat sat the dog ran home"
    group = PromptGroup(
        prompt=policy_codec.encode_document(document), responses=[policy_codec.encode_summary(summary)]
    )
    witness = WitnessModel(
        model,
        policy_codec=policy_codec,
        documents={tuple(group.prompt): document},
        max_new_tokens=16,
        token_budget=64,
        device="cpu",
    )
    ((score,),) = witness.scores([group], between_batches=lambda: None)
    prompt = own_codec.encode_document(document)
    cut = [*own_codec.encode_summary(summary)[: 12 - len(prompt) - 1], own_codec.eos_token_id]
    plain = AutoModelForSequenceClassification.from_pretrained(model.source).eval()
    with torch.no_grad():
        raw = float(plain(input_ids=torch.tensor([[*prompt, *cut]])).logits)
    assert score == pytest.approx(2.0 * raw - 0.5, abs=1e-5)


def test_a_witness_of_the_same_vocabulary_must_have_room_for_every_text(tmp_path: Path) -> None:
    codec = word_level_codec(WORDS, max_document_tokens=8)
    with pytest.raises(InvalidConfigError, match=r"guards\.witness\.model"):
        WitnessModel(
            publish(tmp_path, codec, positions=12),
            policy_codec=codec,
            documents={tuple(codec.encode_document("the cat sat")): "the cat sat"},
            max_new_tokens=16,
            token_budget=64,
            device="cpu",
        )
