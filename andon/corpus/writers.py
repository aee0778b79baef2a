"""Writes comparisons in the formats that others read, and counts what a format cannot say.

    tldr    the public TL;DR comparison format (Stiennon et al. 2020): one row per untied pair. ``choice`` is
            the index of the better one; ``extra`` holds beside ``confidence`` the pair's ``group_id``,
            ``candidate_indices`` and ``shown_order``, and what else a pair's answer says
    hh      chosen and rejected dialogues (Bai et al. 2022): one row per untied pair, two texts and no more
    jsonl   every field of every answer; ``andon.corpus.export_format`` reads it back

``tldr`` and ``hh`` cannot say ties, verdicts or that an answer was corrected later: such answers are counted,
not written. Votes are written as they were given or, per pair of candidates, as the majority of labelers
decided. A split puts all rows of one document on one side. ComparisonExport makes lines, for a file or for a
response that streams; write_export makes files with their manifest. Who chooses the answers, by batch or by
labelers held out, is the caller, who adds what that left out to the manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from andon.corpus.export_format import rating_to_row, row_from_comparison
from andon.corpus.formats import FIRST_SPEAKER, LAST_SPEAKER
from andon.corpus.json_lines import RowWriter, line_from_row
from andon.corpus.majority import MajorityVote, SplitVote
from andon.corpus.manifest import (
    FilterReport,
    FilterTally,
    InputReport,
    Json,
    Manifest,
    OutputReport,
    manifest_path,
    write_manifest,
)
from andon.corpus.pairs import Pair, count_undecided_pairs, decided_pairs
from andon.corpus.records import ComparisonRecord
from andon.corpus.splits import Split


class ExportFormat(StrEnum):
    """What a row looks like."""

    TLDR = "tldr"
    HH = "hh"
    JSONL = "jsonl"


class Votes(StrEnum):
    """Whose opinion a row is."""

    RAW = "raw"  # one labeler's
    MAJORITY = "majority"  # of the labelers of the task


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to write."""

    format: ExportFormat = ExportFormat.JSONL
    votes: Votes = Votes.RAW
    split: Split | None = None  # None: all rows on one side, without a name


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedLine:
    """One row of the export."""

    side: str  # of the split; "" without one
    text: str  # JSON without the line's end


class ComparisonExport:
    """One export: makes lines from answers and counts what it leaves out."""

    def __init__(self, options: ExportOptions, *, spill_folder: Path | None = None) -> None:
        """``spill_folder`` is where votes wait for their majority; None for the system's temporary folder."""
        self.comparison_count = 0  # answers taken in
        self._options = options
        self._spill_folder = spill_folder
        format_name = options.format.value
        self._superseded = FilterTally(
            "superseded", unit="comparison", reason="a later answer of the same labeler corrects it"
        )
        self._single = FilterTally(
            "single_candidate",
            unit="comparison",
            reason=f"{format_name} holds pairs only, no verdict or rating",
        )
        self._unjudged = FilterTally(
            "no_decision", unit="comparison", reason="ratings without a yes or no have no majority"
        )
        self._no_document = FilterTally(
            "document_missing", unit="comparison", reason=f"a row of {format_name} needs a document"
        )
        self._repeats = FilterTally(
            "repeated_answer", unit="comparison", reason="of a labeler's answers to one task the first counts"
        )
        self._split_votes = FilterTally(
            "split_vote", unit="pair", reason="no opinion has more than half of the votes"
        )
        self._ties = FilterTally("tie", unit="pair", reason=f"{format_name} cannot say that two are alike")
        self._undecided = FilterTally(
            "undecided_pair", unit="pair", reason="a best-of-K choice says nothing about the others"
        )

    def lines(self, records: Iterable[ComparisonRecord]) -> Iterator[ExportedLine]:
        """The rows. To be called once; the counts are whole when it is exhausted."""
        if self._options.votes is Votes.MAJORITY:
            yield from self._majority_lines(records)
            return
        for record in records:
            self.comparison_count += 1
            if self._options.format is ExportFormat.JSONL:
                yield self._line(record, row_from_comparison(record))
            elif self._is_sayable(record):
                if undecided := count_undecided_pairs(record):
                    self._undecided.removed(record.comparison_id, count=undecided)
                for pair in decided_pairs(record):
                    yield from self._pair_lines(pair)

    def filters(self) -> list[FilterReport]:
        """What was left out, in the order of use; a filter that this export does not use is not named."""
        is_majority = self._options.votes is Votes.MAJORITY
        has_pairs_only = self._options.format is not ExportFormat.JSONL
        used = (
            (self._superseded, is_majority or has_pairs_only),
            (self._single, has_pairs_only),
            (self._unjudged, is_majority and not has_pairs_only),
            (self._no_document, has_pairs_only),
            (self._repeats, is_majority),
            (self._split_votes, is_majority),
            (self._ties, has_pairs_only),
            (self._undecided, has_pairs_only and not is_majority),
        )
        return [tally.report() for tally, is_used in used if is_used]

    def _majority_lines(self, records: Iterable[ComparisonRecord]) -> Iterator[ExportedLine]:
        with MajorityVote(self._spill_folder) as vote:
            for record in records:
                self.comparison_count += 1
                if self._is_sayable(record):
                    vote.add(record)
            for result in vote.results():
                if isinstance(result, SplitVote):
                    self._split_votes.removed(result.group_id)
                elif self._options.format is ExportFormat.JSONL:
                    yield self._line(result.record, {**row_from_comparison(result.record), **_origin(result)})
                else:
                    yield from self._pair_lines(result)
            if vote.repeat_count:
                self._repeats.removed_count = vote.repeat_count

    def _is_sayable(self, record: ComparisonRecord) -> bool:
        """Whether the format or the vote can hold the answer at all; counts it when not."""
        has_pairs_only = self._options.format is not ExportFormat.JSONL
        if record.is_superseded:
            self._superseded.removed(record.comparison_id)
        elif has_pairs_only and len(record.candidates) == 1:
            self._single.removed(record.comparison_id)
        elif len(record.candidates) == 1 and record.verdict is None:
            self._unjudged.removed(record.comparison_id)
        elif has_pairs_only and not record.document.strip():
            self._no_document.removed(record.comparison_id)
        else:
            return True
        return False

    def _pair_lines(self, pair: Pair) -> Iterator[ExportedLine]:
        if len(pair.record.tiers) == 1:
            self._ties.removed(pair.record.comparison_id)
        elif self._options.format is ExportFormat.HH:
            yield self._line(pair.record, hh_row(pair.record))
        else:
            side = self._side(pair.record)
            yield ExportedLine(side=side, text=line_from_row(tldr_row(pair, side=side)))

    def _line(self, record: ComparisonRecord, row: Mapping[str, Any]) -> ExportedLine:
        return ExportedLine(side=self._side(record), text=line_from_row(row))

    def _side(self, record: ComparisonRecord) -> str:
        if self._options.split is None:
            return ""
        # By its text where there is one: the same document under two ids must not stand on two sides.
        return self._options.split.side(record.document or record.document_id)


