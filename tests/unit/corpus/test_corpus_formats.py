"""Public shapes of comparisons: what each row says, and what no labeler can have decided."""

import json
from pathlib import Path
from typing import Any

import pytest

from andon.corpus.errors import RowError
from andon.corpus.formats import comparison_reader
from andon.corpus.loaders import load_comparisons
from andon.corpus.records import ComparisonRecord, RatingRecord


def read(row: dict[str, Any]) -> list[ComparisonRecord]:
    reader = comparison_reader(row)
    assert reader is not None
    return reader(row, "rows-7")


TLDR = {
    "info": {"id": "t3_2vwp1w", "post": "A car accident.", "title": "Help", "subreddit": "legaladvice"},
    "split": "train",
    "summaries": [
        {"text": " I was hit.", "policy": "sup4_ppo_rm3_kl10", "note": "Was it fast?"},
        {"text": " They were speeding.", "policy": "ref", "note": None},
    ],
    "choice": 1,
    "worker": "ikNm",
    "batch": "batch9",
    "extra": {"confidence": 8},
}


def test_tldr_notes_are_the_readings_before_the_post() -> None:
    (record,) = read(TLDR)
    assert (record.document_id, record.batch, record.labeler_id) == ("t3_2vwp1w", "batch9", "ikNm")
    assert record.ratings == (RatingRecord(naive_reading="Was it fast?"), RatingRecord())
    assert record.confidence == 8
    assert read({**TLDR, "extra": {"confidence": None}})[0].confidence is None
    assert read({key: TLDR[key] for key in ("info", "summaries", "choice")})[0].labeler_id == ""


def test_tldr_articles_and_axes() -> None:
    info = {"id": "167f", "site": "dailymail", "article": "An article.", "post": None}
    (record,) = read(
        {
            "info": info,
            "split": "test",
            "summary": {
                "text": "Sent off.",
                "policy": "ref",
                "note": "13th??",
                "axes": {"overall": 3, "accuracy": 5, "coverage": 4, "coherence": 2, "compatible": None},
            },
            "worker": "qo6W",
            "batch": "cnndm1",
        }
    )
    assert (record.document, record.candidates[0].source, record.tiers) == ("An article.", "ref", ((0,),))
    assert record.ratings == (
        RatingRecord(accuracy=5, coverage=4, coherence=2, overall=3, naive_reading="13th??"),
    )
    assert (record.verdict, record.untied_pairs()) == (None, [])


def test_raters_who_said_nothing_gave_no_verdict() -> None:
    row = {
        "document_id": "29911712",
        "system": "BERTS2S",
        "summary": "more than 50 pupils",
        "factual": {"wid_0": False, "wid_1": None, "wid_2": True},
    }
    records = read(row)
    assert [(record.labeler_id, record.verdict) for record in records] == [("wid_0", False), ("wid_2", True)]
    assert {(record.document_id, record.document, record.tiers) for record in records} == {
        ("29911712", "", ((0,),))
    }
    assert records[0].task_key() == records[1].task_key()
    # The same sentence by another system is another item.
    assert read({**row, "system": "TranS2S"})[0].task_key() != records[0].task_key()
    with pytest.raises(RowError) as caught:
        read({**row, "factual": {"wid_0": None}})
    assert caught.value.reason == "NO_ANSWER"


def test_an_item_is_its_question_and_its_systems() -> None:
    row = {
        "item_id": "50827-0",
        "question": "What is the plot?",
        "systems": ["bart", "human"],
        "summaries": ["one", "two"],
        "choice": 1,
        "worker_id": 2,
    }
    (record,) = read(row)
    assert (record.document_id, record.document, record.labeler_id) == ("50827-0", "What is the plot?", "2")
    assert read({**row, "worker_id": 3, "choice": None})[0].task_key() == record.task_key()
    for other in ({"systems": ["bart", "dpr"]}, {"question": "Who?"}, {"summaries": ["one", "three"]}):
        assert read({**row, **other})[0].task_key() != record.task_key()
    with_story = read({**row, "document": "A story."})[0]
    assert with_story.document == "A story.\n\nWhat is the plot?"


def test_rows_without_an_id_share_one_by_their_document() -> None:
    row = {"document": "D", "summaries": ["a", "b"], "choice": 0}
    first, second = read({**row, "worker": "x"})[0], read({**row, "worker": "y", "choice": 1})[0]
    assert first.document_id == second.document_id != read({**row, "document": "E"})[0].document_id
    assert read({**row, "item_id": 0})[0].document_id == "0"


