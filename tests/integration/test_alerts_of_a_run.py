"""A real run under a real Prometheus and a real Alertmanager: defects pull the cord through the webhook."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

import services.trainer.experience as experience_module
from andon.client.cord import Cord, CordClient
from andon.client.trainer import ModelPublished, Progress, Run, RunState, StateChanged, TrainerClient
from services.labeling.config import LabelingConfig
from services.labeling.service import LabelingService
from services.reward.service import RewardService
from services.trainer.ppo.rewards import compose_rewards
from tests import monitoring
from tests.alertmanager import Alertmanager, find_alertmanager
from tests.ppo_world import World, finish, world
from tests.prometheus import Prometheus
from tests.servers import Serve, serve, server_loop, tokens_file
from tests.site import SiteUnderTest
from tests.tokens import TOKENS

__all__ = ["serve", "server_loop", "tokens_file", "world"]

pytestmark = pytest.mark.timeout(240)

PATIENCE_S = 90.0
NOTHING_HOLDS = {
    "preflight": {"enabled": False},
    "rules": {
        name: {"action": "off"}
        for name in ("reward_spike", "reward_variance", "probe", "step_size", "numbers")
    },
}


class Watched:
    """The world's services under Prometheus and Alertmanager."""

    def __init__(self, world: World, serve: Serve, folder: Path, tokens_file: Path, stack: ExitStack) -> None:
        if find_alertmanager() is None:
            monitoring.program("prometheus-alertmanager", package="prometheus-alertmanager")
        world.serve_models()
        database = f"sqlite:///{folder}/labeling.sqlite3"
        config = LabelingConfig(
            port=0, metrics_port=0, web_port=0, database=database, tokens_file=tokens_file
        )
        registry = CollectorRegistry()
        service = LabelingService(config, registry)
        labeling = serve(service, config, registry)
        site = stack.enter_context(SiteUnderTest(service, labeling, database))
        self.trainer: TrainerClient = world.serve_trainer(
            watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
        )
        self.cord = stack.enter_context(CordClient(labeling.target, token=TOKENS["rita"]))
        alertmanager = stack.enter_context(
            Alertmanager(folder / "alertmanager", webhook_url=f"{site.url}/alerts", token=TOKENS["service"])
        )
        scraped = {
            "policy": world.policies[0].metrics_port,
            "reference": world.reference.metrics_port,
            "reward": world.reward.metrics_port,
            "labeling": labeling.metrics_port,
            "trainer": world.trainer.metrics_port,
        }
        self.prometheus = stack.enter_context(
            Prometheus(folder / "prometheus", scraped=scraped, alertmanager=alertmanager.address)
        )

    def wait_for_cord(self) -> Cord:
        """The cord's state once it is pulled."""
        for state in self.cord.watch(timeout_s=PATIENCE_S):
            if state.pulled:
                return state
        pytest.fail("the cord's stream ended")

    def wait_until_it_stands(self, run: Run) -> Run:
        """The run, once the cord holds it."""
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            found = self.trainer.get(run.run_id)
            if found.state is RunState.PAUSED and found.status_message.startswith("the cord is pulled"):
                return found
            time.sleep(0.05)
        pytest.fail(f"the run is {found.state}: {found.status_message}")


@pytest.fixture
def watched(world: World, serve: Serve, tmp_path: Path, tokens_file: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(world, serve, tmp_path, tokens_file, stack)


@pytest.fixture
def slow_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each update takes a second, so that Prometheus sees all of them."""

    def compose(*given: Any, **named: Any) -> torch.Tensor:
        time.sleep(1.0)
        return compose_rewards(*given, **named)

    monkeypatch.setattr(experience_module, "compose_rewards", compose)


@pytest.mark.slow
@pytest.mark.usefixtures("slow_updates")
def test_a_healthy_run_fires_no_alert(world: World, watched: Watched) -> None:
    run = watched.trainer.start_run("ppo", world.config(updates=15))
    finish(watched.trainer, run)
    time.sleep(3)
    checked = watched.prometheus.query("sum(andon_trainer_guard_checks_total)")
    assert float(checked[0]["value"][1]) > 100  # it has really looked
    assert watched.prometheus.ever_fired() == set()
    assert not watched.cord.get().pulled


@pytest.mark.slow
@pytest.mark.usefixtures("slow_updates")
def test_a_reward_spike_that_only_prometheus_looks_for_pulls_the_cord(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = watched.trainer.start_run("ppo", world.config(updates=200, guards=NOTHING_HOLDS))
    _wait_for_step(watched.trainer, run, 10)
    servicer = world.objects[RewardService]._servicer
    served = servicer._served
    higher = replace(served.normalization, bias=served.normalization.bias + 1000.0)
    monkeypatch.setattr(servicer, "_served", replace(served, normalization=higher))
    pulled = watched.wait_for_cord()
    assert pulled.actor == "alertmanager"
    assert "AndonRewardSpike" in pulled.reason
    standing = watched.wait_until_it_stands(run)
    published = len(_published(watched.trainer, run))
    time.sleep(2)
    assert watched.trainer.get(run.run_id).step == standing.step
    assert len(_published(watched.trainer, run)) == published
    watched.trainer.stop(run.run_id, reason="seen")


def test_a_sign_bug_whose_guards_only_hold_their_own_run_pulls_the_cord_for_all(
    world: World, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        experience_module, "compose_rewards", lambda *given, **named: -compose_rewards(*given, **named)
    )
    rules = {name: {"action": "hold"} for name in ("composition", "direction_tokens", "direction_scores")}
    guards = {"preflight": {"enabled": False}, "rules": rules}
    run = watched.trainer.start_run("ppo", world.config(updates=5, guards=guards))
    pulled = watched.wait_for_cord()
    assert pulled.actor == "alertmanager"
    assert "AndonSignBug" in pulled.reason
    assert "AndonSignBug" in watched.prometheus.ever_fired()
    # Neither the person who lifts the guard's hold ...
    watched.trainer.resume(run.run_id)
    watched.wait_until_it_stands(run)
    assert _published(watched.trainer, run) == []
    # ... nor anybody but who releases the cord lets it go on.
    watched.trainer.stop(run.run_id, reason="the sign is wrong")


def _wait_for_step(client: TrainerClient, run: Run, step: int) -> None:
    for event in client.watch_run(run.run_id, stream_timeout_s=PATIENCE_S):
        if isinstance(event.event, Progress) and event.event.step >= step:
            return
    pytest.fail("the run ended early")


def _published(client: TrainerClient, run: Run) -> list[str]:
    """What has been published of a run that stands still."""
    found = []
    for event in client.watch_run(run.run_id, stream_timeout_s=PATIENCE_S):
        if isinstance(event.event, ModelPublished) and not event.event.stored:
            found.append(str(event.event.model))
        if isinstance(event.event, StateChanged) and event.event.state is RunState.PAUSED:
            break
    return found
