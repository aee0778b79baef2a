"""Puts what was measured into the documentation, between two marks, so that no number is copied by hand."""

from __future__ import annotations

from pathlib import Path

END = "<!-- end -->"


def begin_mark(results: str) -> str:
    """What stands before the numbers of ``benchmarks/results/<results>.json``."""
    return f"<!-- measured: benchmarks/results/{results}.json -->"


def put_between_marks(document: Path, results: str, text: str) -> None:
    """Replace what stands behind the mark of these results; ValueError where there is no such mark."""
    begin = begin_mark(results)
    before, found, rest = document.read_text().partition(begin)
    _old, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{document} has no marks {begin} and {END}")
    document.write_text(f"{before}{begin}\n{text}\n{END}{after}")
