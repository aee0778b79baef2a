"""Decides what is compared with what: which script of ours against which of the peers', and the bars.

``benchmarks.run`` carries it out. Rates on both sides are per CPU second: sequences, tokens, comparisons or
episodes. Where a peer's own script can do the work it is taken as it is; where it cannot, or would spend most
of its time on ways that nobody asks for, one of ``peer_scripts`` calls the peer in the same way.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]  # the JSON line of a script; numbers, texts and further mappings
Command = tuple[str, ...]  # a peer's script in the peers' folder, or a module; and its flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One of the ways to do the work that a peer's script measures."""

    name: str
    ratio: Callable[[Facts, Facts], float]  # of ours and theirs: how many times better ours is
    bar: float | None  # what it should reach; None: shown for comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A peer's script and those of ours that do the same kind of work."""

    theirs: Command
    peers: Sequence[Peer]
    ours: Mapping[str, Command]  # by work
    shape: str = "tiny"
    is_memory: bool = False  # the same in every run, so one round says it all; the allocator is left alone


def faster(name: str, rate: Callable[[Facts], float], bar: float | None) -> Peer:
    """Compared by rates."""
    return Peer(name=name, ratio=lambda ours, theirs: float(ours["rate"]) / rate(theirs), bar=bar)


def _rate_of(way: str, field: str = "rate") -> Callable[[Facts], float]:
    return lambda facts: float(facts["results"][way][field])


def _scoring(*, padded: float | None, by_length: float | None) -> Sequence[Peer]:
    return (
        faster("transformers, padded", _rate_of("padded"), padded),
        faster("transformers, sorted by length", _rate_of("sorted"), by_length),
    )


_GENERATION = {
    "transformers generate": "dyn",
    "generate, static cache": "static",
    "continuous batching": "cb",
}


def _sampling(bar: float | None) -> Sequence[Peer]:
    def best(facts: Facts) -> float:
        return max(_rate_of(way, "tok_s_cpu")(facts) for way in _GENERATION.values())

    ways = [faster(name, _rate_of(way, "tok_s_cpu"), None) for name, way in _GENERATION.items()]
    return (faster("the best way of transformers", best, bar), *ways)


def _logprobs(bar: float | None) -> Sequence[Peer]:
    return (
        faster("transformers, TRL's way", _rate_of("trl_way"), bar),
        faster("transformers, logits_to_keep", _rate_of("logits_to_keep"), None),
    )


def _reward_trainer(bar: float | None) -> Sequence[Peer]:
    return (faster("TRL RewardTrainer", lambda facts: float(facts["rate"]), bar),)


def _ppo_trainer(bar: float | None) -> Peer:
    return faster("TRL PPOTrainer", lambda facts: float(facts["episodes_per_cpu_s"]), bar)


def _less_memory(name: str, theirs: Callable[[Facts], float], ours: str, bar: float) -> Peer:
    return Peer(name=name, ratio=lambda own, facts: theirs(facts) / float(own[ours]), bar=bar)


_LESS_MEMORY_THAN_PPO_TRAINER = _less_memory(
    "TRL PPOTrainer", lambda facts: facts["over_weights_bytes"], "over_weights_bytes", 2.0
)
_LESS_MEMORY_THAN_TRLS_WAY = _less_memory(
    "transformers, TRL's way", _rate_of("trl_way", "extra_bytes"), "extra_bytes", 10.0
)


def without_services(ours: Facts, theirs: Facts) -> float:
    """The share of an update that would remain without services: no calls, and no weights to hand over."""
    overhead_s = theirs["calls_overhead_cpu_s"] + ours["wall_s_by_phase"]["publish_seconds"]
    return 1.0 - float(overhead_s) / float(ours["cpu_s"])


def _handed_over(name: str, bar: float | None) -> Sequence[Peer]:
    """What a PPO update waits for, and all of it, in CPU seconds of both ends; one script has both sides."""

    def by(basis: str) -> Callable[[Facts, Facts], float]:
        return lambda ours, theirs: statistics.median(ours["ratios"][name][basis])

    return (
        Peer(name=name, ratio=by("waiting_cpu_s"), bar=bar),
        Peer(name=f"{name}, nothing hidden", ratio=by("whole_cpu_s"), bar=None),
    )


def _weights(shape: str) -> Sequence[Contest]:
    shared: Command = ("benchmarks.weights", "--shape", shape, "--way", "shared")
    delta: Command = ("benchmarks.weights", "--shape", shape, "--way", "delta")
    return (
        Contest(
            theirs=shared,
            peers=(
                *_handed_over("safetensors through a file", 3.0),
                *_handed_over("safetensors through /dev/shm", None),
            ),
            ours={"weight hand-over on one host": shared},
            shape=shape,
        ),
        Contest(
            theirs=delta,
            peers=_handed_over("gRPC, full copy", 3.0),
            ours={"weight hand-over over gRPC": delta},
            shape=shape,
        ),
        Contest(
            theirs=delta,
            peers=(
                Peer(
                    name="full copy in bfloat16",
                    ratio=lambda ours, theirs: 1.0 / float(ours["bytes_of_full"]),
                    bar=10.0,
                ),
            ),
            ours={"bytes of a delta, learning rate 3e-6": delta},
            shape=shape,
        ),
    )


