"""Keeps the state of running sequences as arrays, so that a step updates all of them at once.

The engine writes a row per sequence at its start, records every drawn token, and takes finished rows out. A
sequence is known by its *slot*, the index of its row. Nothing here touches the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.policy.call import FinishedSequence, FinishReason, SampleCall
from services.policy.stopping import StopTextMatcher

NO_TOKEN = -1  # no token has this id


@dataclass(frozen=True, slots=True, kw_only=True)
class Endings:
    """Sequences that ended at a step."""

    slots: NDArray[np.int64]
    sequences: list[FinishedSequence]


class RunningSequences:
    """A table with room for ``capacity`` sequences of ``max_new_tokens`` tokens each."""

    def __init__(self, *, capacity: int, max_new_tokens: int, max_stop_tokens: int) -> None:
        self.call_ids = np.zeros(capacity, dtype=np.int64)
        self.sequence_indices = np.zeros(capacity, dtype=np.int64)
        self.prompt_tokens = np.zeros(capacity, dtype=np.int64)
        self.temperatures = np.zeros(capacity, dtype=np.float32)
        self.top_p = np.zeros(capacity, dtype=np.float32)
        self.uniforms = np.zeros((capacity, max_new_tokens), dtype=np.float32)
        self._limits = np.zeros(capacity, dtype=np.int64)
        self._end_tokens = np.full((capacity, max_stop_tokens + 1), NO_TOKEN, dtype=np.int64)
        self._num_drawn = np.zeros(capacity, dtype=np.int64)
        self._last_tokens = np.zeros(capacity, dtype=np.int64)
        self._tokens = np.zeros((capacity, max_new_tokens), dtype=np.int32)
        self._logprobs = np.zeros((capacity, max_new_tokens), dtype=np.float32)
        self._matchers: dict[int, StopTextMatcher] = {}
        self._free = list(range(capacity - 1, -1, -1))  # taken from its end: low slots first

    def start(
        self,
        call: SampleCall,
        *,
        sequence_index: int,
        uniforms: NDArray[np.float32],
        end_token_id: int | None,
        matcher: StopTextMatcher | None,
    ) -> int:
        """Begin a sequence; returns its slot. ``uniforms`` [max_new_tokens] are its random numbers."""
        slot = self._free.pop()
        parameters = call.parameters
        self.call_ids[slot] = call.call_id
        self.sequence_indices[slot] = sequence_index
        self.prompt_tokens[slot] = len(call.prompts[sequence_index // parameters.samples_per_prompt])
        self.temperatures[slot] = parameters.temperature
        self.top_p[slot] = parameters.top_p
        self.uniforms[slot, : len(uniforms)] = uniforms
        self._limits[slot] = parameters.max_new_tokens
        self._end_tokens[slot] = NO_TOKEN
        if end_token_id is not None:
            self._end_tokens[slot, 0] = end_token_id
        self._end_tokens[slot, 1 : 1 + len(parameters.stop_token_ids)] = parameters.stop_token_ids
        self._num_drawn[slot] = 0
        if matcher is not None:
            self._matchers[slot] = matcher
        return slot

    def next_inputs(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Last tokens and their positions, what the next step feeds to the model."""
        return self._last_tokens[slots], self.prompt_tokens[slots] + self._num_drawn[slots] - 1

    def next_uniforms(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The random number of each sequence's next token."""
        drawn: NDArray[np.float32] = self.uniforms[slots, self._num_drawn[slots]]
        return drawn

    def coming_uniforms(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """The random numbers of all tokens that each sequence may still get, [slots, steps]; a sequence that
        may get fewer than another has any numbers behind its own.
        """
        drawn = self._num_drawn[slots]
        steps = np.arange(int((self._limits[slots] - drawn).max()))
        columns = np.minimum(drawn[:, None] + steps, self.uniforms.shape[1] - 1)
        coming: NDArray[np.float32] = self.uniforms[slots[:, None], columns]
        return coming

    def record(
        self, slots: NDArray[np.int64], tokens: NDArray[np.int64], logprobs: NDArray[np.float32]
    ) -> Endings | None:
        """Append a token to each sequence and say which ones have ended with it, if any."""
        drawn = self._num_drawn[slots]
        self._tokens[slots, drawn] = tokens
        self._logprobs[slots, drawn] = logprobs
        self._last_tokens[slots] = tokens
        self._num_drawn[slots] = drawn + 1
        is_eos = (self._end_tokens[slots] == tokens[:, None]).any(axis=1)
        is_last = drawn + 1 >= self._limits[slots]
        is_finite = np.isfinite(logprobs)
        is_stop = self._match_stop_texts(slots, tokens)
        ended = is_eos | is_last | is_stop | ~is_finite
        if not ended.any():
            return None
        sequences = []
        for row in ended.nonzero()[0]:
            reason = (
                FinishReason.EOS
                if is_eos[row]
                else FinishReason.STOP
                if is_stop[row]
                else FinishReason.LENGTH
            )
            sequences.append(self._take(int(slots[row]), reason, is_finite=bool(is_finite[row])))
        return Endings(slots=slots[ended], sequences=sequences)

    def slots_of_call(self, call_id: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``slots`` that belong to a call."""
        belonging: NDArray[np.int64] = slots[self.call_ids[slots] == call_id]
        return belonging

    def release(self, slots: NDArray[np.int64]) -> None:
        """Give slots back without a result."""
        for slot in slots.tolist():
            self._matchers.pop(slot, None)
            self._free.append(slot)

    def release_all(self) -> None:
        """Give every slot back."""
        self._matchers.clear()
        self._free = list(range(len(self.call_ids) - 1, -1, -1))

    def _match_stop_texts(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        is_stop = np.zeros(len(slots), dtype=np.bool_)
        if self._matchers:
            for row, (slot, token) in enumerate(zip(slots.tolist(), tokens.tolist(), strict=True)):
                matcher = self._matchers.get(slot)
                is_stop[row] = matcher is not None and matcher.push(token)
        return is_stop

    def _take(self, slot: int, reason: FinishReason, *, is_finite: bool) -> FinishedSequence:
        drawn = int(self._num_drawn[slot])
        self._matchers.pop(slot, None)
        self._free.append(slot)
        return FinishedSequence(
            call_id=int(self.call_ids[slot]),
            sequence_index=int(self.sequence_indices[slot]),
            token_ids=self._tokens[slot, :drawn].copy(),
            logprobs=self._logprobs[slot, :drawn].copy(),
            finish_reason=reason,
            temperature=float(self.temperatures[slot]),
            top_p=float(self.top_p[slot]),
            end_token_ids=tuple(
                token_id for token_id in self._end_tokens[slot].tolist() if token_id != NO_TOKEN
            ),
            is_finite=is_finite,
        )
