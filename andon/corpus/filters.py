"""Decides which rows of a data set are kept: the papers' filters, in one fixed order.

    1. summary_length      the reference has min..max tokens (Stiennon et al. 2020: 24..48)
    2. document_length     the document has at most so many tokens (512 there)
    3. personal_data       rows with personal data are removed, masked or only counted (Ouyang et al. 2022)
    4. exact_duplicate     the document stood in an earlier row, letter for letter
    5. normalized_duplicate   ... but for case, marks and white space
    6. common_prefix       the document begins like an earlier one (Ouyang et al. 2022)
    7. per_user            the user has so many rows already (200 there)

Each sees what the ones before it left: what is too short or unfit to keep uses up nobody's place. A filter
acts only where its setting is given. Everything is decided in one pass, row by row; of the rows that are gone
by, 16 bytes stay for each filter that has to remember (about 100 bytes of memory in Python). The earliest of
several like rows is kept. Rows keep all their fields; only masking changes texts. Files and manifests:
``andon.corpus.preparation``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Protocol

from andon.corpus.manifest import FilterReport, FilterTally
from andon.corpus.personal_data import PersonalDataFinder, masked
from andon.corpus.prepared_rows import PreparedRow, user_of
from andon.corpus.token_counts import TokenCounter, WordCounter
from andon.errors import InvalidArgumentError

_MARKS = re.compile(r"[\W_]+")
_KEPT_KEY = re.compile(r"id|.*_ids?|sha256|url")  # what they hold names something and is nobody's text


class PersonalDataMode(StrEnum):
    """What becomes of personal data."""

    REMOVE = "remove"  # the row goes
    MASK = "mask"  # the row stays, with [email] and the like in the place of what was found
    REPORT = "report"  # the row stays as it is, and is counted


class Deduplication(StrEnum):
    """Which documents are the same."""

    NONE = "none"
    EXACT = "exact"  # letter for letter
    NORMALIZED = "normalized"  # but for case, marks and white space


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """Which filters act. What is None does not."""

    min_summary_tokens: int | None = None  # Stiennon et al.: 24
    max_summary_tokens: int | None = None  # 48
    max_document_tokens: int | None = None  # 512
    personal_data: PersonalDataMode | None = None
    phone_regions: tuple[str, ...] = ()  # whose national numbers count, for example "US"
    deduplicate: Deduplication = Deduplication.NONE
    common_prefix: int | None = None  # characters
    max_per_user: int | None = None  # Ouyang et al.: 200
    user_key: str | None = None  # where a row names its user; dots lead inwards

    def check(self) -> None:
        """Raises InvalidArgumentError for settings that contradict each other or would be ignored."""
        low, high = self.min_summary_tokens, self.max_summary_tokens
        if low is not None and high is not None and low > high:
            raise InvalidArgumentError(
                f"no summary has at least {low} and at most {high} tokens", reason="EMPTY_RANGE"
            )
        if (self.max_per_user is None) != (self.user_key is None):
            raise InvalidArgumentError(
                "a most per user needs a user key, and the key is for nothing else", reason="USER_KEY"
            )
        if self.phone_regions and self.personal_data is None:
            raise InvalidArgumentError(
                "phone regions are for the filter of personal data", reason="UNUSED_SETTING"
            )


class FilterChain:
    """The filters of one run, with what they have seen."""

    def __init__(self, settings: FilterSettings, counter: TokenCounter | None = None) -> None:
        """``counter`` says how long texts are; words and marks when None. Raises InvalidArgumentError."""
        settings.check()
        self._filters = list(_filters(settings, counter or WordCounter()))

    def apply(self, row: PreparedRow) -> PreparedRow | None:
        """The row as it is kept, or None."""
        kept: PreparedRow | None = row
        for each in self._filters:
            if kept is None:
                break
            kept = each.apply(kept)
        return kept

    def reports(self) -> list[FilterReport]:
        """What each filter did, in their order."""
        return [each.tally.report() for each in self._filters]


class _Filter(Protocol):
    """One filter."""

    tally: FilterTally

    def apply(self, row: PreparedRow) -> PreparedRow | None: ...


def _filters(settings: FilterSettings, counter: TokenCounter) -> Iterator[_Filter]:
    if settings.min_summary_tokens is not None or settings.max_summary_tokens is not None:
        yield _SummaryLength(settings.min_summary_tokens or 0, settings.max_summary_tokens, counter)
    if settings.max_document_tokens is not None:
        yield _DocumentLength(settings.max_document_tokens, counter)
    if settings.personal_data is not None:
        yield _PersonalData(settings.personal_data, settings.phone_regions, settings.user_key)
    if settings.deduplicate is not Deduplication.NONE:
        yield _Duplicate(
            FilterTally("exact_duplicate", reason="an earlier row has the same document"), lambda text: text
        )
    if settings.deduplicate is Deduplication.NORMALIZED:
        yield _Duplicate(
            FilterTally(
                "normalized_duplicate",
                reason="an earlier row has the same document but for case, marks and white space",
            ),
            normalized,
        )
    if settings.common_prefix is not None:
        size = settings.common_prefix
        yield _Duplicate(
            FilterTally(
                "common_prefix",
                reason="an earlier row's document begins with the same characters",
                parameters={"characters": size},
            ),
            # Two texts share a prefix of at least n characters if, and only if, their first n are the same.
            lambda text: text[:size] if len(text) >= size else None,
        )
    if settings.max_per_user is not None and settings.user_key is not None:
        yield _PerUser(settings.max_per_user, settings.user_key)


class _SummaryLength:
    def __init__(self, low: int, high: int | None, counter: TokenCounter) -> None:
        self.tally = FilterTally(
            "summary_length",
            reason="the reference, which is the first summary, is missing, too short or too long",
            parameters={"min_tokens": low, "max_tokens": high, **counter.description},
        )
        self._low, self._high, self._counter = low, high, counter

    def apply(self, row: PreparedRow) -> PreparedRow | None:
        row.require_document_row(self.tally.name)
        kind = self._fault(row.summaries[0]) if row.summaries else "missing"
        if kind is None:
            return row
        self.tally.removed(row.row_id, kind=kind)
        return None

    def _fault(self, summary: str) -> str | None:
        count = self._counter.count(summary)
        if count < self._low:
            return "too_short"
        return "too_long" if self._high is not None and count > self._high else None


class _DocumentLength:
    def __init__(self, high: int, counter: TokenCounter) -> None:
        self.tally = FilterTally(
            "document_length",
            reason="the document is too long",
            parameters={"max_tokens": high, **counter.description},
        )
        self._high, self._counter = high, counter

    def apply(self, row: PreparedRow) -> PreparedRow | None:
        if self._counter.count(row.document) <= self._high:
            return row
        self.tally.removed(row.row_id)
        return None


class _PersonalData:
    """Looks at every text of the row, whatever its key, but for ids, addresses of pages and the user."""

    def __init__(self, mode: PersonalDataMode, phone_regions: tuple[str, ...], user_key: str | None) -> None:
        self.tally = FilterTally(
            "personal_data",
            reason="a text holds personal data; counts are of findings, by kind",
            parameters={"mode": mode.value, "phone_regions": list(phone_regions)},
        )
        self._mode = mode
        self._finder = PersonalDataFinder(phone_regions)
        self._user_path = user_key

    def apply(self, row: PreparedRow) -> PreparedRow | None:
        found: Counter[str] = Counter()
        changed = self._masked(row.row, "", found)
        if not found:
            return row
        for kind, count in found.items():
            self.tally.noticed(kind, count)
        # An id that is personal data itself must not come into the manifest.
        name = f"row {row.number}" if self._finder.find(row.row_id) else row.row_id
        if self._mode is PersonalDataMode.REMOVE:
            self.tally.removed(name)
            return None
        if self._mode is PersonalDataMode.REPORT:
            self.tally.noticed("rows")
            return row
        self.tally.changed(name)
        return row.with_row(changed)

    def _masked(self, value: Any, path: str, found: Counter[str]) -> Any:  # JSON in, JSON out
        if isinstance(value, str):
            findings = self._finder.find(value)
            found.update(finding.kind for finding in findings)
            return masked(value, findings) if findings else value
        if isinstance(value, Mapping):
            return {key: self._masked_entry(key, entry, path, found) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._masked(entry, path, found) for entry in value]
        return value

    def _masked_entry(self, key: str, entry: Any, path: str, found: Counter[str]) -> Any:
        inner = f"{path}.{key}" if path else key
        if _KEPT_KEY.fullmatch(key) or inner == self._user_path:
            return entry
        return self._masked(entry, inner, found)


class _Duplicate:
    """Keeps the first of all rows whose document has the same sign; a document without one is kept."""

    def __init__(self, tally: FilterTally, sign: Callable[[str], str | None]) -> None:
        self.tally = tally
        self._sign = sign
        self._seen: set[bytes] = set()

    def apply(self, row: PreparedRow) -> PreparedRow | None:
        row.require_document_row(self.tally.name)
        sign = self._sign(row.document)
        if sign is None:
            return row
        digest = _digest(sign)
        if digest in self._seen:
            self.tally.removed(row.row_id)
            return None
        self._seen.add(digest)
        return row


class _PerUser:
    def __init__(self, most: int, user_key: str) -> None:
        self.tally = FilterTally(
            "per_user",
            reason="the user has as many rows as one may have; rows that name no user are kept",
            parameters={"max_rows": most, "user_key": user_key},
        )
        self._most = most
        self._user_key = user_key
        self._rows: Counter[bytes] = Counter()

    def apply(self, row: PreparedRow) -> PreparedRow | None:
        user = user_of(row.row, self._user_key)
        if user is None:
            self.tally.noticed("rows_without_user")
            return row
        digest = _digest(user)
        if self._rows[digest] >= self._most:
            self.tally.removed(row.row_id)
            return None
        self._rows[digest] += 1
        return row


def normalized(text: str) -> str:
    """The text in small letters, compatible forms made one, with a space for all marks and white space."""
    return _MARKS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
