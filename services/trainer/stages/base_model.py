"""Decides which vocabulary and which prompt template a stage works with.

A stage names a base model (in the store, a folder, or a public name) or, in supervised fine-tuning, describes
an architecture to be built from scratch with a vocabulary learned from the documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from andon.corpus.records import DocumentRecord
from andon.modeling.store import LocatedModel
from andon.modeling.text import PromptTemplate, TextCodec, train_bpe_codec, word_level_codec
from services.trainer.errors import InvalidConfigError


class TemplateConfig(BaseModel):
    """How a document becomes a prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | None = None  # with "{document}" in it; None: the vocabulary's own
    max_document_tokens: int = Field(default=512, ge=1)  # S20; longer documents are cut at their end


class TokenizerConfig(BaseModel):
    """Which vocabulary: learned from the documents ("words", "bpe") or the base model's ("model")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["words", "bpe", "model"] = "model"
    vocab_size: int = Field(default=8192, ge=8)  # at most; of "words" and "bpe"


def base_model_codec(base: LocatedModel, template: TemplateConfig | None) -> TextCodec:
    """The base model's vocabulary, with its own prompt template where no other is given."""
    codec = TextCodec.load(base.source)
    return codec if template is None else codec.with_template(_changed(codec.template, template))


def learned_codec(
    tokenizer: TokenizerConfig, template: TemplateConfig | None, documents: Iterable[DocumentRecord]
) -> TextCodec:
    """A vocabulary learned from documents and their summaries; the same for the same documents."""
    texts = [text for record in documents for text in (record.document, *record.summaries)]
    if tokenizer.kind == "words":
        counts = Counter(word for text in texts for word in text.split())
        by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
        codec = word_level_codec(by_frequency[: tokenizer.vocab_size])
    elif tokenizer.kind == "bpe":
        codec = train_bpe_codec(texts, tokenizer.vocab_size)
    else:
        raise InvalidConfigError(
            field="tokenizer.kind", problem='"model" needs a base_model; "words" and "bpe" learn one'
        )
    return codec if template is None else codec.with_template(_changed(codec.template, template))


def _changed(template: PromptTemplate, wanted: TemplateConfig) -> PromptTemplate:
    return replace(
        template,
        template=wanted.template or template.template,
        max_document_tokens=wanted.max_document_tokens,
    )
