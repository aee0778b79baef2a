"""Ours: tokens that the policy service's sampler writes, one or several samples per prompt.

A call goes through the service's own thread, scheduler and engine; only the request over the network is left
out, as it is on the peer's side.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from andon.modeling.linear import KERNELS_OF_SAMPLING, keep_kernels
from andon.modeling.versions import ModelVersion
from benchmarks import shapes
from benchmarks.flops import TreeSizes, sampling_needs
from benchmarks.measuring import cpu_seconds, emit_rate, parser, use_threads
from benchmarks.shapes import Shape
from services.policy.call import CallOutcome, SampleCall, SamplingParameters
from services.policy.config import PolicyConfig
from services.policy.metrics import PolicyMetrics
from services.policy.runner import RunnerSettings, SamplingRunner
from services.policy.served_model import ServedModel, serve_model

TEMPERATURE = 0.7  # the peers'
PEER_SEQUENCES = 32  # of the peer's batch, whose prompts ours are taken from


def prompts(count: int, shortest: int, longest: int, shape: Shape) -> tuple[tuple[int, ...], ...]:
    """The peer's prompts, or ``count`` of them with the same spread of lengths."""
    every = max(1, PEER_SEQUENCES // count)
    drawn = shapes.prompts(count * every, shortest, longest, shape, seed=PEER_SEQUENCES)
    by_length = sorted(drawn, key=len)
    return tuple(tuple(shapes.token_ids(words)) for words in by_length[every // 2 :: every])


def make_runner(served: ServedModel, config: PolicyConfig) -> SamplingRunner:
    """The service's sampler with the service's settings, serving the model."""
    runner = SamplingRunner(
        RunnerSettings(
            running_sequences=config.max_running_sequences,
            cache_bytes=config.cache_mib * 1024 * 1024,
            waiting_calls=config.max_queued_calls,
            max_new_tokens=config.max_new_tokens,
            max_stop_tokens=0,
            prefill_tokens=config.token_budget,
        ),
        PolicyMetrics(CollectorRegistry()),
    )
    runner.start()
    runner.replace(lambda before: served).result()
    return runner


def sample(
    runner: SamplingRunner,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    new: int,
    seed: int,
    fingerprint: str,
) -> CallOutcome:
    """One call through the sampler's thread; ``fingerprint`` is the tokenizer's."""
    call = SampleCall(
        call_id=runner.next_id(),
        prompts=tuple(map(tuple, prompts)),
        parameters=SamplingParameters(
            samples_per_prompt=samples,
            temperature=TEMPERATURE,
            top_p=1.0,
            max_new_tokens=new,
            stop_texts=(),
            stop_token_ids=(),
            seed=seed,
        ),
        required_model=None,
        tokenizer_fingerprint=fingerprint,
        arrival_s=runner.clock(),
    )
    return runner.submit(call).result()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--prompts", type=int, default=32)
    flags.add_argument("--samples", type=int, default=1)
    flags.add_argument("--shortest", type=int, default=128)
    flags.add_argument("--longest", type=int, default=512)
    flags.add_argument("--new", type=int, default=48)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    keep_kernels(KERNELS_OF_SAMPLING)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    served = serve_model(shapes.causal_lm(shape, codec), codec=codec, version=ModelVersion("policy", 1))
    runner = make_runner(served, PolicyConfig())
    work = prompts(arguments.prompts, arguments.shortest, arguments.longest, shape)
    seeds = itertools.count(1)
    outcomes: list[CallOutcome] = []

    def run() -> None:
        outcomes.append(
            sample(
                runner,
                work,
                samples=arguments.samples,
                new=arguments.new,
                seed=next(seeds),
                fingerprint=codec.fingerprint,
            )
        )

    try:
        seconds = cpu_seconds(run, repetitions=arguments.repetitions)
    finally:
        runner.close()
    tokens = sum(len(sequence.token_ids) for sequence in outcomes[-1].sequences)
    trees = [TreeSizes(prompt=len(prompt), responses=[arguments.new] * arguments.samples) for prompt in work]
    emit_rate(
        bench="andon_sampling",
        count=tokens,
        cpu_s=seconds,
        needs=sampling_needs(shape, trees),
        tokens=tokens,
    )


if __name__ == "__main__":
    main()
