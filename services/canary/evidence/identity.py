"""Whether a replica serves what it claims.

It must name the version that was asked for, with the digest that the store's manifest has. Because a replica
that is wrong about itself may be wrong about its digest too, it also has to answer a few fixed prompts: two
replicas of one digest must answer alike, and replicas of different digests must not answer the same to the
last digit. What is compared are log-probabilities of the most probable tokens; nothing is drawn by lot.

Two versions that are so near to each other that no log-probability of the fixed prompts differs are taken for
a lie; promoting such a version would change nothing. A replica that lies about its digest and differs from
stable is known by what it writes: that is what the gates are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from andon.client.policy import PromptSamples, SamplingParameters
from andon.client.values import ModelInfo
from andon.errors import AndonError
from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from services.canary.evidence.samplers import Samplers
from services.canary.platform import Replica

_log = structlog.stdlib.get_logger(__name__)

INFO_TIMEOUT_S = 5.0
SAME_NATS = 1e-5  # what the order of additions may change in float32
LIKE_NATS = 0.1  # what another batch may change in bfloat16
_GREEDY = SamplingParameters(max_new_tokens=8, temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a replica says to the fixed prompts."""

    tokens: tuple[tuple[int, ...], ...]  # by prompt
    logprobs: tuple[tuple[float, ...], ...]  # nats

    @classmethod
    def of(cls, results: Sequence[PromptSamples]) -> Answers:
        """From one sample of each prompt."""
        samples = [result.samples[0] for result in results]
        return cls(
            tokens=tuple(sample.token_ids for sample in samples),
            logprobs=tuple(sample.logprobs for sample in samples),
        )

    def is_same(self, other: Answers) -> bool:
        """Whether nothing differs."""
        return self.tokens == other.tokens and all(
            abs(one - another) <= SAME_NATS
            for ours, theirs in zip(self.logprobs, other.logprobs, strict=True)
            for one, another in zip(ours, theirs, strict=True)
        )

    def is_like(self, other: Answers) -> bool:
        """Whether one model may have given both.

        Only the first token of each prompt counts. Its log-probability is the largest of all, which moves
        little even where two tokens are equally probable and either may come first.
        """
        return all(
            abs(ours[0] - theirs[0]) <= LIKE_NATS
            for ours, theirs in zip(self.logprobs, other.logprobs, strict=True)
            if ours and theirs
        )


@dataclass(frozen=True, slots=True)
class _Claim:
    """A model in a process; loaded anew it is another claim."""

    target: str
    model: ModelVersion
    load_time: datetime


class Identity:
    """Remembers the answers of each digest, and which claims were compared."""

    def __init__(self, samplers: Samplers, store: ModelStore, *, prompts: Sequence[str]) -> None:
        """``prompts`` are the fixed ones."""
        self._samplers = samplers
        self._store = store
        self._prompts = prompts
        self._answers: dict[str, tuple[ModelVersion, Answers]] = {}  # by digest
        self._compared: set[_Claim] = set()

    def lie_of(self, version: str, replicas: Sequence[Replica], *, others: Sequence[Replica]) -> str | None:
        """What is wrong with replicas that should serve ``version``; ``others`` should serve another one.

        A replica that does not answer tells no lie. Raises NotFoundError MODEL_NOT_FOUND.
        """
        expected = self._store.resolve(version).version
        self._learn(others, unless=expected)
        for replica in replicas:
            info = self._info(replica)
            lie = None if info is None else self._lie_of_one(replica, info, expected)
            if lie is not None:
                return lie
        return None

    def _lie_of_one(self, replica: Replica, info: ModelInfo, expected: ModelVersion) -> str | None:
        if not info.model.is_same_name(expected):
            return f"{replica.name} serves {info.model}, not {expected}"
        if info.model.weights_sha256 != expected.weights_sha256:
            return f"{replica.name} serves other weights as {expected} than the store has"
        claim = _Claim(replica.target, info.model, info.load_time)
        if claim in self._compared:
            return None
        answers = self._ask(replica, info.model)
        if answers is None:
            return None
        known = self._answers.setdefault(expected.weights_sha256, (expected, answers))[1]
        if not answers.is_like(known):
            return f"{replica.name} answers otherwise than another replica of {expected}"
        for other, their_answers in list(self._answers.values()):
            if other.weights_sha256 != expected.weights_sha256 and answers.is_same(their_answers):
                return f"{replica.name} claims to serve {expected} and answers exactly as {other} does"
        if len(self._answers) > 1:
            self._compared.add(claim)
        return None

    def _learn(self, replicas: Sequence[Replica], *, unless: ModelVersion) -> None:
        """Have the answers of the version that these replicas serve."""
        for replica in replicas:
            info = self._info(replica)
            if info is None or info.model.weights_sha256 in ("", unless.weights_sha256):
                continue
            if info.model.weights_sha256 in self._answers:
                return
            answers = self._ask(replica, info.model)
            if answers is not None:
                self._answers[info.model.weights_sha256] = (info.model, answers)
                return

    def _info(self, replica: Replica) -> ModelInfo | None:
        try:
            return self._samplers.model_info(replica, timeout_s=INFO_TIMEOUT_S)
        except AndonError as error:
            _log.info("replica_not_asked", replica=replica.name, reason=error.reason)
            return None

    def _ask(self, replica: Replica, model: ModelVersion) -> Answers | None:
        try:
            results = self._samplers.sample_all(replica, self._prompts, _GREEDY, required_model=model)
        except AndonError as error:
            _log.info("replica_not_asked", replica=replica.name, reason=error.reason)
            return None
        return Answers.of(results)
