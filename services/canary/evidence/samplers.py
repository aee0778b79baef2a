"""Connections to the replicas of both sides, and a count of the controller's own calls to them.

The count is what ``scrapes`` takes off a replica's numbers, so that what is left are the calls of others.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from andon.client.channel import ChannelOptions
from andon.client.policy import PolicyClient, PromptSamples, SampleResult, SamplingParameters
from andon.client.values import ModelInfo
from andon.errors import AndonError
from andon.modeling.versions import ModelVersion
from services.canary.platform import Replica

OK = "OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSamples:
    """An answer, and how long its caller waited."""

    samples: PromptSamples
    seconds: float
    tokenizer_fingerprint: str


class Samplers:
    """The replicas that were called so far. Any thread may use it."""

    def __init__(
        self,
        *,
        timeout_s: float,
        tls_server_name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``timeout_s`` is the deadline of one sample. ``tls_server_name`` is what certificates of replicas
        name, where these are dialled by another name or by address.
        """
        self._options = ChannelOptions(tls_server_name=tls_server_name)
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._clients: dict[str, PolicyClient] = {}
        self._own_calls: dict[str, Counter[str]] = {}  # replica -> status code -> calls

    def model_info(self, replica: Replica, *, timeout_s: float) -> ModelInfo:
        """What a replica says that it serves."""
        return self._client(replica.target).model_info(timeout_s=timeout_s)

    def sample_one(
        self, replica: Replica, prompt: str, parameters: SamplingParameters, *, required_model: ModelVersion
    ) -> TimedSamples:
        """One prompt, as a caller of its own would send it."""
        began_s = self._clock()
        answer = self._sample(replica, [prompt], parameters, required_model)
        return TimedSamples(
            samples=answer.results[0],
            seconds=self._clock() - began_s,
            tokenizer_fingerprint=answer.tokenizer_fingerprint,
        )

    def sample_all(
        self,
        replica: Replica,
        prompts: Sequence[str],
        parameters: SamplingParameters,
        *,
        required_model: ModelVersion,
    ) -> Sequence[PromptSamples]:
        """Several prompts in one call."""
        return self._sample(replica, prompts, parameters, required_model).results

    def take_own_calls(self, replica: Replica) -> Counter[str]:
        """The calls that ended since the last time, by status code."""
        with self._lock:
            return self._own_calls.pop(replica.name, Counter())

    def keep_only(self, replicas: Sequence[Replica]) -> None:
        """Close the connections to all others."""
        targets = {replica.target for replica in replicas}
        names = {replica.name for replica in replicas}
        with self._lock:
            gone = [self._clients.pop(target) for target in set(self._clients) - targets]
            for name in set(self._own_calls) - names:
                del self._own_calls[name]
        for client in gone:
            client.close()

    def close(self) -> None:
        """End all calls."""
        self.keep_only([])

    def _sample(
        self,
        replica: Replica,
        prompts: Sequence[str],
        parameters: SamplingParameters,
        required_model: ModelVersion,
    ) -> SampleResult:
        code = OK
        try:
            return self._client(replica.target).sample(
                list(prompts), parameters, required_model=required_model, timeout_s=self._timeout_s
            )
        except AndonError as error:
            code = error.code
            raise
        finally:
            with self._lock:
                self._own_calls.setdefault(replica.name, Counter())[code] += 1

    def _client(self, target: str) -> PolicyClient:
        with self._lock:
            if target not in self._clients:
                self._clients[target] = PolicyClient(target, options=self._options)
            return self._clients[target]
