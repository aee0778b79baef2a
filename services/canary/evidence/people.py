"""What labelers say of the canary's samples against stable's.

Pairs go to the labeling service as tasks of a batch of the rollout's own; labelers see them blind, in an
order of their own. The answers of the batch, in the order in which they were recorded, are the sequence that
the gate tests, and the gate's own count says how many of them it has seen. So nothing need be remembered
here: a controller that begins anew goes on where the record stands. A correction comes too late to count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from andon.client.labeling import BatchSettings, LabelingClient, TaskDraft
from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.errors import NotFoundError
from services.canary.evidence.probes import Pair
from services.canary.rollout import Rollout

CALL_TIMEOUT_S = 15.0
PRIORITY = 10  # before the ordinary batches: the answer is wanted while the rollout goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleOptions:
    """How many pairs people are asked about."""

    project: str = ""
    pairs_per_round: int = 4
    most_waiting: int = 40  # pairs without an answer, above which none are added
    most_pairs: int = 400  # of a rollout


class People:
    """Asks, and reads the answers."""

    def __init__(self, labeling: LabelingClient, options: PeopleOptions) -> None:
        self._labeling = labeling
        self._options = options

    def exchange(self, rollout: Rollout, pairs: Sequence[Pair], *, seen: int) -> list[float]:
        """Submit some pairs; the answers after the first ``seen`` ones. Raises AndonError."""
        batch = batch_of(rollout)
        answers = list(self._answers(batch, rollout.spec.candidate))
        self._ask(rollout, pairs, batch=batch, answered=len(answers))
        return answers[seen:]

    def _answers(self, batch: str, candidate: str) -> Iterator[float]:
        try:
            # With those that were corrected later: the sequence must never change behind the gate's back.
            for record in self._labeling.export_comparisons(
                batch=batch, with_superseded=True, timeout_s=CALL_TIMEOUT_S, wait_for_ready=False
            ):
                if record.supersedes_comparison_id is None:
                    yield value_of(record, candidate)
        except NotFoundError:
            return  # nothing was asked yet

    def _ask(self, rollout: Rollout, pairs: Sequence[Pair], *, batch: str, answered: int) -> None:
        try:
            asked = self._labeling.progress(batch=batch, timeout_s=CALL_TIMEOUT_S).task_count
        except NotFoundError:
            asked = 0
        options = self._options
        room = min(
            options.pairs_per_round, options.most_pairs - asked, options.most_waiting - (asked - answered)
        )
        tasks = [_task(pair, rollout) for pair in pairs if _can_be_told_apart(pair)][: max(room, 0)]
        if tasks:
            self._labeling.submit_tasks(
                tasks,
                batch=batch,
                project=options.project,
                batch_settings=BatchSettings(mode="online", priority=PRIORITY),
                timeout_s=CALL_TIMEOUT_S,
            )


def batch_of(rollout: Rollout) -> str:
    """The batch of a rollout's pairs."""
    return f"rollout-{rollout.rollout_id}"


def value_of(record: ComparisonRecord, candidate: str) -> float:
    """1 where the canary's sample is preferred, 0 where stable's is, 1/2 for a tie."""
    pairs = record.untied_pairs()
    if not pairs:
        return 0.5
    better, _worse = pairs[0]
    return 1.0 if record.candidates[better].policy_version == candidate else 0.0


def _can_be_told_apart(pair: Pair) -> bool:
    texts = (pair.stable_sample.text.strip(), pair.canary_sample.text.strip())
    return texts[0] != texts[1] and all(texts)


def _task(pair: Pair, rollout: Rollout) -> TaskDraft:
    return TaskDraft(
        document=pair.document,
        candidates=(
            CandidateRecord(text=pair.stable_sample.text, source="policy", policy_version=rollout.stable),
            CandidateRecord(
                text=pair.canary_sample.text, source="policy", policy_version=rollout.spec.candidate
            ),
        ),
    )
