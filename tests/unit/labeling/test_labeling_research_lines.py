"""Lines that researchers paste: tasks and answers, each bad one with its number and reason; and records."""

import json
from typing import Any

import pytest

from andon.client.labeling_messages import comparison_from_proto
from andon.modeling.versions import ModelVersion
from services.labeling.answers import (
    AnswerDraft,
    Choice,
    Comparison,
    Decision,
    Flag,
    Origin,
    Ranking,
    Rating,
    Telemetry,
    Verdict,
)
from services.labeling.export_records import import_row_of, record_of
from services.labeling.import_lines import read_import_lines
from services.labeling.messages import comparison_to_proto
from services.labeling.quality.records import Purpose
from services.labeling.task_lines import MAX_PROBLEMS, TaskDefaults, TaskLines, read_task_lines
from services.labeling.tasks import Candidate, TaskKind


def read(*lines: object, **defaults: Any) -> TaskLines:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    return read_task_lines(text, TaskDefaults(**defaults), max_text_chars=1000)


def test_a_line_says_everything_of_a_task() -> None:
    lines = read(
        {
            "document": "A post.",
            "document_id": "t3_1",
            "candidates": ["One.", {"text": "Two.", "source": "policy", "policy_version": "policy/12"}],
            "overlap": 5,
            "purpose": "gold",
            "expected": [[1], [0]],
            "explanation": "Two is right.",
        },
        "",
        {"document": "Another.", "kind": "write"},
    )
    assert lines.problems == ()
    task, written = lines.drafts
    assert task.candidates == (
        Candidate(text="One."),
        Candidate(text="Two.", source="policy", policy_version=ModelVersion("policy", 12)),
    )
    assert (task.document_id, task.overlap_count, task.purpose) == ("t3_1", 5, Purpose.GOLD)
    assert (task.expected, task.explanation) == (((1,), (0,)), "Two is right.")
    assert (written.kind, written.candidates, written.overlap_count) == (TaskKind.WRITE, (), 1)


def test_defaults_hold_where_a_line_says_nothing() -> None:
    lines = read(
        {"document": "d", "candidates": ["a", "b"], "expected": [1, [0]]},
        {"document": "d", "candidates": ["a", "b"], "purpose": "ordinary", "overlap": 2},
        overlap_count=4,
        purpose=Purpose.SCREENING,
    )
    assert [(one.overlap_count, one.purpose) for one in lines.drafts] == [
        (4, Purpose.SCREENING),
        (2, Purpose.ORDINARY),
    ]
    assert lines.drafts[0].expected == ((1,), (0,))


