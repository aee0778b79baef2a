"""``python -m services.canary.judge``: judges one step of a rollout that somebody else carries out.

It looks at both sides as the controller does, with the same gates and decisions, until these decide or time
is up; it changes nothing. Argo Rollouts runs it as a Job of an analysis. Progress goes to the standard error
stream; the last word is one line of JSON on the standard output. It ends with

* 0: the rollout may go on, or, at its last step, be completed,
* 1: worse than allowed, not shown in time, the cord, an alert, or told to end: it may not,
* 2: it cannot do what it was told.

Nothing is remembered between two runs: each begins its tests anew.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from andon.errors import AndonError, FailedPreconditionError
from andon.modeling.store import ModelStore
from andon.observability.logs import configure_logging
from andon.rpc.config import load_config
from services.canary.decisions import Decision, Kind, decide
from services.canary.evidence.identity import INFO_TIMEOUT_S
from services.canary.judge_config import JudgeConfig
from services.canary.observing import observe
from services.canary.platform import Track
from services.canary.rollout import Rollout
from services.canary.senses import Senses, probe_documents
from services.canary.sides import NamedSides

_log = structlog.stdlib.get_logger(__name__)

ENDING = (signal.SIGTERM, signal.SIGINT)
READY_LOOK_S = 1.0  # between two looks at whether both sides are there


class SideNotReadyError(FailedPreconditionError):
    """Nothing can be shown about a side yet."""

    default_reason = "SIDE_NOT_READY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one run comes to."""

    decision: Decision
    config: JudgeConfig
    rollout: Rollout | None  # None where the sides were never ready
    seconds: float
    problems: dict[str, int]  # source -> how often it could not be asked

    @property
    def is_good(self) -> bool:
        """Whether the rollout may go on."""
        return self.decision.kind in (Kind.ADVANCE, Kind.PROMOTE)

    def to_values(self) -> dict[str, Any]:
        """For JSON; ``gates`` has the numbers by gate, the error rates are this step's."""
        gates = () if self.rollout is None else self.rollout.gates
        return {
            "good": self.is_good,
            "decision": self.decision.kind.value,
            "reason": self.decision.reason,
            "candidate": None if self.rollout is None else self.rollout.spec.candidate,
            "stable": None if self.rollout is None else self.rollout.stable,
            "step": self.config.step,
            "steps": self.config.steps,
            "seconds": round(self.seconds, 3),
            "promotion_error_rate": self.config.rates.promotion,
            "rollback_error_rate": self.config.rates.rollback,
            "gates": {gate.rule.name: {"verdict": gate.verdict.value, **gate.numbers()} for gate in gates},
            "problems": self.problems,
        }


