"""Checkpoints: what is saved comes back, damage is passed over, a cut-off write is invisible."""

from pathlib import Path

import pytest
import torch

from services.trainer.checkpoint import CheckpointFolder
from services.trainer.errors import CheckpointsUnreadableError


def saved_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.pt"))


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    state = {"step": 3, "weights": torch.arange(5.0), "nested": {"names": ["a", "b"], "beta": 0.1}}
    folder.save(state)

    loaded = folder.load_newest()

    assert loaded is not None
    assert loaded.passed_over == ()
    assert loaded.state["step"] == 3
    assert loaded.state["nested"] == state["nested"]
    assert torch.equal(loaded.state["weights"], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))


def test_a_fresh_run_has_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", keep=2).load_newest() is None


def test_only_the_newest_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in range(5):
        folder.save({"step": step})

    assert len(saved_files(tmp_path)) == 2
    loaded = folder.load_newest()
    assert loaded is not None
    assert loaded.state["step"] == 4


@pytest.mark.parametrize("damage", ["flip a byte", "cut the end", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save({"step": 1})
    newest = folder.save({"step": 2})
    content = bytearray(newest.read_bytes())
    if damage == "flip a byte":
        content[len(content) // 2] ^= 1
    elif damage == "cut the end":
        del content[-10:]
    else:
        content.clear()
    newest.write_bytes(content)

    loaded = folder.load_newest()

    assert loaded is not None
    assert loaded.state["step"] == 1
    assert loaded.passed_over == (newest.name,)


def test_when_all_are_damaged_the_run_is_not_begun_anew(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2):
        folder.save({"step": step}).write_bytes(b"")

    with pytest.raises(CheckpointsUnreadableError, match="none of the 2"):
        folder.load_newest()


def test_a_cut_off_write_is_invisible(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save({"step": 1})
    (tmp_path / ".unfinished-000002").write_bytes(b"half")

    loaded = folder.load_newest()
    assert loaded is not None
    assert loaded.state["step"] == 1
    folder.save({"step": 2})
    loaded = folder.load_newest()
    assert loaded is not None
    assert loaded.state["step"] == 2