def test_dialogues_are_cut_at_the_last_answer_that_both_come_to() -> None:
    start = "\n\nHuman: Hi\n\nAssistant:"
    (record,) = read(
        {"chosen": start + " Hello\n\nHuman: Bye\n\nAssistant: Goodbye", "rejected": start + " Go away"}
    )
    assert record.document == start
    assert [entry.text for entry in record.candidates] == [
        "Hello\n\nHuman: Bye\n\nAssistant: Goodbye",
        "Go away",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tiers": [[0], [0, 1]]}, "INVALID_ANSWER"),
        ({"tiers": [[0]]}, "INVALID_ANSWER"),
        ({"tiers": [[0], [], [1]]}, "INVALID_ANSWER"),
        ({"tiers": [[False], [1]]}, "MALFORMED_ROW"),
        ({"verdict": True}, "INVALID_ANSWER"),
        ({"preference": 9}, "INVALID_ANSWER"),
        ({"preference": 10}, "INVALID_ANSWER"),
        ({"confidence": 10}, "INVALID_CONFIDENCE"),
        ({"confidence": "high"}, "INVALID_CONFIDENCE"),
        ({"candidates": []}, "CANDIDATE_COUNT"),
        ({"candidates": [{"text": 1}, {"text": "b"}]}, "INVALID_CANDIDATE"),
        ({"candidates": ["a", "b"]}, "INVALID_CANDIDATE"),
        ({"ratings": [{}]}, "INVALID_RATING"),
        ({"ratings": [{"overall": 8}, {}]}, "INVALID_RATING"),
        ({"ratings": [{"flags": ["rude"]}, {}]}, "INVALID_RATING"),
        ({"shown_order": [1, 1]}, "INVALID_ANSWER"),
        ({"answer_time": "2026-01-01T00:00:00"}, "MALFORMED_ROW"),
        ({"answer_time": "yesterday"}, "MALFORMED_ROW"),
        ({"duration_s": -1}, "MALFORMED_ROW"),
        ({"duration_s": True}, "MALFORMED_ROW"),
        ({"purpose": "fun"}, "MALFORMED_ROW"),
        ({"round": -1}, "MALFORMED_ROW"),
        ({"is_superseded": "no"}, "MALFORMED_ROW"),
        ({"telemetry": []}, "MALFORMED_ROW"),
        ({"telemetry": {"change_count": 1.5}}, "MALFORMED_ROW"),
        ({"note": "half \ud83d"}, "INVALID_TEXT"),
        ({"document": None}, "MALFORMED_ROW"),
    ],
)
def test_own_rows_that_nobody_can_have_decided(change: dict[str, Any], reason: str) -> None:
    row = {"document": "D", "candidates": [{"text": "a"}, {"text": "b"}], "tiers": [[0], [1]]}
    assert read(row)
    with pytest.raises(RowError) as caught:
        read({**row, **change})
    assert caught.value.reason == reason


def test_own_rows_may_say_the_same_in_other_words() -> None:
    row = {"document": "D", "candidates": [{"text": " a "}, {"text": "b"}], "tiers": [[0], [1]]}
    (record,) = read(
        {
            **row,
            "confidence": 0,
            "preference": 5,
            "answer_time": "2026-01-01T01:00:00+01:00",
            "labeler_id": None,
        }
    )
    assert record.candidates[0].text == " a "
    assert (record.confidence, record.preference, record.labeler_id) == (None, 5, "")
    assert record.answer_time == "2026-01-01T00:00:00Z"


def test_real_sets_have_the_items_and_labelers_that_their_sources_state(shared_dir: Path) -> None:
    data = shared_dir / "data"
    expected = {  # answers, tasks, labelers, from the sets' SOURCE.md and papers
        "squality_human_eval/comparisons.dev.jsonl.gz": (630, 210, 4),
        "pandalm_human": (3 * 698, 698, 3),
        "xsum_factuality_raters": (5564, 1858, 3),
    }
    for name, counts in expected.items():
        records = load_comparisons(str(data / name))
        tasks = {record.task_key() for record in records}
        assert (len(records), len(tasks), len({record.labeler_id for record in records})) == counts, name
        answers = {(record.task_key(), record.labeler_id) for record in records}
        assert len(answers) == len(records), name  # nobody answered an item twice
        assert json.dumps(records[0].document)
