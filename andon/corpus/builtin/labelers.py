"""Decides what simulated labelers answer: the gold judge seen through one person's taste and noise.

A labeling client asks a ``SimulatedLabeler`` for choices, rankings and confidences and sends them to the
labeling
service as a person's answers; this file knows nothing of that service. Answers depend only on the labeler's
seed,
the task's id and the texts, never on the order in which tasks or candidates come. The noise is set so that
two
labelers agree on about three of four pairs of summaries, as people do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from andon.corpus.builtin.generate import Post
from andon.corpus.builtin.judge import GoldJudge

# Standard deviation of one labeler's error on one summary, in the judge's units (a complete summary earns 1).
TYPICAL_NOISE = 0.165
LOWEST_NOISE = 0.10
HIGHEST_NOISE = 0.25
TYPICAL_LENGTH_BIAS_PER_WORD = 0.004  # spread of the taste for long (or short) summaries between labelers
TIE_WIDTH = 0.03  # perceived scores closer than this rank as equal
LOWEST_CONFIDENCE = 1
HIGHEST_CONFIDENCE = 9
CONFIDENCE_WIDTH = 0.25  # perceived gap at which confidence is half way up


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerTraits:
    """What makes one simulated labeler differ from another."""

    noise: float  # standard deviation of the error on one summary, judge's units
    length_bias_per_word: float  # added to the perceived score for each word


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedAnswer:
    """One labeler's decision about the candidates of one task."""

    tiers: tuple[tuple[int, ...], ...]  # candidate indices, best tier first; one tier holds ties
    choice: int  # index of the best candidate; a tie on top is broken by the perceived scores
    confidence: int  # 1 (a guess) to 9 (certain): how clearly the best beats the second


class SimulatedLabeler:
    """One imagined person who compares summaries; pure and deterministic."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.traits = draw_traits(seed)
        self._judge = GoldJudge()

    def perceived_score(self, post: Post, summary_text: str, task_id: str) -> float:
        """The judge's total as this labeler sees it."""
        rng = random.Random(f"andon-labeler/{self.seed}/{task_id}/{summary_text}")
        return (
            self._judge.score(post, summary_text).total
            + self.traits.length_bias_per_word * len(summary_text.split())
            + rng.gauss(0.0, self.traits.noise)
        )

    def answer(self, post: Post, candidate_texts: Sequence[str], task_id: str) -> SimulatedAnswer:
        """Ranks two or more candidates; identical texts always tie."""
        if len(candidate_texts) < 2:
            raise ValueError(f"a task needs at least 2 candidates, got {len(candidate_texts)}")
        scores = [self.perceived_score(post, text, task_id) for text in candidate_texts]
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        tiers: list[list[int]] = [[order[0]]]
        for index in order[1:]:
            # Compared with the tier's best, so that a chain of small steps cannot become one big tie.
            if scores[tiers[-1][0]] - scores[index] < TIE_WIDTH:
                tiers[-1].append(index)
            else:
                tiers.append([index])
        gap = scores[order[0]] - scores[order[1]]
        return SimulatedAnswer(
            tiers=tuple(tuple(sorted(tier)) for tier in tiers), choice=order[0], confidence=_confidence(gap)
        )


def draw_traits(seed: int) -> LabelerTraits:
    """The traits of the labeler with this seed."""
    rng = random.Random(f"andon-labeler-traits/{seed}")
    noise = TYPICAL_NOISE * math.exp(rng.gauss(0.0, 0.2))
    return LabelerTraits(
        noise=min(max(noise, LOWEST_NOISE), HIGHEST_NOISE),
        length_bias_per_word=rng.gauss(0.0, TYPICAL_LENGTH_BIAS_PER_WORD),
    )


def _confidence(gap: float) -> int:
    """Rises with the perceived gap from 1 at no gap towards 9."""
    span = HIGHEST_CONFIDENCE - LOWEST_CONFIDENCE
    return LOWEST_CONFIDENCE + round(span * gap / (gap + CONFIDENCE_WIDTH))
