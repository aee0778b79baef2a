"""Ours: tokens per second of one or several policy processes, asked over gRPC as the trainer asks them.

The prompts are shared out among the processes, all of which work at the same time. Seconds on the clock, and
beside them the CPU seconds of all processes: on fewer cores than processes the clock gains nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from andon.client.policy import PolicyClient, SampleResult, SamplingParameters
from andon.modeling.store import ModelStore
from benchmarks import shapes
from benchmarks.measuring import cpu_seconds_of_process, emit, parser, use_threads
from benchmarks.ppo_update import draw_prompts, publish_models, service_process
from benchmarks.sampling import TEMPERATURE
from services.trainer.rollout import call_seed, split_evenly


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--processes", type=int, default=1)
    flags.add_argument("--prompts", type=int, default=64)
    flags.add_argument("--shortest", type=int, default=120)
    flags.add_argument("--longest", type=int, default=280)
    flags.add_argument("--new", type=int, default=48)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    shape = shapes.SHAPES[arguments.shape]
    prompts = [
        tuple(shapes.token_ids(words))
        for words in draw_prompts(arguments.prompts, 1, arguments.shortest, arguments.longest, shape)
    ]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        store = ModelStore(Path(folder) / "store")
        publish_models(store, shape, shapes.codec(shape))
        running = [
            stack.enter_context(service_process("policy", store.root, arguments.threads))
            for _ in range(arguments.processes)
        ]
        clients = [stack.enter_context(PolicyClient(process.target)) for process in running]
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=len(clients)))

        def share(number: int, update: int) -> SampleResult:
            return clients[number].sample(
                split_evenly(prompts, len(clients))[number],
                SamplingParameters(
                    max_new_tokens=arguments.new,
                    temperature=TEMPERATURE,
                    seed=call_seed(0, update=update, replica=number),
                ),
            )

        def cpu_seconds() -> float:
            return time.process_time() + sum(
                cpu_seconds_of_process(process.process.pid) for process in running
            )

        taken = []
        for update in range(1 + arguments.repetitions):  # the first is a warm-up
            begin = time.perf_counter(), cpu_seconds()
            answers = list(pool.map(share, range(len(clients)), [update] * len(clients)))
            taken.append((time.perf_counter() - begin[0], cpu_seconds() - begin[1]))
    tokens = sum(len(result.samples[0].token_ids) for answer in answers for result in answer.results)
    seconds, cpu_s = min(taken[1:])
    emit(
        bench="andon_policy_replicas",
        processes=arguments.processes,
        tokens=tokens,
        wall_s=round(seconds, 4),
        cpu_s=round(cpu_s, 4),
        rate=round(tokens / seconds, 2),
    )


if __name__ == "__main__":
    main()
