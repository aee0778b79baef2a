"""``andon data`` as a program calls it: files, manifests, exit codes, and what an interruption leaves."""

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from andon.cli.main import app
from andon.corpus.loaders import load_documents
from andon.corpus.splits import InvalidSplitError, make_split, parse_split

runner = CliRunner()
Row = dict[str, Any]


def write(path: Path, *rows: Row | str) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(path: Path) -> list[Row]:
    data = path.read_bytes()
    return [
        json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()
    ]


def call(*arguments: object, exit_code: int = 0) -> Any:
    result = runner.invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout) if "--json" in arguments and exit_code == 0 else result.stderr


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_filter_writes_the_rows_and_a_manifest_that_adds_up(tmp_path: Path, ending: str) -> None:
    rows: list[Row | str] = [
        {"id": "a", "document": "one", "summary": "good", "extra": {"kept": [1, 2.5, None, "ä"]}},
        "{broken",
        {"id": "b", "document": "One!", "summary": "good"},
        "",
        {"id": "c", "document": "two", "summary": "much too long"},
        {"id": "d", "document": " ", "summary": "no document"},
        {"id": "e", "document": "mail x@example.org", "summary": "good", "title": "half \ud83d"},
    ]
    source, out = write(tmp_path / f"in.{ending}", *rows), tmp_path / f"out.{ending}"
    options = ("--max-summary-tokens", 1, "--deduplicate", "normalized", "--personal-data", "mask")
    printed = call("filter", source, out, *options, "--json")
    kept = read(out)
    assert kept[0] == rows[0]
    assert [row["id"] for row in kept] == ["a", "e"]
    assert (kept[1]["document"], kept[1]["title"]) == ("mail [email]", "half \ud83d")
    manifest = json.loads((tmp_path / f"out.{ending}.manifest.json").read_text())
    assert manifest == printed
    (given_in,), (given_out,) = manifest["inputs"], manifest["outputs"]
    assert given_in["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert given_out["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert given_in["refused_by_reason"] == {"EMPTY_DOCUMENT": 1, "NOT_JSON": 1}
    assert given_in["refused_examples"] == [
        {"row": 2, "reason": "NOT_JSON"},
        {"row": 6, "reason": "EMPTY_DOCUMENT"},
    ]
    removed = sum(report["removed_count"] for report in manifest["filters"])
    assert given_in["row_count"] == 6 == given_in["refused_count"] + removed + given_out["row_count"]
    assert manifest["parameters"]["max_summary_tokens"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        source.name,
        out.name,
        out.name + ".manifest.json",
    ]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *({"document": f"D{n}"} for n in range(100)))
    digests = {
        call("filter", source, tmp_path / f"{n}.jsonl.gz", "--json")["outputs"][0]["sha256"] for n in range(2)
    }
    assert len(digests) == 1


def test_what_is_wrong_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"document": "D"}, "{")
    out = tmp_path / "out.jsonl"
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(source.read_bytes())[:-9])
    for arguments, code, reason in (
        (("filter", source, out, "--strict"), 2, "DATA_ROW_MALFORMED"),
        (("filter", tmp_path / "nowhere", out), 1, "DATA_SOURCE_NOT_FOUND"),
        (("filter", source, source), 2, "SAME_FILE"),
        (("filter", source, out, "--max-per-user", 3), 2, "USER_KEY"),
        (("filter", source, out, "--personal-data", "mask", "--phone-region", "ZZ"), 2, "UNKNOWN_REGION"),
        (("filter", source, out, "--tokenizer", tmp_path), 1, "DATA_SOURCE_NOT_FOUND"),
        (("filter", source, tmp_path / "no" / "folder.jsonl"), 2, "FILE"),
        (("filter", cut, out), 2, "DATA_FORMAT_UNKNOWN"),
        (("filter", write(tmp_path / "odd.jsonl", {"x": 1}), out), 2, "DATA_FORMAT_UNKNOWN"),
        (("split", source, tmp_path / "s", "--train", 0.5), 2, "INVALID_SPLIT"),
        (("split", source, tmp_path / "s", "--by", "user"), 2, "USER_KEY"),
        (("split", source, tmp_path / "s", "--by", "document", "--user-key", "u"), 2, "USER_KEY"),
        (("split", source, tmp_path / "s", "--user-key", "u"), 2, "NO_USER"),
    ):
        assert reason in call(*arguments, exit_code=code)
    assert not out.exists()
    assert not (tmp_path / "out.jsonl.manifest.json").exists()
    assert list((tmp_path / "s").iterdir()) == []
    assert not list(tmp_path.glob(".*"))


def test_people_read_a_table_and_are_told_of_refused_rows(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"document": "D"}, "{")
    result = runner.invoke(
        app, ["data", "filter", str(source), str(tmp_path / "out.jsonl"), "--deduplicate", "exact"]
    )
    assert "exact_duplicate" in result.stdout
    assert "1 rows could not be read (NOT_JSON 1), for example 2" in result.stderr


