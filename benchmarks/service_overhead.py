"""Ours: what asking services over gRPC costs in a PPO update, beside the same work called in process.

One update's Sample, LogProbs and Score calls are made to the three services as processes, and once more to
the objects that do the work in them. CPU seconds of both ends count: messages, checks, queues and threads are
what the services take more. New weights are left out here: ``ppo_update`` reports how long they take.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.modeling.sequences import PromptGroup
from andon.modeling.store import ModelStore
from benchmarks import shapes
from benchmarks.measuring import cpu_seconds_of_process, emit, parser, use_threads
from benchmarks.ppo_update import SERVED_MODELS, draw_prompts, publish_models, service_process
from benchmarks.sampling import TEMPERATURE, make_runner, sample
from services.policy.config import PolicyConfig
from services.policy.served_model import load_served_model
from services.reference.config import ReferenceConfig
from services.reference.logprobs import load_reference_model, response_logprobs
from services.reward.config import RewardConfig
from services.reward.scorer import load_reward_model, score_summaries

TOLERANCE = 1e-4  # between answers of the same engine, which travel as float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What an update asks for, by response."""

    tokens: list[list[int]]
    logprobs: list[list[float]]  # nats, of the reference
    scores: list[float]


def check_same(here: Answers, there: Answers) -> None:
    """End the benchmark where the two ways do not give the same answers: then they are not the same work."""
    if here.tokens != there.tokens:
        raise SystemExit("the service sampled other tokens than its engine does in process")
    for what, ours, theirs in (
        ("log-probability", here.logprobs, there.logprobs),
        ("score", here.scores, there.scores),
    ):
        largest = float((torch.tensor(ours) - torch.tensor(theirs)).abs().max())
        if not largest <= TOLERANCE:
            raise SystemExit(f"a {what} over gRPC differs by {largest:.2g} from the one in process")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compare the answers, and print."""
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=64)
    flags.add_argument("--shortest", type=int, default=120)
    flags.add_argument("--longest", type=int, default=280)
    flags.add_argument("--new", type=int, default=48)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    drawn = draw_prompts(arguments.batch, 1, arguments.shortest, arguments.longest, shape)
    prompts = [tuple(shapes.token_ids(words)) for words in drawn]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        store = ModelStore(Path(folder) / "store")
        publish_models(store, shape, codec)
        services = {
            name: stack.enter_context(service_process(name, store.root, arguments.threads))
            for name in SERVED_MODELS
        }
        policy = stack.enter_context(PolicyClient(services["policy"].target))
        reference = stack.enter_context(ReferenceClient(services["reference"].target))
        reward = stack.enter_context(RewardClient(services["reward"].target))
        versions = {name: store.resolve(model).version for name, model in SERVED_MODELS.items()}

        served = load_served_model(SERVED_MODELS["policy"], store=store, dtype="float32", device="cpu")
        runner = make_runner(served, PolicyConfig())
        stack.callback(runner.close)
        reference_model = load_reference_model(SERVED_MODELS["reference"], ReferenceConfig(store=store.root))
        reward_model = load_reward_model(SERVED_MODELS["reward"], RewardConfig(store=store.root))

        def in_process(seed: int) -> Answers:
            outcome = sample(
                runner, prompts, samples=1, new=arguments.new, seed=seed, fingerprint=codec.fingerprint
            )
            responses = [sequence.token_ids.tolist() for sequence in outcome.sequences]
            groups = [
                PromptGroup(prompt, [response]) for prompt, response in zip(prompts, responses, strict=True)
            ]
            logprobs = response_logprobs(
                reference_model,
                groups,
                temperature=TEMPERATURE,
                token_budget=ReferenceConfig().token_budget,
                between_batches=lambda: None,
            )
            scores = score_summaries(
                reward_model,
                groups,
                token_budget=RewardConfig().token_budget,
                between_batches=lambda: None,
            )
            return Answers(
                tokens=responses,
                logprobs=[row for group in logprobs for row in group],
                scores=[score.score for row in scores for score in row],
            )

        def over_grpc(seed: int) -> Answers:
            sampled = policy.sample(
                prompts,
                SamplingParameters(max_new_tokens=arguments.new, temperature=TEMPERATURE, seed=seed),
                required_model=versions["policy"],
            )
            responses = [list(result.samples[0].token_ids) for result in sampled.results]
            items = [(prompt, [response]) for prompt, response in zip(prompts, responses, strict=True)]
            logprobs = reference.logprobs(
                items, temperature=TEMPERATURE, required_model=versions["reference"], timeout_s=600.0
            )
            scores = reward.score(items, required_model=versions["reward"], timeout_s=600.0)
            return Answers(
                tokens=responses,
                logprobs=[list(row) for item in logprobs.items for row in item],
                scores=[score.score for row in scores.items for score in row],
            )

        def seconds() -> float:
            return time.process_time() + sum(
                cpu_seconds_of_process(running.process.pid) for running in services.values()
            )

        def timed(work: Callable[[int], Answers], seed: int) -> tuple[float, Answers]:
            begin_s = seconds()
            answers = work(seed)
            return seconds() - begin_s, answers

        here: list[float] = []
        there: list[float] = []
        for repetition in itertools.count():
            here_s, answers_here = timed(in_process, repetition)
            there_s, answers_there = timed(over_grpc, repetition)
            if repetition == 0:  # a warm-up
                check_same(answers_here, answers_there)
                continue
            here.append(here_s)
            there.append(there_s)
            if repetition == arguments.repetitions:
                break
    emit(
        bench="andon_service_overhead",
        in_process_cpu_s=round(statistics.median(here), 4),
        served_cpu_s=round(statistics.median(there), 4),
        calls_overhead_cpu_s=round(
            statistics.median(more - less for more, less in zip(there, here, strict=True)), 4
        ),
    )


if __name__ == "__main__":
    main()
