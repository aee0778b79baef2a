"""Decides what the model does next: read prompts, write a token, or take new weights.

Continuous batching. Calls begin in order of arrival; their prompts are admitted as soon as slots and cache
allow, longest first, and every sequence leaves when it ends, so that others can join between any two steps. A
replacement of the weights stands in the same queue: calls before it are sampled entirely with the old
weights, calls behind it entirely with the new ones.

The runner tells this module of arrivals and endings and carries out its actions. Everything here is a pure
function of the order of those events: with one caller at a time the schedule, and so every number the model
computes, follows from the requests alone. Left out on purpose: preemption (a prompt is admitted only with
room for its longest responses), priorities, and chunked reading of prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.policy.errors import QueueFullError

# Prompts share a cohort while no more of the cache is lost to padding: about what one more cohort costs per
# step. On a CPU in tokens, measured on models 128 to 256 wide; on a GPU, which reads padding while it would
# launch a cohort's kernels, in bytes.
PADDING_TOKENS_PER_COHORT = 512
GPU_PADDING_BYTES_PER_COHORT = 1 << 29

# While sequences run, prompts of a call that does not fit as a whole join in gulps of this share of all
# slots. Joining one by one would make a cohort of each.
REFILL_SHARE = 0.125


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may run and wait at once."""

    running_sequences: int
    cache_tokens: int
    waiting_calls: int
    padding_tokens_per_cohort: int = PADDING_TOKENS_PER_COHORT

    def admits(self, *, prompt_tokens: int, samples_per_prompt: int, max_new_tokens: int) -> bool:
        """Whether a prompt can run when nothing else does."""
        tokens = prompt_cache_tokens(prompt_tokens, samples_per_prompt, max_new_tokens)
        return samples_per_prompt <= self.running_sequences and tokens <= self.cache_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class CallShape:
    """What the scheduler needs to know of a call."""

    call_id: int
    prompt_tokens: Sequence[int]  # length of each prompt
    samples_per_prompt: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReference:
    """One prompt of one call."""

    call_id: int
    prompt_index: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortPlan:
    """Prompts that are to begin together in one block of the cache, longest first."""

    prompts: tuple[PromptReference, ...]
    samples_per_prompt: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Read these prompts and draw the first token of each of their samples."""

    cohorts: tuple[CohortPlan, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """Draw the next token of every running sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceModel:
    """Carry out a replacement; no call is in progress."""

    replacement_id: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before the next arrival."""


Action = Prefill | Decode | ReplaceModel | Wait


@dataclass(slots=True)
class _QueuedCall:
    shape: CallShape
    order: list[int]  # prompts not yet admitted, the next one last
    begun: bool = False


@dataclass(slots=True)
class _RunningPrompt:
    sequences: int
    cache_tokens: int


@dataclass(slots=True)
class Scheduler:
    """The queue and the account of slots and cache."""

    limits: Limits
    running_sequences: int = 0
    reserved_cache_tokens: int = 0  # without padding, which the limits bound
    waiting_calls: int = 0  # calls of which no prompt has been admitted
    _queue: deque[_QueuedCall | ReplaceModel] = field(default_factory=deque)
    _running: dict[int, dict[int, _RunningPrompt]] = field(default_factory=dict)  # call -> prompt -> account

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._queue and self.running_sequences == 0

    def submit_call(self, shape: CallShape) -> None:
        """Let a call wait its turn."""
        if self.waiting_calls >= self.limits.waiting_calls:
            raise QueueFullError(waiting_calls=self.waiting_calls)
        # Ties keep the request's order; the list is taken from its end.
        order = sorted(
            range(len(shape.prompt_tokens)), key=lambda index: (shape.prompt_tokens[index], -index)
        )
        self._queue.append(_QueuedCall(shape=shape, order=order))
        self.waiting_calls += 1

    def submit_replacement(self, replacement_id: int) -> None:
        """Let a replacement of the weights wait its turn."""
        self._queue.append(ReplaceModel(replacement_id=replacement_id))

    def next_action(self) -> Action:
        """What to do now. Admissions count as carried out when this returns."""
        admitted = self._admit()
        if admitted:
            return Prefill(cohorts=tuple(admitted))
        if self.running_sequences:
            return Decode()
        if self._queue and isinstance(self._queue[0], ReplaceModel):
            head = self._queue.popleft()
            assert isinstance(head, ReplaceModel)
            return head
        return Wait()

    def finish_sequence(self, call_id: int, prompt_index: int) -> None:
        """One sample of a prompt has ended."""
        prompts = self._running[call_id]
        prompt = prompts[prompt_index]
        prompt.sequences -= 1
        self.running_sequences -= 1
        if prompt.sequences == 0:
            self.reserved_cache_tokens -= prompt.cache_tokens
            del prompts[prompt_index]
            if not prompts:
                del self._running[call_id]

    def cancel_call(self, call_id: int) -> None:
        """Forget a call, wherever it is. Unknown calls have ended already."""
        for entry in self._queue:
            if isinstance(entry, _QueuedCall) and entry.shape.call_id == call_id:
                self._queue.remove(entry)
                self.waiting_calls -= not entry.begun
                break
        for prompt in self._running.pop(call_id, {}).values():
            self.running_sequences -= prompt.sequences
            self.reserved_cache_tokens -= prompt.cache_tokens

    def _admit(self) -> list[CohortPlan]:
        admitted: dict[tuple[int, int], list[PromptReference]] = {}
        while self._queue and isinstance(self._queue[0], _QueuedCall):
            call = self._queue[0]
            if not self._worth_admitting(call):
                break
            shape = call.shape
            while call.order and self._fits(shape, call.order[-1]):
                prompt = self._begin_prompt(call)
                admitted.setdefault((shape.samples_per_prompt, shape.max_new_tokens), []).append(prompt)
            if call.order:
                break
            self._queue.popleft()
        return [
            CohortPlan(prompts=prompts, samples_per_prompt=samples_per_prompt, max_new_tokens=max_new_tokens)
            for (samples_per_prompt, max_new_tokens), references in admitted.items()
            for prompts in _cut_by_length(references, self.limits.padding_tokens_per_cohort)
        ]

    def _worth_admitting(self, call: _QueuedCall) -> bool:
        """Whether to admit of this call now, rather than let running sequences end first."""
        if self.running_sequences == 0:
            return True
        wanted = len(call.order) * call.shape.samples_per_prompt
        gulp = max(call.shape.samples_per_prompt, int(self.limits.running_sequences * REFILL_SHARE))
        return self.limits.running_sequences - self.running_sequences >= min(wanted, gulp)

    def _fits(self, shape: CallShape, prompt_index: int) -> bool:
        tokens = prompt_cache_tokens(
            shape.prompt_tokens[prompt_index], shape.samples_per_prompt, shape.max_new_tokens
        )
        return (
            self.running_sequences + shape.samples_per_prompt <= self.limits.running_sequences
            and self.reserved_cache_tokens + tokens <= self.limits.cache_tokens
        )

    def _begin_prompt(self, call: _QueuedCall) -> PromptReference:
        shape = call.shape
        prompt_index = call.order.pop()
        num_tokens = shape.prompt_tokens[prompt_index]
        cache_tokens = prompt_cache_tokens(num_tokens, shape.samples_per_prompt, shape.max_new_tokens)
        self.waiting_calls -= not call.begun
        call.begun = True
        self.running_sequences += shape.samples_per_prompt
        self.reserved_cache_tokens += cache_tokens
        self._running.setdefault(shape.call_id, {})[prompt_index] = _RunningPrompt(
            sequences=shape.samples_per_prompt, cache_tokens=cache_tokens
        )
        return PromptReference(call_id=shape.call_id, prompt_index=prompt_index, num_tokens=num_tokens)


def prompt_cache_tokens(prompt_tokens: int, samples_per_prompt: int, max_new_tokens: int) -> int:
    """Cache tokens of a prompt and its longest possible responses, whose last token is never read again."""
    return prompt_tokens + samples_per_prompt * (max_new_tokens - 1)


def _cut_by_length(
    references: Iterable[PromptReference], padding_tokens_per_cohort: int
) -> list[tuple[PromptReference, ...]]:
    """Cut into groups of similar length; a group's rows are padded to its longest prompt."""
    groups: list[list[PromptReference]] = []
    padding_tokens = 0
    for reference in sorted(
        references, key=lambda reference: -reference.num_tokens
    ):  # stable: ties keep order
        padding_tokens += groups[-1][0].num_tokens - reference.num_tokens if groups else 0
        if not groups or padding_tokens > padding_tokens_per_cohort:
            groups.append([])
            padding_tokens = 0
        groups[-1].append(reference)
    return [tuple(group) for group in groups]