_HF = "benchmarks.peer_scripts"
_UPDATE: Command = ("benchmarks.ppo_update",)

_TINY: Sequence[Contest] = (
    Contest(
        theirs=("peer_trl_ppo.py", "--updates", "2", "--no-phases"),
        peers=(_ppo_trainer(2.2),),
        ours={"PPO update": _UPDATE},
    ),
    Contest(
        theirs=("peer_trl_ppo.py", "--updates", "2", "--no-phases"),
        peers=(_ppo_trainer(3.5),),
        ours={"PPO update, 4 samples per prompt": ("benchmarks.ppo_update", "--samples", "4")},
    ),
    Contest(
        theirs=("benchmarks.service_overhead",),
        peers=(Peer(name="the same in one process", ratio=without_services, bar=0.95),),
        ours={"PPO update, with its services": _UPDATE},
    ),
    Contest(
        theirs=(f"{_HF}.trl_ppo_memory", "--updates", "1", "--no-phases"),
        peers=(_LESS_MEMORY_THAN_PPO_TRAINER,),
        ours={"memory of a PPO update over the weights": ("benchmarks.ppo_update", "--memory")},
        is_memory=True,
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring",),
        peers=_scoring(padded=4.0, by_length=2.7),
        ours={"reward scores, 1 summary per document": ("benchmarks.scoring",)},
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--summaries", "4"),
        peers=_scoring(padded=8.0, by_length=5.0),
        ours={
            "reward scores, 4 summaries per document": (*("benchmarks.scoring", "--summaries", "4"),),
        },
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--summaries", "9"),
        peers=_scoring(padded=12.0, by_length=8.0),
        ours={
            "reward scores, 9 summaries per document": (*("benchmarks.scoring", "--summaries", "9"),),
        },
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--part", "logprob"),
        peers=_logprobs(4.0),
        ours={"log-probabilities of responses": ("benchmarks.scoring", "--part", "logprob")},
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--part", "logprob", "--memory"),
        peers=(_LESS_MEMORY_THAN_TRLS_WAY,),
        ours={
            "memory of log-probabilities over the weights": (
                *("benchmarks.scoring", "--part", "logprob", "--memory"),
            ),
        },
        is_memory=True,
    ),
    Contest(
        theirs=("peer_trl_reward.py",),
        peers=(faster("TRL RewardTrainer", lambda facts: float(facts["pairs_per_cpu_s"]), 2.0),),
        ours={"reward-model training, pairs": ("benchmarks.reward_training", "--median-step")},
    ),
    Contest(
        theirs=(
            *(f"{_HF}.trl_ranking", "--documents", "8"),
            *("--summaries", "4", "--documents-per-step", "4"),
        ),
        peers=_reward_trainer(3.0),
        ours={
            "reward-model training, rankings of 4": (
                *("benchmarks.reward_training", "--documents", "8", "--summaries", "4", "--batch", "4"),
            ),
        },
    ),
    Contest(
        theirs=(
            *(f"{_HF}.trl_ranking", "--documents", "2"),
            *("--summaries", "9", "--documents-per-step", "2"),
        ),
        peers=_reward_trainer(5.0),
        ours={
            "reward-model training, rankings of 9": (
                *("benchmarks.reward_training", "--documents", "2", "--summaries", "9", "--batch", "2"),
            ),
        },
    ),
    Contest(
        theirs=("peer_hf_generate.py", "--batch", "32", "--variants", "dyn,static,cb", "--reps", "1"),
        peers=_sampling(2.0),
        ours={"sampling, 32 prompts": ("benchmarks.sampling",)},
    ),
    Contest(
        theirs=(f"{_HF}.hf_sampling", "--prompts", "8", "--samples", "4"),
        peers=_sampling(3.0),
        ours={
            "sampling, 8 prompts x 4 samples": ("benchmarks.sampling", "--prompts", "8", "--samples", "4"),
        },
    ),
    Contest(
        theirs=(f"{_HF}.hf_sampling", "--prompts", "1", "--samples", "1", "--repetitions", "5"),
        peers=_sampling(1.0),
        ours={
            "sampling, 1 prompt": ("benchmarks.sampling", "--prompts", "1", "--repetitions", "5"),
        },
    ),
)

# The same at the size of GPT-2, with half the documents and smaller batches of training, so that it takes
# minutes and not hours.
_FEW_EPISODES: Command = ("--model", "small", "--batch", "8", "--micro", "8", "--no-phases")
_SMALL_UPDATE: Command = (*_UPDATE, "--shape", "small", "--batch", "8")

