"""The cord guard: a pull holds, silence holds, and only a word from the cord lets go."""

import queue
import threading
from collections.abc import Iterator

from andon.client.cord import Cord
from andon.errors import UnavailableError
from services.trainer.guards.cord import CordGuard

RELEASED = Cord(pulled=False, event_number=0, actor="", reason="", event_time=None)
PULLED = Cord(pulled=True, event_number=1, actor="ada", reason="strange samples", event_time=None)
RELEASED_AGAIN = Cord(pulled=False, event_number=2, actor="bob", reason="fixed", event_time=None)
BREAK = "the stream breaks"
END = "the source is closed"


class ScriptedCord:
    """Says what the test puts in."""

    def __init__(self) -> None:
        self.words: queue.Queue[Cord | str] = queue.Queue()

    def watch(self, *, timeout_s: float | None = None, wait_for_ready: bool = False) -> Iterator[Cord]:
        while True:
            word = self.words.get()
            if isinstance(word, Cord):
                yield word
            elif word == BREAK:
                raise UnavailableError("gone")
            else:
                return

    def close(self) -> None:
        self.words.put(END)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Listener:
    """A guard whose every word can be awaited."""

    def __init__(self) -> None:
        self.source = ScriptedCord()
        self.clock = Clock()
        self._changes = threading.Semaphore(0)
        self.guard = CordGuard(
            self.source, hold_after_s=30.0, changed=self._changes.release, clock=self.clock
        )

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_error: object) -> None:
        self.guard.close()

    def say(self, word: Cord) -> None:
        self.source.words.put(word)
        assert self._changes.acquire(timeout=10)


def start(listener: Listener, first: Cord) -> None:
    listener.source.words.put(first)
    listener.guard.start()


def test_a_pulled_cord_holds_with_its_reason_until_the_release() -> None:
    with Listener() as listener:
        start(listener, RELEASED)
        assert listener.guard.hold() is None

        listener.say(PULLED)
        listener.say(PULLED)
        hold = listener.guard.hold()
        assert hold is not None
        assert "ada" in hold
        assert "strange samples" in hold

        listener.say(RELEASED_AGAIN)
        listener.say(RELEASED_AGAIN)
        assert listener.guard.hold() is None


def test_a_cord_pulled_before_the_start_holds_from_the_first_step() -> None:
    with Listener() as listener:
        start(listener, PULLED)

        assert listener.guard.hold() is not None


def test_silence_holds_only_after_the_set_time_and_a_word_lets_go() -> None:
    with Listener() as listener:
        start(listener, RELEASED)
        listener.clock.now_s += 29.9
        assert listener.guard.hold() is None
        listener.clock.now_s += 0.1
        hold = listener.guard.hold()
        assert hold is not None
        assert "not been heard for 30 s" in hold

        listener.say(RELEASED)
        listener.say(RELEASED)
        assert listener.guard.hold() is None


def test_a_pull_outlasts_the_loss_of_the_service() -> None:
    with Listener() as listener:
        start(listener, PULLED)
        listener.source.words.put(BREAK)
        listener.clock.now_s += 1000

        hold = listener.guard.hold()
        assert hold is not None
        assert "ada" in hold


def test_listening_goes_on_after_the_stream_broke() -> None:
    with Listener() as listener:
        start(listener, RELEASED)
        listener.source.words.put(BREAK)
        listener.say(RELEASED)
        listener.say(PULLED)
        listener.say(PULLED)

        assert listener.guard.hold() is not None
