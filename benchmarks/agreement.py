"""Checks that ours and the peers compute the same, before anybody asks who is faster; fails loudly where not.

The same random weights and the same tokens go to both sides: scores, log-probabilities, the gradient of
reward-model training on rankings against TRL's loss over all their pairs, and the gradients with which a PPO
update moves policy and value network. ``benchmarks.run`` calls it first.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.modeling.forward import final_scores, response_statistics
from andon.modeling.loading import load_causal_lm, load_scorer, save_model
from andon.modeling.normalization import NO_NORMALIZATION
from andon.modeling.sequences import PromptGroup, pack, unpack
from andon.modeling.versions import ModelVersion
from benchmarks import shapes
from benchmarks.measuring import emit, parser, use_threads
from benchmarks.scoring import TEMPERATURE
from benchmarks.shapes import Shape
from services.trainer.actor_critic import SeparateValueNetwork
from services.trainer.experience import RewardSettings, evaluate_rollout
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.reward_losses import Decision
from services.trainer.rollout import Responses, Rollout
from services.trainer.stages.comparisons import ComparedDocument
from services.trainer.stages.preference_learning import PreferenceLearning

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4  # of float32, relative to the largest value
NUM_DOCUMENTS = 6
NUM_SUMMARIES = 4
PPO = {
    "beta": 0.05,
    "gamma": 1.0,
    "lam": 0.95,
    "clip": 0.2,
    "value_coefficient": 0.1,
    "new_tokens": 16,
}
PPO_GRADIENT = "ppo gradient"


def task(shape: Shape) -> list[PromptGroup]:
    """Documents of different lengths with ranked summaries of different lengths, the best first."""
    source = random.Random(0)

    def ids(count: int) -> list[int]:
        return shapes.token_ids(shapes.random_words(source, count, shape))

    return [
        PromptGroup(ids(source.randint(5, 60)), [ids(source.randint(2, 20)) for _ in range(NUM_SUMMARIES)])
        for _ in range(NUM_DOCUMENTS)
    ]


def our_ppo_gradients(folder: Path, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of one update's only step on what the peer has sampled: KL, rewards, advantages and losses included."""
    policy, critic = load_causal_lm(folder / "lm"), load_scorer(folder / "scorer")
    actor_critic = SeparateValueNetwork(policy, critic, NO_NORMALIZATION)
    pad_token_id = policy.config.pad_token_id
    responses = theirs["responses"]
    if bool((responses == pad_token_id).any()):
        raise SystemExit("the peer sampled padding, which it then does not read: take another seed")
    groups = tuple(
        PromptGroup([token for token in query if token != pad_token_id], [response])
        for query, response in zip(theirs["queries"].tolist(), responses.tolist(), strict=True)
    )
    batch, (count, length) = pack(groups), responses.shape
    lengths = torch.full((count,), length)
    with torch.inference_mode():
        by_policy = response_statistics(policy, batch, temperature=TEMPERATURE).logprobs
        by_reference = response_statistics(
            load_causal_lm(folder / "reference"), batch, temperature=TEMPERATURE
        ).logprobs
        scores = final_scores(load_scorer(folder / "scorer"), batch)
        values = actor_critic.values(batch)
    rollout = Rollout(
        responses=Responses(
            groups=groups,
            lengths=lengths,
            behaviour_logprobs=unpack(by_policy, lengths, 0.0),
            ended_properly=torch.ones(count, dtype=torch.bool),
            model=ModelVersion("policy", 1),
        ),
        reference_logprobs=unpack(by_reference, lengths, 0.0),
        scores=scores,
    )
    experience = evaluate_rollout(
        rollout,
        unpack(values, lengths, 0.0),
        beta=PPO["beta"],
        settings=RewardSettings(
            penalty=0.0,
            gamma=PPO["gamma"],
            lam=PPO["lam"],
            whiten_rewards=False,
            whiten_advantages=True,
        ),
    )
    optimizer = PolicyOptimizer(
        actor_critic,
        OptimizerSettings(
            epochs=1,
            minibatches=1,
            token_budget=10_000,
            temperature=TEMPERATURE,
            clip_ratio=PPO["clip"],
            clip_value=PPO["clip"],
            value_coefficient=PPO["value_coefficient"],
            learning_rate=1e-5,
            value_learning_rate=1e-5,
            adam_eps=1e-5,
            max_grad_norm=None,
            seed=0,
        ),
    )
    optimizer.update(
        experience,
        update=1,
        learning_rate_factor=1.0,
        progress=UpdateProgress(),
        between_steps=lambda: None,
    )
    # After one step Adam's first moment is a tenth of the gradient.
    moments = optimizer.state()["adam"]["state"]
    names = [
        f"{PPO_GRADIENT} {role} {name}"
        for role, network in (("policy", policy), ("value", critic))
        for name, _ in network.named_parameters()
    ]
    gradients = {name: moments[place]["exp_avg"] * 10.0 for place, name in enumerate(names)}
    # The peer whitens advantages with the variance over n - 1, ours over n; they scale the policy's gradient.
    scale = ((responses.numel() - 1) / responses.numel()) ** 0.5
    return {
        name: gradient * (scale if f"{PPO_GRADIENT} policy" in name else 1.0)
        for name, gradient in gradients.items()
    }