_SMALL: Sequence[Contest] = (
    Contest(
        theirs=("peer_trl_ppo.py", *_FEW_EPISODES, "--updates", "2"),
        peers=(_ppo_trainer(2.2),),
        ours={"PPO update": _SMALL_UPDATE},
        shape="small",
    ),
    Contest(
        theirs=("peer_trl_ppo.py", *_FEW_EPISODES, "--updates", "2"),
        peers=(_ppo_trainer(3.5),),
        ours={"PPO update, 4 samples per prompt": (*_SMALL_UPDATE, "--samples", "4")},
        shape="small",
    ),
    Contest(
        theirs=("benchmarks.service_overhead", "--shape", "small", "--batch", "8"),
        peers=(Peer(name="the same in one process", ratio=without_services, bar=0.95),),
        ours={"PPO update, with its services": _SMALL_UPDATE},
        shape="small",
    ),
    Contest(
        # As many episodes as the peer's script passes through at once where it is not told otherwise.
        theirs=(
            *(f"{_HF}.trl_ppo_memory", "--model", "small", "--batch", "16", "--micro", "16"),
            *("--updates", "1", "--no-phases"),
        ),
        peers=(_LESS_MEMORY_THAN_PPO_TRAINER,),
        ours={
            "memory of a PPO update over the weights": (
                *(*_UPDATE, "--shape", "small", "--batch", "16", "--memory"),
            ),
        },
        shape="small",
        is_memory=True,
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--model", "small", "--documents", "32"),
        peers=_scoring(padded=4.0, by_length=2.7),
        ours={
            "reward scores, 1 summary per document": (
                *("benchmarks.scoring", "--shape", "small", "--documents", "32", "--repetitions", "1"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--model", "small", "--documents", "32", "--summaries", "4"),
        peers=_scoring(padded=8.0, by_length=5.0),
        ours={
            "reward scores, 4 summaries per document": (
                *("benchmarks.scoring", "--shape", "small", "--documents", "32", "--summaries", "4"),
                *("--repetitions", "1"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--model", "small", "--documents", "32", "--summaries", "9"),
        peers=_scoring(padded=12.0, by_length=8.0),
        ours={
            "reward scores, 9 summaries per document": (
                *("benchmarks.scoring", "--shape", "small", "--documents", "32", "--summaries", "9"),
                *("--repetitions", "1"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(f"{_HF}.hf_scoring", "--model", "small", "--part", "logprob", "--documents", "32"),
        peers=_logprobs(4.0),
        ours={
            "log-probabilities of responses": (
                *("benchmarks.scoring", "--shape", "small", "--part", "logprob", "--documents", "32"),
                *("--repetitions", "1"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(
            *(f"{_HF}.hf_scoring", "--model", "small", "--part", "logprob", "--documents", "32"),
            "--memory",
        ),
        peers=(_LESS_MEMORY_THAN_TRLS_WAY,),
        ours={
            "memory of log-probabilities over the weights": (
                *("benchmarks.scoring", "--shape", "small", "--part", "logprob", "--documents", "32"),
                "--memory",
            ),
        },
        shape="small",
        is_memory=True,
    ),
    Contest(
        theirs=(
            *(f"{_HF}.trl_ranking", "--model", "small", "--documents", "8"),
            *("--summaries", "2", "--documents-per-step", "4"),
        ),
        peers=_reward_trainer(2.0),
        ours={
            "reward-model training, pairs": (
                *("benchmarks.reward_training", "--shape", "small", "--documents", "8", "--batch", "4"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(
            *(f"{_HF}.trl_ranking", "--model", "small", "--documents", "2"),
            *("--summaries", "4", "--documents-per-step", "2"),
        ),
        peers=_reward_trainer(3.0),
        ours={
            "reward-model training, rankings of 4": (
                *("benchmarks.reward_training", "--shape", "small", "--documents", "2"),
                *("--summaries", "4", "--batch", "2"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(
            *(f"{_HF}.trl_ranking", "--model", "small", "--documents", "1"),
            *("--summaries", "9", "--documents-per-step", "1"),
        ),
        peers=_reward_trainer(5.0),
        ours={
            "reward-model training, rankings of 9": (
                *("benchmarks.reward_training", "--shape", "small", "--documents", "1"),
                *("--summaries", "9", "--batch", "1"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(f"{_HF}.hf_sampling", "--model", "small", "--prompts", "32", "--samples", "1"),
        peers=_sampling(2.0),
        ours={
            "sampling, 32 prompts": (*("benchmarks.sampling", "--shape", "small", "--repetitions", "1"),),
        },
        shape="small",
    ),
    Contest(
        theirs=(f"{_HF}.hf_sampling", "--model", "small", "--prompts", "8", "--samples", "4"),
        peers=_sampling(3.0),
        ours={
            "sampling, 8 prompts x 4 samples": (
                *("benchmarks.sampling", "--shape", "small", "--prompts", "8", "--samples", "4"),
                *("--repetitions", "1"),
            ),
        },
        shape="small",
    ),
    Contest(
        theirs=(
            *(f"{_HF}.hf_sampling", "--model", "small", "--prompts", "1", "--samples", "1"),
            *("--repetitions", "3"),
        ),
        peers=_sampling(1.0),
        ours={
            "sampling, 1 prompt": (
                *("benchmarks.sampling", "--shape", "small", "--prompts", "1", "--repetitions", "3"),
            ),
        },
        shape="small",
    ),
)

CONTESTS: Sequence[Contest] = (*_TINY, *_weights("tiny"), *_SMALL, *_weights("small"))