def tldr_row(pair: Pair, *, side: str = "") -> dict[str, Any]:
    """An untied pair as a row of the public TL;DR comparisons."""
    record = pair.record
    readings = [rating.naive_reading for rating in record.ratings] or ["", ""]
    return {
        "info": {
            "id": record.document_id,
            "post": record.document,
            "title": None,
            "subreddit": None,
            "site": None,
            "article": None,
        },
        "split": side or "train",
        "summaries": [
            {
                "text": candidate.text,
                "policy": candidate.policy_version or candidate.source,
                "note": reading or None,
                "source": candidate.source,
                "policy_version": candidate.policy_version,
            }
            for candidate, reading in zip(record.candidates, readings, strict=True)
        ],
        "choice": record.tiers[0][0],
        "worker": record.labeler_id,
        "batch": record.batch,
        "extra": {
            "confidence": record.confidence,
            "preference": record.preference,
            **_origin(pair),
            "shown_order": list(record.shown_order),
            "only_best_known": record.only_best_known,
            "ratings": [rating_to_row(rating) for rating in record.ratings],
            "note": record.note,
            "comparison_id": record.comparison_id,
            "task_id": record.task_id,
            "project": record.project,
            "purpose": record.purpose,
            "round": record.round,
            "answer_time": record.answer_time,
            "duration_s": record.duration_s,
        },
    }


def hh_row(record: ComparisonRecord) -> dict[str, Any]:
    """An untied pair as two dialogues that differ in the last answer. What is a dialogue stays one."""
    prompt = record.document
    if not (prompt.startswith(FIRST_SPEAKER) and prompt.endswith(LAST_SPEAKER)):
        prompt = f"{FIRST_SPEAKER} {prompt}{LAST_SPEAKER}"
    (better,), (worse,) = record.tiers
    return {
        "chosen": f"{prompt} {record.candidates[better].text}",
        "rejected": f"{prompt} {record.candidates[worse].text}",
    }


def write_export(
    records: Iterable[ComparisonRecord],
    path: Path,
    *,
    options: ExportOptions,
    command: str,
    parameters: Mapping[str, Json],
    inputs: Sequence[InputReport] = (),
    filters_before: Callable[[], Sequence[FilterReport]] = list,
    on_row: Callable[[], None] = lambda: None,
) -> Manifest:
    """Writes ``path``, or with a split one file per side (``rows.jsonl.gz`` gives ``rows.train.jsonl.gz``),
    and the manifest beside ``path``.

    All of it appears when all is written, the manifest last; on any error nothing does. ``filters_before``
    is asked at the end what was left out before the records came here.
    """
    sides = [""] if options.split is None else list(options.split.shares)
    with ExitStack() as stack:
        writers = {side: stack.enter_context(RowWriter(side_path(path, side))) for side in sides}
        export = ComparisonExport(options, spill_folder=path.parent)
        for line in export.lines(records):
            writers[line.side].write_line(line.text)
            on_row()
        for writer in writers.values():
            writer.finish()
        manifest = Manifest(
            command=command,
            parameters={**parameters, "comparison_count": export.comparison_count},
            inputs=inputs,
            outputs=[
                OutputReport(path=writer.path.name, sha256=writer.sha256, row_count=writer.row_count)
                for writer in writers.values()
            ],
            filters=[*filters_before(), *export.filters()],
        )
        for writer in writers.values():
            writer.publish()
        write_manifest(manifest, manifest_path(path))
    return manifest


def side_path(path: Path, side: str) -> Path:
    """The file of one side of a split: its name stands before the endings."""
    if not side:
        return path
    name = path.name.removesuffix(".gz")
    ending = Path(name).suffix
    return path.with_name(f"{name.removesuffix(ending)}.{side}{ending}{path.name[len(name) :]}")


def _origin(pair: Pair) -> dict[str, Any]:
    """Where a pair comes from."""
    origin: dict[str, Any] = {
        "group_id": pair.group_id,
        "candidate_indices": list(pair.candidate_indices),
    }
    if pair.votes is not None:
        origin["votes"] = dict(zip(("first", "second", "tie"), pair.votes, strict=True))
    return origin
