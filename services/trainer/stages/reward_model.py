"""The reward model: decides how people's comparisons become a model that scores summaries.

The run thread constructs ``RewardModelStage(config, context)`` and calls ``run``. It starts from a language
model whose head is replaced by a scalar one, learns from each decision with the loss that fits it
(``reward_losses``), and ends with a normalization that is stored with the weights. What one update does is
``preference_learning``; how good the result is, ``reward_accuracy``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel

from andon.client.policy import SamplingParameters
from andon.corpus.loaders import load_comparisons, load_documents
from andon.corpus.records import ComparisonRecord, DocumentRecord
from andon.modeling.loading import (
    deepened_scorer,
    load_causal_lm,
    only_last_layers_learn,
    save_model,
    scorer_from_causal_lm,
)
from andon.modeling.manifest import DataUse, ManifestDraft, Parent
from andon.modeling.normalization import NO_NORMALIZATION, NormalizationMethod
from andon.modeling.sequences import PromptGroup, check_groups
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from services.trainer.errors import InvalidConfigError
from services.trainer.stages.base_model import TemplateConfig, base_model_codec
from services.trainer.stages.batch_order import BatchOrder
from services.trainer.stages.comparisons import (
    LABELING_PREFIX,
    ComparedDocument,
    cut_summary,
    digest_comparisons,
    group_by_document,
    split_by_document,
)
from services.trainer.stages.context import StageContext
from services.trainer.stages.documents import document_use, encode_documents
from services.trainer.stages.exchanged_words import ExchangedWords, WordExchange
from services.trainer.stages.normalization_basis import (
    NormalizationBasis,
    basis_of_references,
    basis_of_samples,
)
from services.trainer.stages.optimization import OptimizationConfig
from services.trainer.stages.preference_learning import LanguageModelTerm, PreferenceLearning
from services.trainer.stages.publication import publish, published_earlier
from services.trainer.stages.random_state import seed_everything
from services.trainer.stages.reward_accuracy import labeler_agreement
from services.trainer.stages.summary_detection import SummaryDetection, SummaryDetectionConfig
from services.trainer.stages.token_detection import TokenDetection, TokenDetectionConfig
from services.trainer.stages.training_loop import TrainingLoop


class RewardModelConfig(OptimizationConfig):
    """What one reward-model run does."""

    base_model: str = "sft@latest"  # the supervised model: in the store, a folder, or a public name
    extra_layers: int = Field(default=0, ge=0)  # on top of the base model's
    extra_layers_gain: float = Field(default=0.0, ge=0)  # of their first outputs; at 0 they begin as identity
    comparisons: str  # "labeling:<batch>" (all batches without one), or a source of andon.corpus.loaders
    validation_comparisons: str | None = None  # likewise; held out instead of a share of the documents
    validation_share: float = Field(default=0.1, ge=0, lt=1)  # of the documents
    references: str | None = None  # source of documents for the normalization
    reference_documents: int = Field(default=512, ge=2)  # at most, the first ones of the source
    normalization: NormalizationMethod | None = None  # reference_zero when there are references, else none
    template: TemplateConfig | None = None  # the base model's own where it has one
    max_summary_tokens: int = Field(default=256, ge=2)  # longer ones are cut
    epochs: int = Field(default=1, ge=1)  # S20
    batch_comparisons: int = Field(default=64, ge=1)  # decisions per update; S20
    token_budget: int = Field(default=2048, ge=1)  # per forward pass
    learning_rate: float = Field(default=1.5e-5, gt=0)  # S20, 1.3B
    language_model_coefficient: float = Field(default=0.0, ge=0)  # of the auxiliary loss, per token
    # whose tokens the auxiliary loss is on
    language_model_responses: Literal["preferred", "all"] = "preferred"
    token_detection: TokenDetectionConfig | None = None  # a phase before the comparisons; none by default
    summary_detection: SummaryDetectionConfig | None = None  # a second one, behind token_detection
    validation_interval: int = Field(default=100, ge=1)  # updates
    sampling_temperature: float = Field(default=1.0, gt=0)  # of the samples that policy_unit normalizes to
    seed: int = 0
    output_family: str = "reward"
    alias: str | None = None  # also name the result family@alias

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.normalization in ("reference_zero", "policy_unit") and self.references is None:
            raise ValueError(f"normalization {self.normalization} needs references")
        detection = self.token_detection
        if detection is not None:
            if detection.held_back_layers > self.extra_layers:
                raise ValueError("token_detection.held_back_layers are more than extra_layers")
            if detection.frozen_base and detection.held_back_layers == self.extra_layers:
                raise ValueError("token_detection.frozen_base leaves no layer to learn: hold fewer back")
        if self.summary_detection is not None:
            if detection is None:
                raise ValueError("summary_detection needs token_detection")
            if self.summary_detection.frozen_base and self.extra_layers == 0:
                raise ValueError(
                    "summary_detection.frozen_base leaves no layer to learn without extra_layers"
                )
        return self

    @property
    def detection_steps(self) -> int:
        """Updates before the comparisons."""
        return sum(phase.steps for phase in (self.token_detection, self.summary_detection) if phase)

    @property
    def chosen_normalization(self) -> NormalizationMethod:
        """The method, with the default resolved."""
        if self.normalization is not None:
            return self.normalization
        return "none" if self.references is None else "reference_zero"


class RewardModelStage:
    """One reward-model run."""

    def __init__(self, config: RewardModelConfig, context: StageContext) -> None:
        self._config = config
        self._context = context

    def run(self) -> ModelVersion:
        """Train, normalize, store the model and return its version."""
        config, context = self._config, self._context
        if (earlier := published_earlier(context, config.output_family)) is not None:
            return earlier
        torch.set_num_threads(context.threads)
        seed_everything(config.seed)
        basis = self._normalization_basis()
        base = context.store.locate(config.base_model)
        codec = base_model_codec(base, config.template)
        records = self._load(config.comparisons, field="comparisons", resumable=True)
        if config.validation_comparisons is not None:
            training = records
            held_out = self._load(config.validation_comparisons, field="validation_comparisons")
        else:
            split = split_by_document(records, held_out_share=config.validation_share, seed=config.seed)
            training, held_out = split.training, split.held_out
        elements = self._group(training, codec)
        informative = [element for element in elements if element.informative_decisions]
        if not informative:
            raise InvalidConfigError(
                field="comparisons", problem="no preference is left to learn from once documents are held out"
            )

        detection = config.token_detection
        held_back = 0 if detection is None else detection.held_back_layers
        scorer = scorer_from_causal_lm(
            base.source,
            extra_layers=config.extra_layers - held_back,
            extra_layers_gain=config.extra_layers_gain,
            seed=config.seed,
        )
        scorer = scorer.to(context.device)
        held_out_elements = self._group(held_out, codec)
        check_groups(
            [element.group for element in (*informative, *held_out_elements)],
            vocab_size=codec.vocab_size,
            max_sequence_tokens=getattr(scorer.config, "max_position_embeddings", None),
        )
        order = BatchOrder(
            [len(element.informative_decisions) for element in informative],
            budget=config.batch_comparisons,
            seed=config.seed,
            steps=None,
            epochs=config.epochs,
        )
        comparisons_sha256 = digest_comparisons(records)
        identity = {
            "training data": comparisons_sha256,
            "last comparison": records[-1].comparison_id,
            "tokenizer": codec.fingerprint,
        }
        metrics: dict[str, float] = {}
        total_steps = config.detection_steps + len(order)
        uses = [
            DataUse(
                kind="comparisons",
                uri=config.comparisons,
                count=len(records),
                sha256=comparisons_sha256,
                first_id=records[0].comparison_id,
                last_id=records[-1].comparison_id,
            )
        ]
        if basis is not None:
            uses.append(basis.data_use)
        if detection is not None:
            documents = load_documents(detection.data)
            uses.append(document_use(detection.data, documents))
            identity["token detection data"] = uses[-1].sha256
            words = self._exchanged_words(detection, documents, codec)
            learning_layers = config.extra_layers - held_back if detection.frozen_base else None
            with only_last_layers_learn(scorer, learning_layers):
                metrics |= self._token_detection(
                    detection, words, scorer, identity=identity, total_steps=total_steps
                ).run()
            if held_back:
                scorer = deepened_scorer(
                    scorer,
                    extra_layers=held_back,
                    extra_layers_gain=config.extra_layers_gain,
                    seed=config.seed + 1,  # not the draw that the layers below began with
                )
            if config.summary_detection is not None:
                metrics |= self._summary_detection(
                    config.summary_detection,
                    words,
                    scorer,
                    codec,
                    identity=identity,
                    first_step=detection.steps,
                    total_steps=total_steps,
                )
        learning = PreferenceLearning(
            scorer,
            informative,
            held_out_elements,
            token_budget=config.token_budget,
            device=context.device,
            language_model=self._language_model_term(base, scorer),
        )
        loop = TrainingLoop(
            context=context,
            config=config,
            model=scorer,
            order=order,
            workload=learning,
            validation_interval=config.validation_interval,
            identity=identity,
            first_step=config.detection_steps,
            total_steps=total_steps,
        )
        metrics |= loop.run()
        metrics |= _describe(records, training)
        normalization = NO_NORMALIZATION
        if basis is not None:
            normalization = basis.fit(lambda texts: learning.raw_scores(self._encode(texts, codec)), context)
        return publish(
            context,
            config.output_family,
            lambda folder: save_model(scorer, codec, folder, normalization=normalization),
            manifest=ManifestDraft(
                kind="reward_model",
                parents=(Parent(role="base", model=base.version),),
                data=tuple(uses),
                run_id=context.run_id,
                step=total_steps,
                metrics=metrics,
                config=config.model_dump(mode="json"),
                normalization=normalization,
            ),
            alias=config.alias,
        )

    def _load(self, source: str, *, field: str, resumable: bool = False) -> list[ComparisonRecord]:
        """All comparisons of a source; of a resumed run those it began with, whatever has been answered
        since.
        """
        if not source.startswith(LABELING_PREFIX):
            return load_comparisons(source)
        labeling = self._context.clients.labeling
        if labeling is None:
            raise InvalidConfigError(field=field, problem="this trainer has no labeling service configured")
        records = list(labeling.export_comparisons(batch=source.removeprefix(LABELING_PREFIX)))
        restored = self._context.restored_state() if resumable else None
        if restored is not None:
            last = int(restored["identity"]["last comparison"])
            records = [record for record in records if int(record.comparison_id) <= last]
        if not records:
            raise InvalidConfigError(field=field, problem=f"{source} has no answers yet")
        return records

    def _group(self, records: Sequence[ComparisonRecord], codec: TextCodec) -> list[ComparedDocument]:
        return group_by_document(records, codec, max_summary_tokens=self._config.max_summary_tokens)

    def _exchanged_words(
        self, config: TokenDetectionConfig, documents: Sequence[DocumentRecord], codec: TextCodec
    ) -> ExchangedWords:
        """What both phases before the comparisons learn from."""
        field = "token_detection.data"
        encoded = encode_documents(
            documents,
            codec,
            max_summary_tokens=self._config.max_summary_tokens,
            first_summary_only=True,
            field=field,
        ).groups
        # The end-of-sequence token is no word; a summary that is nothing else has none.
        examples = [
            PromptGroup(group.prompt, [group.responses[0][:-1]])
            for group in encoded
            if len(group.responses[0]) > 1
        ]
        exchange = WordExchange(
            [example.responses[0] for example in examples],
            min_alternatives=config.min_alternatives,
            replaced_share=config.replaced_share,
        )
        if exchange.num_contexts == 0:
            raise InvalidConfigError(
                field=field,
                problem=f"no place in the summaries has {config.min_alternatives} different words",
            )
        return ExchangedWords(examples=examples, exchange=exchange)

    def _token_detection(
        self,
        config: TokenDetectionConfig,
        words: ExchangedWords,
        scorer: PreTrainedModel,
        *,
        identity: Mapping[str, str],
        total_steps: int,
    ) -> TrainingLoop:
        """The first phase before the comparisons."""
        return TrainingLoop(
            context=self._context,
            config=config,
            model=scorer,
            order=words.order(
                batch_documents=config.batch_documents, steps=config.steps, seed=self._config.seed
            ),
            workload=TokenDetection(
                scorer,
                words,
                variants=config.variants,
                token_budget=self._config.token_budget,
                device=self._context.device,
            ),
            validation_interval=config.steps,
            identity=identity,
            phase="token_detection",
            total_steps=total_steps,
        )

    def _summary_detection(
        self,
        config: SummaryDetectionConfig,
        words: ExchangedWords,
        scorer: PreTrainedModel,
        codec: TextCodec,
        *,
        identity: Mapping[str, str],
        first_step: int,
        total_steps: int,
    ) -> dict[str, float]:
        """The second phase before the comparisons."""
        with only_last_layers_learn(scorer, self._config.extra_layers if config.frozen_base else None):
            return TrainingLoop(
                context=self._context,
                config=config,
                model=scorer,
                order=words.order(
                    batch_documents=config.batch_documents,
                    steps=config.steps,
                    seed=self._config.seed + 1,  # other documents first
                ),
                workload=SummaryDetection(
                    scorer,
                    words.with_share(config.replaced_share),
                    variants=config.variants,
                    end_token=codec.eos_token_id,
                    token_budget=self._config.token_budget,
                    device=self._context.device,
                ),
                validation_interval=first_step + config.steps,
                identity=identity,
                phase="summary_detection",
                first_step=first_step,
                total_steps=total_steps,
            ).run()

    def _language_model_term(self, base: LocatedModel, scorer: PreTrainedModel) -> LanguageModelTerm | None:
        config = self._config
        if config.language_model_coefficient == 0:
            return None
        head = None  # shared with the embeddings, which the scorer keeps
        if not scorer.config.tie_word_embeddings:
            # A head of its own is not part of the scorer: it stays as the base model has it.
            model = load_causal_lm(base.source, device=self._context.device)
            head = model.get_output_embeddings().requires_grad_(requires_grad=False)
        return LanguageModelTerm(
            coefficient=config.language_model_coefficient,
            preferred_only=config.language_model_responses == "preferred",
            head=head,
        )

    def _normalization_basis(self) -> NormalizationBasis | None:
        config = self._config
        if config.references is None or config.chosen_normalization == "none":
            return None
        if config.chosen_normalization == "reference_zero":
            return basis_of_references(config.references, limit=config.reference_documents)
        return basis_of_samples(
            config.references,
            limit=config.reference_documents,
            sampling=SamplingParameters(
                max_new_tokens=config.max_summary_tokens,
                temperature=config.sampling_temperature,
                seed=config.seed,
            ),
            context=self._context,
        )

    def _encode(self, texts: Sequence[tuple[str, str]], codec: TextCodec) -> list[PromptGroup]:
        return [
            PromptGroup(
                prompt=codec.encode_document(document),
                responses=[cut_summary(codec.encode_summary(summary), self._config.max_summary_tokens)],
            )
            for document, summary in texts
        ]


def _describe(records: Sequence[ComparisonRecord], training: Sequence[ComparisonRecord]) -> dict[str, float]:
    """What is worth knowing of the comparisons themselves."""
    metrics = {
        "comparisons": float(len(records)),
        "training_comparisons": float(len(training)),
        "fully_tied_comparisons": float(sum(not record.untied_pairs() for record in records)),
    }
    agreement = labeler_agreement(records)
    if agreement is not None:
        metrics |= {
            "labeler_agreement": agreement.share,
            "labeler_agreement_low": agreement.low,
            "labeler_agreement_high": agreement.high,
            "labeler_agreement_pairs": float(agreement.n),
        }
    return metrics
