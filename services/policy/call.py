"""The values that travel between servicer, runner and engine: a call for samples and its outcome."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from andon.modeling.versions import ModelVersion


class FinishReason(enum.Enum):
    """Why a response ended; the values are label values of metrics."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How tokens are drawn, checked and complete."""

    samples_per_prompt: int
    temperature: float  # 0 takes the most probable token
    top_p: float  # in (0, 1]
    max_new_tokens: int
    stop_texts: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCall:
    """A call whose request has passed every check that needs no turn in the queue."""

    call_id: int
    prompts: tuple[tuple[int, ...], ...]  # token ids
    parameters: SamplingParameters
    required_model: ModelVersion | None
    tokenizer_fingerprint: str  # of the model the prompts were made for
    arrival_s: float  # on the runner's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedSequence:
    """One response."""

    call_id: int
    sequence_index: int  # prompt index * samples_per_prompt + sample index
    token_ids: NDArray[np.int32]  # [tokens]
    logprobs: NDArray[np.float32]  # [tokens]
    finish_reason: FinishReason
    temperature: float  # what its tokens were drawn with, as the table of running sequences had it
    top_p: float
    end_token_ids: tuple[int, ...]  # any of them would have ended it
    is_finite: bool  # False when the logits were not numbers; the tokens then mean nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """All responses to a call."""

    sequences: tuple[FinishedSequence, ...]  # by sequence_index
    # By prompt, from the start of model work on the call; None where the backend does not say.
    first_token_s: tuple[float, ...] | None
    model: ModelVersion
    queue_s: float
    compute_s: float
