"""Curves in closed form; the controllers' bounds and their dead zones."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from pydantic import ValidationError

from synthkd.errors import TrainingError
from synthkd.schedules import DifficultyScheduler, TemperatureScheduler, learning_rate_factor, peak, value_at
from synthkd.settings import Curve, DifficultySettings, OptimizerSettings, TemperatureSettings
from synthkd.types import Stateful


def test_a_number_is_constant() -> None:
    assert [value_at(0.5, step, 10) for step in (0, 5, 9)] == [0.5] * 3


def test_the_peak_is_the_value_farthest_from_0() -> None:
    assert peak(0.0) == 0.0
    assert peak(-3) == 3.0
    assert peak(Curve(kind="linear", start=-4.0, end=2.0)) == peak(Curve(kind="step", start=1.0, end=4.0)) == 4.0


def test_linear_reaches_both_ends() -> None:
    curve = Curve(kind="linear", start=1.0, end=3.0)
    assert [value_at(curve, step, 5) for step in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_curve_waits_for_begin_and_stops_at_until() -> None:
    curve = Curve(kind="linear", start=0.0, end=1.0, begin=0.25, until=0.75)
    assert [value_at(curve, step, 9) for step in (0, 2, 4, 6, 8)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_cosine_is_symmetric_about_its_middle() -> None:
    curve = Curve(kind="cosine", start=2.0, end=0.0)
    assert value_at(curve, 0, 101) == 2.0
    assert value_at(curve, 50, 101) == pytest.approx(1.0)
    assert value_at(curve, 25, 101) == pytest.approx(1 + math.cos(math.pi / 4))
    assert value_at(curve, 100, 101) == pytest.approx(0.0)


def test_step_jumps_once() -> None:
    curve = Curve(kind="step", start=0.0, end=1.0, until=0.5)
    assert [value_at(curve, step, 5) for step in range(5)] == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_learning_rate_warms_up_then_falls_to_its_final_fraction() -> None:
    settings = OptimizerSettings(schedule="cosine", warmup=0.1, final=0.01)
    factors = [learning_rate_factor(settings, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.01, abs=2e-3)


def test_one_cycle_is_cosine_with_a_default_warmup() -> None:
    one_cycle, cosine = (OptimizerSettings(schedule=s, warmup=w) for s, w in (("one_cycle", 0.0), ("cosine", 0.1)))
    assert [learning_rate_factor(one_cycle, i, 50) for i in range(50)] == [
        learning_rate_factor(cosine, i, 50) for i in range(50)
    ]


def test_constant_is_one() -> None:
    assert {learning_rate_factor(OptimizerSettings(schedule="constant"), i, 9) for i in range(9)} == {1.0}


def test_difficulty_rises_rests_falls_and_keeps_its_bounds() -> None:
    controller = DifficultyScheduler(DifficultySettings())
    assert controller.update(0.9) == pytest.approx(0.36)
    assert controller.update(0.8) == pytest.approx(0.36)
    assert controller.update(0.6) == pytest.approx(0.288)
    for _ in range(20):
        controller.update(1.0)
    assert controller.value == 0.9
    for _ in range(20):
        controller.update(0.0)
    assert controller.value == 0.1


def test_thresholds_themselves_change_nothing() -> None:
    controller = DifficultyScheduler(DifficultySettings())
    assert controller.update(0.85) == 0.3
    assert controller.update(0.7) == 0.3


def test_agreement_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        DifficultyScheduler(DifficultySettings()).update(85.0)


def test_each_extension_warms_the_learning_rate_again_up_to_the_peak() -> None:
    settings = OptimizerSettings(schedule="cosine", final=0.1)
    rates = [learning_rate_factor(settings, step, 10, (40, 20)) for step in range(70)]
    assert rates[:10] == [learning_rate_factor(settings, step, 10) for step in range(10)]
    for begin, length, rising in ((10, 40, 2), (50, 20, 1)):
        warm = [0.1 + 0.9 * (step + 1) / rising for step in range(rising)]
        fall = [0.1 + 0.45 * (1 + math.cos(math.pi * k / (length - rising))) for k in range(length - rising)]
        assert rates[begin : begin + length] == pytest.approx(warm + fall, rel=1e-12)
    constant = OptimizerSettings(schedule="constant", warmup=0.5)
    assert [learning_rate_factor(constant, step, 10, (40,)) for step in (10, 11, 49)] == [1.0, 1.0, 1.0]


def test_temperature_falls_rests_rises_and_keeps_its_bounds() -> None:
    controller = TemperatureScheduler(TemperatureSettings())
    assert controller.value == 5.0
    assert controller.update(0.05) == pytest.approx(4.5)
    assert [controller.update(loss) for loss in (0.1, 0.3, 0.5)] == pytest.approx([4.5] * 3)
    assert controller.update(0.51) == pytest.approx(4.95)
    for _ in range(30):
        controller.update(0.0)
    assert controller.value == 1.0
    for _ in range(30):
        controller.update(9.0)
    assert controller.value == 10.0


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(TrainingError, match="must be finite, got nan"):
        TemperatureScheduler(TemperatureSettings()).update(math.nan)


def test_a_difficulty_that_could_never_rise_is_refused() -> None:
    with pytest.raises(ValidationError, match="0 times any factor stays 0"):
        DifficultySettings(start=0.0, low=0.0)
    assert DifficultyScheduler(DifficultySettings(start=0.0, low=0.0, high=0.0)).update(1.0) == 0.0


def test_thresholds_and_bounds_of_a_temperature_hold_together() -> None:
    with pytest.raises(ValidationError, match="low <= start <= high"):
        TemperatureSettings(start=11.0)
    with pytest.raises(ValidationError, match="must not be above"):
        TemperatureSettings(lower_below=0.6)


@pytest.mark.parametrize(
    "make",
    [lambda: DifficultyScheduler(DifficultySettings()), lambda: TemperatureScheduler(TemperatureSettings())],
    ids=["difficulty", "temperature"],
)
def test_a_controller_resumes(make: Callable[[], DifficultyScheduler | TemperatureScheduler]) -> None:
    first, second = make(), make()
    assert isinstance(first, Stateful)
    assert first.update(1.0) != second.value
    second.load_state_dict(first.state_dict())
    assert second.update(1.0) == first.update(1.0)
