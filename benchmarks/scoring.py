"""Ours: reward scores, one or several summaries per document, and log-probabilities of responses.

What the reward and the reference service do with a request once it has arrived. Time, or with ``--memory``
the most that is held above the model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from andon.modeling.batches import results_by_response
from andon.modeling.forward import final_scores, response_statistics
from andon.modeling.linear import KERNELS_OF_LOGPROBS, KERNELS_OF_SCORES, keep_kernels
from andon.modeling.loading import freeze
from andon.modeling.sequences import PackedBatch, PromptGroup
from benchmarks import shapes
from benchmarks.flops import TreeSizes, flops_only, logprob_flops, score_flops
from benchmarks.measuring import cpu_seconds, emit, emit_rate, parser, use_threads
from benchmarks.memory import extra_bytes
from benchmarks.shapes import Shape
from services.reference.config import ReferenceConfig
from services.reward.config import RewardConfig

RESPONSE_TOKENS = 48  # the peers'
TEMPERATURE = 0.7  # the peers'


def groups(shape: Shape, count: int, summaries: int, length: int | None = None) -> list[PromptGroup]:
    """``count`` documents; a document and one summary together have the peers' lengths, or all this one."""
    lengths = shapes.lognormal_lengths(count, median=250, sigma=0.5, shortest=32, longest=900)
    if length is not None:
        lengths = [length] * count
    source = random.Random(0)

    def ids(number: int) -> list[int]:
        return shapes.token_ids(shapes.random_words(source, number, shape))

    # The shortest sequences have less room than a full response takes.
    response = [min(RESPONSE_TOKENS, length // 2) for length in lengths]
    return [
        PromptGroup(ids(length - tokens), [ids(tokens) for _ in range(summaries)])
        for length, tokens in zip(lengths, response, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = parser(__doc__)
    flags.add_argument("--part", choices=("score", "logprob"), default="score")
    flags.add_argument("--documents", type=int, default=64)
    flags.add_argument("--summaries", type=int, default=1)
    flags.add_argument("--length", type=int, help="tokens of a document and one summary; else the peers'")
    flags.add_argument("--token-budget", type=int, help="else the service's")
    flags.add_argument("--memory", action="store_true", help="measure memory instead of time")
    arguments = flags.parse_args(argv)
    use_threads(arguments.threads)
    shape = shapes.SHAPES[arguments.shape]
    codec = shapes.codec(shape)
    work = groups(shape, arguments.documents, arguments.summaries, arguments.length)
    is_score = arguments.part == "score"
    config = RewardConfig if is_score else ReferenceConfig
    token_budget = arguments.token_budget or config.model_fields["token_budget"].default
    keep_kernels(KERNELS_OF_SCORES if is_score else KERNELS_OF_LOGPROBS)
    model = freeze(shapes.scorer(shape, codec) if is_score else shapes.causal_lm(shape, codec))

    def forward(batch: PackedBatch) -> Sequence[Tensor]:
        if is_score:
            return final_scores(model, batch).unbind()
        statistics = response_statistics(model, batch, temperature=TEMPERATURE)
        return torch.split(statistics.logprobs, batch.response_lengths.tolist())

    @torch.inference_mode()
    def run(groups: Sequence[PromptGroup] = work) -> None:
        results_by_response(
            groups,
            token_budget=token_budget,
            device="cpu",
            forward=forward,
            between_batches=lambda: None,
        )

    if arguments.memory:
        run([min(work, key=lambda group: len(group.prompt))])  # a warm-up, the peer's
        emit(bench=f"andon_{arguments.part}_memory", extra_bytes=extra_bytes(run))
        return
    trees = [
        TreeSizes(prompt=len(group.prompt), responses=[len(response) for response in group.responses])
        for group in work
    ]
    emit_rate(
        bench=f"andon_{arguments.part}",
        count=arguments.documents * arguments.summaries,
        cpu_s=cpu_seconds(run, repetitions=arguments.repetitions),
        needs=flops_only((score_flops if is_score else logprob_flops)(shape, trees)),
    )


if __name__ == "__main__":
    main()
