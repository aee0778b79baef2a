"""Decides which documents each part of the demo's loop gets, and writes them where the trainer can read them.

Without ``--data`` they are simulated posts with known facts, so there is an exact judge. With it they are a
user's own: the split of the source is kept where it has one, else a fixed part is held out; documents of the
held-out part never occur in training, even where the source repeats them. The parts that measure share no
document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from andon.cli.recipes import CorpusRecipe
from andon.cli.simulated_labelers import GoldOpinions, Opinions, RougeOpinions
from andon.corpus.builtin.generate import Post, generate_posts
from andon.corpus.errors import SourceNotFoundError
from andon.corpus.loaders import load_documents
from andon.corpus.records import DocumentRecord
from andon.errors import InvalidArgumentError

HELD_OUT_SHARE_OF_256 = 64  # of a source without a split of its own, by a hash of each document
MIN_DOCUMENTS = 8  # of each side


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCorpus:
    """The documents of one demo."""

    sft: tuple[DocumentRecord, ...]
    validation: tuple[DocumentRecord, ...]
    labeled: tuple[DocumentRecord, ...]
    prompts: tuple[DocumentRecord, ...]
    reward_test: tuple[DocumentRecord, ...]
    test: tuple[DocumentRecord, ...]
    posts: Mapping[str, Post] | None  # by document id; None where no facts are known
    opinions: Opinions
    notes: tuple[str, ...]  # what the reader of the report must know

    def posts_of(self, documents: Sequence[DocumentRecord]) -> list[Post] | None:
        """The posts behind documents of this corpus."""
        if self.posts is None:
            return None
        return [self.posts[record.document_id] for record in documents]

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes what the trainer reads and returns the files by part."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"sft": self.sft, "validation": self.validation, "prompts": self.prompts}
        return {name: _write_part(folder / f"{name}.jsonl", records) for name, records in parts.items()}


def builtin_corpus(sizes: CorpusRecipe, *, seed: int) -> DemoCorpus:
    """Simulated posts; the same for the same sizes and seed."""
    train = generate_posts(sizes.sft + sizes.labeled + sizes.prompts, seed=seed, split="train")
    valid = generate_posts(sizes.validation + sizes.reward_test, seed=seed, split="valid")
    test = generate_posts(sizes.test, seed=seed, split="test")
    labeled_end = sizes.sft + sizes.labeled
    return DemoCorpus(
        sft=_records(train[: sizes.sft]),
        labeled=_records(train[sizes.sft : labeled_end]),
        prompts=_records(train[labeled_end:]),
        validation=_records(valid[: sizes.validation]),
        reward_test=_records(valid[sizes.validation :]),
        test=_records(test),
        posts={post.post_id: post for post in (*train, *valid, *test)},
        opinions=GoldOpinions([*train, *valid, *test], seed=seed),
        notes=(
            "Posts, reference summaries, labelers and the gold judge are simulated. Part of the margin over "
            "the references is owed to the imagined people who wrote them, many of whom omit, ramble or err.",
        ),
    )


def corpus_of_documents(source: str, sizes: CorpusRecipe) -> DemoCorpus:
    """A user's own documents with reference summaries."""
    train, held_out = _split(source)
    parts = _held_out_parts(held_out, sizes)
    if len(train) < MIN_DOCUMENTS:
        raise InvalidArgumentError(
            f"{source} has {len(train)} documents with summaries to train on; the demo needs more",
            reason="TOO_FEW_DOCUMENTS",
        )
    return DemoCorpus(
        sft=tuple(train[: sizes.sft]),
        labeled=tuple(train[-sizes.labeled :]),
        prompts=tuple(train[: sizes.prompts]),
        validation=parts[0],
        reward_test=parts[1],
        test=parts[2],
        posts=None,
        opinions=RougeOpinions([*train, *held_out]),
        notes=(
            "The documents and reference summaries are real. The labelers are not: they prefer the summary "
            "with the higher ROUGE-L against the reference summaries, all alike and without noise.",
            "No judge knows what is true of these documents. Win rates against the references are the reward "
            "model's opinion; between models they are also given by ROUGE-L.",
        ),
    )


def _records(posts: Sequence[Post]) -> tuple[DocumentRecord, ...]:
    return tuple(
        DocumentRecord(
            document_id=post.post_id,
            document=post.document,
            summaries=(post.reference,),
            facts=dict(post.facts),
        )
        for post in posts
    )


def _split(source: str) -> tuple[list[DocumentRecord], list[DocumentRecord]]:
    """(training, held out), all with summaries and no document twice."""
    if "#" in source:
        raise InvalidArgumentError(
            f"{source}: the demo takes a whole source and chooses the splits itself", reason="INVALID_SOURCE"
        )
    train, held_out = _own_splits(source)
    if not held_out:
        train = load_documents(source)
        held_out = [record for record in train if _hash_byte(record.document) < HELD_OUT_SHARE_OF_256]
    kept_out = _distinct(held_out, set())
    return _distinct(train, {record.document for record in kept_out}), kept_out


def _own_splits(source: str) -> tuple[list[DocumentRecord], list[DocumentRecord]]:
    """The splits that the source brings; nothing for a single file, or a folder that names its files
    otherwise.
    """
    if Path(source).is_file():
        return [], []
    try:
        return load_documents(f"{source}#train"), load_documents(f"{source}#validation")
    except SourceNotFoundError:
        return [], []


def _distinct(documents: Sequence[DocumentRecord], excluded: set[str]) -> list[DocumentRecord]:
    seen = set(excluded)
    kept: list[DocumentRecord] = []
    for record in documents:
        if record.summaries and record.document not in seen:
            seen.add(record.document)
            kept.append(record)
    return kept


def _held_out_parts(
    held_out: Sequence[DocumentRecord], sizes: CorpusRecipe
) -> tuple[tuple[DocumentRecord, ...], tuple[DocumentRecord, ...], tuple[DocumentRecord, ...]]:
    """Validation, reward test and test, each at most as large as wanted, in proportion where there are too
    few.
    """
    wanted = (sizes.validation, sizes.reward_test, sizes.test)
    if len(held_out) < MIN_DOCUMENTS:
        raise InvalidArgumentError(
            f"only {len(held_out)} documents are left to hold out; the demo needs at least {MIN_DOCUMENTS}",
            reason="TOO_FEW_DOCUMENTS",
        )
    scale = min(1.0, len(held_out) / sum(wanted))
    validation, reward_test = (max(2, int(count * scale)) for count in wanted[:2])
    test = min(wanted[2], len(held_out) - validation - reward_test)
    ends = (validation, validation + reward_test, validation + reward_test + test)
    return tuple(held_out[: ends[0]]), tuple(held_out[ends[0] : ends[1]]), tuple(held_out[ends[1] : ends[2]])


def _hash_byte(text: str) -> int:
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0]


def _write_part(path: Path, records: Sequence[DocumentRecord]) -> Path:
    temporary = path.with_suffix(".part")
    with temporary.open("w", encoding="utf-8") as stream:
        for record in records:
            row: dict[str, object] = {
                "document_id": record.document_id,
                "document": record.document,
                "summaries": list(record.summaries),
            }
            if record.facts is not None:
                row["facts"] = record.facts
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)
    return path
