"""Which number the weights of an update have, when they are stored, and how the published ones are got back.

A PPO run reserves one number of the family ``policy`` for each of its updates, whether it is stored or not.
The PPO stage publishes weights when an update is over, and stores some of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from andon.modeling.loading import load_causal_lm, save_model
from andon.modeling.manifest import Lineage, ManifestDraft
from andon.modeling.store import LocatedModel
from andon.modeling.text import TextCodec
from andon.modeling.versions import ModelVersion
from andon.modeling.weight_codec import load_weights, model_weights
from services.trainer.outgoing_weights import OutgoingWeights
from services.trainer.stages.context import StageContext
from services.trainer.stages.ppo_config import PpoConfig
from services.trainer.weight_publisher import WeightPublisher

POLICY_FAMILY = "policy"


class PolicyVersions:
    """The versions of one PPO run."""

    def __init__(
        self,
        config: PpoConfig,
        context: StageContext,
        *,
        policy: PreTrainedModel,
        initial: LocatedModel,
        codec: TextCodec,
        lineage: Lineage,
        publisher: WeightPublisher,
    ) -> None:
        """``policy`` is what is trained, ``initial`` what it began as."""
        self._config = config
        self._context = context
        self._policy = policy
        self._initial = initial
        self._codec = codec
        self._lineage = lineage
        self._publisher = publisher
        self._prepared: OutgoingWeights | None = None  # last
        self._numbers = context.store.reserve_versions(
            POLICY_FAMILY, config.num_updates, run_id=context.run_id, lineage=lineage
        )

    @property
    def last(self) -> ModelVersion:
        """The stored version that the run ends with."""
        return self._context.store.resolve(ModelVersion(POLICY_FAMILY, self._numbers[-1])).version

    def prepare(self, update: int, weights: Mapping[str, Tensor] | None = None) -> OutgoingWeights:
        """Get ready what may become the version that update ``update`` gives, from 1: ``weights``, or the
        policy's, which only ``as_published`` may change until they are named.
        """
        self._prepared = self._publisher.prepare(
            POLICY_FAMILY, self._numbers[update - 1], weights or model_weights(self._policy)
        )
        return self._prepared

    def updates_before(self, model: ModelVersion) -> int:
        """How many of the run's updates made this version; 0 for what the run began with."""
        if model.family != POLICY_FAMILY or model.version not in self._numbers:
            return 0
        return self._numbers.index(model.version) + 1

    def is_stored_after(self, update: int) -> bool:
        """Whether the weights of this update go into the store."""
        interval = self._config.store_interval
        is_due = interval is not None and update > 0 and update % interval == 0
        return is_due or update == self._config.num_updates

    def store(self, update: int, metrics: Mapping[str, float]) -> None:
        """Store the weights of ``update``, the last one; the same weights a second time change nothing."""

        def write(folder: Path) -> None:
            save_model(self._policy, self._codec, folder)

        stored = self._context.store.publish(
            POLICY_FAMILY,
            write,
            manifest=ManifestDraft(
                kind="causal_lm",
                parents=self._lineage.parents,
                data=self._lineage.data,
                run_id=self._context.run_id,
                step=update,
                metrics=metrics,
                config=self._config.model_dump(mode="json"),
            ),
            version=self._numbers[update - 1],
        )
        self._context.published(stored.version, stored=True)

    def store_last_good(self, update: int, metrics: Mapping[str, float]) -> None:
        """Store what the samplers serve, of ``update``, beside weights that a guard does not trust."""
        if self._publisher.published_weights is None or update == 0 or self.is_stored_after(update):
            return
        with self.as_published():
            self.store(update, metrics)

    @contextmanager
    def as_published(self) -> Iterator[None]:
        """For a while the policy has the weights that the samplers serve, not those in training."""
        if self._prepared is not None:
            self._prepared.settle()
        published = self._publisher.published_weights
        if published is None:
            published = model_weights(load_causal_lm(self._initial.source, dtype="float32", device="cpu"))
        in_training = {
            name: tensor.to("cpu", copy=True) for name, tensor in model_weights(self._policy).items()
        }
        load_weights(self._policy, published)
        try:
            yield
        finally:
            load_weights(self._policy, in_training)
