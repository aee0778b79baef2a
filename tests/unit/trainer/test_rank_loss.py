"""A rank that is gone ends the set at once, with a clear word; nobody waits for it."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from services.trainer.actor_critic import load_actor_critic
from services.trainer.errors import RankLostError
from services.trainer.policy_optimizer import UpdateProgress
from tests.policy_updates import experience_of, settings
from tests.rank_pair import DIE, FAIL, TIMEOUT_S, learn, store_sources, two_ranks


@pytest.mark.parametrize(("what", "exit_code"), [(DIE, -signal.SIGKILL), (FAIL, 1)])
def test_a_rank_that_dies_is_missed_at_once(tmp_path: Path, what: str, exit_code: int) -> None:
    source, chosen = store_sources(tmp_path)["shared head"], settings()
    experience = experience_of(load_actor_critic(source, device="cpu").policy)
    with two_ranks(tmp_path) as both:
        with both.training(source, chosen) as (_, optimizer), pytest.raises(RankLostError) as caught:
            learn(optimizer, replace(experience, metrics={what: 1.0}), UpdateProgress())
        assert both.was_lost
        assert caught.value.reason == "RANK_LOST"
        with pytest.raises(RankLostError, match="lost before"):
            both.ranks.tell("anything")
        both.other.join(TIMEOUT_S)
        assert both.other.exitcode == exit_code
