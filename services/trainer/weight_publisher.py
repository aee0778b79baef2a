"""Which weights the samplers use: every replica the same version, acknowledged before anything is sampled.

The PPO stage publishes after each update. A replica that restarted, or that serves another version, is
brought to the current one first. Replicas are addressed one by one, never through a balanced name. Each gets
the weights the cheapest way that it can take: from shared memory on the same host, as what differs from the
version that it acknowledged last, or in full. They are offered as soon as they are prepared, so that a
replica receives and checks them while the trainer's guards look; published, they need only be committed. An
offer that came to nothing is no loss: the weights are sent then. What the bytes look like is
``outgoing_weights``' affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import structlog
from torch import Tensor

from andon.client.policy import OfferedWeights, PolicyClient, WeightsAcknowledgement
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
    has_served: bool = False  # it answered that it serves a version of this run
    shares_memory: bool = True  # until it says that it cannot
    offer: Future[_Offer | None] | None = None  # of what ``prepare`` was given; None inside: there was none

    def note(self, way: WeightsWay, error: AndonError) -> None:
        """Do not try again to share memory that the replica does not see, or sees wrongly."""
        if way == "shared_memory" and (
            isinstance(error, DataLossError) or error.reason == "WEIGHTS_NOT_SHARED"
        ):
            self.shares_memory = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    """Weights, one way."""

    way: WeightsWay
    header: WeightsHeader
    chunks: Iterator[WeightsChunk]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offer:
    """What a replica was offered, and what it said of itself then."""

    parcel: _Parcel
    weights: OfferedWeights
    info: ModelInfo


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
        self._ahead = ThreadPoolExecutor(max_workers=2, thread_name_prefix="weights-ahead")

    @property
    def current(self) -> ModelVersion:
        """The version that every sample must come from."""
        return self._current

    def prepare(self, family: str, number: int, weights: Mapping[str, Tensor]) -> OutgoingWeights:
        """Begin, in other threads, to copy weights that may become the next version, to make what sending
        them needs, and to offer them to the samplers.

        They must stay as they are until what is returned has settled. The samplers must have acknowledged the
        current version: what is kept of the one before is given up.
        """
        self.withdraw()
        current = self._weights
        prepared = OutgoingWeights(
            family,
            number,
            weights,
            base=current,
            room=[] if current is None else current.release_base(),
            threads=self._threads,
        )
        # Whatever fails there fails again, and is told, when it is asked for.
        self._ahead.submit(lambda: prepared.version)
        for replica, known in self._known.items():
            if known.has_served:
                known.offer = self._ahead.submit(self._offered, replica, known.holds, prepared)
        return prepared

    def withdraw(self) -> None:
        """Have the samplers forget what was offered and not published."""
        for known in self._known.values():
            offer, known.offer = known.offer, None
            if offer is not None and not offer.cancel():
                offer.add_done_callback(_withdrawn)

    def set_current(self, weights: OutgoingWeights) -> ModelVersion:
        """Make prepared weights the current version; they are kept, since a replica may need them again."""
        self._weights = weights
        self._current = weights.version
        return self._current

    @property
    def published_weights(self) -> Mapping[str, Tensor] | None:
        """The current version's weights; None while it is the model that the run began with."""
        return None if self._weights is None else self._weights.tensors

    def check_replicas(self, *, state: Callable[[], StageState]) -> None:
        """Raises SamplerTakesNoWeightsError for a replica whose backend cannot be given new weights."""
        self._peers.together([partial(self._check, replica) for replica in self._replicas], state=state)

    def roll_back(self) -> None:
        """Have the replicas serve ``policy@stable``. One that cannot keeps what it serves, and is logged."""
        self.withdraw()
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
            info = self._initial_served_by(replica) or self._load_initial(replica)
            self._known[replica].has_served = True
            return info
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

    def _offered(
        self, replica: PolicyClient, held: ModelVersion | None, weights: OutgoingWeights
    ) -> _Offer | None:
        """Offer weights the cheapest way; None where the replica is away. In a thread of ``_ahead``."""
        try:
            info = replica.model_info()  # asked every time: it may have been started anew
        except AndonError as error:
            _log.info("weights_not_offered", target=replica.target, reason=error.reason)
            return None
        parcel = next(self._parcels(self._known[replica], held, weights, info.dtype))
        offered = replica.offer_weights(parcel.header, parcel.chunks, timeout_s=self._timeout_s)
        return _Offer(parcel=parcel, weights=offered, info=info)

    def _send(self, replica: PolicyClient, weights: OutgoingWeights) -> ModelInfo:
        known = self._known[replica]
        held, known.holds = known.holds, None  # until it has acknowledged
        committed = self._committed(replica, known, weights)
        if committed is not None:
            return committed
        info = replica.model_info()
        for parcel in self._parcels(known, held, weights, info.dtype):
            begin_s = time.perf_counter()
            try:
                acknowledgement = replica.update_weights(
                    parcel.header, parcel.chunks, timeout_s=self._timeout_s
                )
            except AndonError as error:
                known.note(parcel.way, error)
                if error.reason not in _NEEDS_ANOTHER_WAY:
                    raise
                _log.info(
                    "weights_go_another_way", target=replica.target, way=parcel.way, reason=error.reason
                )
                continue
            return self._acknowledged(replica, parcel, info, acknowledgement, begin_s)
        raise AssertionError("the last way is always open")

    def _committed(
        self, replica: PolicyClient, known: _Replica, weights: OutgoingWeights
    ) -> ModelInfo | None:
        """Commit what the replica was offered; None where there is nothing to commit any more."""
        future, known.offer = known.offer, None
        if future is None or future.cancel():  # it would be offered only now
            return None
        offer = future.result()
        if offer is None:
            return None
        if offer.parcel.header.model != weights.version:  # it came back while the next version is prepared
            offer.weights.withdraw()
            return None
        begin_s = time.perf_counter()
        try:
            acknowledgement = offer.weights.commit()
        except AndonError as error:  # whatever it is, sending them anew mends it or says what is wrong
            known.note(offer.parcel.way, error)
            _log.info(
                "weights_not_committed", target=replica.target, way=offer.parcel.way, reason=error.reason
            )
            return None
        return self._acknowledged(replica, offer.parcel, offer.info, acknowledgement, begin_s)

    def _acknowledged(
        self,
        replica: PolicyClient,
        parcel: _Parcel,
        info: ModelInfo,
        acknowledgement: WeightsAcknowledgement,
        begin_s: float,
    ) -> ModelInfo:
        """What the replica serves now. Raises WeightsNotAcknowledgedError when that is something else."""
        known = self._known[replica]
        if acknowledgement.model != self._current:
            raise WeightsNotAcknowledgedError(
                peer=f"policy at {replica.target}", expected=self._current, actual=acknowledgement.model
            )
        known.holds, known.has_served = self._current, True
        self._on_sent(parcel.way, parcel.header.size_bytes, time.perf_counter() - begin_s)
        return replace(info, model=acknowledgement.model)

    def _parcels(
        self, known: _Replica, held: ModelVersion | None, weights: OutgoingWeights, dtype: str
    ) -> Iterator[_Parcel]:
        """The ways that a replica may take the weights, the cheapest first; the last one is always open."""
        image = weights.image(dtype)
        full = image.header(weights.version)
        if known.shares_memory and image.address is not None:
            header = replace(full, memory=image.address)
            yield _Parcel(way="shared_memory", header=header, chunks=iter(()))
        if held is not None and held == weights.base_version:
            delta = weights.delta(dtype)
            if delta is not None:
                header = replace(full, size_bytes=len(delta), base=held)
                yield _Parcel(way="delta", header=header, chunks=cut(delta))
        yield _Parcel(way="full", header=full, chunks=image.chunks())

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


def _withdrawn(future: Future[_Offer | None]) -> None:
    offer = future.result()
    if offer is not None:
        offer.weights.withdraw()
