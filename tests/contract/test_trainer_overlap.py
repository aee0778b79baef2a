"""Sampling while the trainer learns, over gRPC: the same bits wherever a run is cut off, and nothing under a
pulled cord.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from andon.client.cord import CordClient
from andon.client.policy import PolicyClient, SampleResult, SamplingParameters
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.client.trainer import RunState, TrainerClient
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_image import WeightImage
from services.trainer.controls import RunControls
from services.trainer.rollout import Rollout, RolloutCollector, call_seed
from services.trainer.stages import ppo_versions
from services.trainer.stages.context import RunInterrupted
from services.trainer.stages.ppo import PpoStage
from services.trainer.stages.ppo_config import PpoConfig
from tests.contract.test_trainer_guards import cord, trainer, wait_for_state
from tests.contract.test_trainer_ppo import LeavingContext, Place
from tests.ppo_world import TIMEOUT_S, World, finish, numbers, published, world

__all__ = ["cord", "trainer", "world"]

UPDATES = 4


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_that_are_judged_as_they_come_are_those_of_calls_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    world.serve_models(replicas=2)
    rollouts: list[Rollout] = []
    collect = RolloutCollector.collect

    def kept(collector: RolloutCollector, *arguments: Any, **options: Any) -> Rollout:
        rollouts.append(collect(collector, *arguments, **options))
        return rollouts[-1]

    monkeypatch.setattr(RolloutCollector, "collect", kept)
    settings = world.config(updates=1, sample_parts=parts, guards={"preflight": {"enabled": False}})
    client = world.serve_trainer()
    finish(client, client.start_run("ppo", settings))
    (rollout,) = rollouts

    parameters = {"max_new_tokens": 8, "samples_per_prompt": 2, "temperature": 0.9}
    prompts = [group.prompt for group in rollout.responses.groups]
    shares = [prompts[6 * part // parts : 6 * (part + 1) // parts] for part in range(parts)]
    written: list[Any] = []
    with PolicyClient(world.policies[0].target) as first, PolicyClient(world.policies[1].target) as second:
        for replica in (first, second):
            replica.load_model("sft/1")
        for part, share in enumerate(shares):
            half = len(share) // 2
            samples: list[Any] = []
            for number, (replica, own) in enumerate([(first, share[:half]), (second, share[half:])]):
                seed = call_seed(0, update=1, replica=number, part=part)
                samples += replica.sample(own, SamplingParameters(**parameters, seed=seed)).results
            written.append([(one.prompt_token_ids, [s.token_ids for s in one.samples]) for one in samples])
            flat = [sample for one in samples for sample in one.samples]
            rows = slice(2 * 6 * part // parts, 2 * 6 * (part + 1) // parts)
            for row, mask, sample in zip(
                rollout.responses.behaviour_logprobs[rows], rollout.responses.mask[rows], flat, strict=True
            ):
                assert row[mask].tolist() == torch.tensor(sample.logprobs).tolist()
    with ReferenceClient(world.reference.target) as reference, RewardClient(world.reward.target) as reward:
        scores = [score.score for part in written for row in reward.score(part).items for score in row]
        references = [
            row
            for part in written
            for item in reference.logprobs(part, temperature=0.9).items
            for row in item
        ]
    assert rollout.scores.tolist() == torch.tensor(scores).tolist()
    for row, mask, expected in zip(
        rollout.reference_logprobs, rollout.responses.mask, references, strict=True
    ):
        assert row[mask].tolist() == torch.tensor(expected).tolist()


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_every_batch_is_as_old_as_allowed_and_the_reports_say_so(world: World, staleness: int) -> None:
    world.serve_models()
    client = world.serve_trainer()
    events = finish(client, client.start_run("ppo", world.config(max_staleness=staleness, updates=UPDATES)))
    reports = numbers(events)
    ages = [min(staleness, update) for update in range(UPDATES)]
    assert [report["staleness_updates"] for report in reports.values()] == ages
    for report, age in zip(reports.values(), ages, strict=True):
        assert report["ratio_max"] > 1  # compared with the weights that the update began with
        assert ("behaviour_weight_mean" in report) is (age > 0)
        if age:
            assert report["behaviour_weight_mean"] == pytest.approx(1.0, abs=0.1)
            assert report["behaviour_weight_max"] > 1
    # The sampler is compared with the weights it wrote with, as long as something is sampled.
    with_errors = [update for update, r in reports.items() if "sampler_logprob_max_error" in r]
    assert with_errors == list(range(1, UPDATES + 1 - staleness))
    assert all(reports[update]["sampler_logprob_max_error"] < 1e-4 for update in with_errors)
    assert [model.version for model in published(events, stored=False)] == [1, 2, 3, 4]


def test_new_weights_are_copied_before_the_policy_is_given_older_ones_for_the_guards(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve_models()
    client = world.serve_trainer()
    settings = world.config(max_staleness=1, updates=2)
    fill, load_weights = WeightImage.fill, ppo_versions.load_weights
    has_older = threading.Event()

    def fill_late(image: WeightImage, weights: Mapping[str, torch.Tensor]) -> WeightImage:
        has_older.wait(0.5)
        return fill(image, weights)

    def load_slowly(policy: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
        load_weights(policy, weights)
        has_older.set()
        time.sleep(0.3)

    def published_digests() -> list[str]:
        events = finish(client, client.start_run("ppo", settings))
        return [model.weights_sha256 for model in published(events, stored=False)]

    digests = [published_digests()]
    monkeypatch.setattr(WeightImage, "fill", fill_late)
    monkeypatch.setattr(ppo_versions, "load_weights", load_slowly)
    digests.append(published_digests())
    assert has_older.is_set()
    assert digests[0] == digests[1]
    assert all(digests[0])


@contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch, *, from_call: int) -> Iterator[threading.Event]:
    """The sampler answers a call only when this is over; the event says that it was asked."""
    asked, over = threading.Event(), threading.Event()
    sample = PolicyClient.sample
    calls = 0

    def late(client: PolicyClient, *arguments: Any, **options: Any) -> SampleResult:
        nonlocal calls
        calls += 1
        if calls >= from_call:
            asked.set()
            over.wait(TIMEOUT_S)
        return sample(client, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PolicyClient, "sample", late)
        try:
            yield asked
        finally:
            over.set()


def run(world: World, config: PpoConfig, context: LeavingContext) -> ModelVersion | None:
    try:
        return PpoStage(config, context).run()
    except RunInterrupted:
        return None
    finally:
        context.connections.close()


@pytest.mark.parametrize(
    ("staleness", "parts"), [(1, 1), (1, 3), (2, 1)], ids=["one ahead", "in parts", "two ahead"]
)
def test_leaving_anywhere_while_batches_are_ahead_changes_no_number(
    world: World, monkeypatch: pytest.MonkeyPatch, staleness: int, parts: int
) -> None:
    world.serve_models()
    config = PpoConfig.model_validate(
        world.config(
            updates=UPDATES,
            max_staleness=staleness,
            sample_parts=parts,
            store_interval=1,
            seed=4,  # of a dozen responses now and then not one ends, which a guard takes for a collapse
        )
    )
    whole = LeavingContext(world, "whole")
    expected = run(world, config, whole)
    assert expected is not None

    def leave_and_come_back(place: Place, first: LeavingContext) -> None:
        assert first.checkpoint is not None
        second = LeavingContext(world, first.run_id, checkpoint=first.checkpoint)
        output = run(world, config, second)
        assert output is not None
        assert output.weights_sha256 == expected.weights_sha256, place
        assert first.reports | second.reports == whole.reports, place

    # Before sampling, between optimizer steps, before publishing, before storing, and in the last updates.
    places = [(0, None), (0, 1), (0, 4), (1, None), (1, 4), (2, None), (3, 1)]
    for number, place in enumerate(Place(*place) for place in places):
        first = LeavingContext(world, f"cut-{number}", leave_at=place)
        assert run(world, config, first) is None
        leave_and_come_back(place, first)

    # And while the sampler has not answered for a batch ahead: after pre-flight and the first update's own.
    place = Place(0, 1)
    first = LeavingContext(world, "unanswered", leave_at=place)
    with held_back(monkeypatch, from_call=1 + 2 * parts) as asked:
        assert run(world, config, first) is None
        assert asked.is_set()
    leave_and_come_back(place, first)


def test_under_a_pulled_cord_nothing_is_sampled_ahead(
    world: World, trainer: TrainerClient, cord: CordClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cord is pulled while the first part of a batch ahead is written; five more are to be written."""
    config = world.config(max_staleness=1, sample_parts=6, guards={"preflight": {"enabled": False}})
    undisturbed = numbers(finish(trainer, trainer.start_run("ppo", config)))

    heard = threading.Event()
    demand = RunControls.demand

    def watched(controls: RunControls) -> Any:
        found = demand(controls)
        if found is not None:
            heard.set()
        return found

    sample = PolicyClient.sample
    pulled = threading.Event()
    begun: list[bool] = []  # of every call, whether the cord was pulled when it began

    def sampled(
        client: PolicyClient, prompts: Sequence[Any], parameters: SamplingParameters, **options: Any
    ) -> SampleResult:
        begun.append(pulled.is_set())
        if parameters.seed == call_seed(0, update=3, replica=0, part=0):
            cord.pull(actor="", reason="to see what is sampled")
            assert heard.wait(TIMEOUT_S)
            pulled.set()
        return sample(client, prompts, parameters, **options)

    monkeypatch.setattr(RunControls, "demand", watched)
    monkeypatch.setattr(PolicyClient, "sample", sampled)
    run = trainer.start_run("ppo", config)
    held = wait_for_state(trainer, run, RunState.PAUSED)
    assert pulled.wait(TIMEOUT_S)
    assert held.step == 1  # it stands in the second update, whose batch was written before
    pulled.clear()
    cord.release(actor="", reason="seen")
    disturbed = numbers(finish(trainer, run))

    assert len(begun) == 6 * 4
    assert not any(begun)
    for report in (*undisturbed.values(), *disturbed.values()):
        del report["policy_version"]
    assert disturbed == undisturbed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_staleness": -1}, "max_staleness"),
        ({"sample_parts": 7}, "sample_parts must be at most batch_prompts"),
        ({"behaviour_weight_limit": 3.0}, "has no effect while max_staleness is 0"),
        ({"max_staleness": 1, "behaviour_weight_limit": 0.5}, "behaviour_weight_limit"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    world: World, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PpoConfig.model_validate(world.config(**changes))
