"""One PPO run over real services, with or without a fault, and what the guards made of it."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scipy import stats

from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.trainer import (
    GuardAction,
    GuardAlarm,
    ModelPublished,
    Progress,
    RunState,
    StateChanged,
)
from andon.corpus.builtin.judge import GoldJudge
from benchmarks.guards.faults import Fault
from benchmarks.guards.labelers import Labelers
from benchmarks.guards.services import TOKEN, Services
from benchmarks.guards.world import World, corpus_of
from services.trainer.guards.guard import Finding
from services.trainer.metrics import TrainerMetrics
from services.trainer.rollouts_ahead import RolloutsAhead
from services.trainer.stages.ppo import PpoStage

JUDGED_DOCUMENTS = 120
JUDGED_TOKENS = 48
WORSE_P = 0.01  # of the paired t test that calls a version worse than the supervised model


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run."""

    held_by: list[str]  # the guards whose alarm held it, or whatever else ended it
    actions: list[str]  # of those guards
    warned: list[str]  # guards that alarmed and let it go on
    at_update: int | None  # when it was held: 0 is before the first
    planted_after: int  # updates
    updates: int  # that were published
    bad_published: int  # of these, trained on faulty data after the fault was planted
    seconds: float
    ended_as: str
    peaks: dict[str, float] = field(default_factory=dict)  # by guard, the largest statistic over threshold
    score_gain: float | None = None  # of the reward model's mean score, last update against the first
    guard_share: float | None = None  # of the updates' time
    gold: list[float] = field(default_factory=list)  # of the supervised model and of what was stored

    def to_json(self) -> dict[str, Any]:
        """As a line of the results."""
        return asdict(self)


def run_loop(world: World, folder: Path, *, config: Mapping[str, Any], fault: Fault | None = None) -> Outcome:
    """Start everything, run to the end or to the first hold, and stop everything."""
    started_s = time.monotonic()
    reward = f"{fault.reward_model if fault else 'reward'}@latest"
    sft = world.facts["sft"]
    # Read only: what runs write goes into a copy of the store's folders by link.
    store = _linked_store(world, folder)
    with Services(folder, store=store) as services, ExitStack() as planted:
        services.start_models(policy=sft, reward=reward)
        services.start_labeling()
        trainer = services.start_trainer()
        if config.get("guards", {}).get("people"):
            planted.enter_context(Labelers(world, services.labeling.target, token=TOKEN))
        if fault is not None:
            plant(fault, services, planted)
        full = {
            **config,
            "prompts": str(world.prompts),
            "policy": sft,
            "reference": sft,
            "reward_model": reward,
        }
        watched = planted.enter_context(_Watched())
        run = trainer.start_run("ppo", full)
        for event in trainer.watch_run(run.run_id):
            watched.take(event.event)
            if watched.is_held():
                break
        ended = trainer.get(run.run_id)
        if not ended.state.is_final:
            trainer.stop(run.run_id, reason="held: the benchmark has seen enough")
        planted.close()
        if fault is not None and fault.judged:
            watched.judge(world, services)
    return watched.outcome(fault, ended_as=_ending(ended.state, ended.status_message), started_s=started_s)


def plant(fault: Fault, services: Services, planted: ExitStack) -> None:
    """Plant it now, or right before the batch of the update after ``fault.after_update`` is sampled."""
    if fault.after_update == 0:
        planted.enter_context(fault.plant(services))
        return
    begin = RolloutsAhead.begin

    def plant_and_begin(ahead: RolloutsAhead, update: int, **options: Any) -> None:
        if update == fault.after_update + 1:
            planted.enter_context(fault.plant(services))
        begin(ahead, update, **options)

    planted.enter_context(patch.object(RolloutsAhead, "begin", plant_and_begin))


