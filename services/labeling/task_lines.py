"""Which lines of JSON are tasks, for those who paste them into a page. Each line that is none says why.

A line is {"document", "candidates": [text or {"text", "source", "policy_version"}], "document_id", "overlap",
"kind", "purpose", "expected": [[best], [next, tied with it]], "explanation"}; only the document and, for
comparisons, the candidates are needed. The rules of a task itself are those of ``tasks``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from andon.errors import InvalidArgumentError
from andon.modeling.versions import ModelVersion, parse_model_name
from services.labeling.errors import InvalidFieldError
from services.labeling.quality.records import Purpose
from services.labeling.tasks import (
    MAX_TASKS_PER_SUBMISSION,
    Candidate,
    TaskDraft,
    TaskKind,
    Tiers,
    check_submission,
)

KINDS = (TaskKind.COMPARE, TaskKind.WRITE, TaskKind.EDIT)
MAX_PROBLEMS = 50
_KEYS = frozenset(
    {"document", "candidates", "document_id", "overlap", "kind", "purpose", "expected", "explanation"}
)
_CANDIDATE_KEYS = frozenset({"text", "source", "policy_version"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LineProblem:
    """A line that is no task."""

    line: int  # from 1
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLines:
    """What stands in a text: tasks, or, with any problem, what is wrong with it."""

    drafts: tuple[TaskDraft, ...]
    problems: tuple[LineProblem, ...]  # the first of them


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefaults:
    """What holds where a line says nothing."""

    overlap_count: int = 1
    purpose: Purpose = Purpose.ORDINARY


class _LineError(ValueError):
    """Why a line is no task."""


def read_task_lines(text: str, defaults: TaskDefaults, *, max_text_chars: int) -> TaskLines:
    """Read JSON Lines; empty lines are passed over."""
    drafts: list[TaskDraft] = []
    problems: list[LineProblem] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            draft = _task(_object(line), defaults)
            check_submission("batch", [draft], max_text_chars=max_text_chars)
        except InvalidFieldError as error:
            field = error.field.removeprefix("tasks[0].").replace("overlap_count", "overlap")
            problems.append(LineProblem(line=number, words=f"{field}: {error.problem}"))
        except _LineError as error:
            problems.append(LineProblem(line=number, words=str(error)))
        else:
            drafts.append(draft)
        if len(problems) == MAX_PROBLEMS:
            break
    if len(drafts) > MAX_TASKS_PER_SUBMISSION:
        words = f"{len(drafts):,} tasks; at most {MAX_TASKS_PER_SUBMISSION:,} at a time"
        problems.append(LineProblem(line=1, words=words))
    if not drafts and not problems:
        problems.append(LineProblem(line=1, words="there is no task; write one on each line"))
    return TaskLines(drafts=tuple(drafts), problems=tuple(problems))


def _object(line: str) -> Mapping[str, Any]:  # Any: whatever JSON holds
    try:
        value = json.loads(line)
    except RecursionError:
        raise _LineError("is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, and numbers with thousands of digits
        raise _LineError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _LineError('must be an object in braces, such as {"document": "..."}')
    unknown = sorted(value.keys() - _KEYS)
    if unknown:
        raise _LineError(f"{unknown[0][:40]!r} is not known; known are {', '.join(sorted(_KEYS))}")
    if "document" not in value:
        raise _LineError("has no document")
    return value


def _task(row: Mapping[str, Any], defaults: TaskDefaults) -> TaskDraft:
    return TaskDraft(
        document=_text(row["document"], "document"),
        candidates=tuple(
            _candidate(entry, f"candidates[{place}]")
            for place, entry in enumerate(_list(row.get("candidates") or [], "candidates"))
        ),
        document_id=_text(row.get("document_id") or "", "document_id"),
        overlap_count=_whole(row.get("overlap", defaults.overlap_count), "overlap"),
        kind=_kind(row.get("kind", TaskKind.COMPARE.value)),
        purpose=_purpose(row.get("purpose", defaults.purpose.value)),
        expected=None if row.get("expected") is None else _tiers(row["expected"]),
        explanation=_text(row.get("explanation") or "", "explanation"),
    )


def _candidate(value: object, name: str) -> Candidate:
    if isinstance(value, str):
        return Candidate(text=_text(value, name))
    if not isinstance(value, dict) or "text" not in value:
        raise _LineError(f"{name}: must be a text, or an object with a text")
    unknown = sorted(value.keys() - _CANDIDATE_KEYS)
    if unknown:
        raise _LineError(f"{name}: {unknown[0][:40]!r} is not known")
    version = value.get("policy_version")
    return Candidate(
        text=_text(value["text"], f"{name}.text"),
        source=_text(value.get("source") or "", f"{name}.source"),
        policy_version=None if version is None else _version(version, f"{name}.policy_version"),
    )


def _version(value: object, name: str) -> ModelVersion:
    try:
        found = parse_model_name(_text(value, name))
    except InvalidArgumentError as error:
        raise _LineError(f"{name}: {error.message}") from None
    if not isinstance(found, ModelVersion):
        raise _LineError(f'{name}: must name a version, such as "policy/12"')
    return found


def _kind(value: object) -> TaskKind:
    names = [kind.value for kind in KINDS]
    if value not in names:
        raise _LineError(f"kind: must be one of {', '.join(names)}")
    return TaskKind(value)


def _purpose(value: object) -> Purpose:
    if not isinstance(value, str) or value not in list(Purpose):
        raise _LineError(f"purpose: must be one of {', '.join(Purpose)}")
    return Purpose(value)


def _tiers(value: object) -> Tiers:
    """The right order: a list of lists of indices from 0, or of single indices where nothing is tied."""
    tiers: list[tuple[int, ...]] = []
    for entry in _list(value, "expected"):
        indices: Sequence[object] = entry if isinstance(entry, list) else [entry]
        tiers.append(tuple(_whole(index, "expected") for index in indices))
    return tuple(tiers)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _LineError(f"{name}: must be a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _LineError(f"{name}: holds half a character") from None
    return value


def _whole(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**31) < value < 2**31:
        raise _LineError(f"{name}: must be a whole number")
    return value


def _list(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise _LineError(f"{name}: must be a list")
    return value
