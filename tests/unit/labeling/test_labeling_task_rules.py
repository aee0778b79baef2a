"""Which submissions are taken, and with which reason the others are refused."""

import dataclasses

import pytest

from andon.modeling.versions import ModelVersion
from services.labeling.errors import InvalidFieldError
from services.labeling.tasks import Candidate, TaskDraft, check_submission

PAIR = (Candidate(text="first"), Candidate(text="second"))
GOOD = TaskDraft(document="A post.", candidates=PAIR)


def changed(**fields: object) -> TaskDraft:
    return dataclasses.replace(GOOD, **fields)


def with_candidate(**fields: object) -> TaskDraft:
    return changed(candidates=(PAIR[0], dataclasses.replace(PAIR[1], **fields)))


@pytest.mark.parametrize(
    "task",
    [
        GOOD,
        changed(candidates=PAIR * 4 + PAIR[:1]),
        changed(overlap_count=100),
        changed(document_id="x" * 1000),
        changed(document="d" * 50),
        with_candidate(source="s" * 64),
        with_candidate(policy_version=ModelVersion("policy", 12, "0" * 64)),
        with_candidate(policy_version=ModelVersion("/models/other folder", 0)),
    ],
)
def test_good_tasks_pass(task: TaskDraft) -> None:
    check_submission("week-1_a.B", [task], max_text_chars=50)


@pytest.mark.parametrize(
    ("task", "reason", "field"),
    [
        (changed(document=""), "EMPTY_DOCUMENT", "document"),
        (changed(document=" \n\t"), "EMPTY_DOCUMENT", "document"),
        (changed(document="d" * 51), "TEXT_TOO_LONG", "document"),
        (changed(document="a\0b"), "INVALID_TEXT", "document"),
        (changed(document_id="x" * 1001), "TEXT_TOO_LONG", "document_id"),
        (changed(candidates=()), "CANDIDATE_COUNT", "candidates"),
        (changed(candidates=PAIR[:1]), "CANDIDATE_COUNT", "candidates"),
        (changed(candidates=PAIR * 5), "CANDIDATE_COUNT", "candidates"),
        (changed(overlap_count=0), "INVALID_OVERLAP", "overlap_count"),
        (changed(overlap_count=-1), "INVALID_OVERLAP", "overlap_count"),
        (changed(overlap_count=101), "INVALID_OVERLAP", "overlap_count"),
        (with_candidate(text=""), "EMPTY_CANDIDATE", "candidates[1].text"),
        (with_candidate(text=" \u2003"), "EMPTY_CANDIDATE", "candidates[1].text"),
        (with_candidate(text="c" * 51), "TEXT_TOO_LONG", "candidates[1].text"),
        (with_candidate(source="s" * 65), "TEXT_TOO_LONG", "candidates[1].source"),
        (
            with_candidate(policy_version=ModelVersion("", 1)),
            "INVALID_POLICY_VERSION",
            "candidates[1].policy_version",
        ),
        (
            with_candidate(policy_version=ModelVersion("policy", -1)),
            "INVALID_POLICY_VERSION",
            "candidates[1].policy_version",
        ),
        (
            with_candidate(policy_version=ModelVersion("policy", 1, "ABC")),
            "INVALID_POLICY_VERSION",
            "candidates[1].policy_version",
        ),
    ],
)
def test_bad_tasks_are_refused_with_reason_and_place(task: TaskDraft, reason: str, field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_submission("batch", [GOOD, task], max_text_chars=50)
    assert (caught.value.reason, caught.value.field) == (reason, f"tasks[1].{field}")


@pytest.mark.parametrize("batch", ["", "a b", "a/b", "ä", "b" * 101, "line\n"])
def test_bad_batch_names(batch: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_submission(batch, [GOOD], max_text_chars=50)
    assert caught.value.reason == "INVALID_BATCH"


def test_number_of_tasks() -> None:
    with pytest.raises(InvalidFieldError) as nothing:
        check_submission("b", [], max_text_chars=50)
    assert nothing.value.reason == "EMPTY_REQUEST"
    check_submission("b", [GOOD] * 10_000, max_text_chars=50)
    with pytest.raises(InvalidFieldError) as too_many:
        check_submission("b", [GOOD] * 10_001, max_text_chars=50)
    assert too_many.value.reason == "TOO_MANY_TASKS"
