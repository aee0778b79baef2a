"""ROUGE and copying against golden numbers."""

import json
from pathlib import Path

import pytest

from andon.evaluation.overlap import lead_sentences, novelty, rouge


def test_golden_rouge(shared_dir: Path) -> None:
    golden = json.loads((shared_dir / "golden" / "14_rouge.json").read_text())
    for pair, expected in zip(golden["inputs"]["pairs"], golden["outputs"]["scores"], strict=True):
        scores = rouge(pair["candidate"], [pair["reference"]])
        assert scores.rouge1 == pytest.approx(expected["rouge1"]["f"])
        assert scores.rouge2 == pytest.approx(expected["rouge2"]["f"])
        assert scores.rouge_l == pytest.approx(expected["rougeL"]["f"])


def test_several_references_count_by_the_best() -> None:
    assert rouge("a b c", ["x y", "a b c"]).rouge1 == pytest.approx(1.0)
    assert rouge("a b c", []).rouge_l == 0.0


def test_golden_novelty(shared_dir: Path) -> None:
    golden = json.loads((shared_dir / "golden" / "14_novelty.json").read_text())
    for pair, expected in zip(golden["inputs"]["pairs"], golden["outputs"]["results"], strict=True):
        result = novelty(pair["summary"], pair["source"])
        assert result.novel_sentence_share == pytest.approx(expected["novel_sentence_share"])
        assert result.novel_bigram_share == pytest.approx(expected["novel_bigram_share"])


def test_an_empty_summary_has_nothing_novel() -> None:
    assert novelty("", "Some text.").novel_bigram_share == 0.0


def test_lead_takes_whole_sentences() -> None:
    assert lead_sentences("One. Two! Three? Four.", 3) == "One. Two! Three?"
    assert lead_sentences("No end", 3) == "No end"
