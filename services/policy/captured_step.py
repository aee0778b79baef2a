"""Records one decode step as a CUDA graph and replays it.

Launching a step's hundreds of small kernels one by one takes a GPU's host several times as long as the GPU
needs to carry them out. So the step of a batch that stays the same is recorded once: what changes from step
to step (tokens, positions, random numbers, how far responses are written) stands on the device and is moved
on by the step itself. Nothing is sent to the device, and the host reads the tokens of one step while the
device computes the next. A sequence that ends keeps its place, and nobody reads what is drawn there.

The engine makes a ``CapturedStep`` when a batch is worth it and lets it go when prompts join or are copied
together. ``Cohort`` stays the owner of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.attention import AttentionCall
from services.policy.cache import Cohort, DecodeLayout, attend_step
from services.policy.sampling import SamplingSettings, choose_tokens

# Response columns that a recorded step reads: rounded up to a multiple, so that a step is recorded anew only
# after so many tokens, and reads at most as many columns too much.
_COLUMNS = 64
# Steps whose results the host has not read yet.
_STEPS_AHEAD = 2

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a step and gives back what repeats it; the step itself may or may not be carried out."""


class GraphRecorder:
    """Records on a GPU. Graphs of one recorder share memory, so only the latest may be replayed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._latest: torch.cuda.CUDAGraph | None = None  # keeps the pool, which goes with its last graph

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        """Raises RuntimeError for a step that cannot be recorded, such as one that waits for the device."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self._device)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        here.wait_stream(stream)
        self._latest = graph
        return graph.replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a step of the running sequences begins with. Rows are all lanes of all cohorts, ended ones
    included.
    """

    tokens: NDArray[np.int64]  # [rows], the last ones
    positions: NDArray[np.int64]  # [rows], of those tokens
    uniforms: NDArray[np.float32]  # [rows, steps], of the next tokens
    settings: SamplingSettings


class CapturedStep:
    """The step of one batch, for as long as that stays the same."""

    def __init__(
        self, model: PreTrainedModel, cohorts: Sequence[Cohort], batch: Batch, *, record: Record
    ) -> None:
        """``record`` is a ``GraphRecorder``. Raises what it raises."""
        device = model.device
        self._model = model
        self._settings = batch.settings
        self._tokens = torch.from_numpy(batch.tokens).to(device)
        self._positions = torch.from_numpy(batch.positions).to(device)
        self._uniforms = torch.from_numpy(batch.uniforms).to(device)
        self._logprobs = torch.zeros(len(batch.tokens), dtype=torch.float32, device=device)
        self._num_done = torch.zeros(1, dtype=torch.int64, device=device)
        members = [_CapturedCohort(cohort) for cohort in cohorts]
        self._layout = DecodeLayout(cohorts=members, sizes=[member.num_rows for member in members])
        self._members = members
        self._steps_left: int = min(batch.uniforms.shape[1], *(member.steps_left for member in members))
        self._results = [_Results(len(batch.tokens), device) for _ in range(_STEPS_AHEAD)]
        self._num_launched = self._num_read = 0
        self._replay = record(self._step)

    @property
    def is_usable(self) -> bool:
        """Whether there is a step left."""
        return self._num_read < self._steps_left

    def next_tokens(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The next step's tokens and their log-probabilities, [rows] each; the step after it is begun."""
        while self._num_launched < min(self._num_read + _STEPS_AHEAD, self._steps_left):
            self._replay()
            self._results[self._num_launched % _STEPS_AHEAD].take(self._tokens, self._logprobs)
            self._num_launched += 1
        results = self._results[self._num_read % _STEPS_AHEAD]
        self._num_read += 1
        return results.read()

    def _step(self) -> None:
        for member in self._members:
            member.begin_step()
        logits = self._model(
            input_ids=self._tokens.unsqueeze(0),
            position_ids=self._positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=0,
            layout=self._layout,
        ).logits[0]
        uniforms = self._uniforms.index_select(1, self._num_done).squeeze(1)
        choice = choose_tokens(logits.float(), self._settings, uniforms)
        self._tokens.copy_(choice.tokens)
        self._logprobs.copy_(choice.logprobs)
        self._positions.add_(1)
        self._num_done.add_(1)
        for member in self._members:
            member.end_step()


class _CapturedCohort:
    """A cohort's keys and values with every lane in the batch, and the written columns counted on the
    device.
    """

    def __init__(self, cohort: Cohort) -> None:
        self._layers = cohort.layers()
        self._num_prompts = cohort.num_prompts
        self._prompt_capacity = cohort.prompt_capacity
        self.num_rows = cohort.num_prompts * cohort.num_lanes
        written = cohort.written
        self._end = min(cohort.response_capacity, (written // _COLUMNS + 1) * _COLUMNS)
        self.steps_left = self._end - written
        for cache in self._layers.values():
            # Columns that are not written yet are read with weight zero.
            cache.response_keys[:, written : self._end].zero_()
            cache.response_values[:, written : self._end].zero_()
        device = cohort.device
        self._written = torch.full((1,), written, dtype=torch.int64, device=device)
        self._lengths = torch.from_numpy(cohort.prompt_lengths).to(device)[:, None]  # [prompts, 1]
        # Where the token of each column stands in its sequence, [prompts, columns]; padding nowhere.
        columns = torch.arange(self._prompt_capacity + self._end, device=device)
        in_prompt = columns < self._prompt_capacity
        self._places = torch.where(in_prompt, columns, columns - self._prompt_capacity + self._lengths)
        self._is_padding = in_prompt & (columns >= self._lengths)
        self._biases: dict[int | None, Tensor] = {}

    def begin_step(self) -> None:
        """Layers of one step share what is added to their scores."""
        self._biases.clear()

    def end_step(self) -> None:
        """Count the token that every layer has stored."""
        self._written.add_(1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
        """As ``Cohort.attend``, with all lanes live."""
        return attend_step(
            self._layers[call.layer_index],
            query,
            key,
            value,
            num_prompts=self._num_prompts,
            column=self._written,
            end=self._end,
            bias=self._bias(call.sliding_window),
            scaling=call.scaling,
        )

    def _bias(self, sliding_window: int | None) -> Tensor:
        """[prompts, 1, columns] float32."""
        bias = self._biases.get(sliding_window)
        if bias is None:
            now = self._lengths + self._written  # where the new token stands
            hidden = self._is_padding | (self._places > now)
            if sliding_window is not None:
                hidden = hidden | (self._places <= now - sliding_window)
            bias = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
            bias = self._biases[sliding_window] = bias.masked_fill_(hidden, -torch.inf).unsqueeze(1)
        return bias


class _Results:
    """A step's tokens on their way to the host."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._tokens = torch.empty(num_rows, dtype=torch.int64, pin_memory=is_cuda)
        self._logprobs = torch.empty(num_rows, dtype=torch.float32, pin_memory=is_cuda)
        self._there = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def take(self, tokens: Tensor, logprobs: Tensor) -> None:
        """Send them, behind what the device has been asked for."""
        self._tokens.copy_(tokens, non_blocking=True)
        self._logprobs.copy_(logprobs, non_blocking=True)
        if self._there is not None:
            self._there.record()

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Wait for them."""
        if self._there is not None:
            self._there.synchronize()
        return self._tokens.numpy().copy(), self._logprobs.numpy().copy()
