"""One round of looking at both sides: probes, then their judges side by side, each free to fail by itself.

What a judge cannot say now is missing, counted and logged; it is never guessed. A round is given up at once
when the line must stop: what it saw by then is not used. Nothing is remembered that a new process would miss,
but for the last look at counters, whose loss costs one round of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import structlog

from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.errors import AndonError
from andon.modeling.store import ModelStore
from services.canary.evidence import judges
from services.canary.evidence.identity import Identity
from services.canary.evidence.people import People
from services.canary.evidence.probes import Pair, Probe, Prober, Side
from services.canary.evidence.samplers import Samplers
from services.canary.evidence.scrapes import Scrapes, answered
from services.canary.gates import standard
from services.canary.observing import Observations
from services.canary.platform import Replica
from services.canary.rollout import Rollout

_log = structlog.stdlib.get_logger(__name__)
T = TypeVar("T")

LOOK_S = 0.1  # between two looks at whether the line must stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Who is asked about pairs."""

    reward: RewardClient
    reference: ReferenceClient
    temperature: float  # at which the sides sample
    people: People | None  # None: nobody is asked


class Gatherer:
    """The eyes of controller and judge; an ``observing.Evidence``."""

    def __init__(
        self,
        *,
        prober: Prober,
        judges: Judges,
        identity: Identity,
        samplers: Samplers,
        store: ModelStore,
        stable_replicas: Callable[[], Sequence[Replica]],
        probes_per_round: int,
        parallel: int,
        must_stop: Callable[[], bool],
        failed: Callable[[str], None],
    ) -> None:
        """``failed`` hears which source could not be asked; ``must_stop`` is asked all the time."""
        self._prober = prober
        self._judges = judges
        self._identity = identity
        self._samplers = samplers
        self._store = store
        self._stable_replicas = stable_replicas
        self._probes_per_round = probes_per_round
        self._must_stop = must_stop
        self._failed = failed
        self._scrapes = Scrapes()
        self._probing = ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="probe")
        self._asking = ThreadPoolExecutor(max_workers=8, thread_name_prefix="judge")

    def close(self) -> None:
        """Begin no further call; calls in progress end with their connections."""
        self._probing.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)

    def lie_of(self, version: str, replicas: Sequence[Replica]) -> str | None:
        """What is wrong with replicas that claim to serve ``version``."""
        return self._identity.lie_of(version, replicas, others=self._stable_replicas())

    def gather(
        self, rollout: Rollout, *, stable: Sequence[Replica], canary: Sequence[Replica]
    ) -> Observations:
        """One round."""
        self._samplers.keep_only([*stable, *canary])
        probes = self._probe(rollout, stable=stable, canary=canary)
        if probes is None:
            return Observations()
        for probe in probes:
            if probe.pair is None and probe.canary_answered == 1.0:
                self._failed("stable")
            elif probe.canary_answered == 0.0:
                self._failed("canary")
        values = self._values(rollout, [pair for probe in probes if (pair := probe.pair) is not None])
        counts = self._calls(canary)
        if values is None or counts is None:
            return Observations()
        values[standard.CALLS] = [value for probe in probes if (value := probe.canary_answered) is not None]
        known = {gate.rule.name for gate in rollout.gates}
        return Observations(
            values={name: seen for name, seen in values.items() if name in known},
            counts={standard.CALLS: counts} if standard.CALLS in known else {},
        )

    def _probe(
        self, rollout: Rollout, *, stable: Sequence[Replica], canary: Sequence[Replica]
    ) -> list[Probe] | None:
        stable_side = Side(replicas=stable, version=self._store.resolve(rollout.stable).version)
        canary_side = Side(replicas=canary, version=self._store.resolve(rollout.spec.candidate).version)
        futures = [
            self._probing.submit(self._prober.probe, document, stable=stable_side, canary=canary_side)
            for document in self._prober.choose(self._probes_per_round)
        ]
        return [future.result() for future in futures] if self._wait(futures) else None

    def _values(self, rollout: Rollout, pairs: Sequence[Pair]) -> dict[str, Sequence[float]] | None:
        """By gate; None when the round was given up."""
        values: dict[str, Sequence[float]] = {}
        asked: dict[str, tuple[str, Future[list[float]]]] = {}  # source -> gate
        if pairs:
            longer = judges.longer_values(pairs)
            values[standard.LONGER] = longer
            values[standard.SHORTER] = [-value for value in longer]
            values[standard.REPETITION] = judges.repetition_values(pairs)
            values[standard.LATENCY] = judges.latency_values(pairs)
            asked["reward"] = (
                standard.SCORE,
                self._asking.submit(judges.score_values, self._judges.reward, pairs),
            )
            asked["reference"] = (
                standard.KL,
                self._asking.submit(
                    judges.kl_values,
                    self._judges.reference,
                    pairs,
                    temperature=self._judges.temperature,
                ),
            )
        people_gate = next((gate for gate in rollout.gates if gate.rule.name == standard.PEOPLE), None)
        if people_gate is not None and self._judges.people is not None:
            asked["labeling"] = (
                standard.PEOPLE,
                self._asking.submit(self._judges.people.exchange, rollout, pairs, seen=people_gate.count),
            )
        if not self._wait([future for _gate, future in asked.values()]):
            return None
        for source, (gate, future) in asked.items():
            answer = self._answer_of(source, future)
            if answer is not None:
                values[gate] = answer
        return values

    def _calls(self, canary: Sequence[Replica]) -> Mapping[float, int] | None:
        """How the calls of others to the canary ended; None when the round was given up."""
        futures = [
            self._asking.submit(self._scrapes.look, replica, own_calls=self._samplers.take_own_calls(replica))
            for replica in canary
            if replica.metrics_url
        ]
        if not self._wait(futures):
            return None
        counts: dict[float, int] = {}
        for future in futures:
            calls = self._answer_of("metrics", future)
            for value, number in ({} if calls is None else answered(calls)).items():
                counts[value] = counts.get(value, 0) + number
        return counts

    def _answer_of(self, source: str, future: Future[T]) -> T | None:
        try:
            return future.result()
        except AndonError as error:
            self._failed(source)
            _log.warning("evidence_missing", source=source, reason=error.reason, message=error.message)
            return None

    def _wait(self, futures: Sequence[Future[T]]) -> bool:
        """Until all have ended; False when the line must stop first."""
        pending: set[Future[T]] = set(futures)
        while pending:
            if self._must_stop():
                for future in pending:
                    future.cancel()
                return False
            pending = wait(pending, timeout=LOOK_S).not_done
        return True
