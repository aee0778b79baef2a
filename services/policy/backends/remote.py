"""An inference server as a backend: queue, one request for each sample, and a check of who answered.

Nothing here knows a protocol; ``tgi`` and ``openai_server`` do. Calls begin in order of arrival. The server's
model is looked up again after each call, so that samples of a server that was restarted with another model
never go out under the old version's name.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import structlog

from andon.api.policy.v1 import policy_service_pb2 as policy_pb2
from andon.errors import ResourceExhaustedError, UnavailableError
from andon.rpc.convert import check_required_model
from andon.rpc.limits import RETRY_AFTER
from services.policy.backends.answers import finished_sequence
from services.policy.backends.backend import Capabilities, Served
from services.policy.backends.inference_server import (
    DEFAULT_RETRY_AFTER_S,
    InferenceServer,
    SampleOrder,
    ServerModel,
    TokenFile,
)
from services.policy.backends.openai_server import OpenAIServer
from services.policy.backends.probe import probe_logprobs
from services.policy.backends.remote_model import ExpectedModel, RemoteModel
from services.policy.backends.tgi import TgiServer
from services.policy.call import CallOutcome, FinishedSequence, SampleCall
from services.policy.config import PolicyConfig
from services.policy.errors import (
    BackendServesOtherModelError,
    InvalidSampleRequestError,
    ModelNotLoadedError,
    QueueFullError,
    ShuttingDownError,
    UnsupportedByBackendError,
)
from services.policy.metrics import PolicyMetrics
from services.policy.scheduler import Limits
from services.policy.weight_receiver import WeightUpdate

_log = structlog.stdlib.get_logger("services.policy")

# The server keeps its own cache, and makes requests wait that do not fit.
_ANY_CACHE = 1 << 62


class RemoteBackend:
    """Samples with a server of one model."""

    def __init__(self, config: PolicyConfig, metrics: PolicyMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._limits = Limits(
            running_sequences=config.max_running_sequences,
            cache_tokens=_ANY_CACHE,
            waiting_calls=config.max_queued_calls,
        )
        self._server: InferenceServer | None = None
        self._link: _Link | None = None
        self._room = asyncio.Semaphore(config.max_running_sequences)
        self._running = 0  # samples being written
        self._waiting = 0  # calls of which nothing has begun
        self._open_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[FinishedSequence]] = set()
        self._last_id = 0
        self._closing = False

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do; known once it has been probed."""
        if self._link is None:
            raise ModelNotLoadedError
        return self._link.capabilities

    @property
    def served(self) -> RemoteModel | None:
        """What the server serves."""
        return None if self._link is None else self._link.served

    @property
    def limits(self) -> Limits:
        """What may run and wait at once."""
        return self._limits

    def clock(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def next_id(self) -> int:
        """A number for a new call."""
        self._last_id += 1
        return self._last_id

    async def start(self) -> None:
        """Wait until the server is ready, and find out what it serves and what its numbers mean."""
        config = self._config
        assert config.backend_model is not None  # checked with the configuration
        name = config.backend_model
        expected = await asyncio.get_running_loop().run_in_executor(
            None, lambda: ExpectedModel.load(name, store=config.open_store())
        )
        server = self._server = _make_server(config, expected)
        model = expected.find_in(await self._models_when_ready(server), backend=server.name)
        basis = await probe_logprobs(server, model, expected.codec)
        served = RemoteModel.of(expected, model, backend=server.name)
        self._link = _Link(
            server=server,
            expected=expected,
            model=model,
            served=served,
            capabilities=Capabilities(
                backend=server.name,
                takes_weights=False,
                loads_models=False,
                logprob_basis=basis,
                takes_token_ids=server.takes_token_ids,
                takes_stop_token_ids=server.takes_stop_token_ids,
                max_stop_texts=model.max_stop_texts,
                min_temperature=server.min_temperature,
            ),
        )
        self._metrics.model.loaded(served.version)
        _log.info(
            "backend_ready",
            backend=server.name,
            model=str(served.version),
            serves=model.names,
            logprob_basis=basis.value,
        )

    async def sample(self, call: SampleCall) -> CallOutcome:
        """Write all responses of a call, each by one request."""
        if self._closing:
            raise ShuttingDownError
        link = self._link
        assert link is not None  # the servicer asked for what is served
        if call.required_model is not None:
            check_required_model(call.required_model, link.served.version)
        await asyncio.to_thread(_check_prompts, call, link)
        if self._waiting >= self._limits.waiting_calls:
            self._metrics.rejected_calls.inc()
            raise QueueFullError(waiting_calls=self._waiting)
        progress = _Progress()
        self._enter()
        tasks = [
            asyncio.create_task(self._write(call, index, link, progress))
            for index in range(len(call.prompts) * call.parameters.samples_per_prompt)
        ]
        self._tasks.update(tasks)
        try:
            sequences = await asyncio.gather(*tasks)
            await _check_still_served(link)
        except asyncio.CancelledError:
            self._metrics.cancelled_calls.inc()
            if self._closing:
                raise ShuttingDownError from None
            raise
        except Exception:
            self._metrics.failed_calls.inc()
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._tasks.difference_update(tasks)
            self._leave(progress)
        return self._outcome(call, sequences, link.served, progress)

    async def load_model(self, name: str) -> Served:
        """Refused: the server is started with its model."""
        raise UnsupportedByBackendError(
            backend=self.capabilities.backend, problem="it is started with its model and loads no other"
        )

    async def update_weights(self, stream: AsyncIterator[policy_pb2.UpdateWeightsRequest]) -> WeightUpdate:
        """Refused: the server takes no weights in place."""
        error = UnsupportedByBackendError(
            backend=self.capabilities.backend, problem="it takes no weights in place"
        )
        self._metrics.weight_update_ended(error.reason)
        raise error

    async def drain(self) -> None:
        """Wait for every call that has arrived."""
        await self._idle.wait()

    async def close(self) -> None:
        """Cancel what is left and close the connections."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await self._idle.wait()
        if self._server is not None:
            await self._server.close()

    async def _write(
        self, call: SampleCall, index: int, link: _Link, progress: _Progress
    ) -> FinishedSequence:
        """One sample, when there is room for it."""
        parameters = call.parameters
        async with self._room:
            if progress.begin_s is None:
                progress.begin_s = self.clock()
                self._waiting -= 1
                self._metrics.queue_seconds.observe(progress.begin_s - call.arrival_s)
            self._running += 1
            self._report_load()
            try:
                written = await link.server.write(
                    SampleOrder(
                        model=link.model.names[0],
                        prompt=call.prompts[index // parameters.samples_per_prompt],
                        max_new_tokens=parameters.max_new_tokens,
                        temperature=parameters.temperature,
                        top_p=parameters.top_p,
                        seed=seed_of_sample(parameters.seed, index),
                        stop_texts=parameters.stop_texts,
                        stop_token_ids=parameters.stop_token_ids,
                    )
                )
            finally:
                self._running -= 1
                self._report_load()
        return finished_sequence(
            written,
            call,
            sequence_index=index,
            backend=link.server.name,
            model=str(link.served.version),
            end_token_id=link.served.codec.eos_token_id,
            vocab_size=link.served.facts.vocab_size,
            decode=link.served.codec.decode,
        )

    def _outcome(
        self,
        call: SampleCall,
        sequences: Sequence[FinishedSequence],
        served: RemoteModel,
        progress: _Progress,
    ) -> CallOutcome:
        now = self.clock()
        assert progress.begin_s is not None  # every sample has been written
        metrics = self._metrics
        metrics.call_seconds.observe(now - call.arrival_s)
        metrics.prompt_tokens.inc(sum(map(len, call.prompts)))
        for sequence in sequences:
            metrics.generated_tokens.inc(len(sequence.token_ids))
            metrics.response_tokens.observe(len(sequence.token_ids))
            metrics.finished_samples.labels(sequence.finish_reason.value).inc()
        return CallOutcome(
            sequences=tuple(sequences),
            first_token_s=None,
            model=served.version,
            queue_s=progress.begin_s - call.arrival_s,
            compute_s=now - progress.begin_s,
        )

    async def _models_when_ready(self, server: InferenceServer) -> tuple[ServerModel, ...]:
        """What the server serves; a server that is still loading is waited for."""
        deadline_s = self.clock() + self._config.backend_timeout_s
        while True:
            try:
                return await server.models()
            except (UnavailableError, ResourceExhaustedError) as error:
                pause_s = float(error.metadata.get(RETRY_AFTER, DEFAULT_RETRY_AFTER_S))
                if self.clock() + pause_s > deadline_s:
                    raise
                _log.info(
                    "backend_not_ready", backend=server.name, reason=error.reason, message=error.message
                )
                await asyncio.sleep(pause_s)

    def _enter(self) -> None:
        self._open_calls += 1
        self._waiting += 1
        self._idle.clear()
        self._report_load()

    def _leave(self, progress: _Progress) -> None:
        self._open_calls -= 1
        if progress.begin_s is None:
            self._waiting -= 1
        if not self._open_calls:
            self._idle.set()
        self._report_load()

    def _report_load(self) -> None:
        self._metrics.running_sequences.set(self._running)
        self._metrics.waiting_calls.set(self._waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Link:
    """A server that has been found to serve what it should."""

    server: InferenceServer
    expected: ExpectedModel
    model: ServerModel  # as the server named it at the start
    served: RemoteModel
    capabilities: Capabilities


@dataclass(slots=True)
class _Progress:
    """When work on a call began; None while it waits."""

    begin_s: float | None = None


def seed_of_sample(seed: int, index: int) -> int:
    """A seed of its own for each sample of a call, in [1, 2^63): two samples of one prompt must differ."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return (int.from_bytes(digest[:8]) >> 1) or 1


async def _check_still_served(link: _Link) -> None:
    """Raise BackendServesOtherModelError when the server has another model than at the start."""
    name, known = link.server.name, link.model
    model = link.expected.find_in(await link.server.models(), backend=name)
    if (model.names, model.revision) != (known.names, known.revision):
        raise BackendServesOtherModelError(
            backend=name,
            expected=f"{known.names[0]} {known.revision}".strip(),
            serves=f"{model.names[0]} {model.revision}".strip(),
        )


def _check_prompts(call: SampleCall, link: _Link) -> None:
    """Refuse what the server cannot read, before anything is sent."""
    for index, prompt in enumerate(call.prompts):
        field = f"prompts[{index}]"
        longest = link.served.max_prompt_tokens
        if longest is not None and len(prompt) > longest:
            raise InvalidSampleRequestError(
                f"{field} has {len(prompt)} tokens; the server takes {longest} of prompt",
                reason="SEQUENCE_TOO_LONG",
                field=field,
                prompt_tokens=len(prompt),
                max_prompt_tokens=longest,
            )
        link.server.check_prompt(prompt, field=field)


def _make_server(config: PolicyConfig, expected: ExpectedModel) -> InferenceServer:
    assert config.backend_url is not None  # checked with the configuration
    token = TokenFile(config.backend_token_file)
    if config.backend == "tgi":
        return TgiServer(
            config.backend_url,
            tokenizer=expected.codec.tokenizer,
            token=token,
            timeout_s=config.backend_timeout_s,
        )
    return OpenAIServer(config.backend_url, token=token, timeout_s=config.backend_timeout_s)
