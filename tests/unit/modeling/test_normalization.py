import json
import math
from pathlib import Path

import pytest

from andon.errors import InvalidArgumentError
from andon.modeling.normalization import NO_NORMALIZATION, Normalization


def test_reward_is_gain_times_raw_plus_bias() -> None:
    assert Normalization(method="policy_unit", gain=2.0, bias=-0.5).apply(3.0) == 5.5
    assert NO_NORMALIZATION.apply(-1.25) == -1.25


def test_it_survives_json() -> None:
    normalization = Normalization(method="reference_zero", bias=0.123456789)
    assert Normalization.from_dict(json.loads(json.dumps(normalization.to_dict()))) == normalization


@pytest.mark.parametrize("gain", [0.0, -1.0, math.nan, math.inf])
def test_a_gain_that_would_lose_or_turn_the_order_is_refused(gain: float) -> None:
    with pytest.raises(InvalidArgumentError):
        Normalization(method="policy_unit", gain=gain)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"method": "else", "gain": 1.0, "bias": 0.0},
        {"method": "none", "gain": "1", "bias": 0.0},
        {"method": "none", "gain": 1.0, "bias": 0.0, "scale": 2.0},
    ],
)
def test_what_is_not_a_normalization_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Normalization.from_dict(values)
    assert caught.value.reason == "INVALID_NORMALIZATION"


def test_it_applies_golden_gains_and_biases(shared_dir: Path) -> None:
    vector = json.loads((shared_dir / "golden" / "07_reward_normalisation.json").read_text())
    for name in ("bias_only", "mean0_var1", "other"):
        expected = vector["outputs"][name]
        normalization = Normalization(
            method="policy_unit", gain=expected.get("gain", 1.0), bias=expected["bias"]
        )
        transformed = [normalization.apply(raw) for raw in vector["inputs"]["rewards_to_transform"]]
        assert transformed == pytest.approx(expected["transformed"], rel=1e-9)
