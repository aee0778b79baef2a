"""What one seed's runs begin with: models that the real stages trained on the built-in corpus.

A world is a folder with a model store: a supervised model and four reward models. "reward" learned people's
comparisons, "witness" those of other people about other documents, "swapped" has chosen and rejected
exchanged, "hackable" learned from people who like a summary the more the longer it is. A finished world is
kept and read again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from andon.cli.demo_corpus import DemoCorpus, builtin_corpus
from andon.cli.demo_tasks import build_tasks
from andon.cli.recipes import packaged_recipe
from andon.client.labeling import TaskDraft
from andon.client.policy import PolicyClient, SamplingParameters
from andon.client.trainer import Run, RunState, TrainerClient
from andon.corpus.builtin.generate import Post
from andon.corpus.builtin.labelers import LabelerTraits, SimulatedLabeler
from andon.corpus.export_format import row_from_comparison
from andon.corpus.json_lines import line_from_row
from andon.corpus.records import ComparisonRecord, DocumentRecord
from andon.modeling.store import ModelStore
from benchmarks.guards.services import Services

LABELED = 1600  # documents, for each of the two groups of labelers
HELD_OUT = 256  # documents of the pre-flight's comparisons
PROMPTS = 600
SFT_DOCUMENTS = 12_000
DETECTION_STEPS = 900
LABELERS = 20
HACKED_BIAS_PER_WORD = 0.3  # of the labelers behind the hackable reward model; a complete summary earns 1
SAMPLING_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A finished world."""

    seed: int
    folder: Path

    @property
    def store(self) -> ModelStore:
        """Its models."""
        return ModelStore(self.folder / "store")

    @property
    def prompts(self) -> Path:
        """Documents with references, for PPO."""
        return self.folder / "prompts.jsonl"

    @property
    def held_out(self) -> Path:
        """Comparisons that no reward model learned from."""
        return self.folder / "held-out.jsonl"

    @property
    def facts(self) -> dict[str, Any]:
        """What the stages reported, for the record."""
        return dict(json.loads((self.folder / "world.json").read_text()))


def open_world(root: Path, seed: int, *, tell: Callable[[str], None]) -> World:
    """The world of a seed, made if it is not there."""
    world = World(seed=seed, folder=root / f"world-{seed}")
    if not (world.folder / "world.json").exists():
        _make(world, tell)
    return world


@cache
def corpus_of(seed: int) -> DemoCorpus:
    """The documents of a seed, with their facts."""
    sizes = packaged_recipe("builtin").corpus.model_copy(
        update={
            "sft": SFT_DOCUMENTS,
            "labeled": 2 * LABELED,
            "prompts": PROMPTS,
            "reward_test": HELD_OUT,
            "test": 2,
        }
    )
    return builtin_corpus(sizes, seed=seed)


