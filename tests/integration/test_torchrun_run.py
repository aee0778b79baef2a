"""The trainer under torchrun: the cord stops both ranks, a release lets both go on, they end together."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from andon.client.cord import CordClient
from andon.client.policy import PolicyClient
from andon.client.trainer import ModelPublished, Progress, RunState, StateChanged, TrainerClient
from benchmarks.cord_parts import Told
from tests.cord import wait_until
from tests.ppo_world import TIMEOUT_S, World, numbers, published
from tests.servers import Serve, serve, server_loop, start_site, tokens_file
from tests.site import SiteUnderTest
from tests.tokens import TOKENS
from tests.torchrun import RANKS, Torchrun

__all__ = ["serve", "server_loop", "start_site", "tokens_file"]

STEPS_PER_UPDATE = 24  # 4 epochs of 6 minibatches


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/labeling.sqlite3"


@pytest.fixture
def world(tmp_path: Path, serve: Serve, server_loop: asyncio.AbstractEventLoop) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, serve, server_loop, stack)


@pytest.fixture
def site(start_site: Callable[..., SiteUnderTest]) -> SiteUnderTest:
    return start_site()


@pytest.fixture
def trainer(world: World, site: SiteUnderTest) -> Iterator[Torchrun]:
    world.serve_models()
    running = Torchrun(
        f"--store={world.store.root}",
        f"--runs={world.folder / 'runs'}",
        f"--policy-targets={json.dumps([policy.target for policy in world.policies])}",
        f"--reference-target={world.reference.target}",
        f"--reward-target={world.reward.target}",
        f"--labeling-target={site.running.target}",
        f"--labeling-token={TOKENS['service']}",
        log=world.folder / "trainer.log",
    )
    try:
        running.start()
        yield running
    finally:
        running.kill()


def test_the_cord_stops_two_ranks_and_a_release_lets_them_go_on(
    world: World, site: SiteUnderTest, trainer: Torchrun
) -> None:
    told = Told()
    with (
        TrainerClient(trainer.target) as client,
        CordClient(site.running.target, token=TOKENS["rita"]) as cord,
        PolicyClient(world.policies[0].target) as sampler,
    ):
        config = world.config(
            updates=3, epochs=4, minibatches=6, guards={"enabled": False}, checkpoint_interval=1000
        )
        run = client.start_run("ppo", config)
        told.follow(
            lambda: (event.event for event in client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))
        )
        told.wait_for(lambda event: isinstance(event, Progress), after_s=0)
        wait_until(lambda: trainer.steps_begun(0) > STEPS_PER_UPDATE)

        cord.pull(actor="", reason="to see whether both stand")
        held_s = told.wait_for(is_state(RunState.PAUSED), after_s=0)
        done = trainer.steps_done(world.folder / "runs" / run.run_id, STEPS_PER_UPDATE)
        assert STEPS_PER_UPDATE < done < 3 * STEPS_PER_UPDATE
        assert trainer.steps_begun(0) == trainer.steps_begun(1) == done
        assert max(trainer.steps_begun_since_heard()) <= 1
        served, num_published = sampler.model_info().model, len(told.words(ModelPublished))
        for _word in zip(range(2), cord.watch(timeout_s=TIMEOUT_S), strict=False):
            pass  # a while, by the cord's own clock
        assert trainer.steps_begun(0) == trainer.steps_begun(1) == done
        assert (sampler.model_info().model, len(told.words(ModelPublished))) == (served, num_published)

        cord.release(actor="", reason="both did")
        told.wait_for(is_state(RunState.SUCCEEDED), after_s=held_s)
        events = list(client.watch_run(run.run_id, stream_timeout_s=TIMEOUT_S))
    reports = numbers(events)
    assert list(reports) == [1, 2, 3]
    assert all(report["optimizer_steps"] == STEPS_PER_UPDATE for report in reports.values())
    assert all(report["sampler_logprob_max_error"] < 1e-4 for report in reports.values())
    assert [str(model) for model in published(events, stored=False)] == ["policy/1", "policy/2", "policy/3"]
    assert [trainer.steps_begun(rank) for rank in range(RANKS)] == [3 * STEPS_PER_UPDATE] * RANKS

    trainer.terminate()  # and nothing is left running
    assert [word["rank"] for word in trainer.words("farewell")] == [1]
    assert len(trainer.words("stopped")) == 1
    assert not trainer.words("rank_lost")


def is_state(state: RunState) -> Callable[[object], bool]:
    return lambda event: isinstance(event, StateChanged) and event.state is state
