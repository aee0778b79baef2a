"""Runs the sampler: one thread that asks the scheduler what to do and lets the engine do it.

The servicer submits calls and replacements of the model from the event loop and awaits their futures; the
thread carries them out one action at a time. All that both sides touch is guarded by one lock, which is never
held while the model computes. Every call that was begun ends with the model it began with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from andon.errors import AndonError
from andon.rpc.convert import check_required_model
from services.policy.call import CallOutcome, FinishedSequence, SampleCall
from services.policy.captured_step import GraphRecorder
from services.policy.engine import CallRun, Engine, EngineLimits, PromptStart
from services.policy.errors import (
    LogitsNotFiniteError,
    ModelReplacedError,
    QueueFullError,
    SamplingFailedError,
    ShuttingDownError,
)
from services.policy.metrics import PolicyMetrics
from services.policy.scheduler import (
    GPU_PADDING_BYTES_PER_COHORT,
    PADDING_TOKENS_PER_COHORT,
    Action,
    CallShape,
    CohortPlan,
    Decode,
    Limits,
    Prefill,
    ReplaceModel,
    Scheduler,
    Wait,
)
from services.policy.served_model import ServedModel

# Makes the model to serve from now on, given the one in use; runs in the model's thread between two calls.
Replacement = Callable[[ServedModel | None], ServedModel]

T = TypeVar("T")

_log = structlog.stdlib.get_logger("services.policy")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """How much may run and wait at once, whatever the model."""

    running_sequences: int
    cache_bytes: int
    waiting_calls: int
    max_new_tokens: int
    max_stop_tokens: int
    prefill_tokens: int


@dataclass(slots=True, kw_only=True, eq=False)
class _CallState:
    """What is known of a call between its arrival and its end."""

    call: SampleCall
    future: Future[CallOutcome]
    run: CallRun | None = None  # from the start of model work on
    begin_s: float = 0.0
    first_token_s: dict[int, float] = field(default_factory=dict)  # by prompt
    finished: list[FinishedSequence] = field(default_factory=list)

    @property
    def num_sequences(self) -> int:
        return len(self.call.prompts) * self.call.parameters.samples_per_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class _PendingReplacement:
    replacement: Replacement
    future: Future[ServedModel]


class SamplingRunner:
    """The model's thread, its queue, and the model in use."""

    def __init__(
        self,
        settings: RunnerSettings,
        metrics: PolicyMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._settings = settings
        self._metrics = metrics
        self._served: ServedModel | None = None
        self._engine: Engine | None = None
        self._changed = threading.Condition()  # guards everything below
        self._scheduler = Scheduler(limits=self._limits_for(None))
        self._calls: dict[int, _CallState] = {}
        self._replacements: dict[int, _PendingReplacement] = {}
        self._cancelled: list[int] = []  # calls whose sequences the engine must drop
        self._last_id = 0
        self._closing = False
        self._last_token_s: float | None = None
        self._thread = threading.Thread(target=self._work, name="policy-model", daemon=True)

    @property
    def served(self) -> ServedModel | None:
        """The model in use."""
        return self._served

    @property
    def limits(self) -> Limits:
        """What may run and wait at once with the model in use."""
        return self._scheduler.limits

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def next_id(self) -> int:
        """A number for a new call."""
        with self._changed:
            self._last_id += 1
            return self._last_id

    def submit(self, call: SampleCall) -> Future[CallOutcome]:
        """Queue a call. Raises QueueFullError, ShuttingDownError; its future also what sampling raises."""
        shape = CallShape(
            call_id=call.call_id,
            prompt_tokens=[len(prompt) for prompt in call.prompts],
            samples_per_prompt=call.parameters.samples_per_prompt,
            max_new_tokens=call.parameters.max_new_tokens,
        )
        future: Future[CallOutcome] = Future()
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            try:
                self._scheduler.submit_call(shape)
            except QueueFullError:
                self._metrics.rejected_calls.inc()
                raise
            self._calls[call.call_id] = _CallState(call=call, future=future)
            self._changed.notify()
        return future

    def cancel(self, call_id: int) -> None:
        """Nobody waits for this call any more: free what it holds."""
        with self._changed:
            if self._calls.pop(call_id, None) is not None:
                self._scheduler.cancel_call(call_id)
                self._cancelled.append(call_id)
                self._metrics.cancelled_calls.inc()
                self._changed.notify()

    def replace(self, replacement: Replacement) -> Future[ServedModel]:
        """Queue a replacement of the model behind the calls that wait; its future gives the model then in
        use.
        """
        future: Future[ServedModel] = Future()
        with self._changed:
            if self._closing:
                raise ShuttingDownError
            self._last_id += 1
            self._replacements[self._last_id] = _PendingReplacement(replacement=replacement, future=future)
            self._scheduler.submit_replacement(self._last_id)
            self._changed.notify()
        return future

    def pending(self) -> list[Future[CallOutcome]]:
        """The futures of all calls that have not ended."""
        with self._changed:
            return [state.future for state in self._calls.values()]

    def close(self) -> None:
        """End the thread after the action in progress; what has not ended gets ShuttingDownError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        while self._calls:
            _fail(self._calls.popitem()[1].future, ShuttingDownError())
        while self._replacements:
            _fail(self._replacements.popitem()[1].future, ShuttingDownError())

    # --- in the model's thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while (action := self._next_action()) is not None:
            try:
                self._carry_out(action)
            except Exception:  # noqa: BLE001 - the thread must outlive any failure of a model; every caller is told
                _log.exception("sampling_failed")
                self._fail_running()
            self._report_load()

    def _next_action(self) -> Action | None:
        """Wait for something to do; None at the end."""
        with self._changed:
            while not self._closing:
                action = self._scheduler.next_action()
                if self._engine is not None:
                    for call_id in self._cancelled:
                        self._engine.cancel(call_id)
                self._cancelled.clear()
                if not isinstance(action, Wait):
                    return action
                self._last_token_s = None
                self._report_load()
                self._changed.wait()
        return None

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, ReplaceModel):
            with self._changed:
                pending = self._replacements.pop(action.replacement_id)
            self._replace_model(pending)
        elif isinstance(action, Prefill):
            self._begin(action.cohorts)
        elif isinstance(action, Decode) and self._engine is not None and self._engine.num_running:
            num_tokens = self._engine.num_running
            self._finish(self._engine.step())
            now = self.clock()
            if self._last_token_s is not None:
                self._metrics.inter_token_seconds.observe(now - self._last_token_s)
            self._last_token_s = now
            self._metrics.generated_tokens.inc(num_tokens)

    def _begin(self, plans: Sequence[CohortPlan]) -> None:
        cohorts: list[list[PromptStart]] = []
        for plan in plans:
            starts = []
            for prompt in plan.prompts:
                state = self._calls.get(prompt.call_id)
                run = None if state is None else self._run_of(state)
                if run is not None:
                    starts.append(PromptStart(run=run, prompt_index=prompt.prompt_index))
            if starts:
                cohorts.append(starts)
        if not cohorts:
            return
        assert self._engine is not None  # a call is only queued while a model is in use
        prefill_before = self._engine.work.prefill_tokens
        finished = self._engine.begin(cohorts)
        now = self.clock()
        for starts in cohorts:
            for start in starts:
                if (state := self._calls.get(start.run.call.call_id)) is not None:
                    state.first_token_s[start.prompt_index] = now - state.begin_s
                    self._metrics.first_token_seconds.observe(now - state.call.arrival_s)
        self._metrics.prompt_tokens.inc(self._engine.work.prefill_tokens - prefill_before)
        self._metrics.generated_tokens.inc(
            sum(start.run.call.parameters.samples_per_prompt for starts in cohorts for start in starts)
        )
        self._last_token_s = now
        self._finish(finished)

    def _run_of(self, state: _CallState) -> CallRun | None:
        """The call's run, begun if need be; None if it cannot be served."""
        if state.run is None:
            assert self._served is not None
            try:
                if state.call.required_model is not None:
                    check_required_model(state.call.required_model, self._served.version)
            except AndonError as error:  # told to the caller; the others go on
                self._end(state, error)
                return None
            state.begin_s = self.clock()
            state.run = CallRun.of(state.call)
            self._metrics.queue_seconds.observe(state.begin_s - state.call.arrival_s)
        return state.run

    def _finish(self, sequences: Sequence[FinishedSequence]) -> None:
        for sequence in sequences:
            with self._changed:
                state = self._calls.get(sequence.call_id)
                if state is None:  # cancelled while the model computed
                    continue
                samples_per_prompt = state.call.parameters.samples_per_prompt
                self._scheduler.finish_sequence(
                    sequence.call_id, sequence.sequence_index // samples_per_prompt
                )
            assert self._served is not None
            if not sequence.is_finite:
                _log.error("logits_not_finite", model=str(self._served.version))
                self._end(state, LogitsNotFiniteError(model=str(self._served.version)))
                continue
            self._metrics.finished_samples.labels(sequence.finish_reason.value).inc()
            self._metrics.response_tokens.observe(len(sequence.token_ids))
            state.finished.append(sequence)
            if len(state.finished) == state.num_sequences:
                self._complete(state, self._served)

    def _complete(self, state: _CallState, served: ServedModel) -> None:
        now = self.clock()
        with self._changed:
            del self._calls[state.call.call_id]
        self._metrics.call_seconds.observe(now - state.call.arrival_s)
        outcome = CallOutcome(
            sequences=tuple(sorted(state.finished, key=lambda sequence: sequence.sequence_index)),
            first_token_s=tuple(state.first_token_s[index] for index in range(len(state.call.prompts))),
            model=served.version,
            queue_s=state.begin_s - state.call.arrival_s,
            compute_s=now - state.begin_s,
        )
        if state.future.set_running_or_notify_cancel():
            state.future.set_result(outcome)

    def _end(self, state: _CallState, error: Exception) -> None:
        """Tell a caller of an error and free what the call holds."""
        with self._changed:
            if self._calls.pop(state.call.call_id, None) is not None:
                self._scheduler.cancel_call(state.call.call_id)
                self._cancelled.append(state.call.call_id)
        self._metrics.failed_calls.inc()
        _fail(state.future, error)

    def _fail_running(self) -> None:
        """After a failed forward pass nothing in the cache can be trusted."""
        with self._changed:
            states = [state for state in self._calls.values() if state.run is not None]
        for state in states:
            self._end(state, SamplingFailedError())
        if self._engine is not None:
            self._engine.clear()

    def _replace_model(self, pending: _PendingReplacement) -> None:
        if not pending.future.set_running_or_notify_cancel():
            return  # its sender went away while it waited
        try:
            served = pending.replacement(self._served)
            is_other_model = self._served is None or served.model is not self._served.model
            engine = self._make_engine(served) if is_other_model else self._engine
        except Exception as error:  # noqa: BLE001 - told to the caller; the old model stays in use
            pending.future.set_exception(error)
            return
        with self._changed:
            self._served, self._engine = served, engine
            self._scheduler.limits = self._limits_for(served)
            waiting = list(self._calls.values()) if is_other_model else []
        for state in waiting:
            if not self._still_fits(state.call, served):
                self._end(state, ModelReplacedError(active=str(served.version)))
        pending.future.set_result(served)

    def _make_engine(self, served: ServedModel) -> Engine:
        settings, device = self._settings, served.model.device
        return Engine(
            served.model,
            end_token_id=served.codec.eos_token_id,
            decode=served.codec.decode,
            limits=EngineLimits(
                running_sequences=settings.running_sequences,
                max_new_tokens=min(settings.max_new_tokens, served.facts.max_sequence_tokens),
                max_stop_tokens=settings.max_stop_tokens,
                prefill_tokens=settings.prefill_tokens,
            ),
            record=GraphRecorder(device) if device.type == "cuda" else None,
        )

    def _limits_for(self, served: ServedModel | None) -> Limits:
        bytes_per_token = 1 if served is None else served.cache_bytes_per_token
        padding_tokens = PADDING_TOKENS_PER_COHORT
        if served is not None and served.model.device.type == "cuda":
            padding_tokens = max(padding_tokens, GPU_PADDING_BYTES_PER_COHORT // bytes_per_token)
        return Limits(
            running_sequences=self._settings.running_sequences,
            cache_tokens=self._settings.cache_bytes // bytes_per_token,
            waiting_calls=self._settings.waiting_calls,
            padding_tokens_per_cohort=padding_tokens,
        )

    def _still_fits(self, call: SampleCall, served: ServedModel) -> bool:
        """Whether a call that was checked against another model can be served by this one."""
        if call.tokenizer_fingerprint != served.codec.fingerprint:
            return False
        longest = max(len(prompt) for prompt in call.prompts)
        parameters = call.parameters
        return (
            longest + parameters.max_new_tokens <= served.facts.max_sequence_tokens
            and max(max(prompt) for prompt in call.prompts) < served.facts.vocab_size
            and self._scheduler.limits.admits(
                prompt_tokens=longest,
                samples_per_prompt=parameters.samples_per_prompt,
                max_new_tokens=parameters.max_new_tokens,
            )
        )

    def _report_load(self) -> None:
        scheduler = self._scheduler
        self._metrics.running_sequences.set(scheduler.running_sequences)
        self._metrics.waiting_calls.set(scheduler.waiting_calls)
        self._metrics.cache_usage.set(scheduler.reserved_cache_tokens / max(scheduler.limits.cache_tokens, 1))


def _fail(future: Future[T], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
