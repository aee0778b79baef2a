"""Ours: one update's optimizer steps, by one trainer process or by several under torchrun.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.trainer_ranks

Seconds on the clock, because the processes wait for each other: rank 0 measures. Beside them the CPU seconds
of rank 0. The episodes of an update stay the same, whatever the number of processes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from andon.modeling.store import ModelStore
from benchmarks import shapes
from benchmarks.experience import random_experience
from benchmarks.measuring import emit, parser, use_threads
from benchmarks.ppo_update import draw_prompts, publish_models
from services.trainer.actor_critic import ActorCriticSource, load_actor_critic
from services.trainer.followers import enlist, follow, say_farewell
from services.trainer.policy_optimizer import OptimizerSettings, PolicyOptimizer, UpdateProgress
from services.trainer.ranks import Ranks, join_ranks
from services.trainer.stages.ppo_config import PpoConfig

TIMEOUT_S = 600.0


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print, on rank 0."""
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=64)
    flags.add_argument("--epochs", type=int, default=1)
    flags.add_argument("--shortest", type=int, default=120)
    flags.add_argument("--longest", type=int, default=280)
    flags.add_argument("--new", type=int, default=48)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    ranks = join_ranks("cpu", timeout_s=TIMEOUT_S)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not ranks.leads:
            # Its own store is empty: it is told folders on the one machine that all share.
            follow(ranks, store=ModelStore(folder), threads=arguments.threads)
            return
        stack.callback(say_farewell, ranks)
        shape = shapes.SHAPES[arguments.shape]
        prompts = draw_prompts(arguments.batch, 1, arguments.shortest, arguments.longest, shape)
        seconds, cpu_s = measure(
            ranks,
            ModelStore(folder / "store"),
            shape,
            prompts,
            new=arguments.new,
            epochs=arguments.epochs,
            repetitions=arguments.repetitions,
        )
    emit(
        bench="andon_trainer_ranks",
        processes=ranks.size,
        wall_s=round(seconds, 4),
        cpu_s=round(cpu_s, 4),
        rate=round(arguments.batch / seconds, 3),
    )


def measure(
    ranks: Ranks,
    store: ModelStore,
    shape: shapes.Shape,
    prompts: Sequence[list[int]],
    *,
    new: int,
    epochs: int,
    repetitions: int,
) -> tuple[float, float]:
    """Seconds on the clock and CPU seconds of this process for one update, the fastest of several."""
    publish_models(store, shape, shapes.codec(shape))
    source = ActorCriticSource(policy=store.locate("sft/1").source, scorer=store.locate("reward/1").source)
    actor_critic = load_actor_critic(source, device=ranks.device)
    settings = OptimizerSettings(
        epochs=epochs,
        minibatches=1,
        token_budget=PpoConfig.model_fields["token_budget"].default,
        temperature=0.7,
        clip_ratio=0.2,
        clip_value=0.2,
        value_coefficient=0.1,
        learning_rate=1e-5,
        value_learning_rate=1e-5,
        adam_eps=1e-5,
        max_grad_norm=1.0,
        seed=0,
    )
    optimizer = PolicyOptimizer(actor_critic, settings, ranks)
    enlist(
        ranks,
        run_id="benchmark",
        names=source,
        settings=settings,
        actor_critic=actor_critic,
        optimizer=optimizer,
    )
    experience = random_experience(shape, prompts, samples=1, new=new)
    taken = []
    for update in range(1, 2 + repetitions):  # the first is a warm-up
        begin = time.perf_counter(), time.process_time()
        optimizer.update(
            experience,
            update=update,
            learning_rate_factor=1.0,
            progress=UpdateProgress(),
            between_steps=lambda: None,
        )
        taken.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return min(taken[1:])


if __name__ == "__main__":
    main()
