"""Which documents each PPO update summarises.

The order is a function of (seed, update): a resumed run needs no memory of what came before.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from andon.corpus.loaders import load_documents
from andon.modeling.manifest import DataUse
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError

MOST_REFERENCES = 1024  # documents whose reference is read: enough for a test before the first update


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """The documents to summarise, as token ids."""

    prompts: tuple[tuple[int, ...], ...]
    documents: Mapping[tuple[int, ...], str]  # the text behind each prompt
    references: Mapping[int, tuple[int, ...]]  # by index of the prompt, where somebody wrote a summary
    use: DataUse  # for the manifest

    def of_update(self, update: int, *, batch: int, seed: int) -> list[tuple[int, ...]]:
        """The prompts of update ``update``, from 1: pieces of passes that are shuffled one by one."""
        count = len(self.prompts)
        chosen: list[tuple[int, ...]] = []
        place = (update - 1) * batch
        while len(chosen) < batch:
            number, offset = divmod(place + len(chosen), count)
            order = list(range(count))
            random.Random(f"{seed}/prompts/{number}").shuffle(order)
            chosen += [self.prompts[index] for index in order[offset : offset + batch - len(chosen)]]
        return chosen


def load_prompts(source: str, codec: TextCodec) -> PromptSet:
    """Read the documents of a source; see ``andon.corpus.loaders`` for what a source may be."""
    documents = load_documents(source)
    if not documents:
        raise InvalidConfigError(field="prompts", problem=f"{source} holds no documents")
    prompts = tuple(tuple(codec.encode_document(record.document)) for record in documents)
    return PromptSet(
        prompts=prompts,
        documents={prompt: record.document for prompt, record in zip(prompts, documents, strict=True)},
        references={
            index: tuple(codec.encode_summary(record.summaries[0]))
            for index, record in enumerate(documents[:MOST_REFERENCES])
            if record.summaries
        },
        use=DataUse(
            kind="prompts",
            uri=source,
            count=len(documents),
            sha256=hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
            first_id=documents[0].document_id,
            last_id=documents[-1].document_id,
        ),
    )
