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
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.attention import AttentionLayout
from services.policy.cache import FINISHED, Cohort, DecodeLayout
from services.policy.call import FinishedSequence, SampleCall
from services.policy.captured_step import Batch, CapturedStep, Record
from services.policy.prefill_layout import PrefillLayout, PromptRun
from services.policy.running import Endings, RunningSequences
from services.policy.sampling import SamplingSettings, choose_tokens, draw_uniforms
from services.policy.stopping import StopTextMatcher

# A batch must have stayed the same for so many steps, and have so many left, for recording to pay.
_STEPS_BEFORE_RECORDING = 1
_FEWEST_REPEATED_STEPS = 4

_Drawn = tuple[NDArray[np.int64], NDArray[np.float32]]  # tokens and their log-probabilities

_log = structlog.stdlib.get_logger("services.policy")


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
        record: Record | None = None,
    ) -> None:
        """``record`` repeats steps, a ``GraphRecorder`` on a GPU; None: every step is launched anew."""
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
        self._record = record
        self._captured: CapturedStep | None = None
        self._live_lanes: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # rows of the captured step
        self._steps_alike = 0  # steps since prompts joined or were copied together

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
        self._forget_step()
        endings: list[Endings] = []
        for cohort, starts in zip(made, cohorts, strict=True):
            for runs in self._plan_passes(cohort):
                endings += self._read(cohort, runs, starts)
        return self._take_out(endings, batch_changed=True)

    @torch.inference_mode()
    def step(self) -> list[FinishedSequence]:
        """Draw the next token of every running sequence; returns the sequences that end with it."""
        self.work.decode_tokens += len(self._slots)
        repeated = self._repeated_step()
        drawn = self._launched_step() if repeated is None else self._read_repeated(repeated)
        for cohort in self._cohorts:
            cohort.advance()
        self._steps_alike += 1
        return self._take_out(self._ended(self._slots, drawn), batch_changed=False)

    def cancel(self, call_id: int) -> None:
        """Drop the running sequences of a call."""
        slots = self._running.slots_of_call(call_id, self._slots)
        self._running.release(slots)
        self._drop(slots)

    def clear(self) -> None:
        """Drop every running sequence."""
        self._cohorts.clear()
        self._forget_step()
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
        return self._ended(slots, self._draw(logits, slots, self._settings_of(slots)))

    def _launched_step(self) -> _Drawn:
        """Carry out a step kernel by kernel."""
        slots = self._slots
        if self._settings is None:
            self._settings = self._settings_of(slots)
        tokens, positions = self._running.next_inputs(slots)
        layout = DecodeLayout(cohorts=self._cohorts, sizes=self._sizes)
        logits = self._forward(tokens, positions, layout, logits_to_keep=0)
        return self._draw(logits, slots, self._settings)

    def _repeated_step(self) -> CapturedStep | None:
        """What repeats the step, recorded now where that pays; None where it is to be launched."""
        if self._record is None or (self._captured is not None and self._captured.is_usable):
            return self._captured
        self._captured = None
        if self._steps_alike < _STEPS_BEFORE_RECORDING:
            return None
        lanes = self._lanes()
        # Lanes that have ended repeat the numbers of a running one.
        slots = np.where(lanes == FINISHED, self._slots[0], lanes)
        uniforms = self._running.coming_uniforms(slots)
        if uniforms.shape[1] < _FEWEST_REPEATED_STEPS:
            return None
        tokens, positions = self._running.next_inputs(slots)
        try:
            self._captured = CapturedStep(
                self._model,
                self._cohorts,
                Batch(
                    tokens=tokens,
                    positions=positions,
                    uniforms=uniforms,
                    settings=self._settings_of(slots),
                ),
                record=self._record,
            )
        except RuntimeError:  # the model does something that cannot be repeated; it is served all the same
            _log.warning("step_not_recorded", exc_info=True)
            self._record = None
        self._update_batch()
        return self._captured

    def _read_repeated(self, step: CapturedStep) -> _Drawn:
        tokens, logprobs = step.next_tokens()
        return tokens[self._live_lanes], logprobs[self._live_lanes]

    def _forget_step(self) -> None:
        """Prompts have joined or moved."""
        self._captured = None
        self._steps_alike = 0

    def _lanes(self) -> NDArray[np.int64]:
        """The slots of all lanes of all cohorts, FINISHED for those that have ended."""
        return np.concatenate([cohort.slots.reshape(-1) for cohort in self._cohorts])

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

    def _draw(self, logits: Tensor, slots: NDArray[np.int64], settings: SamplingSettings) -> _Drawn:
        uniforms = torch.from_numpy(self._running.next_uniforms(slots)).to(self._device)
        choice = choose_tokens(logits, settings, uniforms)
        return choice.tokens.cpu().numpy(), choice.logprobs.cpu().numpy()

    def _ended(self, slots: NDArray[np.int64], drawn: _Drawn) -> list[Endings]:
        """Append the tokens to the sequences; those that end with them."""
        endings = self._running.record(slots, *drawn)
        return [] if endings is None else [endings]

    def _take_out(self, endings: Sequence[Endings], *, batch_changed: bool) -> list[FinishedSequence]:
        if endings:
            self._drop(np.concatenate([ending.slots for ending in endings]))
        elif batch_changed:
            self._update_batch()
        return [sequence for ending in endings for sequence in ending.sequences]

    def _drop(self, slots: NDArray[np.int64]) -> None:
        moved = [cohort.finish(slots) for cohort in self._cohorts]
        running = [cohort for cohort in self._cohorts if len(cohort.live_slots)]
        if any(moved) or len(running) < len(self._cohorts):
            self._forget_step()
        self._cohorts = running
        self._update_batch()

    def _update_batch(self) -> None:
        live = [cohort.live_slots for cohort in self._cohorts]
        self._slots = np.concatenate(live) if live else np.zeros(0, dtype=np.int64)
        self._sizes = [len(slots) for slots in live]
        self._settings = None
        if self._captured is not None:
            self._live_lanes = (self._lanes() != FINISHED).nonzero()[0]
