"""Peer: transformers, reward scores and log-probabilities, with one or several summaries per document.

As ``peer_hf_score.py`` does it, in padded batches; with several summaries a document is read once for each.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

import peerlib
import torch
from torch import Tensor
from trl.trainer.utils import selective_log_softmax

from benchmarks.memory import extra_bytes
from benchmarks.peer_scripts.padded import in_batches, logprobs, scores

RESPONSE_TOKENS = 48
TEMPERATURE = 0.7


def main() -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--model", default="tiny")
    flags.add_argument("--part", choices=("score", "logprob"), default="score")
    flags.add_argument("--documents", type=int, default=64)
    flags.add_argument("--summaries", type=int, default=1)
    flags.add_argument("--batch", type=int, default=16)
    flags.add_argument("--memory", action="store_true", help="measure memory instead of time")
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    config = peerlib.cfg(arguments.model)
    source = random.Random(0)
    sequences = [
        [source.randrange(config.vocab_size - 2) for _ in range(length)]
        for length in peerlib.lognormal_lengths(arguments.documents)
        for _summary in range(arguments.summaries)
    ]
    is_score = arguments.part == "score"
    model = peerlib.rm(arguments.model) if is_score else peerlib.lm(arguments.model)

    def work(
        sequences: Sequence[Sequence[int]], call: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[], None]:
        return in_batches(
            sequences, arguments.batch, call, pad_token_id=config.pad_token_id, left=not is_score
        )

    by_length = sorted(sequences, key=len)
    if is_score:

        def call(ids: Tensor, mask: Tensor) -> Tensor:
            return scores(model, ids, mask)

        ways = {"padded": work(sequences, call), "sorted": work(by_length, call)}
    else:
        options = {
            "response": RESPONSE_TOKENS,
            "temperature": TEMPERATURE,
            "select": selective_log_softmax,
        }

        def call(ids: Tensor, mask: Tensor) -> Tensor:
            return logprobs(model, ids, mask, **options)

        def keep(ids: Tensor, mask: Tensor) -> Tensor:
            return logprobs(model, ids, mask, **options, logits_to_keep=RESPONSE_TOKENS + 1)

        ways = {"trl_way": work(sequences, call), "logits_to_keep": work(sequences, keep)}
    work(by_length[:1], call)()  # a warm-up
    results: dict[str, dict[str, float]] = {}
    for name, run in ways.items():
        if arguments.memory:
            results[name] = {"extra_bytes": extra_bytes(run)}
            continue
        begin_s = time.process_time()
        run()
        seconds = time.process_time() - begin_s
        results[name] = {"cpu_s": round(seconds, 4), "rate": round(len(sequences) / seconds, 3)}
    peerlib.emit(bench="hf_scoring", part=arguments.part, sequences=len(sequences), results=results)


if __name__ == "__main__":
    main()
