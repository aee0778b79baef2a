"""Win rates against golden numbers and arithmetic by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from andon.evaluation.win_rate import wilson_interval, win_rate


def test_golden_intervals_with_ties_as_half_a_win(shared_dir: Path) -> None:
    golden = json.loads((shared_dir / "golden" / "11_win_rate.json").read_text())
    for (wins, ties, losses), expected in zip(
        golden["inputs"]["win_tie_loss"], golden["outputs"]["results"], strict=True
    ):
        ours = [1.0] * wins + [0.0] * ties + [-1.0] * losses
        result = win_rate(ours, [0.0] * len(ours), policy="ppo", against="sft", judge="gold")
        assert result.n == expected["n"]
        assert result.rate == pytest.approx(expected["win_rate"], rel=1e-9)
        assert (result.low, result.high) == pytest.approx(expected["wilson95"], rel=1e-9, abs=1e-10)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_contains_the_share_and_mirrors(wins_and_n: tuple[int, int]) -> None:
    wins, n = wins_and_n
    low, high = wilson_interval(wins, n)
    mirrored_low, mirrored_high = wilson_interval(n - wins, n)
    assert -1e-9 <= low <= wins / n + 1e-9
    assert wins / n - 1e-9 <= high <= 1 + 1e-9
    assert (1 - high, 1 - low) == pytest.approx((mirrored_low, mirrored_high), abs=1e-9)


@pytest.mark.parametrize(("wins", "n"), [(1, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(wins: float, n: int) -> None:
    with pytest.raises(ValueError, match="wins"):
        wilson_interval(wins, n)


def test_a_score_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        win_rate([float("nan")], [0.0], policy="a", against="b", judge="gold")
    with pytest.raises(ValueError, match="1 scores against 2"):
        win_rate([1.0], [0.0, 1.0], policy="a", against="b", judge="gold")


@pytest.mark.parametrize("n", [1, 7, 100, 600, 921])
def test_the_interval_stays_in_range_at_the_ends(n: int) -> None:
    assert wilson_interval(n, n)[1] == pytest.approx(1)
    assert wilson_interval(n, n)[1] <= 1
    assert wilson_interval(0, n)[0] >= 0
