"""Exports: what is read back equals what was written, and nothing is left out unnamed."""

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from andon.corpus.loaders import load_comparisons
from andon.corpus.records import CandidateRecord, ComparisonRecord, RatingRecord
from andon.corpus.splits import parse_split
from andon.corpus.writers import (
    ComparisonExport,
    ExportedLine,
    ExportFormat,
    ExportOptions,
    Votes,
    write_export,
)

words = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=8)
FIRST, SECOND, TIE = ((0,), (1,)), ((1,), (0,)), ((0, 1),)


def lines(records: list[ComparisonRecord], **options: Any) -> tuple[list[ExportedLine], ComparisonExport]:
    export = ComparisonExport(ExportOptions(**options))
    return list(export.lines(iter(records))), export


def read_back(exported: list[ExportedLine], folder: Path) -> list[ComparisonRecord]:
    path = folder / "back.jsonl"
    path.write_text("".join(line.text + "\n" for line in exported))
    return load_comparisons(str(path)) if exported else []


def removed(export: ComparisonExport) -> dict[str, int]:
    return {report.name: report.removed_count for report in export.filters() if report.removed_count}


@st.composite
def pair_records(draw: st.DrawFn) -> ComparisonRecord:
    """An untied pair with everything that a row of the public TL;DR comparisons can say."""
    tiers = draw(st.sampled_from([FIRST, SECOND]))
    rating = st.builds(RatingRecord, overall=st.none() | st.integers(1, 7), naive_reading=st.just("") | words)
    return ComparisonRecord(
        document_id=draw(words),
        document=draw(words),
        candidates=tuple(
            draw(st.lists(st.builds(CandidateRecord, text=words, source=words), min_size=2, max_size=2))
        ),
        tiers=tiers,
        only_best_known=draw(st.booleans()),
        labeler_id=draw(words),
        confidence=draw(st.none() | st.integers(1, 9)),
        comparison_id=draw(words),
        batch=draw(words),
        preference=draw(st.none() | st.integers(*((1, 4) if tiers == FIRST else (6, 9)))),
        ratings=tuple(draw(st.just([]) | st.lists(rating, min_size=2, max_size=2))),
        note=draw(words),
        shown_order=draw(st.sampled_from([(), (0, 1), (1, 0)])),
        answer_time=draw(st.none() | st.just("2026-01-01T00:00:00Z")),
        duration_s=draw(st.none() | st.floats(0, 100)),
        project=draw(words),
        purpose=draw(st.sampled_from(["ordinary", "drift"])),
        round=draw(st.integers(0, 3)),
        task_id=draw(words),
    )


def ranking(tiers: tuple[tuple[int, ...], ...], **changes: Any) -> ComparisonRecord:
    count = sum(map(len, tiers))
    record = ComparisonRecord(
        document_id="d",
        document="D",
        candidates=tuple(CandidateRecord(text="abcdefghi"[index], source="policy") for index in range(count)),
        tiers=tiers,
        labeler_id="ann",
        comparison_id="17",
        task_id="t",
        shown_order=tuple(reversed(range(count))),
    )
    return replace(record, **changes)


@given(st.lists(pair_records(), min_size=1, max_size=4))
@settings(max_examples=60)
def test_pairs_survive_the_public_tldr_format(
    tmp_path_factory: pytest.TempPathFactory, records: list[ComparisonRecord]
) -> None:
    exported, export = lines(records, format=ExportFormat.TLDR)
    assert read_back(exported, tmp_path_factory.mktemp("tldr")) == records
    assert removed(export) == {}


