"""The works that are timed on a GPU: ours as the services do them, and the peers' ways beside them.

Everything runs in one process on one device, so what services add is not in it. Serving runs in the chosen
number format on both sides; training keeps float32 weights and computes in it by autocast, ours through the
trainer's own ``precision``, TRL through its own setting.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from andon.modeling.batches import results_by_response
from andon.modeling.forward import final_scores, response_statistics
from andon.modeling.loading import load_causal_lm, load_scorer
from andon.modeling.normalization import NO_NORMALIZATION
from andon.modeling.sequences import PackedBatch, PromptGroup
from andon.modeling.versions import ModelVersion
from benchmarks import shapes
from benchmarks.experience import random_experience
from benchmarks.flops import WITH_GRADIENTS, TreeSizes
from benchmarks.gpu_models import Cost
from benchmarks.gpu_place import Place, Size, Way, Work, has_trl
from benchmarks.peer_scripts.padded import in_batches, logprobs, padded, scores
from benchmarks.sampling import TEMPERATURE, make_runner, sample
from services.policy.config import PolicyConfig
from services.policy.served_model import serve_model
from services.trainer.actor_critic import SeparateValueNetwork
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.precision import computing_in
from services.trainer.reward_losses import Decision
from services.trainer.stages.comparisons import ComparedDocument
from services.trainer.stages.optimization import OptimizationConfig, Updater
from services.trainer.stages.preference_learning import PreferenceLearning


def trees_of(groups: Sequence[PromptGroup]) -> list[TreeSizes]:
    """Their sizes."""
    return [TreeSizes(prompt=len(g.prompt), responses=[len(r) for r in g.responses]) for g in groups]


def _sequences(groups: Sequence[PromptGroup]) -> list[list[int]]:
    return [[*group.prompt, *response] for group in groups for response in group.responses]


def _num_tokens(groups: Sequence[PromptGroup]) -> int:
    return sum(map(len, _sequences(groups)))


@contextmanager
def scoring(place: Place, summaries: int) -> Iterator[Work]:
    """Reward scores."""
    size = place.size
    groups = place.groups(max(1, size.documents // summaries), summaries)
    ours, theirs = place.scorer(), place.peer(AutoModelForSequenceClassification, place.stored.scorer)
    cost, trees = Cost.of(ours), trees_of(groups)

    def forward(batch: PackedBatch) -> Sequence[Tensor]:
        return final_scores(ours, batch).cpu().unbind()

    def peer_way(sequences: Sequence[Sequence[int]]) -> Way:
        run = in_batches(
            sequences,
            size.peer_batch,
            lambda ids, mask: scores(theirs, ids, mask).cpu(),
            pad_token_id=place.pad_token_id,
            left=False,
            device=place.device,
        )
        return Way(run=run, flops=cost.of_sequences(trees, logits=False), tokens=_num_tokens(groups))

    sequences = _sequences(groups)
    yield Work(
        ours=Way(
            run=_packed(place, groups, forward),
            flops=cost.of_trees(trees, logits=False),
            tokens=_num_tokens(groups),
        ),
        peers={
            "transformers, padded": peer_way(sequences),
            "transformers, sorted by length": peer_way(sorted(sequences, key=len)),
        },
    )


@contextmanager
def logprobs_of_responses(place: Place) -> Iterator[Work]:
    """Log-probabilities."""
    size = place.size
    groups = place.groups(size.documents, 1)
    ours, theirs = place.lm(), place.peer(AutoModelForCausalLM, place.stored.lm)
    cost, trees = Cost.of(ours), trees_of(groups)

    def forward(batch: PackedBatch) -> Sequence[Tensor]:
        statistics = response_statistics(ours, batch, temperature=TEMPERATURE)
        return torch.split(statistics.logprobs.cpu(), batch.response_lengths.tolist())

    def peer_way(**options: int) -> Way:
        run = in_batches(
            _sequences(groups),
            size.peer_batch,
            lambda ids, mask: logprobs(
                theirs,
                ids,
                mask,
                response=size.response,
                temperature=TEMPERATURE,
                select=_select(),
                **options,
            ).cpu(),
            pad_token_id=place.pad_token_id,
            left=True,
            device=place.device,
        )
        return Way(run=run, flops=cost.of_sequences(trees, logits=True), tokens=_num_tokens(groups))

    yield Work(
        ours=Way(
            run=_packed(place, groups, forward),
            flops=cost.of_trees(trees, logits=True),
            tokens=_num_tokens(groups),
        ),
        peers={
            "transformers, TRL's way": peer_way(),
            "transformers, logits_to_keep": peer_way(logits_to_keep=size.response + 1),
        },
    )


@contextmanager
def sampling(place: Place, samples: int) -> Iterator[Work]:
    """Sampling through the policy service's thread."""
    size, codec = place.size, place.stored.codec
    groups = place.groups(max(1, size.documents // samples), samples)
    prompts = [list(group.prompt) for group in groups]
    served = serve_model(place.lm(), codec=codec, version=ModelVersion("policy", 1))
    theirs = place.peer(AutoModelForCausalLM, place.stored.lm)
    cost, trees = Cost.of(served.model), trees_of(groups)
    wanted = [prompt for prompt in prompts for _ in range(samples)]
    ids, mask = padded(wanted, place.pad_token_id, left=True, device=place.device)
    tokens = len(wanted) * size.response
    seeds = itertools.count(1)

    def generate(**cache: str) -> Way:
        def run() -> None:
            with torch.inference_mode():
                theirs.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=size.response,
                    eos_token_id=None,
                    pad_token_id=place.pad_token_id,
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_k=0,
                    top_p=1.0,
                    **cache,
                ).cpu()

        return Way(run=run, flops=cost.of_sequences(trees, logits=True), tokens=tokens)

    # Not the one above: its attention will be another one.
    batched = copy.deepcopy(theirs)

    def continuously() -> None:
        answers = batched.generate_batch(
            inputs=wanted,
            generation_config=GenerationConfig(
                max_new_tokens=size.response,
                eos_token_id=-1,
                pad_token_id=place.pad_token_id,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                top_p=1.0,
            ),
            # Without a number of blocks it takes all free memory.
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=3 * max(len(wanted), 6) + 8, max_batch_tokens=size.token_budget
            ),
            progress_bar=False,
            persistent_manager=True,
            warmup=False,
        )
        assert len(answers) == len(wanted)

    runner = make_runner(served, PolicyConfig(token_budget=size.token_budget))
    try:
        yield Work(
            ours=Way(
                run=lambda: sample(
                    runner,
                    prompts,
                    samples=samples,
                    new=size.response,
                    seed=next(seeds),
                    fingerprint=codec.fingerprint,
                ),
                flops=cost.of_trees(trees, logits=True),
                tokens=tokens,
            ),
            peers={
                "transformers generate": generate(),
                "generate, static cache": generate(cache_implementation="static"),
                "continuous batching": Way(
                    run=continuously, flops=cost.of_sequences(trees, logits=True), tokens=tokens
                ),
            },
        )
    finally:
        runner.close()
        batched.destroy_cached_continuous_batching_manager()


