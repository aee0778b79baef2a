"""The guards ``people`` and ``hacking`` with what they ask: the labeling service, and a run over gRPC."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from andon.client.labeling import AnswerDraft, LabelingClient
from andon.client.trainer import GuardAlarm, Progress, RunState, TrainerClient
from andon.modeling.loading import load_scorer, save_model
from andon.modeling.manifest import ManifestDraft
from andon.rpc.server import RunningServer
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService
from services.trainer.guards.config import DEFAULT_RULES
from services.trainer.guards.guard import GuardName
from services.trainer.guards.on_policy import MOST_UNSENT, OnPolicyComparisons, Question, Submission
from services.trainer.guards.statistics.sequential import RestartingEProcess
from tests.ppo_world import TIMEOUT_S, World, finish, numbers, world
from tests.servers import Serve
from tests.tokens import TOKENS

__all__ = ["world"]

RUN = "ppo-20260101-000000-abcdef"
BATCH = f"{RUN}-on-policy"
THRESHOLD = DEFAULT_RULES[GuardName.PEOPLE].threshold
Choose = Callable[[str, Sequence[str]], int | None]  # document, texts -> the better one; None: a tie


@pytest.fixture
def labeling_config(tmp_path: Path, tokens_file: Path) -> LabelingConfig:
    return LabelingConfig(
        port=0,
        metrics_port=0,
        web_port=0,
        database=f"sqlite:///{tmp_path}/labeling.sqlite3",
        tokens_file=tokens_file,
    )


@pytest.fixture
def labeling(serve: Serve, labeling_config: LabelingConfig) -> RunningServer:
    registry = CollectorRegistry()
    return serve(LabelingService(labeling_config, registry), labeling_config, registry)


@pytest.fixture
def client(labeling: RunningServer) -> Iterator[LabelingClient]:
    with LabelingClient(labeling.target, token=TOKENS["service"]) as opened:
        yield opened


@pytest.fixture
def comparisons(client: LabelingClient) -> OnPolicyComparisons:
    return OnPolicyComparisons(client, run_id=RUN, project="")


def submission(update: int, *, questions: int = 3) -> Submission:
    """The reward model prefers "good", which is now the first and now the second."""
    return Submission(
        update=update,
        policy_version=f"policy/{update}",
        questions=tuple(
            Question(
                document=f"document {update}/{number}",
                first="good" if number % 2 == 0 else "bad",
                second="bad" if number % 2 == 0 else "good",
                prefers_first=number % 2 == 0,
            )
            for number in range(questions)
        ),
    )


def exchange(comparisons: OnPolicyComparisons) -> None:
    """A visit to the labeling service that begins now, to its end, and what it brought."""
    for _ in range(2):  # an earlier one may still be on its way
        if comparisons._talk is not None:
            comparisons._talk.result(TIMEOUT_S)
        comparisons.exchange()
    if comparisons._talk is not None:
        comparisons._talk.result(TIMEOUT_S)
        comparisons.exchange()


def answer_all(client: LabelingClient, choose: Choose, *, labeler: str = "lara") -> int:
    """Answers whatever this labeler is given; how many."""
    count = 0
    while leased := client.lease_tasks(labeler, max_tasks=100):
        drafts = []
        for task in leased:
            best = choose(task.document, task.candidates)
            drafts.append(
                AnswerDraft(lease_id=task.lease_id, tiers=((0, 1),))
                if best is None
                else AnswerDraft(lease_id=task.lease_id, best_index=best)
            )
        client.submit_answers(labeler, drafts)
        count += len(leased)
    return count


def agreeing(_: str, texts: Sequence[str]) -> int:
    return texts.index("good")


def disagreeing(_: str, texts: Sequence[str]) -> int:
    return texts.index("bad")


@pytest.mark.parametrize(("choose", "agrees"), [(agreeing, True), (disagreeing, False)])
def test_choices_come_back_as_agreement_whatever_the_order_on_the_screen(
    comparisons: OnPolicyComparisons, client: LabelingClient, choose: Choose, agrees: bool
) -> None:
    comparisons.ask(submission(1, questions=8))
    exchange(comparisons)
    assert answer_all(client, choose) == 8
    exchange(comparisons)
    assert comparisons.take() == (agrees,) * 8
    assert comparisons.take() == ()
    (first, *_) = client.export_comparisons(batch=BATCH)
    assert {candidate.policy_version for candidate in first.candidates} == {"policy/1"}
    assert {candidate.source for candidate in first.candidates} == {"policy"}


def test_labelers_who_disagree_alarm_after_fourteen_labels_and_those_who_agree_never(
    comparisons: OnPolicyComparisons, client: LabelingClient
) -> None:
    against, along = RestartingEProcess(), RestartingEProcess()
    labels = 0
    for update in range(1, 6):
        comparisons.ask(submission(update))
        exchange(comparisons)
        answer_all(client, disagreeing)
        exchange(comparisons)
        for agrees in comparisons.take():
            against, along = against.after(agrees), along.after(not agrees)
            labels += 1
            assert (against.statistic > THRESHOLD) == (labels >= 14)
            assert along.statistic < 1
    assert labels == 15


def test_ties_carry_no_evidence_and_only_the_first_answer_counts(
    comparisons: OnPolicyComparisons, client: LabelingClient
) -> None:
    comparisons.ask(submission(1, questions=2))
    exchange(comparisons)
    answer_all(client, lambda _, texts: None)
    exchange(comparisons)
    assert comparisons.take() == ()
    assert comparisons.metrics["people_tied"] == 2
    assert comparisons.metrics["people_waiting"] == 0


def test_an_exchange_never_waits_and_asks_nothing_while_there_is_nothing(
    comparisons: OnPolicyComparisons, client: LabelingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons.exchange()
    assert comparisons._talk is None
    may_answer = threading.Event()
    real = client.submit_tasks

    def slow(*arguments: Any, **options: Any) -> list[str]:
        may_answer.wait(TIMEOUT_S)
        return real(*arguments, **options)

    monkeypatch.setattr(client, "submit_tasks", slow)
    comparisons.ask(submission(1))
    for _ in range(3):  # returns, or the test would hang: nobody lets the call go on
        comparisons.exchange()
    assert comparisons.metrics["people_waiting"] == 3
    may_answer.set()
    exchange(comparisons)
    assert client.progress(batch=BATCH).task_count == 3


def test_a_service_that_is_away_costs_labels_and_nothing_else(
    labeling: RunningServer,
    labeling_config: LabelingConfig,
    client: LabelingClient,
    serve: Serve,
    server_loop: asyncio.AbstractEventLoop,
) -> None:
    comparisons = OnPolicyComparisons(client, run_id=RUN, project="")
    port = labeling.port
    asyncio.run_coroutine_threadsafe(labeling.stop(grace_s=1.0), server_loop).result(TIMEOUT_S)
    for update in range(1, MOST_UNSENT + 3):
        comparisons.ask(submission(update))
        comparisons.exchange()
    exchange(comparisons)
    assert comparisons.metrics["people_failures"] >= 1
    assert comparisons.metrics["people_waiting"] == 3 * MOST_UNSENT  # the oldest were given up
    registry = CollectorRegistry()
    config = labeling_config.model_copy(update={"port": port})
    serve(LabelingService(config, registry), config, registry)
    deadline_s = time.monotonic() + TIMEOUT_S
    while comparisons._unsent and time.monotonic() < deadline_s:  # the channel takes its time to come back
        exchange(comparisons)
    assert client.progress(batch=BATCH).task_count == 3 * MOST_UNSENT
    answer_all(client, agreeing)
    exchange(comparisons)
    assert comparisons.take() == (True,) * 3 * MOST_UNSENT


def test_a_resumed_run_asks_nothing_twice_and_misses_no_answer(
    comparisons: OnPolicyComparisons, client: LabelingClient
) -> None:
    def resumed(state: dict[str, Any]) -> OnPolicyComparisons:
        other = OnPolicyComparisons(client, run_id=RUN, project="")
        other.restore(json.loads(json.dumps(state)))
        return other

    comparisons.ask(submission(1))
    before_sending = comparisons.state()
    exchange(comparisons)
    again = resumed(before_sending)  # the process ended before it heard that the tasks had arrived
    exchange(again)
    assert client.progress(batch=BATCH).task_count == 3
    assert again.metrics == comparisons.metrics

    before_answers = again.state()
    answer_all(client, disagreeing)
    exchange(again)
    with_answers = again.state()
    assert again.take() == (False,) * 3
    for state in (before_answers, with_answers):  # cut off before they were read, and before a guard saw them
        third = resumed(state)
        exchange(third)
        assert third.take() == (False,) * 3
        assert third.take() == ()


def test_other_samples_under_the_same_update_are_given_up_not_mixed(
    comparisons: OnPolicyComparisons, client: LabelingClient
) -> None:
    """A run that is taken up on other hardware may draw other samples in the update that it repeats."""
    comparisons.ask(submission(1))
    exchange(comparisons)
    other = OnPolicyComparisons(client, run_id=RUN, project="")
    other.ask(submission(1, questions=2))
    exchange(other)
    assert other.metrics["people_failures"] == 1
    assert other.metrics["people_waiting"] == 0
    answer_all(client, disagreeing)
    exchange(other)
    assert other.take() == ()


# --- in a run ----------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(world: World, labeling: RunningServer) -> TrainerClient:
    world.serve_models()
    return world.serve_trainer(
        watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
    )


def first_alarm(trainer: TrainerClient, run_id: str, guard: str) -> GuardAlarm:
    for event in trainer.watch_run(run_id, stream_timeout_s=TIMEOUT_S):
        if isinstance(event.event, GuardAlarm) and event.event.guard == guard:
            return event.event
    pytest.fail(f"no alarm: {trainer.get(run_id).status_message}")


def test_labelers_who_contradict_the_reward_model_stop_a_real_run(
    world: World, trainer: TrainerClient, client: LabelingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse: dict[frozenset[str], str] = {}  # of two texts, by the reward model's scores
    ask, ended = OnPolicyComparisons.ask, threading.Event()

    def overheard(self: OnPolicyComparisons, asked: Submission) -> None:
        for question in asked.questions:
            texts = question.document, question.first, question.second
            worse[frozenset(texts)] = question.second if question.prefers_first else question.first
        ask(self, asked)

    def work() -> None:
        while not ended.is_set():
            answer_all(client, lambda document, texts: texts.index(worse[frozenset((document, *texts))]))
            ended.wait(0.05)

    monkeypatch.setattr(OnPolicyComparisons, "ask", overheard)
    guards = {
        "preflight": {"enabled": False},
        "people": {"pairs": 4},
        "rules": {"people": {"action": "hold"}},
    }
    labeler = threading.Thread(target=work)
    labeler.start()
    try:
        run = trainer.start_run("ppo", world.config(updates=200, learning_rate=1e-5, guards=guards))
        alarm = first_alarm(trainer, run.run_id, "people")
        for _ in trainer.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
            if trainer.get(run.run_id).state is RunState.PAUSED:
                break
    finally:
        ended.set()
        labeler.join(TIMEOUT_S)
    assert alarm.statistic > alarm.threshold
    # At the fourteenth answer, or at the last of those that came in together with it.
    assert re.search(r"on 0 of (1[4-9]|2\d) pairs", alarm.message)
    trainer.stop(run.run_id, reason="people are right")


def test_labelers_who_are_away_do_not_hold_up_a_run(
    world: World, labeling: RunningServer, server_loop: asyncio.AbstractEventLoop
) -> None:
    world.serve_models()
    trainer = world.serve_trainer(labeling_target=labeling.target, labeling_token=TOKENS["service"])
    asyncio.run_coroutine_threadsafe(labeling.stop(grace_s=1.0), server_loop).result(TIMEOUT_S)
    guards = {"preflight": {"enabled": False}, "people": {"pairs": 2}}
    events = finish(trainer, trainer.start_run("ppo", world.config(updates=4, guards=guards)))
    last = [event.event for event in events if isinstance(event.event, Progress)][-1]
    assert last.metrics["people_asked"] >= 4
    assert last.metrics["people_agreed"] + last.metrics["people_disagreed"] == 0


def publish_opposite_witness(world: World) -> None:
    def opposite(folder: Path) -> None:
        scorer = load_scorer(world.store.resolve("reward/1").path)
        scorer.score.weight.data.neg_()
        save_model(scorer, world.codec, folder)

    world.store.publish("witness", opposite, manifest=ManifestDraft(kind="reward_model"))


def test_a_witness_with_the_opposite_taste_stops_a_run_that_pleases_its_reward_model(world: World) -> None:
    publish_opposite_witness(world)
    world.serve_models()
    trainer = world.serve_trainer()
    guards = {
        "preflight": {"enabled": False},
        "witness": {"model": "witness@latest"},
        # The policy is pushed hard, which others would not let pass.
        "rules": {guard.value: {"action": "warn"} for guard in GuardName} | {"hacking": {"action": "hold"}},
    }
    config = world.config(
        updates=40,
        token_budget=1024,
        batch_prompts=32,
        samples_per_prompt=2,
        epochs=4,
        learning_rate=5e-3,
        kl={"kind": "fixed", "beta": 0.0},
        guards=guards,
    )
    run = trainer.start_run("ppo", config)
    alarm = first_alarm(trainer, run.run_id, "hacking")
    assert alarm.statistic > alarm.threshold
    assert alarm.step > 1  # there is nothing to compare with before
    assert re.search(r"the training score changed by \+.* by -", alarm.message)
    trainer.stop(run.run_id, reason="hacked")


def test_a_run_that_is_cut_off_in_its_middle_keeps_witness_and_questions(
    world: World, labeling: RunningServer, client: LabelingClient
) -> None:
    def serve_trainer(runs: str) -> TrainerClient:
        return world.serve_trainer(runs, labeling_target=labeling.target, labeling_token=TOKENS["service"])

    publish_opposite_witness(world)
    world.serve_models()
    guards = {
        "preflight": {"enabled": False},
        "witness": {"model": "witness/1", "interval": 2},
        "people": {"pairs": 2},
    }
    config = world.config(updates=8, batch_prompts=8, guards=guards)
    trainer = serve_trainer("runs")
    expected = numbers(finish(trainer, trainer.start_run("ppo", config)))
    world.stop(world.trainer)

    trainer = serve_trainer("others")
    run = trainer.start_run("ppo", config)
    for event in trainer.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
        if isinstance(event.event, Progress) and event.event.step == 3:
            break
    world.stop(world.trainer)
    trainer = serve_trainer("others")  # which takes it up again
    found = numbers(finish(trainer, run))
    for name in ("witness_score_mean", "people_asked", "score_mean"):
        assert [found[step].get(name) for step in range(2, 9)] == [
            expected[step].get(name) for step in range(2, 9)
        ]
    asked = found[7]["people_asked"]
    assert 8 <= asked <= 14
    # The last update's questions may stay behind, others arrive, each once.
    assert client.progress(batch=f"{run.run_id}-on-policy").task_count <= asked


def test_the_reward_model_itself_is_refused_as_its_witness(world: World) -> None:
    world.serve_models()
    trainer = world.serve_trainer()
    guards = {"witness": {"model": "reward/1"}}
    run = trainer.start_run("ppo", world.config(updates=1, batch_prompts=8, guards=guards))
    for _ in trainer.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S):
        pass
    ended = trainer.get(run.run_id)
    assert ended.state is RunState.FAILED
    assert "no witness of itself" in ended.status_message
