"""Which batch is written when and by which version, and what a checkpoint holds of it."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from andon.errors import InvalidArgumentError
from andon.modeling.sequences import PromptGroup
from andon.modeling.versions import ModelVersion
from services.trainer.errors import StaleSampleError
from services.trainer.peers import Peers
from services.trainer.rollout import Responses, RolloutPart
from services.trainer.rollouts_ahead import RolloutsAhead
from services.trainer.stages.context import StageClients

UPDATES = 6


class Context:
    clients = StageClients()

    def waiting(self, message: str) -> None:
        """Nobody watches."""

    def asked_to_halt(self) -> bool:
        return False

    def obey(self, state: object) -> None:
        raise AssertionError("nothing is to be waited for here")


class Collector:
    """Writes batches of two parts with the version of the moment, when it is told to."""

    def __init__(self) -> None:
        self.version = 0
        self.begun: list[int] = []
        self.judged: list[int] = []
        self._open: list[tuple[Future[Responses], Responses]] = []

    def begin(self, prompts: Sequence[Sequence[int]], *, update: int) -> list[RolloutPart]:
        self.begun.append(update)
        parts = [_responses(prompt, ModelVersion("policy", self.version)) for prompt in prompts]
        futures: list[Future[Responses]] = [Future() for _ in parts]
        self._open += zip(futures, parts, strict=True)
        return [_part(future) for future in futures]

    def judge(self, parts: Sequence[Responses]) -> list[RolloutPart]:
        self.judged.append(parts[0].groups[0].prompt[0])
        futures: list[Future[Responses]] = [Future() for _ in parts]
        for future, responses in zip(futures, parts, strict=True):
            future.set_result(responses)
        return [_part(future) for future in futures]

    def write(self, parts: int | None = None) -> None:
        """Finish so many of the parts under way, or all."""
        now, self._open = self._open[:parts], [] if parts is None else self._open[parts:]
        for future, responses in now:
            future.set_result(responses)

    def fail(self, error: Exception) -> None:
        self._open.pop(0)[0].set_exception(error)


def _responses(prompt: Sequence[int], model: ModelVersion) -> Responses:
    return Responses(
        groups=(PromptGroup(prompt=prompt, responses=[[5, 3]]),),
        lengths=torch.tensor([2]),
        behaviour_logprobs=torch.tensor([[-1.0, -float(prompt[0])]]),
        ended_properly=torch.tensor([True]),
        model=model,
    )


def _part(responses: Future[Responses]) -> RolloutPart:
    return RolloutPart(responses=responses, reference_logprobs=Future(), scores=Future())


def ahead_of(collector: Collector, staleness: int) -> RolloutsAhead:
    return RolloutsAhead(
        collector,  # type: ignore[arg-type]
        prompts_of=lambda update: [[update], [update + 100]],
        updates_before=lambda model: model.version,
        max_staleness=staleness,
        num_updates=UPDATES,
        peers=Peers(Context()),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
def test_a_batch_comes_from_the_weights_of_so_many_updates_before(staleness: int) -> None:
    collector = Collector()
    ahead = ahead_of(collector, staleness)
    found: list[int] = []
    for update in range(1, UPDATES + 1):
        ahead.begin(update, has_experience=False)
        collector.write()
        found.append(ahead.batch(update, state=dict).staleness)
        ahead.learned(update)
        ahead.begin(update, has_experience=True)  # as after a resume in its middle: nothing is written twice
        ahead.wait_until_written(state=dict)
        collector.version = update

    assert found == [min(staleness, update - 1) for update in range(1, UPDATES + 1)]
    assert collector.begun == list(range(1, UPDATES + 1))


def test_an_older_batch_than_allowed_is_refused() -> None:
    collector = Collector()
    ahead = ahead_of(collector, 1)
    ahead.restore({"3": [_responses([3], ModelVersion("policy", 0)).to_state()]})
    ahead.begin(3, has_experience=False)
    with pytest.raises(StaleSampleError, match="the batch of update 3 gave a sample of policy/0"):
        ahead.batch(3, state=dict)


def test_a_batch_from_the_future_is_refused() -> None:
    ahead = ahead_of(Collector(), 1)
    ahead.restore({"3": [_responses([3], ModelVersion("policy", 3)).to_state()]})
    ahead.begin(3, has_experience=False)
    with pytest.raises(StaleSampleError):
        ahead.batch(3, state=dict)


def test_a_checkpoint_holds_what_is_written_and_no_half_of_a_batch() -> None:
    collector = Collector()
    ahead = ahead_of(collector, 2)
    ahead.begin(1, has_experience=False)
    assert ahead.state() == {}
    collector.write(5)  # both parts of two batches, and one of the third
    state = ahead.state()
    assert list(state) == ["1", "2"]

    again_collector = Collector()
    again = ahead_of(again_collector, 2)
    again.restore(state)
    assert list(again.state()) == ["1", "2"]  # also before anything goes on
    again.begin(1, has_experience=False)
    assert again_collector.judged == [1, 2]
    assert again_collector.begun == [3]
    (first, second) = again.batch(2, state=dict).parts
    joined = Responses.join([first.responses.result(), second.responses.result()])
    assert joined.behaviour_logprobs.tolist() == [[-1.0, -2.0], [-1.0, -102.0]]
    assert [list(group.prompt) for group in joined.groups] == [[2], [102]]


def test_only_what_the_published_weights_wrote_is_theirs() -> None:
    collector = Collector()
    ahead = ahead_of(collector, 1)
    ahead.begin(1, has_experience=False)
    collector.write()
    ahead.learned(1)
    collector.version = 1
    ahead.begin(2, has_experience=False)
    collector.write()

    by_first, by_second = (ahead.written_by(ModelVersion("policy", version)) for version in (0, 1))
    assert [responses.groups[0].prompt[0] for responses in by_first] == [2]
    assert [responses.groups[0].prompt[0] for responses in by_second] == [3]


def test_a_batch_that_fails_is_told_to_whoever_waits_for_it_and_is_in_no_checkpoint() -> None:
    collector = Collector()
    ahead = ahead_of(collector, 1)
    ahead.begin(1, has_experience=False)
    collector.fail(InvalidArgumentError("too long", reason="SEQUENCE_TOO_LONG"))
    collector.write()
    assert list(ahead.state()) == ["2"]
    waits: list[Any] = [lambda: ahead.batch(1, state=dict), lambda: ahead.wait_until_written(state=dict)]
    for wait in waits:
        with pytest.raises(InvalidArgumentError, match="too long"):
            wait()
