"""Choosing tokens: against probabilities worked out by hand, and against the distribution itself."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from services.policy.sampling import Choice, SamplingSettings, choose_tokens, draw_uniforms

PROBABILITIES = (0.5, 0.3, 0.15, 0.05)


def choose(
    logits: torch.Tensor, uniforms: list[float], *, temperature: float = 1.0, top_p: float = 1.0
) -> Choice:
    rows = logits.shape[0]
    settings = SamplingSettings.of_rows(
        temperatures=np.full(rows, temperature, dtype=np.float32),
        top_p=np.full(rows, top_p, dtype=np.float32),
        device=torch.device("cpu"),
    )
    return choose_tokens(logits.clone(), settings, torch.tensor(uniforms, dtype=torch.float32))


def rows_of(probabilities: tuple[float, ...], count: int) -> torch.Tensor:
    return torch.tensor(probabilities).log().repeat(count, 1)


def test_a_uniform_number_picks_the_token_whose_share_it_falls_into() -> None:
    uniforms = [0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, 0.999]
    choice = choose(rows_of(PROBABILITIES, 8), uniforms)
    assert choice.tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = [math.log(p) for p in (0.5, 0.5, 0.3, 0.3, 0.15, 0.15, 0.05, 0.05)]
    assert choice.logprobs.tolist() == pytest.approx(expected, abs=1e-6)


def test_temperature_divides_logits() -> None:
    # Probabilities to the power of 1/2, and made to add up to 1 again.
    roots = [math.sqrt(p) for p in PROBABILITIES]
    choice = choose(rows_of(PROBABILITIES, 2), [0.0, 0.999], temperature=2.0)
    assert choice.tokens.tolist() == [0, 3]
    assert choice.logprobs.tolist() == pytest.approx(
        [math.log(roots[0] / sum(roots)), math.log(roots[3] / sum(roots))], abs=1e-6
    )


@pytest.mark.parametrize(
    ("top_p", "support"),
    [(0.4, {0}), (0.5, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p: float, support: set[int]) -> None:
    order = [2, 0, 3, 1]  # the most probable token is not the first
    logits = rows_of(tuple(PROBABILITIES[order.index(token)] for token in range(4)), 1000)
    choice = choose(logits, [index / 1000 for index in range(1000)], top_p=top_p)
    assert {order.index(token) for token in choice.tokens.tolist()} == support
    # The log-probability is that of the whole distribution.
    for token, logprob in zip(choice.tokens.tolist(), choice.logprobs.tolist(), strict=True):
        assert logprob == pytest.approx(math.log(PROBABILITIES[order.index(token)]), abs=1e-6)


def test_top_p_shares_out_the_kept_mass() -> None:
    choice = choose(rows_of(PROBABILITIES, 2), [0.62, 0.63], top_p=0.7)  # 0.5 / 0.8 = 0.625
    assert choice.tokens.tolist() == [0, 1]


def test_temperature_zero_takes_the_most_probable_token() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.0], [5.0, 1.0, 4.0]])
    choice = choose(logits, [0.9, 0.9], temperature=0.0)
    assert choice.tokens.tolist() == [1, 0]
    expected = torch.log_softmax(logits, dim=1)[[0, 1], [1, 0]]
    assert choice.logprobs.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_rows_with_different_settings_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50) * 3
    temperatures = np.array([1.0, 0.0, 0.7, 1.0, 0.0, 2.0], dtype=np.float32)
    top_p = np.array([1.0, 1.0, 0.5, 0.9, 0.3, 1.0], dtype=np.float32)
    uniforms = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7, 0.999])
    settings = SamplingSettings.of_rows(temperatures=temperatures, top_p=top_p, device=torch.device("cpu"))
    together = choose_tokens(logits.clone(), settings, uniforms)
    for row in range(6):
        alone = choose(
            logits[row : row + 1],
            [float(uniforms[row])],
            temperature=float(temperatures[row]),
            top_p=float(top_p[row]),
        )
        assert together.tokens[row] == alone.tokens[0]
        assert float(together.logprobs[row]) == pytest.approx(float(alone.logprobs[0]), abs=1e-6)


def test_samples_follow_the_distribution() -> None:
    torch.manual_seed(3)
    logits = torch.randn(1, 40) * 2
    count = 40_000
    uniforms = draw_uniforms(seed=11, sequence_count=count, step_count=1)[:, 0]
    choice = choose(logits.repeat(count, 1), uniforms.tolist(), temperature=0.7)
    expected = torch.softmax(logits[0].double() / 0.7, dim=0).numpy() * count
    observed = np.bincount(choice.tokens.numpy(), minlength=40)
    rare = expected < 5  # the test needs some of each
    observed_bins = np.append(observed[~rare], observed[rare].sum())
    expected_bins = np.append(expected[~rare], expected[rare].sum())
    assert chisquare(observed_bins, expected_bins).pvalue > 0.01


def test_tokens_without_probability_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(3, 1)
    largest = float(draw_uniforms(seed=5, sequence_count=1000, step_count=1000).max())
    choice = choose(logits, [0.0, 0.5, largest])
    assert choice.tokens.tolist() == [1, 3, 3]


def test_the_largest_uniform_number_stays_inside_the_vocabulary() -> None:
    torch.manual_seed(1)
    logits = torch.randn(512, 300)
    choice = choose(logits, [1 - 2**-23] * 512)
    probabilities = torch.softmax(logits, dim=1)
    assert (probabilities.gather(1, choice.tokens[:, None]) > 0).all()
    assert (choice.tokens < 300).all()


def test_extreme_temperatures_give_numbers() -> None:
    logits = torch.tensor([[1000.0, -1000.0, 999.0]]).repeat(2, 1)
    cold = choose(logits, [0.5, 0.999], temperature=1e-4)
    assert cold.tokens.tolist() == [0, 0]
    assert cold.logprobs.tolist() == [0.0, 0.0]
    hot = choose(logits, [0.1, 0.9], temperature=1e4)
    assert hot.tokens.tolist() == [0, 2]
    assert torch.isfinite(hot.logprobs).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_logits_that_are_not_numbers_show_in_the_logprob(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[1.0, math.nan, 2.0], [1.0, 0.0, 2.0]])
    choice = choose(logits, [0.5, 0.5], temperature=temperature, top_p=top_p)
    assert math.isnan(choice.logprobs[0])
    assert math.isfinite(choice.logprobs[1])
    assert 0 <= int(choice.tokens[0]) < 3


def test_uniform_numbers_follow_from_the_seed_and_the_sequence() -> None:
    first = draw_uniforms(seed=-3, sequence_count=4, step_count=6)
    assert torch.equal(first, draw_uniforms(seed=-3, sequence_count=4, step_count=6))
    assert torch.equal(first[:2], draw_uniforms(seed=-3, sequence_count=2, step_count=6))
    assert not torch.equal(first, draw_uniforms(seed=4, sequence_count=4, step_count=6))
    assert float(first.min()) >= 0
    assert float(first.max()) < 1
