"""Which weights the samplers use: every replica the same version, acknowledged before anything is sampled.

The PPO stage publishes after each update. A replica that restarted, or that serves another version, is
brought to the current one first. Replicas are addressed one by one, never through a balanced name. Each gets
the weights the cheapest way that it can take: from shared memory on the same host, as what differs from the
version that it acknowledged last, or in full. What the bytes look like is ``outgoing_weights``' affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import structlog
from torch import Tensor

from andon.client.policy import PolicyClient
from andon.client.values import ModelInfo
from andon.errors import AndonError, DataLossError, FailedPreconditionError
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import WeightsChunk, WeightsHeader
from andon.modeling.weight_image import cut
from services.trainer.errors import SamplerTakesNoWeightsError, WeightsNotAcknowledgedError
from services.trainer.outgoing_weights import OutgoingWeights
from services.trainer.peers import Peers
from services.trainer.scorers import loadable_name
from services.trainer.stages.context import StageState, WeightsWay

_log = structlog.stdlib.get_logger(__name__)

STABLE = "policy@stable"  # what samplers roll back to

# The replica cannot take these weights onto the model it has: another architecture, or the same number with
# other weights, as after a replay on hardware that does not repeat itself. The initial model clears both.
_NEEDS_INITIAL_MODEL = frozenset({"WEIGHTS_SHAPE_MISMATCH", "MODEL_VERSION_CONFLICT"})


# The replica takes these weights, but not this way.
_NEEDS_ANOTHER_WAY = frozenset({"WEIGHTS_NOT_SHARED", "WEIGHTS_BASE_MISMATCH"})

# Told of every acknowledged update: the way, its bytes and its seconds. May be called from any thread.
OnSent = Callable[[WeightsWay, int, float], None]


@dataclass(slots=True, kw_only=True)
class _Replica:
    """What is known of a replica."""

    holds: ModelVersion | None = None  # acknowledged last, and nothing went wrong since
    dtype: str = ""  # of the weights it served last
    shares_memory: bool = True  # until it says that it cannot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """One way of sending the current version."""

    way: WeightsWay
    header: WeightsHeader
    chunks: Iterator[WeightsChunk]


class WeightPublisher:
    """The samplers' weights during one run."""

    def __init__(
        self,
        replicas: Sequence[PolicyClient],
        *,
        initial: ModelVersion,
        peers: Peers,
        timeout_s: float,
        threads: int = 1,
        on_sent: OnSent = lambda way, size_bytes, seconds: None,
    ) -> None:
        """``initial`` is the stored model the run began with: it gives architecture and vocabulary.
        ``threads`` compress deltas.
        """
        self._replicas = replicas
        self._known = {replica: _Replica() for replica in replicas}
        self._initial = initial
        self._peers = peers
        self._timeout_s = timeout_s
        self._threads = threads
        self._on_sent = on_sent
        self._current = initial
        self._weights: OutgoingWeights | None = None  # None: the initial model, as it is stored
        self._before: ModelVersion | None = None  # what the current version's deltas are to
        self._ahead = ThreadPoolExecutor(max_workers=2, thread_name_prefix="weights-ahead")

    @property
    def current(self) -> ModelVersion:
        """The version that every sample must come from."""
        return self._current

    def prepare(self, weights: Mapping[str, Tensor]) -> OutgoingWeights:
        """Copy weights that may become the next version, and begin in other threads what sending them needs.

        The samplers must have acknowledged the current version: what is kept of the one before is given up.
        """
        current = self._weights
        prepared = OutgoingWeights(
            weights,
            base=current,
            room=[] if current is None else current.release_base(),
            threads=self._threads,
        )
        # Whatever fails there fails again, and is told, when it is asked for.
        self._ahead.submit(lambda: prepared.weights_sha256)
        ways = {(known.dtype, known.shares_memory) for known in self._known.values() if known.dtype}
        for dtype, shares_memory in ways:
            self._ahead.submit(prepared.image if shares_memory else prepared.delta, dtype)
        return prepared

    def set_current(self, family: str, version: int, weights: OutgoingWeights) -> ModelVersion:
        """Name prepared weights; they are kept, since a replica may need them again."""
        self._before = None if self._weights is None else self._current
        self._weights = weights
        self._current = ModelVersion(family, version, weights.weights_sha256)
        return self._current

    @property
    def published_weights(self) -> Mapping[str, Tensor] | None:
        """The current version's weights; None while it is the model that the run began with."""
        return None if self._weights is None else self._weights.master.tensors

    def check_replicas(self, *, state: Callable[[], StageState]) -> None:
        """Raises SamplerTakesNoWeightsError for a replica whose backend cannot be given new weights."""
        self._peers.together([partial(self._check, replica) for replica in self._replicas], state=state)

    def roll_back(self) -> None:
        """Have the replicas serve ``policy@stable``. One that cannot keeps what it serves, and is logged."""
        for replica in self._replicas:
            self._known[replica].holds = None
            try:
                info = replica.load_model(STABLE, timeout_s=self._timeout_s)
            except AndonError as error:
                _log.error(
                    "not_rolled_back", target=replica.target, reason=error.reason, message=error.message
                )
            else:
                _log.warning("rolled_back", target=replica.target, model=str(info.model))

    def publish(self, *, state: Callable[[], StageState]) -> list[ModelInfo]:
        """Bring every replica to the current version, all at once; returns what they now serve."""
        return self._peers.together(
            [partial(self._publish_to, replica) for replica in self._replicas], state=state
        )

    def bring_to_current(self, replica: PolicyClient) -> ModelInfo:
        """Bring one replica to the current version; returns what it now serves."""
        if self._weights is None:
            return self._initial_served_by(replica) or self._load_initial(replica)
        try:
            return self._send(replica, self._weights)
        except FailedPreconditionError as error:
            if error.reason != "MODEL_NOT_LOADED" and error.reason not in _NEEDS_INITIAL_MODEL:
                raise
            _log.warning("replica_needs_initial_model", target=replica.target, reason=error.reason)
            self._load_initial(replica)
            return self._send(replica, self._weights)

    def _check(self, replica: PolicyClient) -> None:
        peer = f"policy at {replica.target}"
        # One that was started without a model is given it here: it says nothing of itself before.
        restore = partial(self._load_initial, replica)
        if not self._peers.patiently(peer, replica.takes_weights, restore=restore):
            raise SamplerTakesNoWeightsError(peer=peer)

    def _publish_to(self, replica: PolicyClient) -> ModelInfo:
        return self._peers.patiently(
            f"policy at {replica.target}",
            partial(self.bring_to_current, replica),
            restore=partial(self._load_initial, replica),
        )

    def _send(self, replica: PolicyClient, weights: OutgoingWeights) -> ModelInfo:
        known = self._known[replica]
        held, known.holds = known.holds, None  # until it has acknowledged
        info = replica.model_info()  # asked every time: it may have been started anew
        known.dtype = info.dtype
        for offer in self._offers(known, held, weights):
            begin_s = time.perf_counter()
            try:
                acknowledgement = replica.update_weights(
                    offer.header, offer.chunks, timeout_s=self._timeout_s
                )
            except FailedPreconditionError as error:
                if error.reason not in _NEEDS_ANOTHER_WAY:
                    raise
                known.shares_memory = known.shares_memory and offer.way != "shared_memory"
                _log.info("weights_go_another_way", target=replica.target, way=offer.way, reason=error.reason)
                continue
            except DataLossError:
                known.shares_memory = known.shares_memory and offer.way != "shared_memory"
                raise
            if acknowledgement.model != self._current:
                raise WeightsNotAcknowledgedError(
                    peer=f"policy at {replica.target}", expected=self._current, actual=acknowledgement.model
                )
            known.holds = self._current
            self._on_sent(offer.way, offer.header.size_bytes, time.perf_counter() - begin_s)
            return replace(info, model=acknowledgement.model)
        raise AssertionError("the last offer is always open")

    def _offers(
        self, known: _Replica, held: ModelVersion | None, weights: OutgoingWeights
    ) -> Iterator[_Offer]:
        """The ways that a replica may take the current version, the cheapest first; the last one is always
        open.
        """
        image = weights.image(known.dtype)
        full = image.header(self._current)
        if known.shares_memory and image.address is not None:
            header = replace(full, memory=image.address)
            yield _Offer(way="shared_memory", header=header, chunks=iter(()))
        if held is not None and held == self._before:
            delta = weights.delta(known.dtype)
            if delta is not None:
                header = replace(full, size_bytes=len(delta), base=held)
                yield _Offer(way="delta", header=header, chunks=cut(delta))
        yield _Offer(way="full", header=full, chunks=image.chunks())

    def _initial_served_by(self, replica: PolicyClient) -> ModelInfo | None:
        """What it serves if that is the initial model."""
        try:
            info = replica.model_info()
        except FailedPreconditionError as error:
            if error.reason != "MODEL_NOT_LOADED":
                raise
            return None
        is_initial = info.model.is_same_name(self._initial) and self._initial.weights_sha256 in (
            "",
            info.model.weights_sha256,
        )
        return info if is_initial else None

    def _load_initial(self, replica: PolicyClient) -> ModelInfo:
        self._known[replica].holds = None
        info = replica.load_model(loadable_name(self._initial), timeout_s=self._timeout_s)
        if not info.model.is_same_name(self._initial):
            raise WeightsNotAcknowledgedError(
                peer=f"policy at {replica.target}", expected=self._initial, actual=info.model
            )
        return info
