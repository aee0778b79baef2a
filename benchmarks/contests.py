"""Decides what is compared with what: which script of ours against which of the peers', and the bars.

``benchmarks.run`` carries it out. Rates on both sides are per CPU second: sequences, tokens, pairs or
episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]  # the JSON line of a script; numbers, texts and further mappings


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One of the ways to do the work that a peer's script times."""

    name: str
    rate: Callable[[Facts], float]
    bar: float | None  # what ours should reach, as a multiple; None: shown for comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A peer's script and those of ours that do the same kind of work."""

    peer_command: Sequence[str]  # the script, in the peers' folder, and its flags
    peer_bench: str  # which JSON line of its output
    peers: Sequence[Peer]
    ours: Mapping[str, Sequence[str]]  # work -> module of ours and its flags


CONTESTS: Sequence[Contest] = (
    Contest(
        peer_command=("peer_hf_score.py", "--part", "score", "--reps", "1"),
        peer_bench="hf_score",
        peers=(
            Peer(
                name="transformers, padded", rate=lambda facts: _result(facts, "padded", "per_cpu_s"), bar=3.0
            ),
            Peer(
                name="transformers, sorted by length",
                rate=lambda facts: _result(facts, "sorted", "per_cpu_s"),
                bar=None,
            ),
        ),
        ours={
            "reward scores, 1 summary per document": ("benchmarks.scoring",),
            "reward scores, 4 summaries per document": ("benchmarks.scoring", "--summaries", "4"),
        },
    ),
    Contest(
        peer_command=("peer_hf_score.py", "--part", "logprob", "--reps", "1"),
        peer_bench="hf_logprob",
        peers=(
            Peer(
                name="transformers, TRL's way",
                rate=lambda facts: _result(facts, "trl_way", "seqs_per_cpu_s"),
                bar=None,
            ),
            Peer(
                name="transformers, logits_to_keep",
                rate=lambda facts: _result(facts, "logits_to_keep", "seqs_per_cpu_s"),
                bar=None,
            ),
        ),
        ours={"log-probabilities of responses": ("benchmarks.scoring", "--part", "logprob")},
    ),
    Contest(
        peer_command=("peer_hf_generate.py", "--batch", "32", "--variants", "dyn,static", "--reps", "1"),
        peer_bench="hf_generate",
        peers=(
            Peer(
                name="transformers generate", rate=lambda facts: _result(facts, "dyn", "tok_s_cpu"), bar=1.3
            ),
            Peer(
                name="generate, static cache",
                rate=lambda facts: _result(facts, "static", "tok_s_cpu"),
                bar=1.3,
            ),
        ),
        ours={
            "sampling, 32 prompts": ("benchmarks.sampling",),
            "sampling, 8 prompts x 4 samples": ("benchmarks.sampling", "--prompts", "8", "--samples", "4"),
        },
    ),
    Contest(
        peer_command=("peer_trl_reward.py",),
        peer_bench="trl_reward",
        peers=(Peer(name="TRL RewardTrainer", rate=lambda facts: float(facts["pairs_per_cpu_s"]), bar=None),),
        ours={"reward-model training, pairs": ("benchmarks.reward_training",)},
    ),
    Contest(
        peer_command=("peer_trl_ppo.py", "--updates", "2", "--no-phases"),
        peer_bench="trl_ppo",
        peers=(Peer(name="TRL PPOTrainer", rate=lambda facts: float(facts["episodes_per_cpu_s"]), bar=1.5),),
        ours={"PPO update": ("benchmarks.ppo_update",)},
    ),
)


def _result(facts: Facts, variant: str, rate: str) -> float:
    return float(facts["results"][variant][rate])