class _Watched:
    """Gathers what a run tells, and while it is entered what every guard measures."""

    def __init__(self) -> None:
        self._alarms: list[GuardAlarm] = []
        self._published: list[int] = []  # updates
        self._scores: list[float] = []
        self._guard_shares: list[float] = []
        self._stored: list[str] = []
        self._judged_bad = 0
        self.gold: list[float] = []
        self._held = False
        self._begun = 0  # the update in progress; 0: none yet
        self._update = 0
        self.peaks: dict[str, float] = {}

    def __enter__(self) -> _Watched:
        show = TrainerMetrics.guards_checked

        def look(metrics: TrainerMetrics, findings: Sequence[Finding], *, seconds: float) -> None:
            for finding in findings:
                if finding.threshold > 0:
                    ratio = round(finding.statistic / finding.threshold, 4)
                    self.peaks[finding.guard.value] = max(self.peaks.get(finding.guard.value, ratio), ratio)
            show(metrics, findings, seconds=seconds)

        do_update = PpoStage._do_update

        def begin(stage: PpoStage, update: int) -> None:
            self._begun = update
            do_update(stage, update)

        self._patches = ExitStack()
        self._patches.enter_context(patch.object(TrainerMetrics, "guards_checked", look))
        self._patches.enter_context(patch.object(PpoStage, "_do_update", begin))
        return self

    def __exit__(self, *exception: object) -> None:
        self._patches.close()

    def take(self, event: object) -> None:
        """One event of the run."""
        match event:
            case GuardAlarm() as alarm:
                self._alarms.append(alarm)
            case ModelPublished(stored=False):
                self._update += 1
                self._published.append(self._update)
            case ModelPublished(stored=True, model=model):
                self._stored.append(str(model))
            case Progress(metrics=metrics):
                self._scores.append(metrics["score_mean"])
                self._guard_shares.append(metrics["guard_seconds"] / metrics["update_seconds"])
            case StateChanged(state=RunState.PAUSED):
                self._held = any(alarm.action is not GuardAction.WARN for alarm in self._alarms)

    def judge(self, world: World, services: Services) -> None:
        """Ask the gold judge about the supervised model and every version that was stored."""
        beginning = gold_scores(world, services, world.facts["sft"])
        self.gold.append(round(statistics.fmean(beginning), 4))
        for model in dict.fromkeys(self._stored):
            scores = gold_scores(world, services, model)
            self.gold.append(round(statistics.fmean(scores), 4))
            if stats.ttest_rel(scores, beginning, alternative="less").pvalue < WORSE_P:
                self._judged_bad += 1

    def is_held(self) -> bool:
        """Whether a guard has stopped it."""
        return self._held

    def outcome(self, fault: Fault | None, *, ended_as: str, started_s: float) -> Outcome:
        """All of it."""
        holding = [alarm for alarm in self._alarms if alarm.action is not GuardAction.WARN]
        first = min((alarm.step for alarm in holding), default=None)
        held_by = [alarm.guard for alarm in holding if alarm.step == first]
        if not holding and ended_as.startswith("failed"):
            held_by, first = [ended_as.split(": ")[1]], self._begun
        return Outcome(
            held_by=held_by,
            actions=[alarm.action.value for alarm in holding if alarm.step == first],
            warned=sorted({alarm.guard for alarm in self._alarms if alarm.action is GuardAction.WARN}),
            at_update=first,
            planted_after=0 if fault is None else fault.after_update,
            updates=len(self._published),
            bad_published=self._bad_published(fault),
            seconds=round(time.monotonic() - started_s, 1),
            ended_as=ended_as,
            peaks=self.peaks,
            score_gain=round(self._scores[-1] - self._scores[0], 3) if len(self._scores) > 1 else None,
            guard_share=round(statistics.median(self._guard_shares), 3) if self._guard_shares else None,
            gold=self.gold,
        )

    def _bad_published(self, fault: Fault | None) -> int:
        if fault is None:
            return 0
        if fault.judged:
            return self._judged_bad
        return sum(update >= fault.after_update + fault.bad_from for update in self._published)


def _ending(state: RunState, message: str) -> str:
    return f"{state.value}: {message}" if message else state.value


def _linked_store(world: World, folder: Path) -> Path:
    """A store of its own for each run, whose model files are hard links to the world's."""
    target = folder / "store"
    shutil.copytree(world.folder / "store", target, copy_function=os.link)
    return target


def gold_scores(world: World, services: Services, model: str) -> list[float]:
    """The judge's total of a stored version's greedy summaries of fixed documents, prompts of the run."""
    corpus = corpus_of(world.seed)
    posts = corpus.posts_of(corpus.prompts[:JUDGED_DOCUMENTS])
    assert posts is not None, "the built-in corpus knows its posts"
    judge = GoldJudge()
    with PolicyClient(services.policy.target) as policy:
        policy.load_model(model)
        answers = policy.sample(
            [post.document for post in posts],
            SamplingParameters(max_new_tokens=JUDGED_TOKENS, temperature=0.0),
        )
    return [
        judge.score(post, result.samples[0].text).total
        for post, result in zip(posts, answers.results, strict=True)
    ]
