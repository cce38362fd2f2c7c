"""Controllers step by step and resumed, against closed forms."""

import math

import pytest
from pydantic import ValidationError
from scipy.optimize import brentq

from synthkd.distillation.control.capacity import (
    AdaptiveWeights,
    StrengthController,
    capacity_strength,
)
from synthkd.errors import DataError
from synthkd.settings import StrengthSettings, WeightSettings
from synthkd.types import Stateful


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def balanced_weight(ratio: float) -> float:
    """The only alpha in [1/2, 1) with `alpha = sigmoid(ratio * (1 - alpha))`, by Brent's root search."""
    return float(brentq(lambda alpha: alpha - sigmoid(ratio * (1.0 - alpha)), 0.0, 1.0, xtol=1e-14))


def test_the_rate_of_the_weights_is_a_share() -> None:
    for rate in (0.0, 1.5):
        with pytest.raises(ValidationError):
            WeightSettings(rate=rate)


def test_strength_is_the_sigmoid_of_the_ratio() -> None:
    assert capacity_strength(0.0, 0.9) == 0.5
    assert capacity_strength(0.6, 0.8, 2.0) == pytest.approx(sigmoid(1.5))
    assert capacity_strength(6.0, 8.0, 2.0) == capacity_strength(0.6, 0.8, 2.0)
    assert capacity_strength(0.6, 0.8, -2.0) == pytest.approx(1.0 - sigmoid(1.5))
    assert 0.0 <= capacity_strength(1e9, 1e-9, -1.0) < capacity_strength(1e9, 1e-9, 1.0) <= 1.0


@pytest.mark.parametrize("capacities", [(0.5, 0.0), (-0.1, 1.0), (math.nan, 1.0), (0.5, math.inf)])
def test_capacities_without_a_ratio_are_told(capacities: tuple[float, float]) -> None:
    for call in (capacity_strength, AdaptiveWeights(WeightSettings()).update):
        with pytest.raises(DataError, match="one estimator on the same images"):
            call(*capacities)


def test_an_update_of_the_weights_is_one_damped_step() -> None:
    weights = AdaptiveWeights(WeightSettings(start=0.2, rate=0.25))
    assert weights.update(0.3, 0.6) == pytest.approx(0.2 + 0.25 * (sigmoid(0.5 * 0.8) - 0.2))
    assert weights.value + weights.other == 1.0
    whole = AdaptiveWeights(WeightSettings(start=0.2, rate=1.0))
    assert whole.update(0.3, 0.6) == pytest.approx(sigmoid(0.5 * 0.8))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 5.0, 20.0, 70.0])
@pytest.mark.parametrize("start", [0.001, 0.5, 0.999])
def test_weights_converge_to_their_fixed_point_within_bounds(ratio: float, start: float) -> None:
    weights = AdaptiveWeights(WeightSettings(start=start))
    seen = [weights.update(ratio, 1.0) for _ in range(500)]
    assert all(0.0 < value < 1.0 for value in seen)
    assert weights.value == pytest.approx(balanced_weight(ratio), abs=1e-5)
    assert balanced_weight(ratio) == pytest.approx(sigmoid(ratio * (1.0 - balanced_weight(ratio))), abs=1e-12)


def test_without_damping_a_large_ratio_never_settles() -> None:
    weights = AdaptiveWeights(WeightSettings(rate=1.0))
    seen = [weights.update(8.0, 1.0) for _ in range(400)]
    assert abs(seen[-1] - seen[-2]) > 0.1
    assert seen[-1] == pytest.approx(seen[-3])
    small = AdaptiveWeights(WeightSettings(rate=1.0))
    for _ in range(400):
        small.update(5.0, 1.0)
    assert small.value == pytest.approx(balanced_weight(5.0), abs=1e-6)


def test_the_range_of_the_weights_is_small() -> None:
    assert balanced_weight(0.0) == pytest.approx(0.5)
    assert balanced_weight(1.0) == pytest.approx(0.599, abs=1e-3)


def test_controllers_resume_from_what_a_checkpoint_holds() -> None:
    updates = {
        AdaptiveWeights: [(0.2, 1.0), (0.5, 1.0), (0.9, 1.0)],
        StrengthController: [(float(i), 1.0 - math.exp(-i), 1.0) for i in range(6)],
    }
    settings = {
        AdaptiveWeights: WeightSettings,
        StrengthController: StrengthSettings,
    }
    for kind, steps in updates.items():
        whole, first, second = (kind(settings[kind]()) for _ in range(3))  # type: ignore[operator]
        assert isinstance(whole, Stateful)
        for step in steps[:-1]:
            whole.update(*step)
            first.update(*step)
        second.load_state_dict(first.state_dict())
        assert second.value == whole.value
        assert second.update(*steps[-1]) == whole.update(*steps[-1])


def test_strength_is_boosted_until_the_gap_has_closed() -> None:
    controller = StrengthController(StrengthSettings(beta=None, threshold=0.1))
    assert controller.value == 1.0
    factors = [controller.update(step, 0.9 * (1.0 - 0.8 * math.exp(-step)), 0.9) for step in range(6)]
    # gaps of 0.80, 0.29, 0.11, 0.04, 0.01, 0.01
    assert factors == [1.5, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert controller.curve is not None
    assert controller.curve.below(0.1) == pytest.approx(math.log(8))
    with pytest.raises(DataError, match="times that go up"):
        controller.update(5, 0.5, 0.9)


def test_strength_is_capacity_and_gap_together() -> None:
    controller = StrengthController(StrengthSettings(beta=2.0, threshold=0.3))
    assert controller.value == 0.5
    assert controller.update(0, 0.4, 0.8) == pytest.approx(1.5 * sigmoid(1.0))
    assert controller.update(1, 0.6, 0.8) == pytest.approx(sigmoid(1.5))


def test_one_bad_evaluation_does_not_boost() -> None:
    controller = StrengthController(StrengthSettings(beta=None, threshold=0.1))
    for step in range(20):
        controller.update(step, 1.0 - 0.5 * math.exp(-step), 1.0)
    assert controller.update(20, 0.85, 1.0) == 1.0
