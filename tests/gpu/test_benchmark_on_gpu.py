"""On a GPU: the benchmark runs there at the sizes of a check, and knows what memory was held."""

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]


# Of the peers' compiled step.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("shape", ["nano", "nano-llama"])
def test_every_work_runs(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cuda", "--shape", shape, "--rounds", "1", "--no-results"]) == 0
    table = capsys.readouterr().out
    assert "PPO update, 4 per prompt" in table
    assert "continuous batching" in table


def test_memory_is_what_was_held_on_the_device() -> None:
    mebibytes = (
        Device("cuda").timed(lambda: torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")).extra_mib
    )
    assert mebibytes == pytest.approx(64, abs=2)
