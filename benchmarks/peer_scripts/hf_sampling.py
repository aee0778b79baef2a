"""Peer: transformers, several samples of each prompt, in the ways of ``peer_hf_generate.py``.

``generate`` is given each prompt as often as it is sampled, which is what ``num_return_sequences`` does too;
continuous batching gets the same list and may share what it can.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import peerlib
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.peer_scripts.padded import padded

TEMPERATURE = 0.7
PEER_SEQUENCES = 32  # of whose prompts fewer ones are taken


def prompts(model: str, count: int, shortest: int, longest: int) -> list[list[int]]:
    """``count`` prompts with the spread of lengths of the whole batch's."""
    every = max(1, PEER_SEQUENCES // count)
    vocab_size = peerlib.cfg(model).vocab_size
    drawn = peerlib.prompts(count * every, shortest, longest, vocab_size, seed=PEER_SEQUENCES)
    return sorted(drawn, key=len)[every // 2 :: every]


def main() -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--model", default="tiny")
    flags.add_argument("--prompts", type=int, default=8)
    flags.add_argument("--samples", type=int, default=4)
    flags.add_argument("--shortest", type=int, default=128)
    flags.add_argument("--longest", type=int, default=512)
    flags.add_argument("--new", type=int, default=48)
    flags.add_argument("--repetitions", type=int, default=1)
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    config = peerlib.cfg(arguments.model)
    model = peerlib.lm(arguments.model)
    batched = peerlib.lm(arguments.model)  # continuous batching changes its model's attention
    drawn = prompts(arguments.model, arguments.prompts, arguments.shortest, arguments.longest)
    wanted = [prompt for prompt in drawn for _ in range(arguments.samples)]
    ids, mask = padded(wanted, config.pad_token_id, left=True)
    options = {
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_k": 0,
        "top_p": 1.0,
        "pad_token_id": config.pad_token_id,
    }

    def generate(new: int, **cache: str) -> None:
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                eos_token_id=None,
                **options,
                **cache,
            )
        assert output.shape[1] == ids.shape[1] + new, output.shape

    def continuously(new: int, inputs: Sequence[Sequence[int]] = wanted) -> None:
        answers = batched.generate_batch(
            inputs=list(inputs),
            generation_config=GenerationConfig(max_new_tokens=new, eos_token_id=-1, **options),
            # Without a number of blocks it takes all free memory.
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=3 * max(len(wanted), 6) + 8, max_batch_tokens=1024
            ),
            progress_bar=False,
            persistent_manager=True,
            warmup=False,
        )
        lengths = [len(answer.generated_tokens) for answer in answers.values()]
        assert lengths == [new] * len(inputs), lengths

    ways: dict[str, Callable[[int], None]] = {
        "dyn": generate,
        "static": lambda new: generate(new, cache_implementation="static"),
        "cb": continuously,
    }
    results: dict[str, dict[str, float]] = {}
    for name, run in ways.items():
        times: list[float] = []
        for _ in range(1 + arguments.repetitions):
            begin_s = time.process_time()
            run(arguments.new)
            times.append(time.process_time() - begin_s)
        seconds = statistics.median(times[1:])  # the first is a warm-up
        tokens = len(wanted) * arguments.new
        results[name] = {"cpu_s": round(seconds, 4), "tok_s_cpu": round(tokens / seconds, 2)}
    batched.destroy_cached_continuous_batching_manager()
    peerlib.emit(bench="hf_sampling", sequences=len(wanted), new=arguments.new, results=results)


if __name__ == "__main__":
    main()
