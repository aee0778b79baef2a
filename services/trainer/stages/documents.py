"""Decides how documents with reference summaries become training examples.

Pure but for the codec. Used by the supervised stage for training and validation, and by the reward-model
stage for the references that its scores are normalised to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from andon.corpus.records import DocumentRecord
from andon.modeling.manifest import DataUse
from andon.modeling.sequences import PromptGroup
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Documents as token ids."""

    groups: list[PromptGroup]  # one per document that has a usable summary
    num_summaries: int
    num_left_out: int  # summaries that are empty or longer than allowed


def encode_documents(
    documents: Sequence[DocumentRecord],
    codec: TextCodec,
    *,
    max_summary_tokens: int,
    first_summary_only: bool,
    field: str,
) -> Examples:
    """Token ids of documents and their summaries, each summary with its end-of-sequence token.

    A summary above ``max_summary_tokens`` (that token included) is left out and counted, not cut: cut
    summaries would teach to stop in mid-sentence. Raises InvalidConfigError, naming ``field``, when nothing
    remains.
    """
    groups: list[PromptGroup] = []
    num_summaries = num_left_out = 0
    for record in documents:
        summaries = record.summaries[:1] if first_summary_only else record.summaries
        encoded = [codec.encode_summary(summary) for summary in summaries if summary.strip()]
        fitting = [token_ids for token_ids in encoded if len(token_ids) <= max_summary_tokens]
        num_left_out += len(summaries) - len(fitting)
        if fitting:
            groups.append(PromptGroup(prompt=codec.encode_document(record.document), responses=fitting))
            num_summaries += len(fitting)
    if not groups:
        raise InvalidConfigError(
            field=field, problem=f"none of the {len(documents)} documents has a summary that can be used"
        )
    return Examples(groups=groups, num_summaries=num_summaries, num_left_out=num_left_out)


def document_use(source: str, documents: Sequence[DocumentRecord]) -> DataUse:
    """What a manifest says of a source of documents that a stage learned from; there is at least one."""
    return DataUse(
        kind="documents",
        uri=source,
        count=len(documents),
        sha256=digest_documents(documents),
        first_id=documents[0].document_id,
        last_id=documents[-1].document_id,
    )


def digest_documents(documents: Sequence[DocumentRecord]) -> str:
    """SHA-256, in hex, over what training reads of the documents, in their order."""
    digest = hashlib.sha256()
    for record in documents:
        content = [record.document_id, record.document, list(record.summaries)]
        digest.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
