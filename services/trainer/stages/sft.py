"""Supervised fine-tuning: decides how a language model learns to write summaries from references.

The run thread constructs ``SftStage(config, context)`` and calls ``run``. The loss is taken on the tokens of
the summaries only. Rows are packed without padding up to a token budget; the order is seeded and needs
nothing but the step to be continued (``batch_order``). Loading documents, building vocabularies and storing
models happen in the modules this one calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from andon.corpus.loaders import load_documents
from andon.corpus.records import DocumentRecord
from andon.modeling.forward import response_statistics
from andon.modeling.loading import grow_vocabulary, load_causal_lm, new_causal_lm, save_model
from andon.modeling.manifest import ManifestDraft, Parent
from andon.modeling.sequences import PromptGroup, check_groups, pack, plan_batches
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from services.trainer.stages.base_model import (
    TemplateConfig,
    TokenizerConfig,
    base_model_codec,
    learned_codec,
)
from services.trainer.stages.batch_order import BatchOrder
from services.trainer.stages.context import StageContext
from services.trainer.stages.documents import Examples, document_use, encode_documents
from services.trainer.stages.optimization import OptimizationConfig
from services.trainer.stages.publication import publish, published_earlier
from services.trainer.stages.random_state import seed_everything
from services.trainer.stages.training_loop import BatchReport, TrainingLoop


class SftConfig(OptimizationConfig):
    """What one supervised run does."""

    data: str  # source of documents with summaries; see andon.corpus.loaders
    validation_data: str | None = None
    base_model: str | None = None  # in the store, a folder, or a public name
    architecture: dict[str, Any] | None = None  # a Hugging Face configuration with model_type; from scratch
    tokenizer: TokenizerConfig = TokenizerConfig()
    template: TemplateConfig | None = None  # the base model's own where it has one
    max_summary_tokens: int = Field(default=128, ge=2)  # the end-of-sequence token included
    first_summary_only: bool = True  # of documents that have several
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)  # 1 when steps is not given either (S20)
    batch_tokens: int = Field(default=8192, ge=1)  # per update, prompts included
    token_budget: int = Field(default=2048, ge=1)  # per forward pass: larger batches go through in pieces
    learning_rate: float = Field(default=6.35e-5, gt=0)  # S20, 1.3B
    validation_interval: int = Field(default=100, ge=1)  # updates
    validation_documents: int = Field(default=256, ge=1)  # at most, the first ones of the source
    seed: int = 0
    output_family: str = "sft"
    alias: str | None = None  # also name the result family@alias

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if (self.base_model is None) == (self.architecture is None):
            raise ValueError("give either base_model or architecture")
        if self.base_model is not None and self.tokenizer.kind != "model":
            raise ValueError("a base_model brings its own tokenizer")
        return self


class SftStage:
    """One supervised run."""

    def __init__(self, config: SftConfig, context: StageContext) -> None:
        self._config = config
        self._context = context

    def run(self) -> ModelVersion:
        """Train, store the model and return its version."""
        config, context = self._config, self._context
        if (earlier := published_earlier(context, config.output_family)) is not None:
            return earlier
        torch.set_num_threads(context.threads)
        seed_everything(config.seed)
        documents = load_documents(config.data)
        base = None if config.base_model is None else context.store.locate(config.base_model)
        codec = self._codec(base, documents)
        examples = self._encode(documents, codec, field="data")
        validation: list[PromptGroup] = []
        if config.validation_data is not None:
            held_out = load_documents(config.validation_data)[: config.validation_documents]
            validation = self._encode(held_out, codec, field="validation_data").groups
        model = self._model(base, codec)
        for groups in filter(None, (examples.groups, validation)):
            check_groups(
                groups,
                vocab_size=codec.vocab_size,
                max_sequence_tokens=getattr(model.config, "max_position_embeddings", None),
            )
        use = document_use(config.data, documents)
        order = BatchOrder(
            [group.num_tokens for group in examples.groups],
            budget=config.batch_tokens,
            seed=config.seed,
            steps=config.steps,
            epochs=config.epochs or (1 if config.steps is None else None),
        )
        loop = TrainingLoop(
            context=context,
            config=config,
            model=model,
            order=order,
            workload=SummaryLikelihood(
                model,
                examples.groups,
                validation,
                token_budget=config.token_budget,
                device=context.device,
            ),
            validation_interval=config.validation_interval,
            identity={"training data": use.sha256, "tokenizer": codec.fingerprint},
        )
        metrics = loop.run()
        metrics |= {"summaries": examples.num_summaries, "summaries_left_out": examples.num_left_out}
        return publish(
            context,
            config.output_family,
            lambda folder: save_model(model, codec, folder),
            manifest=ManifestDraft(
                kind="causal_lm",
                parents=() if base is None else (Parent(role="base", model=base.version),),
                data=(use,),
                run_id=context.run_id,
                step=len(order),
                metrics=metrics,
                config=config.model_dump(mode="json"),
            ),
            alias=config.alias,
        )

    def _codec(self, base: LocatedModel | None, documents: Sequence[DocumentRecord]) -> TextCodec:
        if base is not None:
            # A reward model on top of this one needs a padding token that is not the end of a text.
            return base_model_codec(base, self._config.template).with_pad_token()
        return learned_codec(self._config.tokenizer, self._config.template, documents)

    def _encode(self, documents: Sequence[DocumentRecord], codec: TextCodec, *, field: str) -> Examples:
        return encode_documents(
            documents,
            codec,
            max_summary_tokens=self._config.max_summary_tokens,
            first_summary_only=self._config.first_summary_only,
            field=field,
        )

    def _model(self, base: LocatedModel | None, codec: TextCodec) -> PreTrainedModel:
        if base is None:
            model = new_causal_lm(self._config.architecture or {}, codec, seed=self._config.seed)
        else:
            model = load_causal_lm(base.source)
            grow_vocabulary(model, codec)
        return model.to(self._context.device)


class SummaryLikelihood:
    """Teaches a model to give reference summaries a high probability."""

    def __init__(
        self,
        model: PreTrainedModel,
        training: Sequence[PromptGroup],
        validation: Sequence[PromptGroup],
        *,
        token_budget: int,
        device: str,
    ) -> None:
        self._model = model
        self._training = training
        self._validation = validation
        self._token_budget = token_budget
        self._device = device

    def accumulate(self, items: list[int]) -> BatchReport:
        """Gradients of the mean negative log-likelihood over all summary tokens of these documents."""
        groups = [self._training[item] for item in items]
        num_targets = sum(len(response) for group in groups for response in group.responses)
        self._model.train()
        total_nats = 0.0
        for piece in plan_batches(groups, self._token_budget):
            nats = self._nats(groups, piece)
            torch.autograd.backward(nats / num_targets)
            total_nats += float(nats.detach())
        return BatchReport(
            metrics={"loss_nats_per_token": total_nats / num_targets, "summary_tokens": float(num_targets)},
            num_tokens=sum(group.num_tokens for group in groups),
        )

    def validate(self) -> dict[str, float]:
        """The same mean on held-out documents."""
        if not self._validation:
            return {}
        self._model.eval()
        num_targets = sum(len(response) for group in self._validation for response in group.responses)
        with torch.no_grad():
            total_nats = sum(
                float(self._nats(self._validation, piece))
                for piece in plan_batches(self._validation, self._token_budget)
            )
        return {"validation_loss_nats_per_token": total_nats / num_targets}

    def _nats(self, groups: Sequence[PromptGroup], piece: Sequence[int]) -> Tensor:
        """Summed negative log-likelihood of the summaries of some groups. Scalar, float32."""
        batch = pack([groups[index] for index in piece], self._device)
        return -response_statistics(self._model, batch, temperature=1.0).logprobs.sum()
