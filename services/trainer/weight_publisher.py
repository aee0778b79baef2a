"""Which weights the samplers use: every replica the same version, acknowledged before anything is sampled.

The PPO stage publishes after each update. A replica that restarted, or that serves another version, is
brought to the current one first. Replicas are addressed one by one, never through a balanced name. What the
bytes look like is ``andon.modeling.weight_codec``'s affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog
from torch import Tensor

from andon.client.policy import PolicyClient
from andon.client.values import ModelInfo
from andon.errors import AndonError, FailedPreconditionError
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import encode_weights, weights_sha256
from services.trainer.errors import SamplerTakesNoWeightsError, WeightsNotAcknowledgedError
from services.trainer.peers import Peers
from services.trainer.scorers import loadable_name
from services.trainer.stages.context import StageState

_log = structlog.stdlib.get_logger(__name__)

STABLE = "policy@stable"  # what samplers roll back to

# The replica cannot take these weights onto the model it has: another architecture, or the same number with
# other weights, as after a replay on hardware that does not repeat itself. The initial model clears both.
_NEEDS_INITIAL_MODEL = frozenset({"WEIGHTS_SHAPE_MISMATCH", "MODEL_VERSION_CONFLICT"})


class WeightPublisher:
    """The samplers' weights during one run."""

    def __init__(
        self, replicas: Sequence[PolicyClient], *, initial: ModelVersion, peers: Peers, timeout_s: float
    ) -> None:
        """``initial`` is the stored model the run began with: it gives architecture and vocabulary."""
        self._replicas = replicas
        self._initial = initial
        self._peers = peers
        self._timeout_s = timeout_s
        self._current = initial
        self._weights: Mapping[str, Tensor] | None = None  # None: the initial model, as it is stored

    @property
    def current(self) -> ModelVersion:
        """The version that every sample must come from."""
        return self._current

    def set_current(self, family: str, version: int, weights: Mapping[str, Tensor]) -> ModelVersion:
        """Name new weights and keep a copy of them in memory: a replica may need them again."""
        self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        self._current = ModelVersion(family, version, weights_sha256(self._weights))
        return self._current

    @property
    def published_weights(self) -> Mapping[str, Tensor] | None:
        """The current version's weights; None while it is the model that the run began with."""
        return self._weights

    def check_replicas(self, *, state: Callable[[], StageState]) -> None:
        """Raises SamplerTakesNoWeightsError for a replica whose backend cannot be given new weights."""
        self._peers.together([partial(self._check, replica) for replica in self._replicas], state=state)

    def roll_back(self) -> None:
        """Have the replicas serve ``policy@stable``. One that cannot keeps what it serves, and is logged."""
        for replica in self._replicas:
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

    def bring_to_current(self, replica: PolicyClient) -> None:
        """Bring one replica to the current version."""
        if self._weights is None:
            if not self._serves_initial(replica):
                self._load_initial(replica)
            return
        try:
            self._send(replica, self._weights)
        except FailedPreconditionError as error:
            if error.reason != "MODEL_NOT_LOADED" and error.reason not in _NEEDS_INITIAL_MODEL:
                raise
            _log.warning("replica_needs_initial_model", target=replica.target, reason=error.reason)
            self._load_initial(replica)
            self._send(replica, self._weights)

    def _check(self, replica: PolicyClient) -> None:
        peer = f"policy at {replica.target}"
        # One that was started without a model is given it here: it says nothing of itself before.
        restore = partial(self._load_initial, replica)
        if not self._peers.patiently(peer, replica.takes_weights, restore=restore):
            raise SamplerTakesNoWeightsError(peer=peer)

    def _publish_to(self, replica: PolicyClient) -> ModelInfo:
        def publish_and_describe() -> ModelInfo:
            self.bring_to_current(replica)
            return replica.model_info()

        return self._peers.patiently(
            f"policy at {replica.target}", publish_and_describe, restore=partial(self._load_initial, replica)
        )

    def _send(self, replica: PolicyClient, weights: Mapping[str, Tensor]) -> None:
        encoded = encode_weights(weights, self._current)
        acknowledgement = replica.update_weights(encoded.header, encoded.chunks, timeout_s=self._timeout_s)
        if acknowledgement.model != self._current:
            raise WeightsNotAcknowledgedError(
                peer=f"policy at {replica.target}", expected=self._current, actual=acknowledgement.model
            )

    def _serves_initial(self, replica: PolicyClient) -> bool:
        try:
            serves = replica.model_info().model
        except FailedPreconditionError as error:
            if error.reason != "MODEL_NOT_LOADED":
                raise
            return False
        return serves.is_same_name(self._initial) and self._initial.weights_sha256 in (
            "",
            serves.weights_sha256,
        )

    def _load_initial(self, replica: PolicyClient) -> None:
        info = replica.load_model(loadable_name(self._initial), timeout_s=self._timeout_s)
        if not info.model.is_same_name(self._initial):
            raise WeightsNotAcknowledgedError(
                peer=f"policy at {replica.target}", expected=self._initial, actual=info.model
            )
