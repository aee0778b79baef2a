"""Two ranks: this process leads, the other is a process of its own that follows, as under torchrun."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import services.trainer.followers as followers
from andon.modeling.loading import save_model, scorer_from_causal_lm
from andon.modeling.normalization import Normalization
from andon.modeling.store import ModelStore
from services.trainer.actor_critic import ActorCritic, ActorCriticSource, load_actor_critic
from services.trainer.experience import Experience
from services.trainer.followers import dismiss, enlist, say_farewell
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.ranks import Ranks, join_ranks
from tests.policy_updates import tiny_codec, tiny_policy
from tests.ports import free_port

TIMEOUT_S = 120
SPOIL, DIE, FAIL = "spoil", "die", "fail"  # what an experience has the other rank do before it learns


def variables(rank: int, port: int) -> Mapping[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def follow_and_save(port: int, folder: str) -> None:
    """The other rank: follows, and saves its weights after every update."""
    os.environ.update(variables(1, port))
    loaded: list[ActorCritic] = []

    def load(source: ActorCriticSource, *, device: str) -> ActorCritic:
        loaded.append(load_actor_critic(source, device=device))
        return loaded[-1]

    class Optimizer(PolicyOptimizer):
        def update(self, experience: Experience, **rest: Any) -> None:
            weight = loaded[-1].parts[0].parameters[0]
            if SPOIL in experience.metrics:
                with torch.no_grad():
                    weight.view(-1)[0] += 1e-3
            if DIE in experience.metrics:
                os.kill(os.getpid(), signal.SIGKILL)
            if FAIL in experience.metrics:
                raise OSError("the disk is full")
            super().update(experience, **rest)
            torch.save(weights_of(loaded[-1]), Path(folder) / "other.pt")

    followers.load_actor_critic = load  # type: ignore[attr-defined]
    followers.PolicyOptimizer = Optimizer  # type: ignore[attr-defined,misc]
    store = ModelStore(Path(folder) / "store")
    followers.follow(join_ranks("cpu", timeout_s=TIMEOUT_S), store=store, threads=1)


def weights_of(actor_critic: ActorCritic) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, part in actor_critic.state().items()
        for key, value in part.items()
    }


class Pair:
    """Rank 0 here, and the process of the other."""

    def __init__(self, ranks: Ranks, other: BaseProcess, folder: Path) -> None:
        self.ranks = ranks
        self.other = other
        self.folder = folder
        self.was_lost = False

    def weights_of_the_other(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = torch.load(self.folder / "other.pt")
        return weights

    @contextmanager
    def training(
        self,
        source: ActorCriticSource,
        chosen: OptimizerSettings,
        *,
        state: tuple[dict[str, Any], dict[str, Any]] | None = None,
    ) -> Iterator[tuple[ActorCritic, PolicyOptimizer]]:
        actor_critic = load_actor_critic(source, device="cpu")
        optimizer = PolicyOptimizer(actor_critic, chosen, self.ranks)
        if state is not None:
            actor_critic.restore(state[0])
            optimizer.restore(state[1])
        enlist(
            self.ranks,
            run_id="run",
            names=source,
            settings=chosen,
            actor_critic=actor_critic,
            optimizer=optimizer,
        )
        try:
            yield actor_critic, optimizer
        finally:
            dismiss(self.ranks)


def _destroy_what_is_left() -> None:
    if dist.is_initialized():  # a lost set is left to the end of its process, and this process goes on
        dist.destroy_process_group()


@contextmanager
def two_ranks(folder: Path) -> Iterator[Pair]:
    port = free_port()
    other = multiprocessing.get_context("spawn").Process(target=follow_and_save, args=(port, str(folder)))
    other.start()
    pair: list[Pair] = []

    def note_loss() -> None:
        pair[0].was_lost = True

    with ExitStack() as stack:
        stack.callback(other.close)
        stack.callback(other.join, TIMEOUT_S)
        stack.callback(other.kill)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables(0, port).items():
                patch.setenv(name, value)
            ranks = join_ranks("cpu", timeout_s=TIMEOUT_S, when_lost=note_loss)
        stack.callback(_destroy_what_is_left)
        pair.append(Pair(ranks, other, folder))
        yield pair[0]
        say_farewell(ranks)
        other.join(TIMEOUT_S)


def store_sources(folder: Path) -> dict[str, ActorCriticSource]:
    """An actor with each kind of critic, on disk."""
    codec = tiny_codec()
    save_model(tiny_policy(codec), codec, folder / "policy")
    normalization = Normalization(method="reference_zero", gain=2.0, bias=0.25)
    scorer = scorer_from_causal_lm(folder / "policy", seed=2)
    save_model(scorer, codec, folder / "scorer", normalization=normalization)
    policy = str(folder / "policy")
    return {
        "shared head": ActorCriticSource(policy=policy, scorer=None),
        "value network": ActorCriticSource(policy=policy, scorer=str(folder / "scorer")),
    }


def learn(
    optimizer: PolicyOptimizer,
    experience: Experience,
    progress: UpdateProgress,
    between_steps: Callable[[], None] = lambda: None,
) -> None:
    optimizer.update(
        experience, update=1, learning_rate_factor=1.0, progress=progress, between_steps=between_steps
    )
