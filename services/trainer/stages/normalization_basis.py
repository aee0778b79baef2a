"""Decides which texts a new reward model is normalized to, and checks that there are some before training
begins.

Used by the reward-model stage. The arithmetic is in ``services.trainer.reward_normalization``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from andon.client.policy import SamplingParameters
from andon.corpus.loaders import load_documents
from andon.corpus.records import DocumentRecord
from andon.modeling.manifest import DataUse
from andon.modeling.normalization import Normalization
from services.trainer.errors import InvalidConfigError
from services.trainer.reward_normalization import fit_policy_unit, fit_reference_zero
from services.trainer.stages.context import StageContext
from services.trainer.stages.documents import document_use

# Documents with one summary each to the raw scores of the summaries.
RawScores = Callable[[Sequence[tuple[str, str]]], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationBasis:
    """Documents whose references, or whose summaries by the policy, define the scale of the reward."""

    uri: str
    documents: tuple[DocumentRecord, ...]
    sampling: SamplingParameters | None  # of the policy's summaries; None: the references

    @property
    def data_use(self) -> DataUse:
        """For the manifest."""
        return document_use(self.uri, self.documents)

    def fit(self, raw_scores: RawScores, context: StageContext) -> Normalization:
        """Gain and bias. Raises InvalidConfigError when every sample of the policy scores the same."""
        if self.sampling is None:
            references = [(record.document, record.summaries[0]) for record in self.documents]
            return fit_reference_zero(raw_scores(references))
        prompts = [record.document for record in self.documents]
        answer = context.clients.policy[0].sample(prompts, self.sampling, wait_for_ready=True)
        samples = [result.samples[0].text for result in answer.results]
        try:
            return fit_policy_unit(raw_scores(list(zip(prompts, samples, strict=True))))
        except ValueError as error:
            raise InvalidConfigError(field="normalization", problem=f"policy_unit: {error}") from error


def basis_of_references(source: str, *, limit: int) -> NormalizationBasis:
    """The first ``limit`` documents of a source that have a reference summary."""
    documents = [record for record in load_documents(source) if record.summaries][:limit]
    if not documents:
        raise InvalidConfigError(field="references", problem="none of the documents has a summary")
    return NormalizationBasis(uri=source, documents=tuple(documents), sampling=None)


def basis_of_samples(
    source: str, *, limit: int, sampling: SamplingParameters, context: StageContext
) -> NormalizationBasis:
    """The first ``limit`` documents of a source, to be summarised by the policy service."""
    if not context.clients.policy:
        raise InvalidConfigError(
            field="normalization", problem="policy_unit needs samples, and no policy service is configured"
        )
    documents = load_documents(source)[:limit]
    return NormalizationBasis(uri=source, documents=tuple(documents), sampling=sampling)
