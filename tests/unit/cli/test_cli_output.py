"""What reaches a program that reads."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import pytest

from andon.cli.output import plain, print_error, print_json
from andon.errors import FailedPreconditionError
from andon.modeling.versions import ModelVersion


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    model: ModelVersion
    values: tuple[float, ...]


def test_values_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(
        {
            "inner": Inner(model=ModelVersion("policy", 3, "ff"), values=(1.5, math.nan)),
            "path": Path("a/b"),
            "time": datetime(2026, 1, 2, tzinfo=UTC),
            "colour": Colour.RED,
            "text": "ä",
            3: None,
        }
    )
    assert json.loads(capsys.readouterr().out) == {
        "inner": {"model": "policy/3", "values": [1.5, None]},
        "path": "a/b",
        "time": "2026-01-02T00:00:00+00:00",
        "colour": "red",
        "text": "ä",
        "3": None,
    }


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_breaks_the_document(number: float) -> None:
    assert plain({"x": number}) == {"x": None}


def test_an_error_is_one_line_and_a_hint_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(FailedPreconditionError("no [model] here", reason="MODEL_NOT_LOADED"))
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first == "error MODEL_NOT_LOADED: no [model] here"
    assert "andon models load" in second
