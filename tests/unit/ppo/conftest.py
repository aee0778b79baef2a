"""Golden vectors for the PPO maths: numbers that other code computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class GoldenVector:
    """One golden file, with its numbers as tensors of the precision under test."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    dtype: torch.dtype
    relative: float
    absolute: float

    def tensor(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=self.dtype)

    def given(self, name: str) -> Tensor:
        return self.tensor(self.inputs[name])

    def mask(self, name: str = "mask") -> Tensor:
        return torch.tensor(self.inputs[name], dtype=torch.bool)

    def close(self, actual: Tensor | float, expected: Any) -> None:
        torch.testing.assert_close(
            torch.as_tensor(actual, dtype=self.dtype),
            self.tensor(expected),
            rtol=self.relative,
            atol=self.absolute,
        )


@pytest.fixture(params=["float64", "float32"])
def golden(request: pytest.FixtureRequest, shared_dir: Path) -> Callable[[str], GoldenVector]:
    """``golden("02_gae_second")`` reads that vector; every test runs in both precisions."""

    def read(name: str) -> GoldenVector:
        vector = json.loads((shared_dir / "golden" / f"{name}.json").read_text())
        tolerance = vector["tolerance"][request.param]
        return GoldenVector(
            inputs=vector["inputs"],
            outputs=vector["outputs"],
            dtype=getattr(torch, request.param),
            relative=tolerance["rtol"],
            absolute=tolerance["atol"],
        )

    return read


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
