"""What stops a rollout from outside, and what people say: a real labeling service, Alertmanager's API."""

import asyncio
import threading
from typing import Any

import pytest
from pydantic import SecretStr

from andon.client.canary import CanaryClient, RolloutPhase
from andon.client.cord import CordClient
from andon.client.labeling import AnswerDraft, LabelingClient
from andon.errors import FailedPreconditionError
from andon.rpc.server import RunningServer
from services.canary.alerts import AlertWatch
from services.canary.emergency import Emergency
from tests.alertmanager_api import AlertmanagerApi, alertmanager
from tests.canary_models import BETTER, EQUAL, HACKED, STABLE
from tests.canary_world import CanaryWorld, canary_world, follow
from tests.tokens import TOKENS

__all__ = ["alertmanager", "canary_world"]


def start_controller(world: CanaryWorld, labeling: RunningServer, **settings: Any) -> CanaryClient:
    return world.start_controller(
        labeling_target=labeling.target,
        labeling_token=SecretStr(TOKENS["service"]),
        watch_cord=True,
        **settings,
    )


def test_a_pulled_cord_rolls_back_at_once_and_forbids_the_next(
    canary_world: CanaryWorld, labeling: RunningServer
) -> None:
    client = start_controller(canary_world, labeling, look_interval_s=30.0)
    client.start(canary_world.wish(EQUAL, least_step_s=50.0))
    canary_world.faults.delay_s = 10.0  # a round of probes that would take long
    with CordClient(labeling.target, token=TOKENS["lara"]) as cord:
        cord.pull(actor="lara", reason="rude")
        end = follow(client)[-1]
        assert end.phase is RolloutPhase.ROLLED_BACK
        assert "the cord is pulled by lara: rude" in end.reason
        assert canary_world.percent == 0
        assert canary_world.served(canary_world.stable) == STABLE
        with pytest.raises(FailedPreconditionError) as caught:
            client.start(canary_world.wish(BETTER))
        assert caught.value.reason == "LINE_STOPPED"


def test_a_cord_that_cannot_be_heard_rolls_back(
    canary_world: CanaryWorld, labeling: RunningServer, server_loop: asyncio.AbstractEventLoop
) -> None:
    client = start_controller(canary_world, labeling, cord_unheard_s=2.0, probes_per_look=8)
    client.start(canary_world.wish(EQUAL, least_step_s=50.0))
    follow(client, until=lambda rollout: rollout.phase is RolloutPhase.OBSERVING)
    canary_world.stop(labeling)
    end = follow(client)[-1]
    assert end.phase is RolloutPhase.ROLLED_BACK
    assert "has not been heard for 2 s" in end.reason


def test_people_notice_what_the_reward_model_loves(
    canary_world: CanaryWorld, labeling: RunningServer
) -> None:
    client = start_controller(canary_world, labeling, probes_per_look=8)
    left_out = ("kl", "longer", "shorter", "repetition", "latency", "calls")
    started = client.start(canary_world.wish(HACKED, ask_people=True, left_out_gates=left_out))
    stop = threading.Event()
    labeler = threading.Thread(target=answer_by_variety, args=(labeling, stop))
    labeler.start()
    try:
        end = follow(client)[-1]
    finally:
        stop.set()
        labeler.join()
    assert end.phase is RolloutPhase.ROLLED_BACK, end.reason
    score, people = end.gates
    assert score.mean > 0.5
    assert people.verdict == "failed"
    assert people.mean < 0.2
    with LabelingClient(labeling.target, token=TOKENS["service"]) as reading:
        answers = reading.progress(batch=f"rollout-{started.rollout_id}").answer_count
    assert people.observations <= answers  # each answer once


def answer_by_variety(labeling: RunningServer, stop: threading.Event) -> None:
    """Prefers the text with more different words; knows nothing of versions."""
    with LabelingClient(labeling.target, token=TOKENS["lara"]) as lara:
        while not stop.wait(0.05):
            answers = []
            for task in lara.lease_tasks("lara", max_tasks=8):
                variety = [len(set(text.split())) for text in task.candidates]
                best = None if variety[0] == variety[1] else int(variety[1] > variety[0])
                answers.append(
                    AnswerDraft(lease_id=task.lease_id, tiers=((0, 1),))
                    if best is None
                    else AnswerDraft(lease_id=task.lease_id, best_index=best)
                )
            if answers:
                lara.submit_answers("lara", answers)


def test_a_firing_alert_stops_the_line_and_an_absent_alertmanager_does_not(alertmanager: str) -> None:
    failures: list[int] = []
    stopped = threading.Event()
    emergency = Emergency(on_stop=stopped.set)
    watch = AlertWatch(alertmanager, ['track="canary"'], emergency, failed=lambda: failures.append(1))
    watch.look()
    assert emergency.why() is None
    assert AlertmanagerApi.asked["filter"] == ['track="canary"']
    assert AlertmanagerApi.asked["silenced"] == ["false"]
    AlertmanagerApi.alerts = [
        {"labels": {"alertname": "AndonErrors", "track": "canary"}, "annotations": {"summary": "many errors"}}
    ]
    watch.look()
    assert stopped.is_set()
    assert emergency.why() == "the alert AndonErrors (many errors) fires"
    AlertmanagerApi.alerts = []
    watch.look()
    assert emergency.why() is not None  # until it was acted on
    emergency.forget()
    assert emergency.why() is None
    away = AlertWatch("http://127.0.0.1:1", ["x"], emergency, failed=lambda: failures.append(1))
    away.look()
    assert failures == [1]
    assert emergency.why() is None
