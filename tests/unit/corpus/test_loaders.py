"""Loaders: every public shape, and rows that are wrong."""

import gzip
import json
from pathlib import Path

import pytest

from andon.corpus.errors import MalformedRowError, SourceNotFoundError, UnknownFormatError
from andon.corpus.loaders import load_comparisons, load_documents


def write(path: Path, *rows: object) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def test_tldr_comparison(tmp_path: Path) -> None:
    source = write(
        tmp_path / "batch.jsonl",
        {
            "info": {"id": "t3_x", "post": "A long post.", "subreddit": "AskReddit"},
            "summaries": [{"text": " First.", "policy": "sup1"}, {"text": " Second.", "policy": "ref"}],
            "choice": 1,
            "worker": "w7",
            "extra": {"confidence": 8},
        },
    )
    (comparison,) = load_comparisons(source)
    assert comparison.document == "A long post."
    assert comparison.tiers == ((1,), (0,))
    assert [candidate.text for candidate in comparison.candidates] == ["First.", "Second."]
    assert [candidate.source for candidate in comparison.candidates] == ["sup1", "ref"]
    assert (comparison.labeler_id, comparison.confidence) == ("w7", 8)
    assert comparison.untied_pairs() == [(1, 0)]


def test_helpful_harmless_dialogue_is_cut_before_the_last_answer(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"
    source = write(
        tmp_path / "hh.jsonl.gz", {"chosen": dialogue + " Goodbye!", "rejected": dialogue + " No."}
    )
    (comparison,) = load_comparisons(source)
    assert comparison.document == dialogue
    assert [candidate.text for candidate in comparison.candidates] == ["Goodbye!", "No."]
    assert comparison.tiers == ((0,), (1,))


def test_chosen_and_rejected_with_prompt_and_messages(tmp_path: Path) -> None:
    source = write(
        tmp_path / "trl.jsonl",
        {
            "prompt": [{"role": "user", "content": "Q"}],
            "chosen": [{"role": "assistant", "content": "good"}],
            "rejected": [{"role": "assistant", "content": "bad"}],
        },
    )
    (comparison,) = load_comparisons(source)
    assert (comparison.document, comparison.candidates[0].text) == ("Q", "good")


def test_plain_pair_with_tie_and_annotators(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", {"document": "D", "summaries": ["a", "b"], "choice": None})
    (tie,) = load_comparisons(plain)
    assert tie.tiers == ((0, 1),)
    assert tie.untied_pairs() == []
    annotators = write(
        tmp_path / "annotators.jsonl",
        {
            "instruction": "I",
            "input": "x",
            "responses": ["a", ""],
            "choices": {"one": 0, "two": 1, "three": None},
        },
    )
    records = load_comparisons(annotators)
    assert [(record.labeler_id, record.tiers) for record in records] == [
        ("one", ((0,), (1,))),
        ("two", ((1,), (0,))),
        ("three", ((0, 1),)),
    ]
    assert records[0].document == "I\n\nx"


def test_own_export_keeps_rankings_and_versions(tmp_path: Path) -> None:
    source = write(
        tmp_path / "export.jsonl",
        {
            "document": "D",
            "document_id": "d1",
            "candidates": [{"text": t, "source": "policy", "policy_version": "sft/1"} for t in "abc"],
            "tiers": [[2], [0, 1]],
            "labeler_id": "l",
        },
    )
    (comparison,) = load_comparisons(source)
    assert comparison.untied_pairs() == [(2, 0), (2, 1)]
    assert comparison.candidates[0].policy_version == "sft/1"


def test_documents_of_a_folder_by_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", {"id": "1", "document": "D1", "summaries": ["s"]})
    write(tmp_path / "dev.jsonl.gz", {"post": "D2", "summary": "s2"})
    write(tmp_path / "pairs.jsonl", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"})
    assert [record.document for record in load_documents(f"{tmp_path}#train")] == ["D1"]
    assert [record.summaries for record in load_documents(f"{tmp_path}#validation")] == [("s2",)]
    assert len(load_documents(str(tmp_path))) == 2
    assert len(load_comparisons(str(tmp_path))) == 1


def test_folder_of_plain_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Text A\n")
    assert [(r.document_id, r.document) for r in load_documents(str(tmp_path))] == [("a", "Text A")]


@pytest.mark.parametrize(
    "row",
    [
        {"document": "D", "summaries": ["a", "b"], "choice": 2},
        {"document": "D", "summaries": ["a", "b"], "choice": "left"},
        {"document": "", "summaries": ["a", "b"], "choice": 0},
        {"document": "D", "summaries": ["a", None], "choice": 0},
        {"document": "D", "candidates": [{"text": "a"}, {"text": "b"}], "tiers": [[0], [0, 1]]},
        {"chosen": "x", "rejected": "y"},
        {"nothing": 1},
    ],
)
def test_a_row_that_breaks_the_shape_is_named_by_its_number(tmp_path: Path, row: object) -> None:
    good = {"document": "D", "summaries": ["a", "b"], "choice": 0}
    source = write(tmp_path / "rows.jsonl", good, row)
    with pytest.raises(MalformedRowError) as caught:
        load_comparisons(source)
    if "chosen" not in str(row) and "tiers" not in str(row):
        assert caught.value.row == 2


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        load_documents(str(tmp_path / "nowhere"))
    with pytest.raises(SourceNotFoundError):
        load_documents(f"{tmp_path}#train")
    with pytest.raises(UnknownFormatError):
        load_documents(str(tmp_path))
    with pytest.raises(UnknownFormatError):
        load_documents(write(tmp_path / "odd.jsonl", {"x": 1}))
    (tmp_path / "broken.jsonl").write_text("{not json\n")
    with pytest.raises(MalformedRowError):
        load_documents(str(tmp_path / "broken.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(MalformedRowError):
        load_documents(str(tmp_path / "list.jsonl"))
    (tmp_path / "bytes.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(UnknownFormatError):
        load_documents(str(tmp_path / "bytes.jsonl.gz"))


def test_real_sets(shared_dir: Path) -> None:
    data = shared_dir / "data"
    assert len(load_documents(f"{data / 'scitldr'}#train")) == 1992
    assert len(load_documents(f"{data / 'scitldr'}#dev")) == 619
    assert len(load_comparisons(str(data / "squality_human_eval"))) == 630
    assert len(load_comparisons(str(data / "pandalm_human"))) == 3 * 698
