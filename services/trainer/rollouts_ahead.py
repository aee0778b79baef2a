"""Which batches of responses are written before the update that learns from them begins, and how old they
may be.

The PPO stage has a batch written for every update, up to ``max_staleness`` updates ahead. All begin when the
weights that write them have just been published, and all are written before the next weights are: which
version writes a batch follows from the update's number alone, and every batch is written by one version.
Batch k comes from the weights after update max(0, k - 1 - max_staleness). With 0 nothing is ahead.

A checkpoint holds the batches that are written; they are judged again after it, with the same answers. One
that is being written is of the weights that are published at that moment, and is written again by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from andon.modeling.versions import ModelVersion
from services.trainer.errors import StaleSampleError
from services.trainer.peers import Peers
from services.trainer.rollout import Responses, RolloutCollector, RolloutPart
from services.trainer.stages.context import StageState


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the services have in hands for one update."""

    parts: Sequence[RolloutPart]
    staleness: int  # updates between the weights that write it and those that its update begins with


class RolloutsAhead:
    """The batches of one run that no update has learned from yet. Used from the run's thread."""

    def __init__(
        self,
        collector: RolloutCollector,
        *,
        prompts_of: Callable[[int], Sequence[Sequence[int]]],
        updates_before: Callable[[ModelVersion], int],
        max_staleness: int,
        num_updates: int,
        peers: Peers,
    ) -> None:
        """``prompts_of``: of an update; ``updates_before``: how many updates made a version."""
        self._collector = collector
        self._prompts_of = prompts_of
        self._updates_before = updates_before
        self._max_staleness = max_staleness
        self._num_updates = num_updates
        self._peers = peers
        self._batches: dict[int, Sequence[RolloutPart]] = {}  # by update, all of those to come in order
        self._restored: dict[int, list[Responses]] = {}

    def begin(self, update: int, *, has_experience: bool) -> None:
        """Have everything written that may be, now that ``update`` begins or is under way.

        What is written already is left alone; what was restored is judged.
        """
        first = update + 1 if has_experience else update
        last = min(update + self._max_staleness, self._num_updates)
        for number in range(first, last + 1):
            if number in self._restored:
                self._batches[number] = self._collector.judge(self._restored.pop(number))
            elif number not in self._batches:
                self._batches[number] = self._collector.begin(self._prompts_of(number), update=number)

    def batch(self, update: int, *, state: Callable[[], StageState]) -> Batch:
        """The batch of an update, as soon as its first part is written.

        Raises StaleSampleError for one that is older than allowed.
        """
        parts = self._batches[update]
        (first,) = self._peers.wait_for([parts[0].responses], state=state)
        staleness = update - 1 - self._updates_before(first.model)
        if not 0 <= staleness <= self._max_staleness:
            raise StaleSampleError(
                peer=f"the batch of update {update}",
                expected=f"a version at most {self._max_staleness} updates old",
                actual=first.model,
            )
        return Batch(parts=parts, staleness=staleness)

    def learned(self, update: int) -> None:
        """The update has its experience: the batch is no longer ahead."""
        self._batches.pop(update, None)

    def wait_until_written(self, *, state: Callable[[], StageState]) -> None:
        """Until no sampler works on a batch, so that new weights may be published."""
        parts = [part for parts in self._batches.values() for part in parts]
        self._peers.wait_for([part.responses for part in parts], state=state)

    def written_by(self, model: ModelVersion) -> list[Responses]:
        """The batches of this version, which must all be written."""
        written = [
            Responses.join([part.responses.result() for part in parts]) for parts in self._batches.values()
        ]
        return [responses for responses in written if responses.model == model]

    def state(self) -> dict[str, Any]:
        """For a checkpoint: the batches that are written, part by part."""
        written = {
            update: [part.responses.result() for part in parts]
            for update, parts in self._batches.items()
            if all(part.is_written for part in parts)
        }
        return {
            str(update): [responses.to_state() for responses in parts]
            for update, parts in (self._restored | written).items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state`` gave; ``begin`` goes on from there."""
        self._restored = {
            int(update): [Responses.from_state(part) for part in parts] for update, parts in state.items()
        }