@given(st.lists(st.tuples(words, words, words, st.sampled_from([FIRST, SECOND])), min_size=1, max_size=4))
@settings(max_examples=40)
def test_dialogues_survive_the_hh_format(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, str, str, Any]]
) -> None:
    records = [
        ranking(
            tiers, document=f"\n\nHuman: {post}\n\nAssistant:", candidates=tuple(map(candidate, (one, two)))
        )
        for post, one, two, tiers in drawn
    ]
    exported, _ = lines(records, format=ExportFormat.HH)
    for line in exported:
        assert set(json.loads(line.text)) == {"chosen", "rejected"}
    back = read_back(exported, tmp_path_factory.mktemp("hh"))
    assert [decision(record) for record in back] == [decision(record) for record in records]
    # And what was read is written as it was.
    again, _ = lines(back, format=ExportFormat.HH)
    assert again == exported


def candidate(text: str) -> CandidateRecord:
    return CandidateRecord(text=text)


def decision(record: ComparisonRecord) -> tuple[str, str, str]:
    ((better, worse),) = record.untied_pairs()
    return record.document, record.candidates[better].text, record.candidates[worse].text


def test_a_post_becomes_a_dialogue() -> None:
    exported, _ = lines([ranking(SECOND)], format=ExportFormat.HH)
    assert json.loads(exported[0].text) == {
        "chosen": "\n\nHuman: D\n\nAssistant: b",
        "rejected": "\n\nHuman: D\n\nAssistant: a",
    }


def test_a_ranking_becomes_its_untied_pairs_in_the_order_of_the_item(tmp_path: Path) -> None:
    record = ranking(((2,), (0, 3), (1,)), ratings=tuple(RatingRecord(overall=n) for n in (1, 2, 3, 4)))
    exported, export = lines([record], format=ExportFormat.TLDR)
    rows = [json.loads(line.text) for line in exported]
    found = {
        tuple(row["extra"]["candidate_indices"]): (row["choice"], row["extra"]["shown_order"]) for row in rows
    }
    # By hand: c > a, c > d, c > b, a > b, d > b; a and d are alike. Shown as d, c, b, a.
    assert found == {
        (0, 2): (1, [1, 0]),
        (2, 3): (0, [1, 0]),
        (1, 2): (1, [1, 0]),
        (0, 1): (0, [1, 0]),
        (1, 3): (1, [1, 0]),
    }
    assert removed(export) == {"tie": 1}
    assert {row["extra"]["group_id"] for row in rows} == {"t"}
    back = read_back(exported, tmp_path)
    assert len({pair.task_key() for pair in back}) == 5  # pairs of one item are tasks of their own
    assert {tuple(rating.overall for rating in pair.ratings) for pair in back} == {
        (1, 2), (1, 3), (2, 3), (2, 4), (3, 4),
    }  # fmt: skip


def test_what_a_format_of_pairs_cannot_say_is_counted() -> None:
    records = [
        ranking(FIRST),
        ranking(TIE, comparison_id="18"),
        ranking(((0,), (1, 2, 3)), only_best_known=True),  # 3 pairs known, 3 not
        ranking(FIRST, is_superseded=True),
        ranking(((0,),), verdict=True, comparison_id="19"),
        ranking(FIRST, document="", comparison_id="20"),
    ]
    for name in (ExportFormat.TLDR, ExportFormat.HH):
        exported, export = lines(records, format=name)
        assert len(exported) == 1 + 3
        assert removed(export) == {
            "superseded": 1,
            "single_candidate": 1,
            "document_missing": 1,
            "tie": 1,
            "undecided_pair": 3,
        }
    exported, export = lines(records, format=ExportFormat.JSONL)
    assert (len(exported), removed(export)) == (6, {})


def answers(votes: dict[str, tuple[tuple[int, ...], ...]], task: str = "t") -> list[ComparisonRecord]:
    return [
        ranking(tiers, labeler_id=labeler, task_id=task, comparison_id=f"{task}-{labeler}")
        for labeler, tiers in votes.items()
    ]


