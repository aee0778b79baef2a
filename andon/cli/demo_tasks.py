"""Decides which candidates the demo puts before its labelers: samples, the reference, spoiled copies.

Pairs that differ in one fact teach a reward model to look at facts; a sample and its spoiled copy are such a
pair. The same corpus, samples and seed give the same tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from andon.cli.demo_corpus import DemoCorpus
from andon.cli.recipes import LabelingRecipe
from andon.client.labeling import TaskDraft
from andon.client.labeling_values import is_showable
from andon.client.policy import PromptSamples
from andon.corpus.builtin.edits import Edit, edit_summary
from andon.corpus.records import CandidateRecord, DocumentRecord

MAX_CANDIDATES = 9


def build_tasks(
    corpus: DemoCorpus,
    documents: Sequence[DocumentRecord],
    samples: Sequence[PromptSamples],
    recipe: LabelingRecipe,
    *,
    overlap: int,
    seed: int,
    with_edits: bool,
) -> list[TaskDraft]:
    """One task per document that has at least two different candidates."""
    tasks: list[TaskDraft] = []
    for record, drawn in zip(documents, samples, strict=True):
        candidates = [
            CandidateRecord(text=sample.text, source="policy", policy_version=str(sample.model))
            for sample in drawn.samples
            if is_showable(sample.text)
        ]
        if recipe.with_reference:
            candidates.append(CandidateRecord(text=record.summaries[0], source="reference"))
        if with_edits and candidates:
            candidates += _spoiled(corpus, record, candidates, recipe, seed)
        distinct = list({candidate.text: candidate for candidate in candidates}.values())[:MAX_CANDIDATES]
        if len(distinct) >= 2:
            tasks.append(
                TaskDraft(
                    document=record.document,
                    candidates=tuple(distinct),
                    document_id=record.document_id,
                    overlap=overlap,
                )
            )
    return tasks


def _spoiled(
    corpus: DemoCorpus,
    record: DocumentRecord,
    originals: Sequence[CandidateRecord],
    recipe: LabelingRecipe,
    seed: int,
) -> list[CandidateRecord]:
    """Copies of one of the originals, each spoiled in one way; fewer where it offers no place for an edit."""
    posts = corpus.posts_of([record])
    if not posts or not recipe.edits:
        return []
    rng = random.Random(f"andon-demo-edits/{seed}/{record.document_id}")
    original = rng.choice(originals)
    texts = [edit_summary(posts[0], original.text, Edit(rng.choice(kinds)), seed) for kinds in recipe.edits]
    return [CandidateRecord(text=text, source="edit") for text in texts if text is not None]
