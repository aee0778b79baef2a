"""Decides what the majority of labelers says of each task, in bounded memory.

The answers to a task may stand anywhere in the stream, so votes have to wait for its end. They wait in a
temporary SQLite file, with each task's texts once; memory holds SQLite's cache of CACHE_MIB and one task,
whatever the number of answers. The file takes some 50 bytes an answer and the compressed texts of the tasks.

A vote is about one pair of candidates (or the one candidate of a verdict). Each labeler has one vote on it:
of their repeated answers the first counts. The majority is more than half of those who voted on the pair;
where nobody has it the vote is split. "No difference" is an opinion like the others. Pairs are voted on one
by one because the majority of rankings need not be a ranking (Condorcet).
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from andon.corpus.export_format import comparison_from_row, row_from_comparison
from andon.corpus.json_lines import line_from_row
from andon.corpus.pairs import Pair, pair_of
from andon.corpus.records import ComparisonRecord, content_digest

CACHE_MIB = 32
MAJORITY_LABELER = "majority"  # who stands as the labeler of what the majority decided
_NO_VOTE, _FIRST, _SECOND, _TIE = range(4)
_TIERS: dict[int, tuple[tuple[int, ...], ...]] = {
    _FIRST: ((0,), (1,)),
    _SECOND: ((1,), (0,)),
    _TIE: ((0, 1),),
}
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitVote:
    """A pair (or verdict) on which no opinion has more than half of the votes."""

    group_id: str
    document_id: str
    candidate_indices: tuple[int, ...]


class MajorityVote:
    """Takes answers in and gives each pair's majority out, tasks in the order of their first answers.

    A context manager. It may be used from several threads one after the other, never at once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Waits in a file in ``folder``, the system's place for temporary files when None."""
        self.repeat_count = 0  # answers beyond the first one of a labeler to a task
        self._folder = TemporaryDirectory(prefix="andon-votes-", dir=folder)
        self._database = sqlite3.connect(
            Path(self._folder.name) / "votes.sqlite", isolation_level=None, check_same_thread=False
        )
        # Nothing here outlives the process, so nothing needs to be safe from a crash.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_MIB * 1024}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE task (seq INTEGER PRIMARY KEY, key BLOB UNIQUE, row BLOB)")
        self._database.execute(
            "CREATE TABLE answer (seq INTEGER, labeler BLOB, round INTEGER, votes BLOB,"
            " PRIMARY KEY (seq, labeler)) WITHOUT ROWID"
        )
        self._added = 0

    def add(self, record: ComparisonRecord) -> None:
        """Counts the votes of an answer."""
        if self._added % _BATCH == 0:
            self._end_batch()
            self._database.execute("BEGIN")
        self._added += 1
        key = bytes.fromhex(content_digest(record.task_key()))
        found = self._database.execute("SELECT seq FROM task WHERE key = ?", (key,)).fetchone()
        if found is None:
            row = line_from_row(row_from_comparison(_task_of(record))).encode()
            found = self._database.execute(
                "INSERT INTO task (key, row) VALUES (?, ?) RETURNING seq", (key, zlib.compress(row, 1))
            ).fetchone()
        # Nobody knows whether two answers without a name are of one person; they are taken as of two.
        labeler = record.labeler_id.encode() or b"\0%d" % self._added
        self._database.execute(
            "INSERT INTO answer VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET round = excluded.round, votes = excluded.votes WHERE excluded.round < round",
            (found[0], labeler, record.round, _votes(record)),
        )

    def results(self) -> Iterator[Pair | SplitVote]:
        """What the majority says, after all records have been added. A verdict is a Pair of one candidate."""
        self._end_batch()
        (answer_count,) = self._database.execute("SELECT count(*) FROM answer").fetchone()
        self.repeat_count = self._added - answer_count
        # Two cursors, each in the order of its primary key: nothing is sorted, nothing is gathered.
        with (
            closing(self._database.execute("SELECT seq, row FROM task ORDER BY seq")) as tasks,
            closing(self._database.execute("SELECT seq, votes FROM answer ORDER BY seq")) as answers,
        ):
            answer = next(answers, None)
            for seq, row in tasks:
                votes: list[bytes] = []
                while answer is not None and answer[0] == seq:
                    votes.append(answer[1])
                    answer = next(answers, None)
                task = comparison_from_row(json.loads(zlib.decompress(row)), "")
                yield from _decide(task, votes)

    def close(self) -> None:
        """Removes the file."""
        self._database.close()
        self._folder.cleanup()

    def __enter__(self) -> MajorityVote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end_batch(self) -> None:
        if self._database.in_transaction:
            self._database.execute("COMMIT")


def _task_of(record: ComparisonRecord) -> ComparisonRecord:
    """What all answers to a task have in common."""
    return ComparisonRecord(
        document_id=record.document_id,
        document=record.document,
        candidates=record.candidates,
        tiers=(tuple(range(len(record.candidates))),),
        labeler_id=MAJORITY_LABELER,
        batch=record.batch,
        project=record.project,
        purpose=record.purpose,
        task_id=record.task_id,
    )


def _votes(record: ComparisonRecord) -> bytes:
    """One byte per pair of candidates; for a verdict one byte, "first" for yes."""
    if len(record.candidates) == 1:
        return bytes([_NO_VOTE if record.verdict is None else _FIRST if record.verdict else _SECOND])
    rank = {index: place for place, tier in enumerate(record.tiers) for index in tier}
    votes = bytearray()
    for first, second in combinations(range(len(record.candidates)), 2):
        if rank[first] == rank[second]:
            votes.append(_NO_VOTE if record.only_best_known else _TIE)
        else:
            votes.append(_FIRST if rank[first] < rank[second] else _SECOND)
    return bytes(votes)


def _decide(task: ComparisonRecord, votes: list[bytes]) -> Iterator[Pair | SplitVote]:
    group_id = task.task_key()
    count = len(task.candidates)
    places: Iterable[tuple[int, ...]] = [(0,)] if count == 1 else combinations(range(count), 2)
    for column, places_of_pair in enumerate(places):
        tally = Counter(vote[column] for vote in votes)
        del tally[_NO_VOTE]
        if not tally:
            continue
        winner, most = tally.most_common(1)[0]
        if 2 * most <= tally.total():
            yield SplitVote(group_id=group_id, document_id=task.document_id, candidate_indices=places_of_pair)
            continue
        shown = (tally[_FIRST], tally[_SECOND], tally[_TIE])
        if count == 1:
            record = replace(task, verdict=winner == _FIRST, comparison_id=f"{MAJORITY_LABELER}/{group_id}")
            yield Pair(record=record, group_id=group_id, candidate_indices=(0,), votes=shown)
            continue
        first, second = places_of_pair
        named = replace(task, comparison_id=f"{MAJORITY_LABELER}/{group_id}")
        yield Pair(
            record=pair_of(named, first, second, tiers=_TIERS[winner]),
            group_id=group_id,
            candidate_indices=(first, second),
            votes=shown,
        )
