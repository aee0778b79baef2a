"""Filters of data sets: what each removes, in which order, and that nothing goes unnamed."""

import json
import random
import re
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from andon.corpus.filters import (
    Deduplication,
    FilterChain,
    FilterSettings,
    PersonalDataMode,
    normalized,
)
from andon.corpus.loaders import load_documents
from andon.corpus.manifest import FilterReport
from andon.corpus.prepared_rows import prepare_row, user_of
from andon.corpus.token_counts import TokenizerCounter, WordCounter
from andon.errors import InvalidArgumentError

Row = dict[str, Any]


def run(rows: Iterable[Row], **settings: Any) -> tuple[list[Row], dict[str, FilterReport]]:
    chain = FilterChain(FilterSettings(**settings))
    kept = [chain.apply(prepare_row(row, number)) for number, row in enumerate(rows, 1)]
    return [dict(row.row) for row in kept if row is not None], {
        report.name: report for report in chain.reports()
    }


def documents(*texts: str) -> list[Row]:
    return [{"id": str(number), "document": text} for number, text in enumerate(texts)]


def ids(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows]


def test_references_of_24_to_48_tokens_are_kept() -> None:
    rows = [{"id": str(n), "document": "D", "summaries": ["word " * n, "short"]} for n in (23, 24, 48, 49)]
    rows.append({"id": "none", "document": "D"})
    kept, reports = run(rows, min_summary_tokens=24, max_summary_tokens=48)
    assert ids(kept) == ["24", "48"]
    assert kept[0] == rows[1]  # with all its summaries
    report = reports["summary_length"]
    assert (report.removed_count, dict(report.counts)) == (3, {"too_short": 1, "too_long": 1, "missing": 1})
    assert report.example_ids == ("23", "49", "none")
    assert report.parameters["tokenizer"] == "words and marks"


def test_long_documents_go() -> None:
    kept, reports = run(documents("a b c", "a b c d"), max_document_tokens=3)
    assert (ids(kept), reports["document_length"].removed_count) == (["0"], 1)


def test_words_and_marks() -> None:
    count = WordCounter().count
    assert count("") == 0
    assert count("I don't know, really.") == 6  # I, don't, know, comma, really, stop
    assert count("naïve café") == 2
    assert count("...") == 3


def test_a_tokenizer_from_a_file_counts_and_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment, unused-ignore]
    tokenizer.enable_truncation(2)  # which must not falsify the count
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        counter = TokenizerCounter(str(name))
        assert counter.count("a a b, c") == 5
        assert counter.description["tokenizer"] == str(name)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(InvalidArgumentError):
        TokenizerCounter(str(tmp_path / "broken.json"))


def test_duplicates_keep_the_earliest() -> None:
    rows = documents("The cat.", "the  CAT!", "The cat.", "A dog", "ＴＨＥ cat", "a-dog", "")[:6]
    kept, reports = run(rows, deduplicate=Deduplication.EXACT)
    assert ids(kept) == ["0", "1", "3", "4", "5"]
    kept, reports = run(rows, deduplicate=Deduplication.NORMALIZED)
    assert ids(kept) == ["0", "3"]
    assert [reports[name].removed_count for name in ("exact_duplicate", "normalized_duplicate")] == [1, 3]
    assert reports["normalized_duplicate"].example_ids == ("1", "4", "5")


@given(st.lists(st.text("ab", max_size=6), max_size=30), st.integers(1, 5))
def test_common_prefixes_match_a_slow_comparison_of_all_pairs(texts: list[str], size: int) -> None:
    rows = documents(*(text for text in texts if text))
    expected: list[Row] = []
    for row in rows:
        shared = (common_length(row["document"], other["document"]) for other in expected)
        if not any(length >= size for length in shared):
            expected.append(row)
    kept, reports = run(rows, common_prefix=size)
    assert kept == expected
    assert reports["common_prefix"].removed_count == len(rows) - len(kept)


def common_length(one: str, two: str) -> int:
    length = 0
    while length < min(len(one), len(two)) and one[length] == two[length]:
        length += 1
    return length


def test_a_user_has_at_most_so_many() -> None:
    rows = [{"id": str(n), "document": f"D{n}", "info": {"author": "ann" if n % 2 else 7}} for n in range(10)]
    rows.append({"id": "nobody", "document": "D"})
    kept, reports = run(rows, max_per_user=2, user_key="info.author")
    assert ids(kept) == ["0", "1", "2", "3", "nobody"]
    report = reports["per_user"]
    assert (report.removed_count, dict(report.counts)) == (6, {"rows_without_user": 1})
    assert user_of({"info": "x"}, "info.author") is None
    assert user_of({"author": None}, "author") is None


