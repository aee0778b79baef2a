"""Ours: comparisons per second of reward-model training, through the stage's own loop, batches, loss and
optimizer.

A ranking of K summaries states K (K - 1) / 2 comparisons, and all of them count. The first of two epochs is a
warm-up; with ``--median-step`` it is the first step, as the peer's script for pairs has it. What is left out
is what a run does once: loading, validation, storing. The peers' scripts leave it out too.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from andon.corpus.records import CandidateRecord, ComparisonRecord
from andon.modeling.linear import KERNELS_OF_TRAINING, keep_kernels
from andon.modeling.store import ModelStore
from benchmarks import shapes
from benchmarks.flops import WITH_GRADIENTS, TreeSizes, flops_only, score_flops
from benchmarks.measuring import emit_rate, parser, use_threads
from benchmarks.shapes import Shape
from benchmarks.stage_run import TimedRun
from services.trainer.stages.batch_order import BatchOrder
from services.trainer.stages.comparisons import group_by_document
from services.trainer.stages.context import RunStopped, StageClients
from services.trainer.stages.preference_learning import PreferenceLearning
from services.trainer.stages.reward_model import RewardModelConfig
from services.trainer.stages.training_loop import TrainingLoop


def comparisons(
    shape: Shape, count: int, summaries: int, *, median: int, shortest: int, longest: int, response: int
) -> list[ComparisonRecord]:
    """Random rankings; documents and summaries have the peer's lengths."""
    lengths = shapes.lognormal_lengths(count, median=median, sigma=0.4, shortest=shortest, longest=longest)
    source = random.Random(0)

    def text(number: int) -> str:
        return shapes.text(shapes.random_words(source, number, shape))

    records = []
    for number, length in enumerate(lengths):
        document = text(length)
        ranked = [text(source.randint(response // 2, response)) for _ in range(summaries)]
        records.append(
            ComparisonRecord(
                document_id=str(number),
                document=document,
                candidates=tuple(CandidateRecord(text=summary) for summary in ranked),
                tiers=tuple((place,) for place in range(summaries)),
                comparison_id=str(number),
            )
        )
    return records


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--documents", type=int, default=64)
    flags.add_argument("--summaries", type=int, default=2)
    flags.add_argument("--batch", type=int, default=8, help="documents per optimizer step")
    flags.add_argument("--median-step", action="store_true", help="time single steps, not a whole epoch")
    flags.add_argument("--median", type=int, default=200)
    flags.add_argument("--shortest", type=int, default=32)
    flags.add_argument("--longest", type=int, default=600)
    flags.add_argument("--response", type=int, default=48)
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    keep_kernels(KERNELS_OF_TRAINING)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    config = RewardModelConfig(
        base_model="(random)",
        comparisons="(random)",
        batch_comparisons=arguments.batch,
        learning_rate=1e-5,
        schedule="linear",
        epochs=2,
    )
    records = comparisons(
        shape,
        arguments.documents,
        arguments.summaries,
        median=arguments.median,
        shortest=arguments.shortest,
        longest=arguments.longest,
        response=arguments.response,
    )
    elements = group_by_document(records, codec, max_summary_tokens=config.max_summary_tokens)
    order = BatchOrder(
        [len(element.informative_decisions) for element in elements],
        budget=config.batch_comparisons,
        seed=config.seed,
        steps=None,
        epochs=config.epochs,
    )
    scorer = shapes.scorer(shape, codec)
    with TemporaryDirectory() as folder:
        context = TimedRun(
            store=ModelStore(Path(folder)),
            clients=StageClients(),
            threads=arguments.threads,
            num_steps=len(order) - 1,
            clock=time.process_time,
        )
        loop = TrainingLoop(
            context=context,
            config=config,
            model=scorer,
            order=order,
            workload=PreferenceLearning(
                scorer, elements, [], token_budget=config.token_budget, device=context.device
            ),
            validation_interval=config.validation_interval,
            identity={},
        )
        with suppress(RunStopped):
            loop.run()
    steps = [end_s - begin_s for begin_s, end_s in context.steps]
    timed = steps if arguments.median_step else steps[-(len(order) // 2) :]
    seconds = statistics.median(timed) if arguments.median_step else sum(timed)
    documents = arguments.batch if arguments.median_step else arguments.documents
    trees = [
        TreeSizes(
            prompt=len(element.group.prompt),
            responses=[len(response) for response in element.group.responses],
        )
        for element in elements
    ]
    share = documents / arguments.documents  # of the work of an epoch
    emit_rate(
        bench="andon_reward_training",
        count=documents * arguments.summaries * (arguments.summaries - 1) // 2,
        cpu_s=seconds,
        needs=flops_only(share * WITH_GRADIENTS * score_flops(shape, trees)),
        steps=len(timed),
    )


if __name__ == "__main__":
    main()
