"""Carries a rollout from its beginning to its end, one small step at a time.

``tick`` loads the record, does what the rollout's phase asks for, and stores how it stands; nothing is kept
in memory, so a controller that dies anywhere is replaced by another one that ticks. What has to be done is
done again after a crash, which every call of a platform allows. A decision is recorded, then the new phase,
then it is acted on: a roll-back that was decided is never forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog

from services.canary.decisions import Decision, Kind
from services.canary.observing import Evidence, observe
from services.canary.platform import Platform, RecordedDecision, StoredRollout, Track
from services.canary.rollout import Phase, Rollout

_log = structlog.stdlib.get_logger(__name__)


class Listener(Protocol):
    """Hears how a rollout stands and what is decided: metrics, watchers."""

    def stands(self, rollout: Rollout) -> None:
        """After each tick."""
        ...

    def decided(self, decision: RecordedDecision) -> None:
        """When something other than to look on was decided."""
        ...


class Controller:
    """The one that acts, while ``is_leader`` says so."""

    def __init__(
        self,
        platform: Platform,
        evidence: Evidence,
        *,
        is_leader: Callable[[], bool],
        emergency: Callable[[], str | None],
        clock: Callable[[], float],
        listener: Listener,
    ) -> None:
        """``emergency`` says why the line must stop now: the cord or an alert. ``clock``: s since 1970."""
        self._platform = platform
        self._evidence = evidence
        self._is_leader = is_leader
        self._emergency = emergency
        self._clock = clock
        self._listener = listener

    def tick(self) -> Rollout | None:
        """One step; the rollout as it stands then, None where there is nothing to do or another one leads.

        Raises AndonError for what could not be done now; the next tick tries again.
        """
        if not self._is_leader():
            return None
        stored = self._platform.load()
        if stored is None or stored.rollout.phase.is_final:
            return None
        rollout = self._step(stored)
        self._listener.stands(rollout)
        return rollout

    def _step(self, stored: StoredRollout) -> Rollout:
        rollout = stored.rollout
        if rollout.phase is Phase.ROLLING_BACK:
            return self._roll_back(stored)
        if rollout.phase in (Phase.OBSERVING, Phase.HELD):
            return self._observe(stored)
        stop = self._reason_to_stop(rollout)
        if stop is not None:
            return self._act(stored, rollout, stop)
        steps = {
            Phase.DEPLOYING: self._deploy,
            Phase.VERIFYING: self._verify,
            Phase.PROMOTING: self._promote,
        }
        return steps[rollout.phase](stored)

    def _reason_to_stop(self, rollout: Rollout) -> Decision | None:
        if rollout.asked == "abort":
            return Decision(kind=Kind.ABORT, reason=f"{rollout.asked_by} said so: {rollout.asked_reason}")
        emergency = self._emergency()
        return None if emergency is None else Decision(kind=Kind.ROLL_BACK, reason=emergency)

    # --- the way up ----------------------------------------------------------------------------------------

    def _deploy(self, stored: StoredRollout) -> Rollout:
        rollout, platform = stored.rollout, self._platform
        platform.route(0)
        platform.deploy(rollout.spec.candidate)
        readiness = platform.readiness(Track.CANARY)
        if readiness.is_complete:
            reason = f"{readiness.ready} replicas are ready; do they serve {rollout.spec.candidate}?"
            return self._save(stored, rollout.into(Phase.VERIFYING, reason=reason, now_s=self._clock()))
        return self._wait_for(Track.CANARY, stored)

    def _verify(self, stored: StoredRollout) -> Rollout:
        rollout = stored.rollout
        if not self._platform.readiness(Track.CANARY).is_complete:
            return self._wait_for(Track.CANARY, stored)
        lie = self._evidence.lie_of(rollout.spec.candidate, self._platform.replicas(Track.CANARY))
        if lie is not None:
            return self._act(stored, rollout, Decision(kind=Kind.ROLL_BACK, reason=lie))
        advance = Decision(kind=Kind.ADVANCE, reason=f"each replica serves {rollout.spec.candidate}")
        self._record(rollout, advance)
        return self._give_traffic(stored, rollout, step=0, reason=advance.reason)

    def _observe(self, stored: StoredRollout) -> Rollout:
        rollout, platform = stored.rollout, self._platform
        platform.route(rollout.canary_percent)  # where a crash left it, or somebody else's hand
        stable, canary = platform.replicas(Track.STABLE), platform.replicas(Track.CANARY)
        rollout, decision = observe(
            rollout,
            self._evidence,
            stable=stable,
            canary=canary,
            emergency=self._emergency,
            clock=self._clock,
        )
        return self._act(stored, rollout, decision)

    def _promote(self, stored: StoredRollout) -> Rollout:
        rollout, platform = stored.rollout, self._platform
        version = rollout.spec.candidate
        platform.set_stable(version)
        if not platform.readiness(Track.STABLE).is_complete:
            return self._wait_for(Track.STABLE, stored)
        lie = self._evidence.lie_of(version, platform.replicas(Track.STABLE))
        if lie is not None:
            return self._act(stored, rollout, Decision(kind=Kind.ROLL_BACK, reason=lie))
        platform.route(0)
        platform.remove()
        reason = f"{version} is stable; {rollout.reason}"
        return self._save(stored, rollout.into(Phase.PROMOTED, reason=reason, now_s=self._clock()))

    # --- the way back --------------------------------------------------------------------------------------

    def _roll_back(self, stored: StoredRollout) -> Rollout:
        rollout, platform = stored.rollout, self._platform
        platform.route(0)
        platform.set_stable(rollout.stable)  # it may have begun to move, the alias too
        if not platform.readiness(Track.STABLE).is_complete:
            return rollout  # the canary may go only when stable can carry all of it
        platform.remove()
        end = Phase.ABORTED if rollout.asked == "abort" else Phase.ROLLED_BACK
        return self._save(stored, rollout.into(end, reason=rollout.reason, now_s=self._clock()))

    # --- common --------------------------------------------------------------------------------------------

    def _act(self, stored: StoredRollout, rollout: Rollout, decision: Decision) -> Rollout:
        if decision.kind is not Kind.CONTINUE:
            self._record(rollout, decision)
        now_s = self._clock()
        match decision.kind:
            case Kind.CONTINUE:
                return self._save(stored, rollout.waiting(decision.reason))
            case Kind.ADVANCE:
                return self._give_traffic(stored, rollout, step=rollout.step + 1, reason=decision.reason)
            case Kind.HOLD:
                return self._save(stored, rollout.into(Phase.HELD, reason=decision.reason, now_s=now_s))
            case Kind.PROMOTE:
                return self._save(stored, rollout.into(Phase.PROMOTING, reason=decision.reason, now_s=now_s))
            case Kind.ROLL_BACK | Kind.ABORT:
                back = self._save(
                    stored, rollout.into(Phase.ROLLING_BACK, reason=decision.reason, now_s=now_s)
                )
                self._platform.route(0)  # at once; the rest may wait for the next tick
                return back

    def _give_traffic(self, stored: StoredRollout, rollout: Rollout, *, step: int, reason: str) -> Rollout:
        advanced = self._save(stored, rollout.at_step(step, reason=reason, now_s=self._clock()))
        self._platform.route(advanced.canary_percent)
        return advanced

    def _wait_for(self, track: Track, stored: StoredRollout) -> Rollout:
        rollout = stored.rollout
        readiness = self._platform.readiness(track)
        waited_s = self._clock() - rollout.phase_began_s
        problem = f": {readiness.problem}" if readiness.problem else ""
        reason = f"{readiness.ready} of {readiness.wanted} replicas of {track.value} are ready{problem}"
        if waited_s < rollout.spec.ready_s:
            return self._save(stored, rollout.waiting(reason))
        decision = Decision(kind=Kind.ROLL_BACK, reason=f"{reason}, after {waited_s:.0f} s")
        return self._act(stored, rollout, decision)

    def _save(self, stored: StoredRollout, rollout: Rollout) -> Rollout:
        if rollout != stored.rollout:
            self._platform.save(rollout, revision=stored.revision)
        return rollout

    def _record(self, rollout: Rollout, decision: Decision) -> None:
        recorded = RecordedDecision(
            rollout_id=rollout.rollout_id,
            time_s=self._clock(),
            phase=rollout.phase.value,
            step=rollout.step,
            decision=decision,
        )
        self._platform.record(recorded)
        self._listener.decided(recorded)
        _log.info(
            "rollout_decided",
            rollout_id=rollout.rollout_id,
            decision=decision.kind.value,
            reason=decision.reason,
        )