def test_filters_act_in_order_and_what_is_unfit_uses_up_no_place() -> None:
    rows = [
        {"id": "long", "user": "u", "document": "same words " * 5, "summary": "s"},
        {"id": "mail", "user": "u", "document": "write to ann@example.org", "summary": "s"},
        {"id": "first", "user": "u", "document": "same words", "summary": "s"},
        {"id": "again", "user": "u", "document": "Same words.", "summary": "s"},
        {"id": "second", "user": "u", "document": "others", "summary": "s"},
    ]
    kept, reports = run(
        rows,
        min_summary_tokens=1,
        max_document_tokens=9,
        personal_data=PersonalDataMode.REMOVE,
        deduplicate=Deduplication.NORMALIZED,
        common_prefix=10,
        max_per_user=1,
        user_key="user",
    )
    assert ids(kept) == ["first"]
    assert {name: report.removed_count for name, report in reports.items()} == {
        "summary_length": 0,
        "document_length": 1,
        "personal_data": 1,
        "exact_duplicate": 0,
        "normalized_duplicate": 1,
        "common_prefix": 0,
        "per_user": 1,
    }
    assert list(reports) == [
        "summary_length",
        "document_length",
        "personal_data",
        "exact_duplicate",
        "normalized_duplicate",
        "common_prefix",
        "per_user",
    ]


def test_personal_data_is_masked_in_every_text_but_ids_and_the_user() -> None:
    row = {
        "id": "ann@example.org",
        "author": "bob@example.org",
        "document": "Mail ann@example.org or call +41 44 668 18 00.",
        "summaries": ["Ann's card is 4111 1111 1111 1111", "nothing"],
        "info": {"more": [{"text": "DE89 3704 0044 0532 0130 00"}], "count": 3},
    }
    kept, reports = run([row], personal_data=PersonalDataMode.MASK, max_per_user=1, user_key="author")
    assert kept == [
        {
            "id": "ann@example.org",
            "author": "bob@example.org",
            "document": "Mail [email] or call [phone].",
            "summaries": ["Ann's card is [credit_card]", "nothing"],
            "info": {"more": [{"text": "[iban]"}], "count": 3},
        }
    ]
    report = reports["personal_data"]
    assert dict(report.counts) == {"email": 1, "phone": 1, "credit_card": 1, "iban": 1}
    assert (report.changed_count, report.removed_count) == (1, 0)
    assert report.example_ids == ("row 1",)  # its id is a mail address
    kept, reports = run([row], personal_data=PersonalDataMode.REPORT)
    # Without a user key the author is a text like others.
    assert (kept, dict(reports["personal_data"].counts)["email"]) == ([row], 2)
    assert dict(reports["personal_data"].counts)["rows"] == 1


def test_nothing_found_is_in_a_report() -> None:
    secret = "ann.smith@example.org"
    rows = [{"id": "1", "document": f"x {secret}"}, {"document": f"{secret} y"}]
    for mode in PersonalDataMode:
        _, reports = run(rows, personal_data=mode)
        assert "ann" not in repr(reports)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_summary_tokens": 5, "max_summary_tokens": 4}, "EMPTY_RANGE"),
        ({"max_per_user": 1}, "USER_KEY"),
        ({"user_key": "author"}, "USER_KEY"),
        ({"phone_regions": ("US",)}, "UNUSED_SETTING"),
        ({"phone_regions": ("us",), "personal_data": PersonalDataMode.MASK}, "UNKNOWN_REGION"),
    ],
)
def test_settings_that_contradict_or_would_be_ignored_are_errors(settings: Row, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        FilterChain(FilterSettings(**settings))
    assert caught.value.reason == reason


def test_comparisons_have_no_duplicates_but_may_hold_personal_data() -> None:
    pair = {"document": "D", "summaries": ["ann@example.org", "b"], "choice": 0}
    kept, _ = run([pair, pair], personal_data=PersonalDataMode.MASK)
    assert [row["summaries"] for row in kept] == [["[email]", "b"]] * 2
    for settings in ({"deduplicate": Deduplication.EXACT}, {"common_prefix": 3}, {"max_summary_tokens": 3}):
        with pytest.raises(InvalidArgumentError) as caught:
            run([pair], **settings)
        assert caught.value.reason == "FILTER_NOT_FOR_COMPARISONS"


@given(st.text(max_size=40))
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    once = normalized(text)
    assert once == once.strip()
    assert not re.search(r"\s\s", once)
    assert normalized(once) == once


def test_memory_is_bounded_by_digests_and_not_by_texts() -> None:
    rng = random.Random(0)
    rows = ({"document": f"{rng.random()} " + "filling " * 1000} for _ in range(2000))  # 16 MB
    chain = FilterChain(FilterSettings(deduplicate=Deduplication.NORMALIZED, common_prefix=30))
    tracemalloc.start()
    for number, row in enumerate(rows):
        assert chain.apply(prepare_row(row, number)) is not None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 3 * 200 + 500_000


def test_real_documents(shared_dir: Path) -> None:
    """Counts by a second way: plain Python over all documents at once."""
    records = load_documents(str(shared_dir / "data" / "scitldr" / "train.jsonl.gz"))
    rows = [
        {"id": record.document_id, "document": record.document, "summaries": list(record.summaries)}
        for record in records
    ]
    kept, reports = run(
        rows, min_summary_tokens=24, max_summary_tokens=48, common_prefix=60, deduplicate=Deduplication.EXACT
    )
    fit = [
        row for row in rows if 24 <= len(re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", row["summaries"][0])) <= 48
    ]
    firsts = {row["document"][:60]: row for row in reversed(fit)}
    assert {row["id"] for row in kept} == {row["id"] for row in firsts.values()}
    assert sum(report.removed_count for report in reports.values()) == len(rows) - len(kept)
    assert json.dumps(kept)