def our_results(
    lm: PreTrainedModel, scorer: PreTrainedModel, groups: Sequence[PromptGroup]
) -> dict[str, Tensor]:
    """Under the names that the peers' script gives."""
    batch = pack(groups)
    with torch.inference_mode():
        results = {
            "scores": final_scores(scorer, batch),
            "logprobs": response_statistics(lm, batch, temperature=TEMPERATURE).logprobs,
        }
    # What the documents and summaries say does not matter here: only their tokens are read.
    ranking = tuple((place,) for place in range(NUM_SUMMARIES))
    record = ComparisonRecord(
        document_id="0",
        document="",
        candidates=tuple(CandidateRecord(text=str(place)) for place in range(NUM_SUMMARIES)),
        tiers=ranking,
        comparison_id="0",
    )
    elements = [
        ComparedDocument(
            group=group,
            records=(record,),
            candidate_places=(tuple(range(NUM_SUMMARIES)),),
            decisions=(Decision(tiers=ranking),),
        )
        for group in groups
    ]
    learning = PreferenceLearning(scorer, elements, [], token_budget=10_000, device="cpu")
    learning.accumulate(list(range(len(elements))))
    for name, parameter in scorer.named_parameters():
        assert parameter.grad is not None, name
        results[f"gradient {name}"] = parameter.grad
    return results


def largest_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, float]:
    """The largest difference, relative to the largest value of its kind, and which tensor has it."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"only one side has {sorted(ours.keys() ^ theirs.keys())}")
    scales: dict[str, float] = {}  # by kind: "scores", "ppo gradient policy" and so on
    for name, value in theirs.items():
        kind = name.rpartition(" ")[0] or name
        scales[kind] = max(scales.get(kind, 0.0), float(value.abs().max()))
    errors = {
        name: float((ours[name] - value).abs().max()) / scales[name.rpartition(" ")[0] or name]
        for name, value in theirs.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return worst, errors[worst]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and print; exits with an error where the two differ by more than rounding."""
    flags = parser(__doc__)
    flags.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON"), help="(PEERS_PYTHON)")
    arguments = flags.parse_args(argv)
    if not arguments.peers_python:
        flags.error("PEERS_PYTHON is not set: whom should ours agree with?")
    use_threads(arguments.threads)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    groups = task(shape)
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_model(shapes.causal_lm(shape, codec), codec, folder / "lm")
        save_model(shapes.causal_lm(shape, codec, seed=2), codec, folder / "reference")
        save_model(shapes.scorer(shape, codec), codec, folder / "scorer")
        content = [
            {"prompt": list(group.prompt), "responses": [list(response) for response in group.responses]}
            for group in groups
        ]
        (folder / "task.json").write_text(json.dumps({"groups": content, "temperature": TEMPERATURE, **PPO}))
        done = subprocess.run(
            [arguments.peers_python, "-m", "benchmarks.peer_scripts.agreement", str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"the peers failed:\n{done.stderr[-3000:]}")
        theirs = load_file(folder / "theirs.safetensors")
        ours = {
            **our_results(load_causal_lm(folder / "lm"), load_scorer(folder / "scorer"), groups),
            **our_ppo_gradients(folder, theirs),
        }
    theirs = {name: value for name, value in theirs.items() if name not in ("queries", "responses")}
    worst, error = largest_error(ours, theirs)
    if not error <= TOLERANCE:
        raise SystemExit(f"not the same mathematics: {worst} differs by {error:.2g} of its largest value")
    emit(bench="agreement", compared=len(theirs), worst=worst, largest_relative_error=error)


if __name__ == "__main__":
    main()
