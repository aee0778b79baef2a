"""PPO end to end on tiny models: real policy, reference, reward and labeling services, all over gRPC."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from andon.client.policy import PolicyClient
from andon.client.trainer import Progress, Run, RunState, TrainerClient
from andon.modeling.text import word_level_codec
from andon.modeling.versions import ModelVersion
from services.policy.backends.builtin import BuiltinBackend
from services.policy.config import PolicyConfig
from services.policy.service import PolicyService
from services.reference.config import ReferenceConfig
from services.reference.service import ReferenceService
from services.reward.config import RewardConfig
from services.reward.service import RewardService
from services.trainer.clients import RunClients
from services.trainer.config import TrainerConfig
from services.trainer.guards.guard import Alarm, Finding
from services.trainer.ranks import Ranks
from services.trainer.stages.context import RunInterrupted, StageState
from services.trainer.stages.ppo import PpoStage
from services.trainer.stages.ppo_config import PpoConfig
from tests.ppo_world import TIMEOUT_S, WORDS, World, finish, numbers, published, world

__all__ = ["world"]


def test_a_run_ends_with_a_stored_policy_that_plain_transformers_load(world: World) -> None:
    world.serve_models()
    client = world.serve_trainer()
    run = client.start_run("ppo", world.config(store_interval=2))
    events = finish(client, run)

    reports = numbers(events)
    assert list(reports) == [1, 2, 3, 4]
    assert reports[1]["kl_nats"] == pytest.approx(
        0.0, abs=1e-4
    )  # the first samples come from the reference itself
    assert all(report["sampler_logprob_max_error"] < 1e-4 for report in reports.values())
    assert all(report["optimizer_steps"] == 4 for report in reports.values())
    assert [report["learning_rate"] for report in reports.values()] == pytest.approx(
        [1e-3, 7.5e-4, 5e-4, 2.5e-4]
    )
    assert [str(model) for model in published(events, stored=False)] == [f"policy/{n}" for n in (1, 2, 3, 4)]
    assert [str(model) for model in published(events, stored=True)] == ["policy/2", "policy/4"]

    stored = world.store.resolve("policy@latest")
    assert stored.version == client.get(run.run_id).output_model
    # What the samplers used and what lies on the disk are the same bytes.
    assert stored.version == published(events, stored=False)[-1]
    assert {parent.role: str(parent.model) for parent in stored.manifest.draft.parents} == {
        "base": "sft/1",
        "reference": "sft/1",
        "reward": "reward/1",
    }
    assert stored.manifest.draft.data[0].count == 10
    plain = AutoModelForCausalLM.from_pretrained(stored.path)
    assert plain.config.vocab_size == world.codec.vocab_size


def test_every_replica_has_the_last_version(world: World) -> None:
    world.serve_models(replicas=2)
    client = world.serve_trainer()
    finish(client, client.start_run("ppo", world.config(updates=2)))

    for policy in world.policies:
        with PolicyClient(policy.target) as replica:
            assert replica.model_info().model == world.store.resolve("policy/2").version


def test_a_run_cut_off_anywhere_gives_the_numbers_of_one_that_was_not(world: World) -> None:
    world.serve_models()
    client = world.serve_trainer("uncut")
    whole = finish(client, client.start_run("ppo", world.config(checkpoint_interval=3)))
    whole_weights = world.store.resolve("policy@latest").version.weights_sha256
    world.stop(world.trainer)

    client = world.serve_trainer("cut")
    run = client.start_run("ppo", world.config(checkpoint_interval=3))
    seen = 0
    for _ in range(3):  # wherever the drain happens to find it, between optimizer steps included
        seen = next_progress(client, run, after=seen)
        world.stop(world.trainer)
        client = world.serve_trainer("cut")
    cut = finish(client, run)

    first_number = 4  # the first run has reserved policy/1 to policy/4
    expected = {
        step: report | {"policy_version": report["policy_version"] + first_number}
        for step, report in numbers(whole).items()
    }
    assert numbers(cut) == expected
    assert world.store.resolve("policy@latest").version.weights_sha256 == whole_weights


def next_progress(client: TrainerClient, run: Run, *, after: int) -> int:
    for event in client.watch_run(run.run_id, after_sequence=after, stream_timeout_s=TIMEOUT_S):
        if isinstance(event.event, Progress):
            return event.sequence
    pytest.fail("the run ended early")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(world: World) -> None:
    world.serve_models()
    client = world.serve_trainer()
    runs = [
        numbers(finish(client, client.start_run("ppo", world.config(updates=2, seed=seed))))
        for seed in (1, 1, 2)
    ]
    for reports in runs:
        for report in reports.values():
            del report["policy_version"]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_sampler_that_takes_no_weights_is_refused_before_the_first_update(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = replace(BuiltinBackend.capabilities, takes_weights=False)
    monkeypatch.setattr(BuiltinBackend, "capabilities", fixed)
    world.serve_models()
    client = world.serve_trainer()
    run = client.start_run("ppo", world.config())
    events = list(client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))
    ended = client.get(run.run_id)
    assert ended.state is RunState.FAILED
    assert ended.status_message.startswith("SAMPLER_TAKES_NO_WEIGHTS: ")
    assert (numbers(events), published(events, stored=False)) == ({}, [])


@pytest.mark.parametrize("which", ["policy", "reference", "reward"])
def test_a_service_that_comes_back_without_its_model_is_given_it(world: World, which: str) -> None:
    world.serve_models()
    client = world.serve_trainer("steady")
    steady = numbers(finish(client, client.start_run("ppo", world.config())))
    world.stop(world.trainer)

    client = world.serve_trainer("shaken")
    run = client.start_run("ppo", world.config())
    seen = next_progress(client, run, after=0)
    client.pause(run.run_id)
    common: dict[str, Any] = {"metrics_port": 0, "store": world.store.root}
    if which == "policy":
        world.restart(world.policies[0], PolicyService, PolicyConfig(**common))
    elif which == "reference":
        world.restart(world.reference, ReferenceService, ReferenceConfig(**common))
    else:
        world.restart(world.reward, RewardService, RewardConfig(**common))
    client.resume(run.run_id)
    shaken = numbers(finish(client, run))

    assert seen
    assert [report["score_mean"] for report in shaken.values()] == [
        report["score_mean"] for report in steady.values()
    ]


def test_a_service_that_stays_away_fails_the_run_which_can_be_resumed(world: World) -> None:
    world.serve_models()
    client = world.serve_trainer(peer_patience_s=0.5)
    run = client.start_run("ppo", world.config())
    next_progress(client, run, after=0)
    client.pause(run.run_id)
    port = world.reward.port
    world.stop(world.reward)
    client.resume(run.run_id)
    events = list(client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))
    failed = client.get(run.run_id)
    assert failed.state is RunState.FAILED
    assert failed.status_message.startswith(f"PEER_LOST: reward at 127.0.0.1:{port}")

    config = RewardConfig(port=port, metrics_port=0, store=world.store.root)
    world._serve_one(RewardService, config)
    client.resume(run.run_id)
    finish(client, run, after_sequence=events[-1].sequence)


def test_services_with_another_vocabulary_are_refused(world: World) -> None:
    other = word_level_codec([*WORDS[:-1], "?"], max_document_tokens=8)
    world.publish_policy(seed=3, codec=other)
    world.serve_models()
    client = world.serve_trainer()
    run = client.start_run("ppo", world.config(reference="sft/2"))
    list(client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))

    failed = client.get(run.run_id)
    assert failed.state is RunState.FAILED
    assert failed.status_message.startswith("TOKENIZER_MISMATCH: the reference's")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "sft/9"}, "MODEL_NOT_FOUND"),
        ({"reward_model": "sft/1"}, "WEIGHTS_MISSING"),
        ({"max_new_tokens": 63}, "INVALID_CONFIG: config.max_new_tokens"),
        ({"prompts": "/no/such/file.jsonl"}, ""),
    ],
)
def test_what_cannot_work_fails_before_the_first_update(
    world: World, changes: dict[str, Any], message: str
) -> None:
    world.serve_models()
    client = world.serve_trainer()
    run = client.start_run("ppo", world.config(**changes))
    events = list(client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))

    failed = client.get(run.run_id)
    assert failed.state is RunState.FAILED
    assert failed.status_message.startswith(message)
    assert "defect" not in failed.status_message
    assert numbers(events) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"value_init": "shared_head"},
        {"kl": {"kind": "adaptive", "beta": 0.2, "target": 0.01, "horizon": 100}},
        {"stop_rule": {"kind": "period", "after": 3, "penalty": -1}, "whiten_rewards": True},
        {"updates": None, "episodes": 24, "clip_value": None, "max_grad_norm": None},
    ],
    ids=["shared head", "adaptive KL", "period rule", "episodes, no clipping"],
)
def test_the_variants_run(world: World, changes: dict[str, Any]) -> None:
    world.serve_models()
    client = world.serve_trainer()
    reports = numbers(finish(client, client.start_run("ppo", world.config(**{"updates": 2, **changes}))))

    assert list(reports) == [1, 2]
    if "kl" in changes:
        # The first KL is 0, far under the target: beta falls by 0.2 * 12 episodes / 100.
        assert reports[2]["beta"] == pytest.approx(0.2 * (1 - 0.2 * 12 / 100))


def test_a_run_in_bfloat16_differs_by_rounding_and_no_guard_minds(world: World) -> None:
    world.serve_models()
    reports = {}
    for precision in ("float32", "bfloat16"):
        client = world.serve_trainer(precision, precision=precision)
        reports[precision] = numbers(finish(client, client.start_run("ppo", world.config(updates=2))))
        world.stop(world.trainer)

    exact, rounded = reports["float32"][1], reports["bfloat16"][1]
    assert exact["sampler_logprob_max_error"] < 1e-4 < rounded["sampler_logprob_max_error"] < 0.2
    assert rounded["policy_grad_norm"] == pytest.approx(exact["policy_grad_norm"], rel=0.2)
    assert rounded["value_mean"] == pytest.approx(exact["value_mean"], abs=0.05)


def test_a_sampler_that_was_given_another_model_is_brought_back(world: World) -> None:
    world.serve_models()
    client = world.serve_trainer()
    run = client.start_run("ppo", world.config())
    seen = 0
    with PolicyClient(world.policies[0].target) as stranger:
        for _ in range(2):
            seen = next_progress(client, run, after=seen)
            client.pause(run.run_id)
            stranger.load_model("sft/1")
            client.resume(run.run_id)
    reports = numbers(finish(client, run))

    assert list(reports) == [1, 2, 3, 4]
    # Every sample came from the version it was asked of, or the log-probabilities would not agree.
    assert all(report["sampler_logprob_max_error"] < 1e-4 for report in reports.values())


class Place(NamedTuple):
    """A point in a run: updates done, and optimizer steps done of the next one; None: no rollout yet."""

    update: int
    steps: int | None


class LeavingContext:
    """A run in memory that is told to leave at a place."""

    def __init__(
        self, world: World, run_id: str, *, checkpoint: bytes | None = None, leave_at: Place | None = None
    ) -> None:
        config = TrainerConfig(
            policy_targets=[policy.target for policy in world.policies],
            reference_target=world.reference.target,
            reward_target=world.reward.target,
        )
        self.run_id = run_id
        self.store = world.store
        self.threads = 1
        self.device = "cpu"
        self.ranks = Ranks()
        self.connections = RunClients(config)
        self.clients = self.connections.stage_clients
        self.checkpoint = checkpoint
        self.reports: dict[int, dict[str, float]] = {}
        self._leave_at = leave_at

    def restored_state(self) -> StageState | None:
        if self.checkpoint is None:
            return None
        state: StageState = torch.load(io.BytesIO(self.checkpoint), map_location="cpu", weights_only=True)
        return state

    def step_done(self, *, step: int, metrics: Mapping[str, float], state: Any, **_: Any) -> None:
        report = {name: value for name, value in metrics.items() if not name.endswith("_seconds")}
        del report["policy_version"]
        self.reports[step] = report
        self.obey(state)

    def asked_to_halt(self) -> bool:
        return False

    def obey(self, state: Callable[[], StageState]) -> None:
        here = state()
        under_way = here["in_progress"]
        if Place(here["update"], under_way and under_way["progress"]["steps_done"]) == self._leave_at:
            content = io.BytesIO()
            torch.save(here, content)
            self.checkpoint = content.getvalue()
            raise RunInterrupted

    def published(self, model: ModelVersion, *, stored: bool) -> None:
        """Nobody counts."""

    def weights_sent(self, way: str, size_bytes: int, seconds: float) -> None:
        """Nobody counts."""

    def guards_checked(self, findings: Sequence[Finding], *, seconds: float) -> None:
        """Nobody looks."""

    def alarm(self, alarms: Sequence[Alarm]) -> None:
        raise AssertionError(f"a healthy run alarmed: {alarms}")

    def when_cord_holds(self, act: Callable[[], None]) -> None:
        """There is no cord."""

    def waiting(self, message: str) -> None:
        """Nobody watches."""


def test_leaving_anywhere_and_coming_back_changes_no_number(world: World) -> None:
    world.serve_models()
    config = PpoConfig.model_validate(world.config(updates=2, store_interval=1))

    def run(context: LeavingContext) -> ModelVersion | None:
        try:
            return PpoStage(config, context).run()
        except RunInterrupted:
            return None
        finally:
            context.connections.close()

    whole = LeavingContext(world, "whole")
    expected = run(whole)
    assert expected is not None
    # Before sampling, between optimizer steps, before publishing, and before storing.
    places = [Place(0, None), Place(0, 1), Place(0, 4), Place(1, None)]
    for number, place in enumerate(places):
        first = LeavingContext(world, f"cut-{number}", leave_at=place)
        assert run(first) is None
        second = LeavingContext(world, first.run_id, checkpoint=first.checkpoint)
        output = run(second)
        assert output is not None
        assert output.weights_sha256 == expected.weights_sha256
        assert first.reports | second.reports == whole.reports
