"""TRL's trainers on the device that is measured; imported only where TRL is installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.sampling import TEMPERATURE

if TYPE_CHECKING:
    from benchmarks.gpu_place import Place

Pair = tuple[Sequence[int], Sequence[int], Sequence[int]]  # a document, the better and the worse summary


@contextmanager
def reward_step(place: Place, pairs: Sequence[Pair]) -> Iterator[Callable[[], None]]:
    """One optimizer step of RewardTrainer over all pairs."""
    batch_pairs = min(place.size.peer_training_batch, len(pairs))
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=_float32(place, AutoModelForSequenceClassification, place.stored.scorer).train(),
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=batch_pairs,
                max_length=place.architecture.positions,
                learning_rate=1e-5,
                report_to="none",
                **_settings(place),
            ),
            processing_class=_tokenizer(place, padding_side="right"),
            train_dataset=Dataset.from_list(
                [
                    {"chosen_ids": [*document, *better], "rejected_ids": [*document, *worse]}
                    for document, better, worse in pairs
                ]
            ),
        )
        model = trainer.accelerator.prepare(trainer.model)
        trainer.create_optimizer()
        batches = list(trainer.get_train_dataloader())

        def step() -> None:
            for batch in batches:
                loss = trainer.compute_loss(model, dict(batch))
                trainer.accelerator.backward(loss / len(batches))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        yield step


@contextmanager
def ppo_update(place: Place, prompts: Sequence[Sequence[int]]) -> Iterator[Callable[[], None]]:
    """One update of PPOTrainer, one episode per prompt."""
    size = place.size
    micro = min(size.peer_training_batch, len(prompts))
    lm, scorer = place.stored.lm, place.stored.scorer
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=len(prompts) // micro,
                num_mini_batches=1,
                num_ppo_epochs=size.epochs,
                total_episodes=len(prompts),
                response_length=size.response,
                temperature=TEMPERATURE,
                local_rollout_forward_batch_size=min(size.peer_batch, len(prompts)),
                learning_rate=1e-6,
                report_to="none",
                num_sample_generations=0,
                save_strategy="no",
                missing_eos_penalty=None,
                **_settings(place),
            ),
            processing_class=_tokenizer(place, padding_side="left"),
            model=_float32(place, AutoModelForCausalLM, lm),
            # Frozen ones are served in the same format as ours.
            ref_model=place.peer(AutoModelForCausalLM, lm),
            reward_model=place.peer(AutoModelForSequenceClassification, scorer),
            value_model=_float32(place, AutoModelForSequenceClassification, scorer),
            train_dataset=Dataset.from_dict({"input_ids": [list(prompt) for prompt in prompts]}),
        )
        yield trainer.train


def _settings(place: Place) -> dict[str, Any]:
    return {
        "bf16": place.dtype == "bfloat16",
        "use_cpu": place.device == "cpu",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 1000,
        "dataloader_pin_memory": False,
    }


def _float32(place: Place, auto_class: Any, folder: Any) -> Any:
    return auto_class.from_pretrained(folder, dtype=torch.float32).to(place.device)


def _tokenizer(place: Place, *, padding_side: str) -> Any:
    tokenizer = place.stored.codec.tokenizer
    tokenizer.padding_side = padding_side
    return tokenizer
