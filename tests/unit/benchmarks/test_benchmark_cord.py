"""The document of the cord holds what was measured, and nothing written by hand."""

import json
from typing import Any

import pytest

from benchmarks.cord import BEGIN, DOCUMENT, DOORS_OF_ENGINE, END, RANKS, summary, table, with_table
from benchmarks.labeling_processes import RESULTS


def results() -> dict[str, Any]:
    rows = [
        {
            "what": "pull",
            "door": door,
            "engine": "sqlite",
            "labelers": 0,
            "ranks": 1,
            "pulls": 3,
            **summary("recorded_s", [0.01, 0.03, 0.02]),
            **summary("watcher_s", [0.1, 0.2, 0.3]),
            **summary("heard_after_record_s", [0.08, 0.17, 0.28]),
            **summary("still_s", [1.0, 3.0, 2.0]),
            **summary("still_after_record_s", [0.9, 2.9, 1.9]),
            "optimizer_step_s": step_s,
        }
        for door, step_s in (("page", 0.041), ("grpc", 0.052))
    ]
    kills = {"what": "kill", "engine": "sqlite", "labelers": 0, "kills": 2, "cord_hold_s": 2.0}
    kills |= summary("held_s", [1.5, 2.5]) | summary("on_again_s", [0.2, 0.4])
    return {
        "machine": {"cores": 2, "python": "3.11.7", "system": "Linux"},
        "rows": [*rows, kills],
    }


def test_the_table_shows_median_and_largest() -> None:
    lines = table(results()).splitlines()
    assert lines[2] == "| page | sqlite | 0 | 1 | 20 / 30 ms | 170 / 280 ms | 1,900 / 2,900 ms |"
    assert lines[3].startswith("| grpc |")
    text = " ".join(lines)
    assert "to the watcher's word it took 0.30 s at most" in text
    assert "An optimizer step took 41 to 52 ms" in text
    assert "the run held after 2.0 s (at most 2.5), and went on 0.3 s (at most 0.4)" in text


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = with_table(document, results())
    assert new == f"before\n{BEGIN}\n{table(results())}\n{END}\nafter\n"
    assert with_table(new, results()) == new
    with pytest.raises(ValueError, match="marks"):
        with_table("before\nafter\n", results())


def test_the_document_shows_the_committed_measurement() -> None:
    measured = json.loads((RESULTS / "cord.json").read_text())
    document = DOCUMENT.read_text()
    assert with_table(document, measured) == document
    doors = {(row["engine"], row["door"]) for row in measured["rows"] if row["what"] == "pull"}
    assert doors == {(engine, door) for engine, doors in DOORS_OF_ENGINE.items() for door in doors}
    assert {row["ranks"] for row in measured["rows"] if row["what"] == "pull"} == {1, RANKS}
