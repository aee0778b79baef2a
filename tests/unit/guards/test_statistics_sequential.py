"""Sequential tests: the golden streams, error rates under constant looking, and evidence by hand."""

import json
import math
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from services.trainer.guards.statistics.sequential import BernoulliEProcess, RestartingEProcess, Sprt


def test_sprt_gives_the_golden_decisions(shared_dir: Path) -> None:
    vector = json.loads((shared_dir / "golden" / "15_sprt_bernoulli.json").read_text())
    inputs, outputs = vector["inputs"], vector["outputs"]
    fresh = Sprt(p0=inputs["p0"], p1=inputs["p1"], alpha=inputs["alpha"], beta=inputs["beta"])
    assert fresh.upper == pytest.approx(outputs["upper"], rel=1e-12)
    assert fresh.lower == pytest.approx(outputs["lower"], rel=1e-12)
    names = {"accept_p_greater": "p1", "accept_p_not_greater": "p0", "continue": None}
    for stream, expected in zip(inputs["streams"], outputs["results"], strict=True):
        test, ratios = fresh, []
        for success in stream:
            test = test.after(success == 1)
            ratios.append(test.statistic)
            if test.decision is not None:
                break
        assert test.decision == names[expected["decision"]]
        assert ratios == pytest.approx(expected["llr_until_decision"], rel=1e-9, abs=1e-10)
        if expected["index"] is not None:
            assert len(ratios) - 1 == expected["index"]
            assert test.after(True) == test.after(False) == test  # decided is decided


@pytest.mark.parametrize(("share", "wrong", "bound"), [(0.5, "p1", 0.05 / 0.9), (0.65, "p0", 0.1 / 0.95)])
def test_sprt_errs_no_more_often_than_wald_bounds(share: float, wrong: str, bound: float) -> None:
    chance = np.random.default_rng(5)
    num_wrong, runs = 0, 1000
    for _ in range(runs):
        test = Sprt(p0=0.5, p1=0.65, alpha=0.05, beta=0.1)
        while test.decision is None:
            test = test.after(bool(chance.random() < share))
        num_wrong += test.decision == wrong
    assert num_wrong / runs <= bound + 2 * math.sqrt(bound / runs)
    assert num_wrong / runs >= bound / 4  # it does decide on evidence that is about as strong as asked for


def exact_e_value(successes: int, failures: int) -> Fraction:
    """By integrating the polynomial (2q)^s (2(1-q))^f over 0..1/2, times 2, in fractions."""
    total = Fraction(0)
    for power in range(failures + 1):
        coefficient = math.comb(failures, power) * (-1) ** power
        exponent = successes + power + 1
        total += Fraction(coefficient, exponent * 2**exponent)
    return 2 * 2 ** (successes + failures) * total


@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (1, 0), (0, 1), (3, 5), (2, 14), (40, 60)])
def test_the_e_value_is_the_integral(successes: int, failures: int) -> None:
    test = BernoulliEProcess(successes=successes, failures=failures)
    assert test.statistic == pytest.approx(float(exact_e_value(successes, failures)), rel=1e-9)


def test_without_evidence_it_is_one_and_the_first_labels_move_it_by_half() -> None:
    fresh = BernoulliEProcess()
    assert fresh.statistic == pytest.approx(1.0)
    assert fresh.after(False).statistic == pytest.approx(1.5)
    assert fresh.after(True).statistic == pytest.approx(0.5)


@pytest.mark.parametrize("p0", [0.5, 0.3, 0.7])
@pytest.mark.parametrize(("successes", "failures"), [(0, 0), (5, 2), (2, 9), (60, 80)])
def test_at_p0_the_next_label_is_a_fair_bet_and_above_it_a_losing_one(
    p0: float, successes: int, failures: int
) -> None:
    test = BernoulliEProcess(p0=p0, successes=successes, failures=failures)

    def expected(share: float) -> float:
        return share * test.after(True).statistic + (1 - share) * test.after(False).statistic

    assert expected(p0) == pytest.approx(test.statistic, rel=1e-9)
    assert expected(p0 + 0.1) < test.statistic


