"""The trainer under the cord, which a real labeling service holds."""

from andon.client.cord import CordClient
from andon.client.trainer import RunState
from andon.errors import FailedPreconditionError
from andon.rpc.server import RunningServer
from tests.counting_trainer import Trainer, finish, is_state, is_step, refused, sums, wait_for
from tests.tokens import TOKENS


def test_a_pulled_cord_stops_training_and_only_a_release_lets_it_go_on(
    trainer: Trainer, labeling: RunningServer
) -> None:
    client = trainer.start(watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"])
    run = client.start_run("sft", {"steps": 3})
    trainer.gate.let("go")
    seen = wait_for(client, run, is_step(1))
    with CordClient(labeling.target, token=TOKENS["admin"]) as cord:
        cord.pull(actor="ada", reason="the summaries turned rude")
        seen = wait_for(client, run, is_state(RunState.PAUSED), after=seen)
        trainer.gate.let("go", "go")

        held = client.get(run.run_id)
        assert held.status_message == "the cord is pulled by ada: the summaries turned rude"
        with refused(FailedPreconditionError, "RUN_NOT_RESUMABLE"):
            client.resume(run.run_id)
        assert trainer.gate.turns.qsize() == 2

        cord.release(actor="bob", reason="looked at them")
        assert sums(finish(client, run, after_sequence=seen)) == [3, 6]


def test_a_cord_pulled_before_the_run_lets_it_take_no_step(trainer: Trainer, labeling: RunningServer) -> None:
    with CordClient(labeling.target, token=TOKENS["admin"]) as cord:
        cord.pull(actor="ada", reason="not tonight")
        client = trainer.start(
            watch_cord=True, labeling_target=labeling.target, labeling_token=TOKENS["service"]
        )
        trainer.gate.let("go")
        run = client.start_run("sft", {"steps": 1})
        wait_for(client, run, is_state(RunState.PAUSED))
        assert trainer.gate.turns.qsize() == 1
        cord.release(actor="bob", reason="morning")
        assert sums(finish(client, run)) == [1]


def test_a_cord_that_cannot_be_heard_holds_the_run(trainer: Trainer) -> None:
    client = trainer.start(watch_cord=True, labeling_target="127.0.0.1:1", cord_hold_s=0.3)
    trainer.gate.let("go")
    run = client.start_run("sft", {"steps": 1})
    wait_for(client, run, is_state(RunState.PAUSED))

    assert client.get(run.run_id).status_message == "the cord service has not been heard for 0.3 s"
    assert trainer.gate.turns.qsize() == 1
    assert client.stop(run.run_id).state is RunState.STOPPED
