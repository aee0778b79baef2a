"""Streaming readers: what is refused is named, the rest is read, and memory stays small."""

import gzip
import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from andon.corpus import json_lines
from andon.corpus.errors import SourceNotFoundError, UnknownFormatError
from andon.corpus.json_lines import RowReader
from andon.corpus.loaders import iter_comparisons, load_comparisons

PAIR = {"document": "D", "summaries": ["a", "b"], "choice": 0, "worker": "w"}


def read(source: Path | str) -> tuple[list[int], list[tuple[int, str]], list[str]]:
    """Numbers of the records, numbers and words of the refused, and what was said."""
    refused: list[tuple[int, str]] = []
    said: list[str] = []

    def on_refused(number: int, reason: str, message: str) -> None:
        refused.append((number, reason))
        said.append(message)

    numbers = [number for number, _ in iter_comparisons(str(source), on_refused=on_refused)]
    return numbers, refused, said


def test_each_bad_line_is_refused_by_its_number_and_the_rest_read(tmp_path: Path) -> None:
    good = json.dumps(PAIR).encode()
    lines = [
        good,  # 1
        b"",  # 2: blank
        b"{not json",  # 3
        b"[1]",  # 4
        b"\xff\xfe{}",  # 5
        b'{"nothing": 1}',  # 6
        json.dumps({**PAIR, "choice": 2}).encode(),  # 7
        json.dumps({**PAIR, "document": " "}).encode(),  # 8
        json.dumps({**PAIR, "summaries": ["a", "\ud800"]}).encode(),  # 9
        json.dumps({**PAIR, "summaries": ["a"]}).encode(),  # 10
        b'{"a": ' + b"[" * 100_000,  # 11
        b'{"a": ' + b"1" * 10_000 + b"}",  # 12
        json.dumps({"summary": "s", "factual": {"r": None}}).encode(),  # 13
        json.dumps({**PAIR, "summaries": {"a": 1}}).encode(),  # 14
        good,  # 15: and no end of line
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    numbers, refused, said = read(path)
    assert numbers == [1, 15]
    assert refused == [
        (3, "NOT_JSON"),
        (4, "NOT_JSON"),
        (5, "INVALID_TEXT"),
        (6, "NO_COMPARISON"),
        (7, "INVALID_ANSWER"),
        (8, "EMPTY_DOCUMENT"),
        (9, "INVALID_TEXT"),
        (10, "CANDIDATE_COUNT"),
        (11, "NOT_JSON"),
        (12, "NOT_JSON"),
        (13, "NO_ANSWER"),
        (14, "MALFORMED_ROW"),
    ]
    assert all(said)


def test_a_line_without_end_is_passed_over_and_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100_000)
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"document": "')
        for _ in range(300):
            stream.write(b"x" * 100_000)
        stream.write(b'"}\n' + json.dumps(PAIR).encode())
    tracemalloc.start()
    numbers, refused, _ = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (numbers, refused) == ([2], [(1, "ROW_TOO_LONG")])
    assert peak < 3_000_000  # of 30 MB


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    line = json.dumps({**PAIR, "document": "word " * 2000}).encode() + b"\n"
    path.write_bytes(gzip.compress(line * 3000, 1))
    count = 0
    tracemalloc.start()
    for _ in iter_comparisons(str(path), on_refused=lambda *_: pytest.fail("refused")):
        count += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000
    assert peak < 3_000_000  # of 30 MB


def test_lines_of_a_folder_are_named_by_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(PAIR) + "\n{\n")
    (tmp_path / "b.jsonl").write_text("{\n" + json.dumps(PAIR))
    (tmp_path / "c.jsonl").write_text(json.dumps({"document": "no comparison"}))
    numbers, refused, said = read(tmp_path)
    assert (numbers, refused) == ([1, 2], [(2, "NOT_JSON"), (1, "NOT_JSON")])
    assert [message.split(":")[0] for message in said] == ["a.jsonl", "b.jsonl"]


def test_what_is_no_source_is_an_error_and_not_a_refused_row(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        read(tmp_path / "nowhere.jsonl")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(PAIR).encode() * 1000)[:-20])
    with pytest.raises(UnknownFormatError):
        read(cut)
    assert read(write_empty(tmp_path)) == ([], [], [])


def write_empty(folder: Path) -> Path:
    path = folder / "empty.jsonl"
    path.touch()
    return path


def test_the_digest_is_of_the_file_as_it_lies_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n{\n'))
    reader = RowReader(path)
    assert len(list(reader.rows())) == reader.row_count == 3
    assert reader.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_real_sets_are_read_alike_by_both_readers(shared_dir: Path) -> None:
    data = shared_dir / "data"
    for name in ("squality_human_eval", "pandalm_human", "xsum_factuality_raters"):
        refused: list[str] = []
        streamed = [
            record
            for _, record in iter_comparisons(
                str(data / name), on_refused=lambda _, reason, __, refused=refused: refused.append(reason)
            )
        ]
        assert streamed == load_comparisons(str(data / name))
        assert set(refused) <= {"NO_ANSWER"}
        assert len(refused) == (11 if name == "xsum_factuality_raters" else 0)
