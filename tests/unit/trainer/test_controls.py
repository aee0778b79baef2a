"""What is asked of a run: who wins over whom, and that waiting ends when something changes."""

import threading

from services.trainer.controls import Hold, HoldCause, Interrupt, RunControls, Stop


def test_nothing_is_asked_at_first() -> None:
    assert RunControls(lambda: None).demand() is None


def test_a_pause_holds_until_it_is_lifted() -> None:
    controls = RunControls(lambda: None)
    controls.pause("lunch")
    assert controls.demand() == Hold(reason="lunch", by=HoldCause.PERSON)
    assert controls.resume()
    assert controls.demand() is None
    assert not controls.resume()


def test_lifting_a_pause_does_not_lift_the_cord() -> None:
    controls = RunControls(lambda: "pulled")
    controls.pause("lunch")
    controls.resume()
    assert controls.demand() == Hold(reason="pulled", by=HoldCause.CORD)


def test_stop_wins_over_interrupt_and_interrupt_over_holding() -> None:
    controls = RunControls(lambda: "pulled")
    controls.pause("lunch")
    controls.interrupt()
    assert controls.demand() == Interrupt()
    controls.stop("enough")
    assert controls.demand() == Stop(reason="enough")


def test_waiting_ends_when_the_cord_changes() -> None:
    cord = ["pulled by ada"]
    controls = RunControls(lambda: cord[0] or None)
    held = controls.demand()
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(controls.wait_for_change(held)))
    waiting.start()
    controls.cord_changed()  # the same state again wakes nobody for good
    cord[0] = ""
    controls.cord_changed()
    waiting.join(timeout=10)
    assert answers == [None]