PAIR = {"document": "d", "candidates": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "object in braces"),
        ("[" * 100_000, "nested too deeply"),
        ('{"document": ' + "1" * 5000 + "}", "not JSON"),
        ({"candidates": ["a", "b"]}, "no document"),
        ({**PAIR, "paper": "x"}, "'paper' is not known"),
        ({**PAIR, "document": " "}, "document: the document is empty"),
        ({**PAIR, "document": 7}, "document: must be a text"),
        ({**PAIR, "document": "d" * 1001}, "document: 1,001 characters; at most 1,000"),
        ({**PAIR, "document": "a\x00b"}, "U+0000"),
        ('{"document": "\\ud800", "candidates": ["a", "b"]}', "document: holds half a character"),
        ({**PAIR, "candidates": ["a"]}, "candidates: 1 candidates; 2 to 9"),
        ({**PAIR, "candidates": "ab"}, "candidates: must be a list"),
        ({**PAIR, "candidates": ["a", 3]}, "candidates[1]: must be a text, or an object"),
        ({**PAIR, "candidates": ["a", {"text": "b", "model": "x"}]}, "candidates[1]: 'model' is not known"),
        ({**PAIR, "candidates": ["a", {"text": "b", "policy_version": "gpt2"}]}, "must name a version"),
        ({**PAIR, "candidates": ["a", {"text": "b", "policy_version": "policy/0"}]}, "count from 1"),
        ({**PAIR, "overlap": 101}, "overlap: 101; 1 to 100"),
        ({**PAIR, "overlap": True}, "overlap: must be a whole number"),
        ({**PAIR, "kind": "judge"}, "kind: must be one of compare, write, edit"),
        ({**PAIR, "purpose": ["gold"]}, "purpose: must be one of ordinary"),
        ({**PAIR, "purpose": "gold"}, "expected: gold, training and screening items have one"),
        ({**PAIR, "expected": [[0], [1]]}, "expected: gold, training and screening items have one"),
        ({**PAIR, "purpose": "gold", "expected": [[0], [0]]}, "exactly one tier"),
        ({**PAIR, "purpose": "gold", "expected": [[0], ["1"]]}, "expected: must be a whole number"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(line: object, words: str) -> None:
    lines = read(PAIR, "", line, PAIR)
    (problem,) = lines.problems
    assert problem.line == 3
    assert words in problem.words


def test_problems_end_somewhere_and_nothing_at_all_is_one() -> None:
    assert len(read(*["{"] * 200).problems) == MAX_PROBLEMS
    assert read("", "  ").problems[0].words.startswith("there is no task")


def comparison(decision: Decision, num_candidates: int = 2, **fields: Any) -> Comparison:
    values: dict[str, Any] = {
        "comparison_id": 7,
        "task_id": 3,
        "project": "p",
        "batch": "b",
        "purpose": Purpose.CALIBRATION,
        "document_id": "t3",
        "document": "A post.",
        "candidates": tuple(
            Candidate(text=f"text {index}", source="policy", policy_version=ModelVersion("policy", index + 1))
            for index in range(num_candidates)
        ),
        "decision": decision,
        "confidence": 5,
        "preference": None,
        "ratings": (),
        "note": "ünïcode",
        "labeler_id": "ann",
        "round": 1,
        "supersedes_id": 4,
        "is_superseded": False,
        "origin": Origin.SITE,
        "shown_order": tuple(reversed(range(num_candidates))),
        "lease_us": 1_700_000_000_000_000,
        "answer_us": 1_700_000_012_345_678,
        "answer_duration_us": 12_500_000,
        "telemetry": Telemetry(
            shown_us=1_700_000_000_500_000, active_us=9_000_000, change_count=2, aids=("differences",)
        ),
    }
    return Comparison(**{**values, **fields})


RATED = (Rating(accuracy=3, overall=7, flags=(Flag.MADE_UP,), naive_reading="a cat"), Rating())


@pytest.mark.parametrize(
    "answer",
    [
        comparison(Ranking(tiers=((1,), (0,))), preference=8, ratings=RATED),
        comparison(Ranking(tiers=((0, 1),)), confidence=0, telemetry=None, answer_duration_us=None),
        comparison(Ranking(tiers=((2,), (0, 1))), 3),
        comparison(Choice(best_index=1), 3, supersedes_id=None, is_superseded=True),
        comparison(Verdict(affirmed=False), 1, origin=Origin.IMPORT, purpose=Purpose.ORDINARY),
    ],
)
def test_the_page_and_the_client_give_the_same_record(answer: Comparison) -> None:
    assert record_of(answer) == comparison_from_proto(comparison_to_proto(answer))


def test_a_record_comes_back_as_the_answer_it_was() -> None:
    answer = comparison(Ranking(tiers=((1,), (0,))), preference=8, ratings=RATED)
    row = import_row_of(record_of(answer), row=5)
    assert row.answer == AnswerDraft(
        lease_id="",
        decision=answer.decision,
        confidence=5,
        preference=8,
        ratings=RATED,
        note="ünïcode",
    )
    assert (row.row, row.labeler_id, row.answer_us) == (5, "ann", answer.answer_us)
    assert row.candidates == answer.candidates


def test_imported_lines_of_many_shapes_are_read_and_bad_ones_named() -> None:
    text = "\n".join(
        [
            json.dumps(
                {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}
            ),
            "not json",
            json.dumps({"instruction": "i", "responses": ["a", "b"], "choices": {"x": 0, "y": None}}),
            "",
            json.dumps({"summaries": ["a", "b"], "choice": 5, "document": "d"}),
            json.dumps({"something": "else"}),
            json.dumps(
                {"candidates": [{"text": "a", "policy_version": "gpt2"}, {"text": "b"}], "tiers": [[0], [1]]}
            ),
            json.dumps({"document": "d" * 2000, "summaries": ["a", "b"], "choice": 0}),
        ]
    )
    lines = read_import_lines(text, max_text_chars=1000)
    assert [(row.row, row.labeler_id) for row in lines.rows] == [(1, "unknown"), (3, "x"), (3, "y")]
    assert lines.rows[2].answer.decision == Ranking(tiers=((0, 1),))
    assert [(one.row, one.reason) for one in lines.refused.refused] == [
        (2, "NOT_JSON"),
        (5, "INVALID_ANSWER"),
        (6, "NO_COMPARISON"),
        (7, "INVALID_POLICY_VERSION"),
        (8, "TEXT_TOO_LONG"),
    ]
    assert (lines.num_lines, lines.refused.num_refused) == (7, 5)