def _make(world: World, tell: Callable[[str], None]) -> None:
    recipe = packaged_recipe("builtin")
    corpus = corpus_of(world.seed)
    files = corpus.write(world.folder)
    facts: dict[str, Any] = {"seed": world.seed}
    with Services(world.folder / "training", store=world.folder / "store") as services:
        trainer = services.start_trainer()
        tell("supervised fine-tuning")
        data = {"data": str(files["sft"]), "validation_data": str(files["validation"])}
        sft = _train(trainer, "sft", {"seed": world.seed, **recipe.sft, **data})
        model = str(sft.output_model)
    with Services(world.folder / "sampling", store=world.folder / "store") as services:
        services.start_models(policy=model, reward=None)
        tell("samples and labels")
        with PolicyClient(services.policy.target) as policy:
            first, second = corpus.labeled[:LABELED], corpus.labeled[LABELED:]
            tasks = {
                "labels": _tasks(corpus, first, policy, world.seed, with_edits=True),
                "others": _tasks(corpus, second, policy, world.seed, with_edits=True),
                "held-out": _tasks(corpus, corpus.reward_test, policy, world.seed, with_edits=False),
            }
    posts = corpus.posts or {}
    people = [SimulatedLabeler(seed=1000 * world.seed + number) for number in range(3 * LABELERS)]
    labels = _answers(tasks["labels"], posts, people[:LABELERS])
    comparisons = {
        "reward": labels,
        "witness": _answers(tasks["others"], posts, people[LABELERS : 2 * LABELERS]),
        "swapped": [replace(record, tiers=record.tiers[::-1]) for record in labels],
        "hackable": _answers(
            tasks["labels"], posts, [_fond_of_length(labeler) for labeler in people[:LABELERS]]
        ),
    }
    _write(world.held_out, _answers(tasks["held-out"], posts, people[2 * LABELERS :]))
    with Services(world.folder / "training", store=world.folder / "store") as services:
        trainer = services.start_trainer()
        for name, records in comparisons.items():
            tell(f"reward model {name!r}")
            path = world.folder / f"{name}.jsonl"
            _write(path, records)
            config: dict[str, Any] = {
                "seed": world.seed,
                "references": str(files["validation"]),
                **recipe.reward_model,
                "base_model": model,
                "comparisons": str(path),
                "output_family": name,
            }
            # Learned without labels, and slowly: only the model that is trained against gets it.
            detection = config.pop("token_detection")
            if name == "reward":
                config["token_detection"] = {
                    **detection,
                    "data": str(files["sft"]),
                    "steps": DETECTION_STEPS,
                }
            facts[name] = str(_train(trainer, "reward_model", config).output_model)
    facts["sft"] = model
    (world.folder / "world.json").write_text(json.dumps(facts, indent=2) + "\n")


def _train(trainer: TrainerClient, stage: Any, config: dict[str, Any]) -> Run:
    run = trainer.start_run(stage, config)
    for _ in trainer.watch_run(run.run_id):
        pass
    ended = trainer.get(run.run_id)
    if ended.state is not RunState.SUCCEEDED:
        raise RuntimeError(f"{stage} ended as {ended.state.value}: {ended.status_message}")
    return ended


def _tasks(
    corpus: DemoCorpus,
    documents: Sequence[DocumentRecord],
    policy: PolicyClient,
    seed: int,
    *,
    with_edits: bool,
) -> list[TaskDraft]:
    labeling = packaged_recipe("builtin").labeling
    parameters = SamplingParameters(
        max_new_tokens=48, samples_per_prompt=labeling.samples, temperature=labeling.temperature, seed=seed
    )
    samples = [
        result
        for first in range(0, len(documents), SAMPLING_BATCH)
        for result in policy.sample(
            [record.document for record in documents[first : first + SAMPLING_BATCH]], parameters
        ).results
    ]
    return build_tasks(corpus, documents, samples, labeling, overlap=1, seed=seed, with_edits=with_edits)


def _answers(
    tasks: Sequence[TaskDraft], posts: Any, people: Sequence[SimulatedLabeler]
) -> list[ComparisonRecord]:
    chance = random.Random("who labels what")
    records = []
    for number, task in enumerate(tasks):
        post: Post = posts[task.document_id]
        who = chance.randrange(len(people))
        texts = [candidate.text for candidate in task.candidates]
        answer = people[who].answer(post, texts, task_id=post.post_id)
        records.append(
            ComparisonRecord(
                document_id=task.document_id,
                document=task.document,
                candidates=task.candidates,
                tiers=answer.tiers,
                labeler_id=f"simulated-{people[who].seed}",
                comparison_id=str(number),
            )
        )
    return records


def _fond_of_length(labeler: SimulatedLabeler) -> SimulatedLabeler:
    fond = SimulatedLabeler(seed=labeler.seed)
    fond.traits = LabelerTraits(noise=labeler.traits.noise, length_bias_per_word=HACKED_BIAS_PER_WORD)
    return fond


def _write(path: Path, records: Sequence[ComparisonRecord]) -> None:
    lines = (line_from_row(row_from_comparison(record)) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
