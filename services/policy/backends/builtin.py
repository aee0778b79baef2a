"""The built-in engine as a backend: one model in this process, its thread, and weights taken in place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog
import torch

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from services.policy.backends.backend import Capabilities, LogprobBasis
from services.policy.call import CallOutcome, SampleCall
from services.policy.config import PolicyConfig
from services.policy.metrics import PolicyMetrics
from services.policy.requests import MAX_STOP_TOKENS
from services.policy.runner import RunnerSettings, SamplingRunner
from services.policy.scheduler import Limits
from services.policy.served_model import ServedModel, load_served_model
from services.policy.weight_receiver import WeightReceiver, WeightUpdate

CAPABILITIES = Capabilities(
    backend="builtin",
    takes_weights=True,
    loads_models=True,
    logprob_basis=LogprobBasis.EXACT,
    takes_token_ids=True,
    takes_stop_token_ids=True,
    max_stop_texts=None,
    min_temperature=None,
)

_log = structlog.stdlib.get_logger("services.policy")


class BuiltinBackend:
    """Samples with ``services.policy.engine``."""

    capabilities = CAPABILITIES

    def __init__(self, config: PolicyConfig, metrics: PolicyMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._runner = SamplingRunner(
            RunnerSettings(
                running_sequences=config.max_running_sequences,
                cache_bytes=config.cache_mib * 1024 * 1024,
                waiting_calls=config.max_queued_calls,
                max_new_tokens=config.max_new_tokens,
                max_stop_tokens=MAX_STOP_TOKENS,
                prefill_tokens=config.token_budget,
            ),
            metrics,
        )
        self._receiver = WeightReceiver(self._runner, metrics)

    @property
    def served(self) -> ServedModel | None:
        """The model in use."""
        return self._runner.served

    @property
    def limits(self) -> Limits:
        """What may run and wait at once with the model in use."""
        return self._runner.limits

    def clock(self) -> float:
        """Seconds on the runner's clock."""
        return self._runner.clock()

    def next_id(self) -> int:
        """A number for a new call."""
        return self._runner.next_id()

    async def start(self) -> None:
        """Load the configured model; without one calls answer MODEL_NOT_LOADED until LoadModel."""
        torch.set_num_threads(self._config.threads)
        self._runner.start()
        if self._config.model is not None:
            await self.load_model(self._config.model)

    async def sample(self, call: SampleCall) -> CallOutcome:
        """Queue a call and wait for its end."""
        future = self._runner.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._runner.cancel(call.call_id)
            raise

    async def load_model(self, name: str) -> ServedModel:
        """Load a model by name and take it into use. On an error the old one stays in use."""
        config = self._config
        async with self._receiver.lock:
            try:
                loaded = await asyncio.get_running_loop().run_in_executor(
                    None,
                    lambda: load_served_model(
                        name, store=config.open_store(), dtype=config.dtype, device=config.device
                    ),
                )
                served = await asyncio.wrap_future(self._runner.replace(lambda _: loaded))
            except Exception:
                self._metrics.model.load_failed()
                raise
        self._metrics.model.loaded(served.version)
        _log.info(
            "model_loaded",
            model=str(served.version),
            architecture=served.facts.architecture,
            parameters=served.facts.parameter_count,
            cache_tokens=self._runner.limits.cache_tokens,
        )
        return served

    async def update_weights(self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightUpdate:
        """Take a whole stream of weights into use."""
        return await self._receiver.receive(stream)

    async def drain(self) -> None:
        """Let every call that has arrived come to its end; weights that wait for a commit are given up."""
        self._receiver.close()
        pending = [asyncio.wrap_future(future) for future in self._runner.pending()]
        await asyncio.gather(*pending, return_exceptions=True)

    async def close(self) -> None:
        """End the model's thread."""
        await asyncio.get_running_loop().run_in_executor(None, self._runner.close)