class Judge:
    """Looks at one step until it is decided."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock``: s since 1970.

        Raises AndonError for documents, a store, a token or certificates that cannot be used.
        """
        assert config.prompts is not None  # the settings said so
        self._config = config
        self._clock = clock
        self._store = ModelStore(config.store)
        self._store.check_readable()
        self._sides = NamedSides(
            stable=config.addresses("stable"),
            canary=config.addresses("canary"),
            canary_metrics_port=config.canary_metrics_port,
        )
        self._problems: Counter[str] = Counter()
        self._problems_lock = threading.Lock()
        self._stopped = threading.Event()
        self._senses = Senses(
            config,
            store=self._store,
            documents=probe_documents(config.prompts),
            tls_server_name=config.tls_server_name,
            stable_replicas=lambda: self._sides.replicas(Track.STABLE),
            on_stop=self._stopped.set,
            gives_up=lambda: False,
            failed=self._count_problem,
        )

    def end(self, reason: str) -> None:
        """Judge at once that it may not go on. Called from any thread."""
        self._senses.emergency.tell(reason)

    def close(self) -> None:
        """End the threads and the connections."""
        self._senses.close()

    def judge(self) -> Judgement:
        """Look until it is decided."""
        self._senses.start()
        began_s = self._clock()
        rollout: Rollout | None = None
        while True:
            if rollout is None:
                rollout, decision = self._begin(began_s)
            else:
                rollout, decision = self._look(rollout)
            if decision.kind is not Kind.CONTINUE:
                return Judgement(
                    decision=decision,
                    config=self._config,
                    rollout=rollout,
                    seconds=self._clock() - began_s,
                    problems=dict(self._problems),
                )
            _log.info(
                "judge_goes_on",
                status=decision.reason,
                seconds=round(self._clock() - began_s, 1),
                means={name: numbers.get("mean") for name, numbers in decision.numbers.items()},
                counts={name: numbers["count"] for name, numbers in decision.numbers.items()},
            )
            pause_s = READY_LOOK_S if rollout is None else self._config.look_interval_s
            self._stopped.wait(min(pause_s, self._config.look_interval_s))

    def _begin(self, began_s: float) -> tuple[Rollout | None, Decision]:
        """The step's rollout, once both sides say what they serve and the cord is heard."""
        stop = self._senses.emergency.why()
        if stop is not None:
            return None, Decision(kind=Kind.ROLL_BACK, reason=stop)
        try:
            rollout = self._new_rollout()
        except AndonError as error:
            waited_s = self._clock() - began_s
            if waited_s >= self._config.ready_s:
                reason = f"{error.message}, after {waited_s:.0f} s"
                return None, Decision(kind=Kind.ROLL_BACK, reason=reason)
            return None, Decision(kind=Kind.CONTINUE, reason=error.message)
        _log.info("judge_begins", candidate=rollout.spec.candidate, stable=rollout.stable)
        return rollout, Decision(kind=Kind.CONTINUE, reason=rollout.reason)

    def _new_rollout(self) -> Rollout:
        if not self._senses.has_heard_cord():
            raise SideNotReadyError("the cord has not been heard")
        stable, candidate = (self._served(track) for track in (Track.STABLE, Track.CANARY))
        if self._config.ask_people and stable == candidate:
            raise SideNotReadyError(f"both sides serve {stable}: people cannot tell them apart")
        now_s = self._clock()
        return Rollout.begin(
            self._config.spec(candidate), rollout_id=f"judge-{uuid.uuid4().hex}", stable=stable, now_s=now_s
        ).at_step(self._config.step - 1, reason=f"{candidate} beside {stable}", now_s=now_s)

    def _served(self, track: Track) -> str:
        """The one version of the store that a side's replicas say they serve."""
        replicas = self._sides.replicas(track)
        if not replicas:
            raise SideNotReadyError(f"{track.value} has no replica")
        samplers = self._senses.samplers
        versions = {str(samplers.model_info(replica, timeout_s=INFO_TIMEOUT_S).model) for replica in replicas}
        if len(versions) != 1:
            raise SideNotReadyError(f"replicas of {track.value} serve {', '.join(sorted(versions))}")
        return str(self._store.resolve(versions.pop()).version)

    def _look(self, rollout: Rollout) -> tuple[Rollout, Decision]:
        emergency = self._senses.emergency.why
        try:
            stable, canary = (self._sides.replicas(track) for track in (Track.STABLE, Track.CANARY))
            return observe(
                rollout,
                self._senses.gatherer,
                stable=stable,
                canary=canary,
                emergency=emergency,
                clock=self._clock,
            )
        except AndonError as error:
            # Nothing was seen, and time goes on.
            self._count_problem("sides")
            _log.warning("look_failed", reason=error.reason, message=error.message)
            return rollout, decide(rollout, now_s=self._clock(), emergency=emergency())

    def _count_problem(self, of: str) -> None:
        with self._problems_lock:
            self._problems[of] += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Judge; the exit code."""
    config = load_config(JudgeConfig, service="judge", module="services.canary.judge", argv=argv)
    configure_logging(config.log_level, config.log_format, service="judge")
    try:
        judge = Judge(config)
    except AndonError as error:
        _log.error("start_failed", error=str(error), reason=error.reason)
        return 2
    _listen_for_signals(judge)
    try:
        judgement = judge.judge()
    finally:
        judge.close()
    sys.stdout.write(json.dumps(judgement.to_values(), allow_nan=False) + "\n")
    sys.stdout.flush()
    return 0 if judgement.is_good else 1


def _listen_for_signals(judge: Judge) -> None:
    """Have a thread of its own end the judge, so that nothing runs in the middle of something else."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    # Detached: it stays open for as long as a signal may come.
    signal.set_wakeup_fd(told.detach(), warn_on_full_buffer=False)
    for number in ENDING:
        signal.signal(number, lambda _number, _frame: None)

    def end() -> None:
        while caught := heard.recv(1):
            judge.end(f"the judge was told to end ({signal.Signals(caught[0]).name})")

    threading.Thread(target=end, name="signals", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
