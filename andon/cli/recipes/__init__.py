"""Decides the sizes and hyper-parameters of a demo: one YAML file per recipe, read strictly.

``builtin.yaml`` is what `andon demo` runs, ``small.yaml`` the same loop in seconds for tests,
``documents.yaml`` what it runs on a user's own documents. A copy with other numbers is given with
``--recipe``. The sections ``sft``, ``reward_model`` and ``ppo`` are passed to the trainer as they stand,
which knows their keys; the flow adds where the data are, the models' names and the seed.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from andon.cli.settings import read_settings
from andon.errors import InvalidArgumentError

EditKind = Literal["drop", "swap", "repeat", "ramble"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CorpusRecipe(_Section):
    """How many documents each part of the loop gets. Of given documents, at most so many."""

    sft: int = Field(ge=1)
    """Documents with reference summaries for supervised fine-tuning."""
    validation: int = Field(ge=1)
    """Held-out documents for the losses that are watched."""
    labeled: int = Field(ge=2)
    """Documents whose summaries are compared for the reward model."""
    prompts: int = Field(ge=1)
    """Documents that PPO writes summaries of."""
    reward_test: int = Field(ge=2)
    """Documents on which the reward model is measured, by comparisons that it never saw."""
    test: int = Field(ge=2)
    """Documents on which the policies are compared; nothing else ever sees them."""


class LabelingRecipe(_Section):
    """What is put before the labelers."""

    samples: int = Field(default=3, ge=0, le=9)
    """Samples of the supervised model per document."""
    temperature: float = Field(default=1.0, gt=0)
    """Of these samples."""
    with_reference: bool = False
    """Puts the reference summary among the candidates."""
    edits: tuple[tuple[EditKind, ...], ...] = ()
    """Spoiled copies of one candidate: one for each entry, of a kind drawn from it; built-in posts only."""
    overlap: int = Field(default=1, ge=1, le=100)
    """Labelers per task."""
    test_overlap: int = Field(default=2, ge=2, le=100)
    """Labelers per task of the held-out comparisons, from which their agreement is computed."""
    labelers: int = Field(default=8, ge=2, le=64)
    """How many simulated labelers there are."""
    mode: Literal["ranking", "choice"] = "ranking"
    """Whether they order all candidates or name the best."""


class EvaluationRecipe(_Section):
    """How the policies are compared."""

    max_new_tokens: int = Field(ge=1)
    """Most tokens of a summary at temperature 0."""
    kl_documents: int = Field(default=256, ge=1)
    """Documents on which the KL is measured by sampling."""
    track_documents: int = Field(default=200, ge=0)
    """Test documents on which every policy stored during PPO is measured; see ppo.store_interval."""
    shown_samples: int = Field(default=12, ge=0)
    """Documents shown side by side in the report."""


class Recipe(_Section):
    """One demo."""

    title: str
    corpus: CorpusRecipe
    labeling: LabelingRecipe = LabelingRecipe()
    sft: dict[str, Any]
    """Settings of the trainer's sft stage."""
    reward_model: dict[str, Any]
    """Settings of the trainer's reward_model stage."""
    ppo: dict[str, Any]
    """Settings of the trainer's ppo stage."""
    ppo_without_penalty: dict[str, Any] = Field(default_factory=dict)
    """Put over ``ppo`` when the demo is asked for beta 0: what it takes to see over-optimisation in minutes.
    """
    evaluation: EvaluationRecipe
    services: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Further flags of services, for example {"policy": {"threads": "2"}}."""


def with_beta(recipe: Recipe, beta: float) -> Recipe:
    """The recipe with another, fixed KL coefficient."""
    further = recipe.ppo_without_penalty if beta == 0 else {}
    ppo = {**recipe.ppo, **further, "kl": {"kind": "fixed", "beta": beta}}
    return recipe.model_copy(update={"ppo": ppo})


def packaged_recipe(name: str) -> Recipe:
    """A recipe of this package: "builtin", "small", "documents" or "documents-small"."""
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return Recipe.model_validate(yaml.safe_load(text))


def read_recipe(path: Path) -> Recipe:
    """A recipe that a person wrote."""
    try:
        return Recipe.model_validate(read_settings(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidArgumentError(f"{path}: {place}: {first['msg']}", reason="INVALID_RECIPE") from error
