"""What a rollout is looked at and listened for with, put together from settings.

The controller's service and the judge each have one: eyes for the evidence, ears for the cord and for alerts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from andon.client.cord import CordClient
from andon.client.labeling import LabelingClient
from andon.client.policy import SamplingParameters
from andon.client.reference import ReferenceClient
from andon.client.reward import RewardClient
from andon.corpus.loaders import load_documents
from andon.modeling.store import ModelStore
from services.canary.alerts import AlertWatch
from services.canary.config import EvidenceConfig
from services.canary.emergency import CordWatch, Emergency
from services.canary.evidence.gatherer import Gatherer, Judges
from services.canary.evidence.identity import Identity
from services.canary.evidence.people import People, PeopleOptions
from services.canary.evidence.probes import Prober
from services.canary.evidence.samplers import Samplers
from services.canary.platform import Replica

FIXED_PROMPTS = 8  # that a replica's identity is told by


class Senses:
    """Eyes and ears, and what they are connected with."""

    def __init__(
        self,
        config: EvidenceConfig,
        *,
        store: ModelStore,
        documents: Sequence[str],
        tls_server_name: str | None,
        stable_replicas: Callable[[], Sequence[Replica]],
        on_stop: Callable[[], None],
        gives_up: Callable[[], bool],
        failed: Callable[[str], None],
    ) -> None:
        """``documents`` are what both sides are probed with. ``tls_server_name`` is what certificates of
        replicas name, where these are dialled by another name or by address. ``on_stop`` is called when the
        line must stop. ``gives_up`` says that a round of probes should end without a result. ``failed``
        hears which source could not be asked.

        Raises InvalidArgumentError for a token or certificates that cannot be used.
        """
        self._closing = ExitStack()
        self.emergency = Emergency(on_stop=on_stop)
        self._cord = self._open_cord(config)
        self._alerts = None
        if config.alertmanager_url is not None:
            self._alerts = AlertWatch(
                config.alertmanager_url,
                config.alert_matchers,
                self.emergency,
                failed=lambda: failed("alertmanager"),
            )
        self.samplers = Samplers(timeout_s=config.call_timeout_s, tls_server_name=tls_server_name)
        self._closing.callback(self.samplers.close)
        self.gatherer = Gatherer(
            prober=Prober(
                self.samplers,
                documents=documents,
                parameters=SamplingParameters(
                    max_new_tokens=config.max_new_tokens, temperature=config.temperature
                ),
                chance=random.Random(),
            ),
            judges=self._open_judges(config),
            identity=Identity(self.samplers, store, prompts=documents[:FIXED_PROMPTS]),
            samplers=self.samplers,
            store=store,
            stable_replicas=stable_replicas,
            probes_per_round=config.probes_per_look,
            parallel=config.parallel_probes,
            must_stop=lambda: gives_up() or self.emergency.why() is not None,
            failed=failed,
        )

    def start(self) -> None:
        """Begin to listen."""
        for watch in (self._cord, self._alerts):
            if watch is not None:
                watch.start()

    def close(self) -> None:
        """End the threads and the connections."""
        for watch in (self._cord, self._alerts):
            if watch is not None:
                watch.close()
        self.gatherer.close()
        self._closing.close()

    def has_heard_cord(self) -> bool:
        """Whether the cord was heard at all, or nobody listens to it."""
        return self._cord is None or self._cord.has_heard()

    def _open_cord(self, config: EvidenceConfig) -> CordWatch | None:
        if not config.watch_cord or config.labeling_target is None:
            return None
        client = CordClient(config.labeling_target, token=config.token_for_labeling())
        return CordWatch(client, self.emergency, unheard_s=config.cord_unheard_s)

    def _open_judges(self, config: EvidenceConfig) -> Judges:
        reward = self._closing.enter_context(RewardClient(config.reward_target))
        reference = self._closing.enter_context(ReferenceClient(config.reference_target))
        people = None
        if config.labeling_target is not None:
            labeling = LabelingClient(config.labeling_target, token=config.token_for_labeling())
            people = People(self._closing.enter_context(labeling), PeopleOptions(project=config.project))
        return Judges(reward=reward, reference=reference, temperature=config.temperature, people=people)


def probe_documents(source: str) -> list[str]:
    """The texts of a source, in an order of their own that is always the same.

    Raises SourceNotFoundError, UnknownFormatError or MalformedRowError.
    """
    texts = [record.document for record in load_documents(source)]
    random.Random(0).shuffle(texts)
    return texts