@contextmanager
def reward_training(place: Place, summaries: int) -> Iterator[Work]:
    """One optimizer step on rankings; the peer's loss is over all pairs."""
    size = place.size
    groups = place.groups(max(1, size.documents // 8), summaries)
    ours = load_scorer(place.stored.scorer, device=place.device)
    cost, trees = Cost.of(ours), trees_of(groups)
    places = tuple(range(summaries))
    elements = [
        ComparedDocument(
            group=group,
            records=(),
            candidate_places=(),
            decisions=(Decision(tiers=tuple((place,) for place in places)),),
        )
        for group in groups
    ]
    learning = PreferenceLearning(
        ours, elements, [], token_budget=size.training_token_budget, device=place.device
    )
    updater = Updater(ours, OptimizationConfig(learning_rate=1e-5), total_steps=1_000_000)

    def step() -> None:
        with computing_in(_precision(place), place.device):
            learning.accumulate(list(range(len(elements))))
        updater.apply(0)

    pairs = [
        (group.prompt, better, worse)
        for group in groups
        for better, worse in itertools.combinations(group.responses, 2)
    ]
    peers = {}
    with ExitStack() as stack:
        if has_trl():
            pair_trees = [TreeSizes(prompt=len(p), responses=[len(b), len(w)]) for p, b, w in pairs]
            from benchmarks import gpu_trl  # TRL need not be installed

            peers["TRL RewardTrainer"] = Way(
                run=stack.enter_context(gpu_trl.reward_step(place, pairs)),
                flops=WITH_GRADIENTS * cost.of_sequences(pair_trees, logits=False),
                tokens=_num_tokens(groups),
            )
        yield Work(
            ours=Way(
                run=step,
                flops=WITH_GRADIENTS * cost.of_trees(trees, logits=False),
                tokens=_num_tokens(groups),
            ),
            peers=peers,
        )


@contextmanager
def ppo_update(place: Place, samples: int) -> Iterator[Work]:
    """A whole update in one process: sampling, the frozen passes, values, and the epochs."""
    size, codec = place.size, place.stored.codec
    groups = place.groups(max(1, size.documents // samples), samples)
    trees = trees_of(groups)
    words = [[token - shapes.NUM_SPECIAL_TOKENS for token in group.prompt] for group in groups]
    policy = load_causal_lm(place.stored.lm, device=place.device)
    critic = load_scorer(place.stored.scorer, device=place.device)
    actor_critic = SeparateValueNetwork(policy, critic, NO_NORMALIZATION)
    served = serve_model(place.lm(), codec=codec, version=ModelVersion("policy", 1))
    reference, reward = place.lm(), place.scorer()
    optimizer = PolicyOptimizer(
        actor_critic,
        OptimizerSettings(
            epochs=size.epochs,
            minibatches=1,
            token_budget=size.training_token_budget,
            temperature=TEMPERATURE,
            clip_ratio=0.2,
            clip_value=0.2,
            value_coefficient=0.1,
            learning_rate=1e-6,
            value_learning_rate=1e-6,
            adam_eps=1e-5,
            max_grad_norm=None,
            seed=0,
        ),
    )
    # What is sampled has the lengths of the experience that is learned from; its words do not matter.
    experience = random_experience(place.architecture.words, words, samples=samples, new=size.response)
    episodes = experience.rollout.responses.groups
    updates = itertools.count(1)
    runner = make_runner(served, PolicyConfig(token_budget=size.token_budget))

    def log_probabilities(batch: PackedBatch) -> Sequence[Tensor]:
        statistics = response_statistics(reference, batch, temperature=TEMPERATURE)
        return torch.split(statistics.logprobs.cpu(), batch.response_lengths.tolist())

    def values(batch: PackedBatch) -> Sequence[Tensor]:
        return torch.split(actor_critic.values(batch).cpu(), batch.response_lengths.tolist())

    def update() -> None:
        number = next(updates)
        sample(
            runner,
            [group.prompt for group in episodes],
            samples=samples,
            new=size.response,
            seed=number,
            fingerprint=codec.fingerprint,
        )
        _packed(place, episodes, log_probabilities)()
        _packed(place, episodes, lambda batch: final_scores(reward, batch).cpu().unbind())()
        with computing_in(_precision(place), place.device):
            _packed(place, episodes, values)()
            optimizer.update(
                experience,
                update=number,
                learning_rate_factor=1.0,
                progress=UpdateProgress(),
                between_steps=lambda: None,
            )

    def flops(of: Callable[..., float]) -> float:
        plain, with_logits = of(trees, logits=False), of(trees, logits=True)
        learned = size.epochs * WITH_GRADIENTS * (plain + with_logits)
        return 2 * with_logits + 2 * plain + learned  # sampler and reference; scores and values

    cost = Cost.of(policy)
    num_tokens = sum(map(len, _sequences(groups)))
    peers = {}
    try:
        with ExitStack() as stack:
            if has_trl():
                from benchmarks import gpu_trl  # TRL need not be installed

                run = stack.enter_context(
                    gpu_trl.ppo_update(place, [list(g.prompt) for g in groups for _ in g.responses])
                )
                peers["TRL PPOTrainer"] = Way(run=run, flops=flops(cost.of_sequences), tokens=num_tokens)
            yield Work(
                ours=Way(run=update, flops=flops(cost.of_trees), tokens=num_tokens),
                peers=peers,
            )
    finally:
        runner.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A work before its models are loaded."""

    name: str
    make: Callable[[Place], AbstractContextManager[Work]]


def plans(size: Size) -> list[Plan]:
    """All works."""
    return [
        *(
            Plan(name=f"reward scores, {k} per document", make=partial(scoring, summaries=k))
            for k in (1, 4, 9)
        ),
        Plan(name="log-probabilities of responses", make=logprobs_of_responses),
        *(
            Plan(
                name=f"sampling, {max(1, size.documents // k)} prompts x {k}",
                make=partial(sampling, samples=k),
            )
            for k in (1, 4)
        ),
        *(
            Plan(name=f"reward-model training, rankings of {k}", make=partial(reward_training, summaries=k))
            for k in (2, 4, 9)
        ),
        *(Plan(name=f"PPO update, {k} per prompt", make=partial(ppo_update, samples=k)) for k in (1, 4)),
    ]


def _packed(
    place: Place, groups: Sequence[PromptGroup], forward: Callable[[PackedBatch], Sequence[Tensor]]
) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            results_by_response(
                groups,
                token_budget=place.size.token_budget,
                device=place.device,
                forward=forward,
                between_batches=lambda: None,
            )

    return run


def _precision(place: Place) -> Any:
    return place.dtype  # the same two names


def _select() -> Callable[[Tensor, Tensor], Tensor]:
    """TRL's function where it is installed; else what it is documented to equal."""
    if has_trl():
        from trl.trainer.utils import selective_log_softmax

        chosen: Callable[[Tensor, Tensor], Tensor] = selective_log_softmax
        return chosen
    return lambda logits, ids: logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
