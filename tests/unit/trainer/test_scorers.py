"""The frozen models as scripted clients: what they say of how they worked is compared with what was asked."""

from collections.abc import Callable
from typing import Any

import pytest

from andon.client.reference import LogProbs
from andon.client.reward import Scores, SummaryScore
from andon.modeling.normalization import NO_NORMALIZATION
from andon.modeling.versions import ModelVersion
from services.trainer.peers import Peers
from services.trainer.scorers import Scorers
from services.trainer.stages.context import StageClients

MODEL = ModelVersion("sft", 1)
ITEMS = [([1, 2], [[3]])]


class Context:
    clients = StageClients()

    def waiting(self, message: str) -> None:
        """Nobody watches."""

    def asked_to_halt(self) -> bool:
        return False

    def obey(self, state: Callable[[], dict[str, Any]]) -> None:
        """Nothing is asked."""


class Reference:
    target = "host:1"
    temperature = 0.7
    fingerprint = "ours"

    def logprobs(self, items: Any, **_: Any) -> LogProbs:
        return LogProbs(
            items=(((-1.0,),),),
            model=MODEL,
            queue_s=0.0,
            compute_s=0.0,
            applied_temperature=self.temperature,
            tokenizer_fingerprint=self.fingerprint,
        )


class Reward:
    target = "host:2"
    fingerprint = "ours"

    def score(self, items: Any, **_: Any) -> Scores:
        return Scores(
            items=((SummaryScore(score=2.0, raw_score=2.0, token_count=1),),),
            model=MODEL,
            normalization=NO_NORMALIZATION,
            queue_s=0.0,
            compute_s=0.0,
            tokenizer_fingerprint=self.fingerprint,
        )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda reference, reward: None, ()),
        (lambda reference, reward: setattr(reference, "temperature", 1.0), ("temperature 1, not 0.7",)),
        (lambda reference, reward: setattr(reference, "fingerprint", "theirs"), ("reference read",)),
        (lambda reference, reward: setattr(reward, "fingerprint", "theirs"), ("reward model read",)),
    ],
)
def test_a_service_that_worked_otherwise_than_asked_is_named(
    spoil: Callable[[Reference, Reward], None], told: tuple[str, ...]
) -> None:
    reference, reward = Reference(), Reward()
    spoil(reference, reward)
    scorers = Scorers(
        reference=reference,  # type: ignore[arg-type]
        reference_model=MODEL,
        reward=reward,  # type: ignore[arg-type]
        reward_model=MODEL,
        tokenizer_fingerprint="ours",
        peers=Peers(Context()),  # type: ignore[arg-type]
        timeout_s=1.0,
    )
    for _ in range(2):
        assert scorers.reference_logprobs(ITEMS, temperature=0.7) == [[-1.0]]
        assert scorers.scores(ITEMS) == [[2.0]]
    assert len(scorers.settings_differences) == len(told)
    assert all(
        part in difference for part, difference in zip(told, scorers.settings_differences, strict=True)
    )
