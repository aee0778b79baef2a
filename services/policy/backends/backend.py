"""Decides what the policy service can ask of whatever writes its samples, and which requests one refuses.

The servicer knows nothing but ``Backend``. What a backend cannot do is stated in its ``Capabilities`` and
refused by name: a parameter that a server would ignore, or a log-probability that would mean something else
than the contract says, is never let through.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.modeling.loading import ModelDescription
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.rpc.sequences import SequenceLimits
from services.policy.call import CallOutcome, SampleCall, SamplingParameters
from services.policy.errors import InvalidSampleRequestError
from services.policy.scheduler import Limits
from services.policy.weight_receiver import WeightUpdate


class LogprobBasis(enum.Enum):
    """Which distribution a backend's log-probabilities are of."""

    EXACT = "exact"
    """log softmax(logits / temperature) before top_p, as the contract asks."""
    PLAIN = "plain"
    """log softmax(logits): the contract's at temperature 0 and 1."""
    DRAWN = "drawn"
    """The distribution that tokens are drawn from, after temperature and top_p: the contract's at top_p 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do."""

    backend: str  # "builtin", "tgi" or "openai"
    takes_weights: bool  # UpdateWeights puts new weights into the running sampler
    loads_models: bool  # LoadModel brings another model
    logprob_basis: LogprobBasis
    takes_token_ids: bool  # any prompt of token ids; otherwise only one that its text brings back
    takes_stop_token_ids: bool
    max_stop_texts: int | None  # None: as many as the service takes
    min_temperature: float | None  # the lowest above 0; None: as low as the service takes


class Served(Protocol):
    """The model in use, as far as answering requests needs it."""

    @property
    def version(self) -> ModelVersion: ...  # noqa: D102 - the fields of ``ServedModel``
    @property
    def codec(self) -> TextCodec: ...  # noqa: D102
    @property
    def facts(self) -> ModelDescription: ...  # noqa: D102
    @property
    def load_time(self) -> datetime: ...  # noqa: D102
    @property
    def limits(self) -> SequenceLimits: ...  # noqa: D102


class Backend(Protocol):
    """Writes samples. All methods are called on the service's event loop."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; final once ``start`` has returned."""
        ...

    @property
    def served(self) -> Served | None:
        """The model in use."""
        ...

    @property
    def limits(self) -> Limits:
        """What may run and wait at once."""
        ...

    def clock(self) -> float:
        """Seconds on the clock that arrivals are noted with."""
        ...

    def next_id(self) -> int:
        """A number for a new call."""
        ...

    async def start(self) -> None:
        """Get ready; raises what keeps it from that."""
        ...

    async def sample(self, call: SampleCall) -> CallOutcome:
        """Write all responses of a call. A cancelled call frees what it holds."""
        ...

    async def load_model(self, name: str) -> Served:
        """Take another model into use. Raises UnsupportedByBackendError where it cannot."""
        ...

    async def update_weights(self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightUpdate:
        """Take new weights into use. Raises UnsupportedByBackendError where it cannot."""
        ...

    async def drain(self) -> None:
        """Let every call that has arrived come to its end."""
        ...

    async def close(self) -> None:
        """End; calls in progress fail with ShuttingDownError."""
        ...


def check_parameters(parameters: SamplingParameters, capabilities: Capabilities) -> None:
    """Raise INVALID_ARGUMENT UNSUPPORTED_BY_BACKEND for what the backend would ignore or answer wrongly."""
    temperature, top_p, backend = parameters.temperature, parameters.top_p, capabilities.backend
    if parameters.stop_token_ids and not capabilities.takes_stop_token_ids:
        raise _unsupported("stop_token_ids", parameters.stop_token_ids, f"{backend} takes no stop tokens")
    most = capabilities.max_stop_texts
    if most is not None and len(parameters.stop_texts) > most:
        raise _unsupported("stop", len(parameters.stop_texts), f"{backend} takes up to {most} stop texts")
    lowest = capabilities.min_temperature
    if lowest is not None and 0 < temperature < lowest:
        raise _unsupported("temperature", temperature, f"{backend} takes 0 or at least {lowest:g}")
    if capabilities.logprob_basis is LogprobBasis.PLAIN and temperature not in (0, 1):
        raise _unsupported(
            "temperature",
            temperature,
            f"{backend} gives log-probabilities of plain logits, which are right at 0 and 1 only",
        )
    if capabilities.logprob_basis is LogprobBasis.DRAWN and top_p != 1 and temperature != 0:
        raise _unsupported(
            "top_p", top_p, f"{backend} gives log-probabilities after top_p, which are right at 1 only"
        )


def _unsupported(field: str, value: object, why: str) -> InvalidSampleRequestError:
    return InvalidSampleRequestError(
        f"{field} is {value}; {why}",
        reason="UNSUPPORTED_BY_BACKEND",
        field=f"parameters.{field}",
        value=value,
    )