def test_the_majority_is_more_than_half() -> None:
    records = [
        *answers({"a": FIRST, "b": SECOND, "c": FIRST}, "two-of-three"),
        *answers({"a": FIRST, "b": SECOND}, "one-of-two"),
        *answers({"a": FIRST, "b": SECOND, "c": TIE}, "all-differ"),
        *answers({"a": TIE, "b": TIE, "c": SECOND}, "alike"),
        *answers({"a": SECOND}, "alone"),
        *answers({"a": FIRST, "b": FIRST, "c": SECOND, "d": TIE}, "two-of-four"),
    ]
    exported, export = lines(records, votes=Votes.MAJORITY)
    rows = [json.loads(line.text) for line in exported]
    assert [(row["task_id"], row["tiers"], row["votes"]) for row in rows] == [
        ("two-of-three", [[0], [1]], {"first": 2, "second": 1, "tie": 0}),
        ("alike", [[0, 1]], {"first": 0, "second": 1, "tie": 2}),
        ("alone", [[1], [0]], {"first": 0, "second": 1, "tie": 0}),
    ]
    assert {row["labeler_id"] for row in rows} == {"majority"}
    assert removed(export) == {"split_vote": 3}
    exported, export = lines(records, votes=Votes.MAJORITY, format=ExportFormat.TLDR)
    assert [json.loads(line.text)["choice"] for line in exported] == [0, 1]
    assert removed(export) == {"split_vote": 3, "tie": 1}


def test_of_a_labelers_answers_the_first_counts_and_corrections_replace() -> None:
    records = [
        ranking(SECOND, labeler_id="a", round=1),  # a repeat that came first in the stream
        ranking(FIRST, labeler_id="a", round=0),
        ranking(SECOND, labeler_id="b", is_superseded=True),
        ranking(FIRST, labeler_id="b"),
        ranking(SECOND, labeler_id=""),  # two unknown people, or one: taken as two
        ranking(FIRST, labeler_id=""),
    ]
    exported, export = lines(records, votes=Votes.MAJORITY)
    (row,) = [json.loads(line.text) for line in exported]
    assert (row["tiers"], row["votes"]) == ([[0], [1]], {"first": 3, "second": 1, "tie": 0})
    assert removed(export) == {"superseded": 1, "repeated_answer": 1}


def test_a_majority_without_a_ranking_is_voted_pair_by_pair() -> None:
    """Condorcet's paradox: a > b, b > c and c > a, each by two of three."""
    orders: dict[str, tuple[tuple[int, ...], ...]] = {
        "x": ((0,), (1,), (2,)),
        "y": ((1,), (2,), (0,)),
        "z": ((2,), (0,), (1,)),
    }
    exported, _ = lines(answers(orders), votes=Votes.MAJORITY, format=ExportFormat.TLDR)
    rows = [json.loads(line.text) for line in exported]
    assert [(row["extra"]["candidate_indices"], row["choice"]) for row in rows] == [
        ([0, 1], 0),
        ([0, 2], 1),
        ([1, 2], 0),
    ]
    assert {row["extra"]["group_id"] for row in rows} == {"t"}


def test_verdicts_have_a_majority_too() -> None:
    records = [
        ranking(((0,),), verdict=said, labeler_id=who)
        for who, said in zip("abc", (True, False, False), strict=True)
    ]
    exported, export = lines(
        [*records, ranking(((0,),), ratings=(RatingRecord(overall=3),))], votes=Votes.MAJORITY
    )
    (row,) = [json.loads(line.text) for line in exported]
    assert (row["verdict"], row["votes"]) == (False, {"first": 1, "second": 2, "tie": 0})
    assert removed(export) == {"no_decision": 1}


def test_real_answers_by_majority_match_a_count_by_hand(shared_dir: Path) -> None:
    path = shared_dir / "data" / "pandalm_human" / "comparisons.dev.jsonl.gz"
    records = load_comparisons(str(path))
    expected: Counter[object] = Counter()
    for line in gzip.decompress(path.read_bytes()).splitlines():
        choices = Counter(json.loads(line)["choices"].values())
        best, count = choices.most_common(1)[0]
        expected[best if count >= 2 else "split"] += 1
    exported, export = lines(records, votes=Votes.MAJORITY)
    found = Counter(str(json.loads(line.text)["tiers"]) for line in exported)
    assert found == {"[[0], [1]]": expected[0], "[[1], [0]]": expected[1], "[[0, 1]]": expected[None]}
    assert removed(export).get("split_vote", 0) == expected["split"]
    _, export = lines(records, votes=Votes.MAJORITY, format=ExportFormat.HH)
    assert removed(export).get("tie") == expected[None] > 0


