"""Simulated labelers who answer whatever the labeling service has for them, beside a run in training."""

from __future__ import annotations

import threading
from typing import Any

from andon.client.labeling import AnswerDraft, LabelingClient
from andon.corpus.builtin.labelers import SimulatedLabeler
from benchmarks.guards.world import LABELERS, World, corpus_of

PAUSE_S = 0.05  # before looking for tasks again
TASKS_AT_A_TIME = 100


class Labelers:
    """A context manager: entering it has them begin, leaving it stops them."""

    def __init__(self, world: World, target: str, *, token: str) -> None:
        corpus = corpus_of(world.seed)
        assert corpus.posts is not None, "the built-in corpus knows its posts"
        self._posts = {post.document: post for post in corpus.posts.values()}
        # Nobody of those whose answers a reward model learned from.
        first = 1000 * world.seed + 3 * LABELERS
        self._people = [SimulatedLabeler(seed=first + number) for number in range(LABELERS)]
        self._target, self._token = target, token
        self._leave = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="labelers")

    def __enter__(self) -> Labelers:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:  # what every context manager is given
        self._leave.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            with LabelingClient(self._target, token=self._token) as labeling:
                turn = 0
                while not self._leave.wait(PAUSE_S):
                    turn += 1
                    self._answer(labeling, self._people[turn % len(self._people)])
        except BaseException as error:  # noqa: BLE001  raised again where the thread is joined
            self._error = error

    def _answer(self, labeling: LabelingClient, labeler: SimulatedLabeler) -> None:
        name = f"simulated-{labeler.seed}"
        leased = labeling.lease_tasks(name, max_tasks=TASKS_AT_A_TIME)
        drafts = [
            AnswerDraft(
                lease_id=task.lease_id,
                tiers=labeler.answer(
                    self._posts[task.document], task.candidates, task_id=task.document
                ).tiers,
            )
            for task in leased
        ]
        if drafts:
            labeling.submit_answers(name, drafts)
