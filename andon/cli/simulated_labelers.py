"""Decides who answers labeling tasks when no people are there: simulated labelers, as ordinary gRPC clients.

Each labeler is a thread with a client of its own that leases, decides and answers until nothing is left for
it, as a person's browser would. What it decides comes from an ``Opinions``: the built-in corpus's judge plus
noise where a post's facts are known, or ROUGE-L against the summaries that people wrote, which has no noise
and makes all labelers agree. ``andon label simulate`` and ``andon demo`` use it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

from andon.client.connection import new_request_id
from andon.client.labeling import AnswerDraft, LabelingClient, LeasedTask
from andon.corpus.builtin.generate import Post, WriterQuality
from andon.corpus.builtin.labelers import SimulatedAnswer, SimulatedLabeler
from andon.corpus.records import DocumentRecord
from andon.errors import InvalidArgumentError, UnavailableError

TASKS_PER_LEASE = 10  # few, so that all labelers get some of a small batch
LEASE_S = 600.0
PATIENCE_S = 600.0  # how long a labeling service that is gone may take to come back
ROUGE_TIE_WIDTH = 1e-9

AnswerMode = Literal["ranking", "choice"]
Result = TypeVar("Result")


class Opinions(Protocol):
    """What labelers think of candidates."""

    @property
    def description(self) -> str:
        """One sentence that says where the opinions come from, for people."""
        ...

    def answer(self, labeler: int, document: str, candidates: Sequence[str]) -> SimulatedAnswer:
        """The decision of the labeler with this number."""
        ...


class GoldOpinions:
    """The gold judge of the built-in corpus plus one labeler's taste and noise."""

    description = "simulated labelers: the built-in corpus's exact judge plus noise"

    def __init__(self, posts: Sequence[Post], *, seed: int) -> None:
        self._posts = {post.document: post for post in posts}
        self._seed = seed

    def answer(self, labeler: int, document: str, candidates: Sequence[str]) -> SimulatedAnswer:
        """The decision of the labeler with this number; the document must be one of the posts."""
        post = self._posts.get(document)
        if post is None:
            raise _unknown_document(document)
        person = SimulatedLabeler(seed=1000 * self._seed + labeler)
        # A labeler has one opinion of a text, whichever task shows it.
        return person.answer(post, candidates, task_id=post.post_id)


class RougeOpinions:
    """Prefers what overlaps more with the summaries that people wrote; all labelers think the same."""

    description = "simulated labelers: ROUGE-L against the reference summaries, without noise"

    def __init__(self, documents: Sequence[DocumentRecord]) -> None:
        self._references = {record.document: record.summaries for record in documents}

    def answer(self, labeler: int, document: str, candidates: Sequence[str]) -> SimulatedAnswer:
        """The decision, which is the same for every labeler."""
        from andon.evaluation.overlap import rouge  # imported late: only real data needs it

        references = self._references.get(document)
        if not references:
            raise _unknown_document(document)
        scores = [rouge(candidate, references).rouge_l for candidate in candidates]
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        tiers: list[list[int]] = [[order[0]]]
        for index in order[1:]:
            if scores[tiers[-1][0]] - scores[index] <= ROUGE_TIE_WIDTH:
                tiers[-1].append(index)
            else:
                tiers.append([index])
        gap = scores[order[0]] - scores[order[1]]
        return SimulatedAnswer(
            tiers=tuple(tuple(sorted(tier)) for tier in tiers),
            choice=order[0],
            confidence=1 + round(8 * min(1.0, 2 * gap)),
        )


def opinions_for(documents: Sequence[DocumentRecord], *, seed: int) -> Opinions:
    """The judge where the facts of all documents are known, ROUGE-L where all have reference summaries."""
    if all(record.facts is not None for record in documents):
        return GoldOpinions([post_from_record(record) for record in documents], seed=seed)
    if all(record.summaries for record in documents):
        return RougeOpinions(documents)
    raise InvalidArgumentError(
        "simulated labelers need documents whose facts are known or that have reference summaries",
        reason="NO_OPINIONS",
    )


def post_from_record(record: DocumentRecord) -> Post:
    """The post behind a document of the built-in corpus, as far as its judge needs it."""
    return Post(
        post_id=record.document_id,
        document=record.document,
        facts=record.facts or {},
        words={},
        decoys={},
        reference=record.summaries[0] if record.summaries else "",
        reference_writer=WriterQuality.MIDDLING,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelingTally:
    """What the simulated labelers did."""

    answers_by_labeler: Mapping[str, int]

    @property
    def answer_count(self) -> int:
        """All answers together."""
        return sum(self.answers_by_labeler.values())


def label_batch(
    target: str,
    batch: str,
    opinions: Opinions,
    *,
    labelers: int,
    token: str | None = None,
    mode: AnswerMode = "ranking",
    on_answers: Callable[[int], None] | None = None,
) -> LabelingTally:
    """Has ``labelers`` simulated people answer everything in the batch that is theirs to answer.

    ``token`` is that of a service or an admin, who may answer in anybody's name.
    """
    names = [f"simulated-{number}" for number in range(1, labelers + 1)]
    gone_home = threading.Event()
    with ThreadPoolExecutor(max_workers=labelers, thread_name_prefix="labeler") as pool:
        futures = {
            pool.submit(
                _work, target, token, batch, opinions, number, name, mode, on_answers, gone_home
            ): name
            for number, name in enumerate(names, 1)
        }
        try:
            counts = {futures[future]: future.result() for future in as_completed(futures)}
        except BaseException:
            gone_home.set()  # one failed, or Ctrl-C: nobody goes on
            raise
    return LabelingTally(answers_by_labeler={name: counts[name] for name in names})


def _work(
    target: str,
    token: str | None,
    batch: str,
    opinions: Opinions,
    number: int,
    name: str,
    mode: AnswerMode,
    on_answers: Callable[[int], None] | None,
    gone_home: threading.Event,
) -> int:
    answered = 0
    with LabelingClient(target, token=token) as client:
        while not gone_home.is_set():
            leased = patiently(
                lambda: client.lease_tasks(
                    name, batch=batch, max_tasks=TASKS_PER_LEASE, lease_s=LEASE_S, wait_for_ready=True
                )
            )
            if not leased:
                return answered
            answers = [_decide(opinions, number, task, mode) for task in leased]
            patiently(
                partial(
                    client.submit_answers,
                    name,
                    answers,
                    request_id=new_request_id(),
                    wait_for_ready=True,
                )
            )
            answered += len(answers)
            if on_answers is not None:
                on_answers(len(answers))
    return answered


def _decide(opinions: Opinions, number: int, task: LeasedTask, mode: AnswerMode) -> AnswerDraft:
    answer = opinions.answer(number, task.document, task.candidates)
    if mode == "choice":
        return AnswerDraft(lease_id=task.lease_id, best_index=answer.choice, confidence=answer.confidence)
    return AnswerDraft(lease_id=task.lease_id, tiers=answer.tiers, confidence=answer.confidence)


def patiently(call: Callable[[], Result], *, patience_s: float = PATIENCE_S) -> Result:
    """Makes a call that is safe to repeat until the service is back, for ``patience_s`` at most."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except UnavailableError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)  # the service is being started again


def _unknown_document(document: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"no opinion on the document that begins with {document[:60]!r}: it is not among the given ones",
        reason="UNKNOWN_DOCUMENT",
    )
