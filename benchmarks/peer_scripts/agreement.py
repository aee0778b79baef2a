"""Peer: what transformers and TRL give for a task in a folder, for ``benchmarks.agreement`` to compare.

The folder has a language model, a reward model and ``task.json``. Left behind is ``theirs.safetensors``:
scores [responses], logprobs [response tokens], and the gradient of the reward model's loss by parameter.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl.trainer.utils import selective_log_softmax


def pair_gradients(scorer: Any, tokenizer: Any, task: dict[str, Any]) -> dict[str, Tensor]:
    """Of TRL's loss over all pairs of every ranking, each pair weighing the same."""
    pairs = [
        {"chosen_ids": group["prompt"] + better, "rejected_ids": group["prompt"] + worse}
        for group in task["groups"]
        for better, worse in itertools.combinations(group["responses"], 2)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=scorer.train(),
            args=RewardConfig(
                output_dir=folder,
                per_device_train_batch_size=len(pairs),
                max_length=1024,
                report_to="none",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
            ),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs),
        )
        (batch,) = trainer.get_train_dataloader()
        trainer.compute_loss(trainer.model, batch).backward()
    return {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


def ppo_update(folder: Path, tokenizer: Any, task: dict[str, Any]) -> dict[str, Tensor]:
    """What PPOTrainer sampled in one update of one step, and the gradients it stepped with."""
    import trl.experimental.ppo.ppo_trainer as module
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer.padding_side = "left"
    prompts = [group["prompt"] for group in task["groups"]]
    seen: dict[str, Tensor] = {}
    generate = module.batch_generation

    def watched(model: Any, queries: Tensor, *rest: Any, **options: Any) -> Any:
        sampled, logits = generate(model, queries, *rest, **options)
        seen["queries"], seen["responses"] = queries, sampled[:, queries.shape[1] :].contiguous()
        return sampled, logits

    with tempfile.TemporaryDirectory() as output:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=output,
                per_device_train_batch_size=len(prompts),
                num_mini_batches=1,
                num_ppo_epochs=1,
                total_episodes=len(prompts),
                response_length=task["new_tokens"],
                temperature=task["temperature"],
                kl_coef=task["beta"],
                gamma=task["gamma"],
                lam=task["lam"],
                cliprange=task["clip"],
                cliprange_value=task["clip"],
                vf_coef=task["value_coefficient"],
                learning_rate=1e-5,
                report_to="none",
                num_sample_generations=0,
                disable_tqdm=True,
                save_strategy="no",
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                missing_eos_penalty=None,
            ),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32),
            ref_model=AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32),
            reward_model=_scorer(folder),
            value_model=_scorer(folder),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
        )
        step = trainer.optimizer.step

        def watched_step(*rest: Any, **options: Any) -> Any:
            for role, network in (("policy", trainer.model.policy), ("value", trainer.model.value_model)):
                for name, parameter in network.named_parameters():
                    if parameter.grad is not None:
                        seen[f"ppo gradient {role} {name}"] = parameter.grad.clone()
            return step(*rest, **options)

        module.batch_generation, trainer.optimizer.step = watched, watched_step
        try:
            trainer.train()
        finally:
            module.batch_generation = generate
    return seen


def _scorer(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder / "scorer", dtype=torch.float32)


def main(folder: Path) -> None:
    """Compute and write."""
    task = json.loads((folder / "task.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "scorer")
    tokenizer.padding_side = "right"
    model = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=torch.float32).eval()
    scorer = _scorer(folder).eval()
    scores, logprobs = [], []
    with torch.inference_mode():
        for group in task["groups"]:
            for response in group["responses"]:
                ids = torch.tensor([group["prompt"] + response])
                scores.append(scorer(input_ids=ids, use_cache=False).logits[0, 0])
                logits = model(input_ids=ids, use_cache=False).logits[:, -len(response) - 1 : -1]
                logits /= task["temperature"]
                logprobs.append(selective_log_softmax(logits, ids[:, -len(response) :])[0])
    gradients = pair_gradients(scorer, tokenizer, task)
    save_file(
        {
            "scores": torch.stack(scores),
            "logprobs": torch.cat(logprobs),
            **{f"gradient {name}": gradient.contiguous() for name, gradient in gradients.items()},
            **ppo_update(folder, tokenizer, task),
        },
        folder / "theirs.safetensors",
    )
    print("JSON " + json.dumps({"bench": "peers_results", "responses": len(scores)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
