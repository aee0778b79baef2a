"""Carries out forward passes: reads prompts into the cache and draws the next token of every running
sequence.

The runner calls ``begin`` and ``step`` as the scheduler decides, always from one thread. The model is any
Hugging Face causal LM loaded with the "andon" attention: prompts go through it packed in one row without
padding, the language-model head runs only where a token is drawn, and K samples of one prompt read it once.
Not here: when to do what (scheduler), how to choose a token (sampling), where keys and values lie (cache).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.attention import AttentionLayout
from services.policy.cache import Cohort, DecodeLayout, PrefillLayout, PromptRun
from services.policy.call import FinishedSequence, SampleCall
from services.policy.running import Endings, RunningSequences
from services.policy.sampling import SamplingSettings, choose_tokens, draw_uniforms
from services.policy.stopping import StopTextMatcher


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Sizes that are fixed while an engine lives."""

    running_sequences: int
    max_new_tokens: int
    max_stop_tokens: int
    prefill_tokens: int  # in one forward pass; a longer prompt passes alone


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRun:
    """A call whose model work has begun."""

    call: SampleCall
    uniforms: NDArray[np.float32]  # [sequences, max_new_tokens]

    @classmethod
    def of(cls, call: SampleCall) -> CallRun:
        """Draw the call's random numbers."""
        parameters = call.parameters
        uniforms = draw_uniforms(
            seed=parameters.seed,
            sequence_count=len(call.prompts) * parameters.samples_per_prompt,
            step_count=parameters.max_new_tokens,
        )
        return cls(call=call, uniforms=uniforms.numpy())


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStart:
    """A prompt that is to be read now."""

    run: CallRun
    prompt_index: int

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What is read."""
        return self.run.call.prompts[self.prompt_index]


@dataclass(slots=True)
class Work:
    """Tokens that have passed through the model since the engine was made."""

    prefill_tokens: int = 0
    decode_tokens: int = 0


class Engine:
    """The model, the cache and the running sequences."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_token_id: int | None,
        decode: Callable[[Sequence[int]], str],
        limits: EngineLimits,
    ) -> None:
        self.work = Work()
        self._model = model
        self._device = model.device
        self._end_token_id = end_token_id
        self._decode_text = decode
        self._limits = limits
        self._running = RunningSequences(
            capacity=limits.running_sequences,
            max_new_tokens=limits.max_new_tokens,
            max_stop_tokens=limits.max_stop_tokens,
        )
        self._cohorts: list[Cohort] = []
        # The batch of the next step; made anew only when a sequence has joined or left.
        self._slots: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._sizes: list[int] = []  # sequences of each cohort in it
        self._settings: SamplingSettings | None = None

    @property
    def num_running(self) -> int:
        """Sequences that the next step writes a token to."""
        return len(self._slots)

    @torch.inference_mode()
    def begin(self, cohorts: Sequence[Sequence[PromptStart]]) -> list[FinishedSequence]:
        """Read prompts and draw the first token of each sample; returns sequences that end with it.

        Each inner sequence becomes one cohort: prompts of calls with equally many samples and tokens, prompts
        of one length next to each other.
        """
        # All slots are taken before any is read: a sequence that ends with its first token gives its slot
        # back at once, and a later cohort that took it would be dropped together with the ended one.
        made = [self._make_cohort(starts) for starts in cohorts]
        self._cohorts += made
        endings: list[Endings] = []
        for cohort, starts in zip(made, cohorts, strict=True):
            for runs in self._plan_passes(cohort):
                endings += self._read(cohort, runs, starts)
        return self._take_out(endings, batch_changed=True)

    @torch.inference_mode()
    def step(self) -> list[FinishedSequence]:
        """Draw the next token of every running sequence; returns the sequences that end with it."""
        slots = self._slots
        if self._settings is None:
            self._settings = self._settings_of(slots)
        tokens, positions = self._running.next_inputs(slots)
        layout = DecodeLayout(cohorts=self._cohorts, sizes=self._sizes)
        logits = self._forward(tokens, positions, layout, logits_to_keep=0)
        self.work.decode_tokens += len(tokens)
        for cohort in self._cohorts:
            cohort.advance()
        return self._take_out(self._draw(logits, slots, self._settings), batch_changed=False)

    def cancel(self, call_id: int) -> None:
        """Drop the running sequences of a call."""
        slots = self._running.slots_of_call(call_id, self._slots)
        self._running.release(slots)
        self._drop(slots)

    def clear(self) -> None:
        """Drop every running sequence."""
        self._cohorts.clear()
        self._running.release_all()
        self._update_batch()

    def _make_cohort(self, starts: Sequence[PromptStart]) -> Cohort:
        parameters = starts[0].run.call.parameters
        slots = np.empty((len(starts), parameters.samples_per_prompt), dtype=np.int64)
        for row, start in enumerate(starts):
            call = start.run.call
            for lane in range(parameters.samples_per_prompt):
                sequence_index = start.prompt_index * parameters.samples_per_prompt + lane
                stop_texts = call.parameters.stop_texts
                slots[row, lane] = self._running.start(
                    call,
                    sequence_index=sequence_index,
                    uniforms=start.run.uniforms[sequence_index],
                    end_token_id=self._end_token_id,
                    matcher=StopTextMatcher(stop_texts, self._decode_text) if stop_texts else None,
                )
        return Cohort(
            prompt_lengths=[len(start.token_ids) for start in starts],
            slots=slots,
            response_capacity=parameters.max_new_tokens - 1,  # the last token is never read
            device=self._device,
        )

    def _plan_passes(self, cohort: Cohort) -> Iterator[list[PromptRun]]:
        """Cut a cohort's prompts into forward passes, and each pass into runs of one length."""
        runs: list[PromptRun] = []
        room = self._limits.prefill_tokens
        first = 0
        for length, group in groupby(cohort.prompt_lengths.tolist()):
            left = len(list(group))
            while left:
                num_prompts = min(left, max(room // length, 0 if runs else 1))
                if num_prompts:
                    runs.append(PromptRun(first_prompt=first, num_prompts=num_prompts, length=length))
                first, left, room = first + num_prompts, left - num_prompts, room - num_prompts * length
                if left:
                    yield runs
                    runs, room = [], self._limits.prefill_tokens
        if runs:
            yield runs

    def _read(
        self, cohort: Cohort, runs: Sequence[PromptRun], starts: Sequence[PromptStart]
    ) -> list[Endings]:
        """One forward pass over prompts, and the first token of each of their samples."""
        first, end = runs[0].first_prompt, runs[-1].first_prompt + runs[-1].num_prompts
        lengths = cohort.prompt_lengths[first:end]
        tokens = np.concatenate([np.asarray(start.token_ids, dtype=np.int64) for start in starts[first:end]])
        positions = np.concatenate([np.arange(length) for length in lengths])
        layout = PrefillLayout(cohort=cohort, runs=runs)
        logits = self._forward(tokens, positions, layout, logits_to_keep=layout.rows.read)
        self.work.prefill_tokens += len(tokens)
        if cohort.num_lanes > 1:
            logits = logits.repeat_interleave(cohort.num_lanes, dim=0)
        slots = cohort.slots[first:end].reshape(-1)
        return self._draw(logits, slots, self._settings_of(slots))

    def _forward(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        layout: AttentionLayout,
        *,
        logits_to_keep: int | Tensor,
    ) -> Tensor:
        """Logits [kept, vocabulary] float32 of one packed row."""
        output = self._model(
            input_ids=torch.from_numpy(tokens).to(self._device).unsqueeze(0),
            position_ids=torch.from_numpy(positions).to(self._device).unsqueeze(0),
            use_cache=False,
            logits_to_keep=logits_to_keep,
            layout=layout,
        )
        logits: Tensor = output.logits[0].float()
        return logits

    def _settings_of(self, slots: NDArray[np.int64]) -> SamplingSettings:
        return SamplingSettings.of_rows(
            temperatures=self._running.temperatures[slots],
            top_p=self._running.top_p[slots],
            device=self._device,
        )

    def _draw(self, logits: Tensor, slots: NDArray[np.int64], settings: SamplingSettings) -> list[Endings]:
        uniforms = torch.from_numpy(self._running.next_uniforms(slots)).to(self._device)
        choice = choose_tokens(logits, settings, uniforms)
        endings = self._running.record(slots, choice.tokens.cpu().numpy(), choice.logprobs.cpu().numpy())
        return [] if endings is None else [endings]

    def _take_out(self, endings: Sequence[Endings], *, batch_changed: bool) -> list[FinishedSequence]:
        if endings:
            self._drop(np.concatenate([ending.slots for ending in endings]))
        elif batch_changed:
            self._update_batch()
        return [sequence for ending in endings for sequence in ending.sequences]

    def _drop(self, slots: NDArray[np.int64]) -> None:
        for cohort in self._cohorts:
            cohort.finish(slots)
        self._cohorts = [cohort for cohort in self._cohorts if len(cohort.live_slots)]
        self._update_batch()

    def _update_batch(self) -> None:
        live = [cohort.live_slots for cohort in self._cohorts]
        self._slots = np.concatenate(live) if live else np.zeros(0, dtype=np.int64)
        self._sizes = [len(slots) for slots in live]
        self._settings = None
