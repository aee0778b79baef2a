"""What a witness of the guard ``hacking`` is, and the reward model of the store that is one by default.

A witness reads texts of the policy and scores them; it need not share the policy's vocabulary. The model
stays in the trainer's process, beside the policy: nobody can hand the trainer another one unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from andon.modeling.batches import results_by_response
from andon.modeling.forward import final_scores
from andon.modeling.loading import describe, freeze, load_scorer, read_normalization
from andon.modeling.sequences import PackedBatch, PromptGroup
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from services.trainer.errors import InvalidConfigError

FIELD = "guards.witness.model"


class Witness(Protocol):
    """Judges responses by other lights than the training reward model."""

    def scores(
        self, groups: Sequence[PromptGroup], *, between_batches: Callable[[], None]
    ) -> list[list[float]]:
        """One row per prompt, one score per response; higher is better.

        ``groups`` are in the policy's vocabulary, each response as the reward model reads it.
        ``between_batches`` is called now and then and may raise to break off.
        """
        ...


class WitnessModel:
    """A reward model of the model store as a witness."""

    def __init__(
        self,
        model: LocatedModel,
        *,
        policy_codec: TextCodec,
        documents: Mapping[tuple[int, ...], str],
        max_new_tokens: int,
        token_budget: int,
        device: str,
    ) -> None:
        """``documents``: the text behind each prompt. Raises InvalidConfigError for one that cannot be used.

        A witness with the policy's tokenizer and template reads the policy's tokens; another one reads the
        texts, and a text that is too long for it ends where its room ends.
        """
        self._scorer = freeze(load_scorer(model.source, dtype="float32", device=device))
        self._normalization = read_normalization(self._scorer)
        self._codec = TextCodec.load(model.source)
        self._policy_codec = policy_codec
        self._shares_vocabulary = self._codec.fingerprint == policy_codec.fingerprint
        self._documents = documents
        self._token_budget = token_budget
        self._room = describe(self._scorer).max_sequence_tokens
        longest = max(map(len, documents)) + max_new_tokens
        if self._shares_vocabulary and longest > self._room:
            raise InvalidConfigError(
                field=FIELD,
                problem=f"texts have up to {longest} tokens, {model.version} takes {self._room}",
            )

    @torch.inference_mode()
    def scores(
        self, groups: Sequence[PromptGroup], *, between_batches: Callable[[], None]
    ) -> list[list[float]]:
        """The model's normalised scores."""
        own = groups if self._shares_vocabulary else [self._translated(group) for group in groups]

        def forward(batch: PackedBatch) -> Sequence[Tensor]:
            return final_scores(self._scorer, batch).cpu().unbind()

        rows = results_by_response(
            own,
            token_budget=self._token_budget,
            device=self._scorer.device,
            forward=forward,
            between_batches=between_batches,
        )
        return [[self._normalization.apply(raw.item()) for raw in row] for row in rows]

    def _translated(self, group: PromptGroup) -> PromptGroup:
        """The same texts in the witness's vocabulary."""
        prompt = self._codec.encode_document(self._documents[tuple(group.prompt)])
        room = max(2, self._room - len(prompt))
        responses = []
        for response in group.responses:
            ids = self._codec.encode_summary(self._policy_codec.decode(response))
            responses.append(ids if len(ids) <= room else [*ids[: room - 1], ids[-1]])
        return PromptGroup(prompt=prompt[: self._room - room], responses=responses)


def mean_by_prompt(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """[P]: the mean score of each prompt's responses."""
    return np.array([float(np.mean(row)) for row in rows])
