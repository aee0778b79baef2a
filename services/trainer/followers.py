"""What the ranks other than 0 do: follow rank 0 from run to run, without a port, a record or a checkpoint.

The PPO stage on rank 0 calls ``enlist`` once its networks are built and restored, and ``dismiss`` when it
leaves, for whatever reason; between the two every ``PolicyOptimizer.update`` there is taken part in here. A
follower holds a full copy of the networks and of the optimizer. It dies with an error when rank 0 is gone or
when it fails by itself, and whoever started the ranks then starts them all again.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import torch

from andon.modeling.store import ModelStore
from services.trainer.actor_critic import ActorCritic, ActorCriticSource, load_actor_critic
from services.trainer.errors import NotFiniteError, RankLostError, RanksDisagreeError
from services.trainer.policy_optimizer import Learn, OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.ranks import CalledAwayError, Ranks

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlist:
    """A run begins: build what it trains. Its state follows."""

    run_id: str
    names: ActorCriticSource  # each rank brings the files to its own machine
    settings: OptimizerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Dismiss:
    """The run has left: forget it and wait for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Farewell:
    """The trainer ends."""


def enlist(
    ranks: Ranks,
    *,
    run_id: str,
    names: ActorCriticSource,
    settings: OptimizerSettings,
    actor_critic: ActorCritic,
    optimizer: PolicyOptimizer,
) -> None:
    """Have every other rank build the same and take up the same state.

    ``names`` are what each rank's model store finds the models by.
    """
    if ranks.size > 1:
        ranks.tell(Enlist(run_id=run_id, names=names, settings=settings))
        ranks.share(_state_of(actor_critic, optimizer))


def dismiss(ranks: Ranks) -> None:
    """Let the other ranks wait for the next run. Never fails: a set that is lost has nobody to dismiss."""
    _say_last(ranks, Dismiss())


def say_farewell(ranks: Ranks) -> None:
    """End the other ranks, and with them the set."""
    _say_last(ranks, Farewell())
    ranks.leave()


def follow(ranks: Ranks, *, store: ModelStore, threads: int) -> None:
    """Follow rank 0 until it says farewell. ``threads``: CPU threads of torch."""
    torch.set_num_threads(threads)
    replica: _Replica | None = None
    word = ranks.hear()
    while True:
        match word:
            case Enlist():
                replica = None  # room for the new one
                replica = _Replica(word, ranks, store)
            case Learn() if replica is not None:
                try:
                    replica.learn(word)
                except CalledAwayError as called:
                    word = called.word
                    continue
                except (NotFiniteError, RanksDisagreeError) as error:  # rank 0 ends the run for the same
                    _log.error("update_failed", reason=error.reason, message=error.message)
            case Dismiss():
                _log.info("dismissed")
                replica = None
            case Farewell():
                _log.info("farewell")
                ranks.leave()
                return
            case _:
                raise RuntimeError(f"{type(word).__name__} makes no sense here")
        word = ranks.hear()


class _Replica:
    """What a follower trains along in one run."""

    def __init__(self, word: Enlist, ranks: Ranks, store: ModelStore) -> None:
        _log.info("enlisted", run_id=word.run_id)
        names = word.names
        source = ActorCriticSource(
            policy=store.locate(names.policy).source,
            scorer=None if names.scorer is None else store.locate(names.scorer).source,
        )
        actor_critic = load_actor_critic(source, device=ranks.device)
        self._optimizer = PolicyOptimizer(actor_critic, word.settings, ranks)
        state = ranks.share(None)
        actor_critic.restore(state["actor_critic"])
        self._optimizer.restore(state["optimizer"])

    def learn(self, word: Learn) -> None:
        """Do what is left of an update, each step when rank 0 says so."""
        self._optimizer.update(
            word.experience,
            update=word.update,
            learning_rate_factor=word.learning_rate_factor,
            progress=UpdateProgress(steps_done=word.steps_done),
            between_steps=lambda: None,
        )


def _state_of(actor_critic: ActorCritic, optimizer: PolicyOptimizer) -> dict[str, object]:
    return {"actor_critic": actor_critic.state(), "optimizer": optimizer.state()}


def _say_last(ranks: Ranks, word: object) -> None:
    if ranks.lost:
        return
    try:
        ranks.tell(word)
    except RankLostError as error:
        _log.warning("rank_was_gone", word=type(word).__name__, message=error.message)