def users_by_side(folder: Path) -> dict[str, set[str]]:
    return {
        path.name.split(".")[0]: {row["author"] for row in read(path)} for path in folder.glob("*.jsonl*")
    }


def test_a_user_is_on_one_side_in_any_order_and_in_a_later_file(tmp_path: Path) -> None:
    rows: list[Row] = [{"id": n, "author": f"user {n % 300}", "document": f"D{n % 7}"} for n in range(2000)]
    manifest = call(
        "split", write(tmp_path / "a.jsonl.gz", *rows), tmp_path / "a", "--user-key", "author", "--json"
    )
    sides = users_by_side(tmp_path / "a")
    assert sorted(sides) == ["test", "train", "validation"]
    assert sum(map(len, sides.values())) == len(set.union(*sides.values())) == 300
    assert 0.7 < len(sides["train"]) / 300 < 0.9  # 5 standard deviations are 0.12
    assert [report["counts"]["users"] for report in manifest["outputs"]] == [
        len(sides[name]) for name in ("train", "validation", "test")
    ]
    assert sum(report["row_count"] for report in manifest["outputs"]) == 2000
    random.Random(0).shuffle(rows)
    later = write(tmp_path / "b.jsonl", *rows, {"author": "new", "document": "D"})
    call("split", later, tmp_path / "b", "--user-key", "author")
    for name, users in users_by_side(tmp_path / "b").items():
        assert users - {"new"} == sides[name]
    call("split", later, tmp_path / "c", "--user-key", "author", "--seed", 1)
    assert users_by_side(tmp_path / "c")["test"] != sides["test"]


def test_without_users_a_document_is_on_one_side(tmp_path: Path) -> None:
    rows = [{"document": f"D{n % 100}", "n": n} for n in range(400)]
    call(
        "split",
        write(tmp_path / "in.jsonl", *rows),
        tmp_path / "out",
        "--train",
        0.5,
        "--validation",
        0.5,
        "--test",
        0,
    )
    train, validation = (read(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "validation"))
    assert not {row["document"] for row in train} & {row["document"] for row in validation}
    assert sorted(row["n"] for row in [*train, *validation]) == list(range(400))
    assert not (tmp_path / "out" / "test.jsonl").exists()
    # And the training stages read the sides by their names.
    assert len(load_documents(f"{tmp_path / 'out'}#train")) == len(train)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["parameters"]["by"] == "document"


def test_rows_without_a_user_go_by_their_document(tmp_path: Path) -> None:
    rows = [{"document": f"D{n % 10}", **({"author": "ann"} if n % 2 else {})} for n in range(100)]
    manifest = call(
        "split", write(tmp_path / "in.jsonl", *rows), tmp_path / "out", "--user-key", "author", "--json"
    )
    assert sum(report["counts"]["users"] for report in manifest["outputs"]) == 1
    assert sum(report["counts"]["rows_without_user"] for report in manifest["outputs"]) == 50


@given(st.text(max_size=20), st.integers(0, 100))
@settings(max_examples=50)
def test_more_training_only_moves_keys_into_it(key: str, seed: int) -> None:
    sides = [
        make_split({"train": share, "rest": 1 - share}, seed=seed).side(key) for share in (0.1, 0.5, 0.9, 1.0)
    ]
    assert sides == sorted(sides)  # "rest" before "train"
    assert sides[-1] == "train"


@pytest.mark.parametrize(
    "text", ["train", "train=x", "train=0.5", "a=0.5,a=0.5", "=1", "a=2,b=-1", "../x=1", "a=nan"]
)
def test_shares_that_split_nothing(text: str) -> None:
    with pytest.raises(InvalidSplitError):
        parse_split(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_is_interrupted_leaves_no_half_file(tmp_path: Path, number: signal.Signals) -> None:
    """The input is a pipe that never ends: the command is in the middle of its work when the signal comes."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    call("filter", write(source, {"document": "before"}), out)
    before = out.read_bytes()
    source.unlink()
    os.mkfifo(source)
    with subprocess.Popen(
        [sys.executable, "-m", "andon.cli.main", "data", "filter", str(source), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        with source.open("wb", buffering=0) as pipe:
            line = json.dumps({"document": "D" * 1000}).encode() + b"\n"
            for _ in range(1000):  # more than all buffers hold: it has read most of it when this returns
                pipe.write(line)
            assert len(list(tmp_path.glob(".out.jsonl.*.partial"))) == 1
            process.send_signal(number)
            process.communicate(timeout=60)
        assert process.returncode == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert out.read_bytes() == before
    left = list(tmp_path.glob(".*"))
    assert len(left) == (0 if number is signal.SIGINT else 1)  # only the killed one could not tidy up