@pytest.mark.parametrize("fresh", [BernoulliEProcess(), RestartingEProcess()])
def test_looked_at_after_every_label_it_alarms_in_at_most_alpha_of_the_runs(
    fresh: BernoulliEProcess | RestartingEProcess,
) -> None:
    chance = np.random.default_rng(6)
    runs, labels = (2000, 150) if isinstance(fresh, BernoulliEProcess) else (1000, 100)
    largest = np.zeros(runs)
    for run in range(runs):
        test = fresh
        for agreed in chance.random(labels) < 0.5:
            test = test.after(bool(agreed))
            largest[run] = max(largest[run], test.statistic)
    for alpha in (0.1, 0.05, 0.01, 0.001):
        assert (largest >= 1 / alpha).mean() <= alpha
    assert (largest >= 10).mean() > 0.03  # it does look: a test that never alarms would pass too


def test_a_p_value_looked_at_as_often_would_not_have_kept_its_level() -> None:
    """What the e-process is for: the same labels, a binomial test at 5 % after each."""
    from scipy import stats

    chance = np.random.default_rng(6)
    counts = np.arange(1, 151)
    crossed = 0
    for _ in range(300):
        agreed = np.cumsum(chance.random(150) < 0.5)
        crossed += bool((stats.binom.cdf(agreed, counts, 0.5) < 0.05).any())
    assert crossed / 300 > 0.15


def labels_needed(
    fresh: BernoulliEProcess | RestartingEProcess, *, share: float, before: int = 0
) -> list[int]:
    """How many labels it takes to reach 1000, after so many labels of 70 % agreement."""
    chance = np.random.default_rng(7)
    needed = []
    for _ in range(60):
        test, count = fresh, 0
        for agreed in chance.random(before) < 0.7:
            test = test.after(bool(agreed))
        while test.statistic < 1000 and count < 1000:
            test, count = test.after(bool(chance.random() < share)), count + 1
        needed.append(count)
    return needed


@pytest.mark.parametrize(("share", "median_labels"), [(0.1, 30), (0.3, 110)])
def test_labelers_who_disagree_are_noticed_soon(share: float, median_labels: int) -> None:
    for fresh in (BernoulliEProcess(), RestartingEProcess()):
        needed = labels_needed(fresh, share=share)
        assert np.median(needed) <= median_labels
        assert max(needed) < 1000


def test_a_long_time_in_which_all_was_well_does_not_hide_a_change() -> None:
    restarting = np.median(labels_needed(RestartingEProcess(), share=0.3, before=200))
    from_the_first_label_on = np.median(labels_needed(BernoulliEProcess(), share=0.3, before=200))
    assert restarting <= 150
    assert restarting < from_the_first_label_on / 2


def test_the_evidence_of_all_beginnings_is_weighed_with_weights_that_make_one() -> None:
    test = RestartingEProcess(interval=2)
    for agreed in (True, False, False, False, False):
        test = test.after(agreed)
    # Since the first label, since the third, since the fifth; the rest of the weight stands for later ones.
    expected = exact_e_value(1, 4) / 2 + exact_e_value(0, 3) / 6 + exact_e_value(0, 1) / 12 + Fraction(1, 4)
    assert test.statistic == pytest.approx(float(expected), rel=1e-9)
    assert RestartingEProcess().statistic == 1.0
    # A beginning moves no evidence by itself, so a fair next label leaves the expectation where it is.
    for steps in range(1, 6):
        test = test.after(steps % 3 == 0)
        fair = (test.after(True).statistic + test.after(False).statistic) / 2
        assert fair == pytest.approx(test.statistic, rel=1e-9)


def test_far_from_the_hypothesis_it_stays_a_number() -> None:
    assert BernoulliEProcess(successes=20_000).statistic == 0.0
    assert BernoulliEProcess(failures=20_000).statistic == math.inf
    balanced = BernoulliEProcess(successes=500_000, failures=500_000)
    assert 0 < balanced.statistic < 1


def test_tests_go_on_from_a_checkpoint() -> None:
    e_process = BernoulliEProcess().after(True).after(False)
    sprt = Sprt(p0=0.5, p1=0.65).after(True)
    assert BernoulliEProcess(**json.loads(json.dumps(asdict(e_process)))) == e_process
    restarting = RestartingEProcess(interval=1).after(True).after(False)
    assert RestartingEProcess(**json.loads(json.dumps(asdict(restarting)))) == restarting
    assert Sprt(**json.loads(json.dumps(asdict(sprt)))) == sprt


def test_shares_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="p0"):
        BernoulliEProcess(p0=1.0)
    with pytest.raises(ValueError, match="interval"):
        RestartingEProcess(interval=0)
    with pytest.raises(ValueError, match="different"):
        Sprt(p0=0.5, p1=0.5)
    with pytest.raises(ValueError, match="below 1"):
        Sprt(p0=0.5, p1=0.6, alpha=0.5, beta=0.5)
