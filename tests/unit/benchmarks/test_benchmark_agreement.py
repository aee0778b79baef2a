"""The check that both sides compute the same finds out where they do not."""

import pytest
import torch

from benchmarks import agreement
from benchmarks.agreement import largest_error
from benchmarks.shapes import SHAPES

THEIRS = {
    "scores": torch.tensor([1.0, -2.0]),
    "gradient a": torch.tensor([100.0]),
    "gradient b": torch.tensor([1.0]),
    "ppo gradient policy a": torch.tensor([4.0]),
}


def test_the_worst_of_all_is_found() -> None:
    assert largest_error(THEIRS, THEIRS)[1] == 0.0
    assert largest_error({**THEIRS, "scores": torch.tensor([1.0, -1.5])}, THEIRS) == ("scores", 0.25)


def test_gradients_are_measured_by_the_largest_one_of_their_kind() -> None:
    name, error = largest_error({**THEIRS, "gradient b": torch.tensor([2.0])}, THEIRS)
    assert (name, error) == ("gradient b", pytest.approx(0.01))
    worst = largest_error({**THEIRS, "ppo gradient policy a": torch.tensor([5.0])}, THEIRS)
    assert worst == ("ppo gradient policy a", 0.25)


def test_what_only_one_side_has_is_an_error() -> None:
    with pytest.raises(SystemExit, match="gradient b"):
        largest_error({name: value for name, value in THEIRS.items() if name != "gradient b"}, THEIRS)


def test_without_peers_there_is_nobody_to_agree_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PEERS_PYTHON", raising=False)
    with pytest.raises(SystemExit):
        agreement.main([])
    assert "PEERS_PYTHON is not set" in capsys.readouterr().err


def test_documents_and_summaries_differ_in_length() -> None:
    groups = agreement.task(SHAPES["nano"])
    assert len({len(group.prompt) for group in groups}) > 1
    assert len({len(response) for group in groups for response in group.responses}) > 1
