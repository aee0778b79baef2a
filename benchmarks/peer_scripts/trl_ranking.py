"""Peer: TRL RewardTrainer on documents with K ranked summaries each, as all their K (K - 1) / 2 pairs.

As ``peer_trl_reward.py`` does it, in batches of up to 8 pairs; gradients are gathered until the optimizer
takes as many pairs in a step as ours does. The first of two epochs is a warm-up.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import peerlib
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

MOST_PAIRS = 8  # in a forward pass


class Clock(TrainerCallback):  # type: ignore[misc] # transformers is not followed
    """CPU seconds at the begin of the second epoch and at the end."""

    def __init__(self, steps_per_epoch: int) -> None:
        self.seconds: list[float] = []
        self._steps_per_epoch = steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after every optimizer step."""
        if state.global_step % self._steps_per_epoch == 0:
            self.seconds.append(time.process_time())


def rows(model: str, documents: int, summaries: int, response: int) -> list[dict[str, str]]:
    """All pairs of every document."""
    source = random.Random(0)
    vocab_size = peerlib.cfg(model).vocab_size

    def words(count: int) -> str:
        return " ".join(f"t{source.randrange(vocab_size - 2)}" for _ in range(count))

    made = []
    for length in peerlib.lognormal_lengths(documents, 200, 0.4, 32, 600):
        document = words(length) + " "
        ranked = [words(source.randint(response // 2, response)) for _ in range(summaries)]
        made += [
            {"prompt": document, "chosen": better, "rejected": worse}
            for better, worse in itertools.combinations(ranked, 2)
        ]
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--model", default="tiny")
    flags.add_argument("--documents", type=int, default=8)
    flags.add_argument("--summaries", type=int, default=4)
    flags.add_argument("--documents-per-step", type=int, default=4)
    flags.add_argument("--response", type=int, default=48)
    arguments = flags.parse_args(argv)
    torch.set_num_threads(1)
    tokenizer = peerlib.tokenizer(arguments.model)
    tokenizer.padding_side = "right"
    pairs = rows(arguments.model, arguments.documents, arguments.summaries, arguments.response)
    per_step = arguments.documents_per_step * len(pairs) // arguments.documents
    steps_per_epoch = len(pairs) // per_step
    batch = max(size for size in range(1, MOST_PAIRS + 1) if per_step % size == 0)
    if len(pairs) % per_step:
        raise SystemExit(f"{len(pairs)} pairs do not divide into steps of {per_step}")
    clock = Clock(steps_per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=peerlib.rm(arguments.model).train(),
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=per_step // batch,
                num_train_epochs=2,
                max_length=1024,
                learning_rate=1e-5,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                logging_steps=1000,
            ),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs),
            callbacks=[clock],
        )
        trainer.train()
    begin_s, end_s = clock.seconds
    peerlib.emit(
        bench="trl_ranking",
        pairs=len(pairs),
        steps=steps_per_epoch,
        cpu_s=round(end_s - begin_s, 3),
        rate=round(len(pairs) / (end_s - begin_s), 3),
    )


if __name__ == "__main__":
    main()