def test_real_answers_survive_each_format(shared_dir: Path, tmp_path: Path) -> None:
    for name in ("squality_human_eval", "pandalm_human", "xsum_factuality_raters"):
        records = load_comparisons(str(shared_dir / "data" / name))
        exported, _ = lines(records, format=ExportFormat.JSONL)
        assert read_back(exported, tmp_path) == records
        untied = [record for record in records if record.untied_pairs()]
        for pairs_format in (ExportFormat.TLDR, ExportFormat.HH):
            exported, export = lines(records, format=pairs_format)
            back = read_back(exported, tmp_path)
            assert len(back) == len(untied)
            assert sum(removed(export).values()) == len(records) - len(untied)
            if pairs_format is ExportFormat.TLDR:
                assert back == untied
            else:
                for record, read in zip(untied, back, strict=True):
                    post, *texts = decision(record)
                    assert decision(read) == (f"\n\nHuman: {post}\n\nAssistant:", *texts)


def test_files_have_their_manifest_and_a_split_keeps_documents_together(tmp_path: Path) -> None:
    records = [
        ranking(FIRST if number % 2 else TIE, document=f"D{number % 50}", comparison_id=str(number))
        for number in range(400)
    ]
    out = tmp_path / "out.jsonl.gz"
    options = ExportOptions(format=ExportFormat.TLDR, split=parse_split("train=0.7,validation=0.3", seed=3))
    manifest = write_export(iter(records), out, options=options, command="test", parameters={"batch": "b"})
    sides = {}
    for report in manifest.outputs:
        path = tmp_path / report.path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == report.sha256
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert len(rows) == report.row_count
        sides[path.name] = {row["info"]["post"] for row in rows}
        assert {row["split"] for row in rows} == {path.name.split(".")[1]}
    assert sorted(sides) == ["out.train.jsonl.gz", "out.validation.jsonl.gz"]
    assert all(sides.values())
    assert not set.intersection(*sides.values())
    stored = json.loads((tmp_path / "out.jsonl.gz.manifest.json").read_text())
    assert stored["parameters"] == {"batch": "b", "comparison_count": 400}
    by_name = {report["name"]: report for report in stored["filters"]}
    assert by_name["tie"]["removed_count"] == 200
    assert by_name["tie"]["example_ids"] == ["0", "2", "4", "6", "8"]
    assert sum(report["row_count"] for report in stored["outputs"]) == 200
    # The same answers in another order stand on the same sides, and give the same bytes in the same order.
    write_export(reversed(records), tmp_path / "again.jsonl.gz", options=options, command="", parameters={})
    for name, documents in sides.items():
        text = gzip.decompress((tmp_path / name.replace("out", "again")).read_bytes())
        assert {json.loads(line)["info"]["post"] for line in text.splitlines()} == documents
    before = out.with_name("out.train.jsonl.gz").read_bytes()
    write_export(iter(records), out, options=options, command="", parameters={})
    assert out.with_name("out.train.jsonl.gz").read_bytes() == before


@pytest.mark.parametrize("votes", list(Votes))
def test_a_broken_export_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, votes: Votes) -> None:
    out = tmp_path / "out.jsonl"
    options = ExportOptions(votes=votes)
    write_export(iter([ranking(FIRST)]), out, options=options, command="", parameters={})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken() -> Iterator[ComparisonRecord]:
        yield ranking(SECOND)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_export(broken(), out, options=options, command="", parameters={})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
