"""A run without a service around it, and a small world of documents and comparisons."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from andon.modeling.store import ModelStore
from andon.modeling.versions import ModelVersion
from services.trainer.stages.context import RunInterrupted, StageClients, StageState


@dataclass
class Report:
    """One call of ``step_done``."""

    step: int
    total: int
    phase: str
    metrics: dict[str, float]


@dataclass
class FakeContext:
    """A run in memory. It keeps checkpoints as the bytes that a real one would write."""

    store: ModelStore
    run_id: str = "run-1"
    threads: int = 1
    device: str = "cpu"
    clients: StageClients = field(default_factory=StageClients)
    interrupt_at: int | None = None  # the step after whose checkpoint the process "ends"
    checkpoint: bytes | None = None
    reports: list[Report] = field(default_factory=list)
    models: list[ModelVersion] = field(default_factory=list)

    def restored_state(self) -> StageState | None:
        if self.checkpoint is None:
            return None
        state: StageState = torch.load(io.BytesIO(self.checkpoint), map_location="cpu", weights_only=True)
        return state

    def step_done(
        self,
        *,
        step: int,
        total: int,
        phase: str,
        metrics: Mapping[str, float],
        state: Callable[[], StageState],
    ) -> None:
        self.reports.append(Report(step, total, phase, dict(metrics)))
        if step == self.interrupt_at:
            content = io.BytesIO()
            torch.save(state(), content)
            self.checkpoint = content.getvalue()
            raise RunInterrupted

    def asked_to_halt(self) -> bool:
        return False

    def obey(self, state: Callable[[], StageState]) -> None:
        """Nobody asks for anything."""

    def published(self, model: ModelVersion, *, stored: bool) -> None:
        assert stored
        self.models.append(model)

    def waiting(self, message: str) -> None:
        """Nobody watches."""

    def continued(self) -> FakeContext:
        """The same run in another process."""
        return FakeContext(
            store=self.store, run_id=self.run_id, clients=self.clients, checkpoint=self.checkpoint
        )


@pytest.fixture
def context(tmp_path: Path) -> FakeContext:
    return FakeContext(ModelStore(tmp_path / "store"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# A language of colours and places in which the summary is the document's one fact.
_COLOURS = ("red", "blue", "green", "black")
_PLACES = ("park", "school", "bank", "shop")

TINY_GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "n_positions": 64,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
}


def _facts(count: int) -> list[tuple[str, str]]:
    generator = random.Random(3)
    return [(generator.choice(_COLOURS), generator.choice(_PLACES)) for _ in range(count)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def documents_source(tmp_path: Path) -> str:
    """40 documents with one or two summaries each."""
    rows = [
        {
            "id": f"post-{index}",
            "document": f"yesterday i saw a {colour} dog in the {place} and went home",
            "summaries": [f"{colour} dog {place}", f"a dog in the {place}"][: 1 + index % 2],
        }
        for index, (colour, place) in enumerate(_facts(40))
    ]
    return write_rows(tmp_path / "documents.jsonl", rows)


@pytest.fixture
def comparisons_source(tmp_path: Path) -> str:
    """60 documents: two labelers compare two summaries of each, one labeler ranks four of every third."""
    rows: list[dict[str, Any]] = []
    for index, (colour, place) in enumerate(_facts(60)):
        document = f"yesterday i saw a {colour} dog in the {place} and went home"
        texts = [
            f"a dog in the {place} and home",
            f"{colour} dog {place}",
            "i saw home",
            "dog dog dog dog dog",
        ]
        for labeler in ("ann", "bob"):
            rows.append(
                {
                    "document_id": f"post-{index}",
                    "document": f"{document} {index}",
                    "candidates": [{"text": text} for text in texts[:2]],
                    "tiers": [[1], [0]] if labeler == "ann" or index % 4 else [[0], [1]],
                    "labeler_id": labeler,
                    "confidence": 1 + index % 9,
                    "comparison_id": str(len(rows) + 1),
                    "batch": "first",
                }
            )
        if index % 3 == 0:
            rows.append(
                {
                    "document_id": f"post-{index}",
                    "document": f"{document} {index}",
                    "candidates": [{"text": text} for text in texts],
                    "tiers": [[1], [0], [2, 3]] if index % 2 else [[1], [0, 2, 3]],
                    "only_best_known": index % 2 == 0,
                    "labeler_id": "cat",
                    "comparison_id": str(len(rows) + 1),
                    "batch": "first",
                }
            )
    return write_rows(tmp_path / "comparisons.jsonl", rows)
