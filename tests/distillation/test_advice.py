"""Advice on made-up curves: each line where its evidence is, and silence elsewhere."""

import math
import random

import pytest

from synthkd.distillation.advice import gain_of_longer, on_floor, still_rising, too_small

STEPS = [float(step) for step in range(24, 1200, 24)]


def noisy(curve: list[float], seed: int = 0) -> list[float]:
    """Shares of 64 images."""
    draw = random.Random(seed)
    return [sum(draw.random() < value for _ in range(64)) / 64 for value in curve]


@pytest.mark.parametrize("power", [0.2, 0.5])
def test_a_power_law_is_continued(power: float) -> None:
    curve = [1 - 2.0 * step**-power for step in STEPS if 2.0 * step**-power < 1]
    steps = STEPS[-len(curve) :]
    gain = gain_of_longer(steps, curve)
    assert gain == pytest.approx(2.0 * steps[-1] ** -power * (1 - 3**-power), rel=1e-9)
    assert gain_of_longer(steps, curve, 2.0) == pytest.approx(2.0 * steps[-1] ** -power * (1 - 2**-power), rel=1e-9)


def test_a_rising_curve_is_worth_its_points() -> None:
    curve = noisy([1 - 3.0 * step**-0.4 if step > 48 else 0.2 for step in STEPS])
    true = 3.0 * STEPS[-1] ** -0.4 * (1 - 3**-0.4)
    gain = gain_of_longer(STEPS, curve)
    assert gain == pytest.approx(true, abs=0.04)
    said = still_rising(STEPS, curve)
    assert said is not None
    assert f"3 times the steps are worth about {round(100 * gain)} points" in said


@pytest.mark.parametrize("seed", range(5))
def test_flat_and_falling_curves_say_nothing(seed: int) -> None:
    assert still_rising(STEPS, noisy([0.7] * len(STEPS), seed)) is None
    assert still_rising(STEPS, noisy([0.9 - 0.2 * step / 1200 for step in STEPS], seed)) is None


def test_short_and_perfect_curves_say_nothing() -> None:
    assert still_rising([], []) is None
    assert still_rising(STEPS[:3], [0.1, 0.4, 0.6]) is None
    assert still_rising(STEPS, [1.0] * len(STEPS)) is None
    late = [0.2 if step < 300 else 0.8 for step in STEPS]
    assert still_rising(STEPS, late) is None, "it was flat over the last two thirds"


@pytest.mark.parametrize("seed", range(5))
def test_a_flat_curve_that_is_not_good_is_that_of_a_small_student(seed: int) -> None:
    many = [float(step) for step in range(12, 2400, 12)]
    said = too_small(many, noisy([0.8] * len(many), seed))
    assert said is not None
    assert "at an agreement of 0.8" in said or "at an agreement of 0.79" in said
    assert too_small(many, noisy([0.95] * len(many), seed)) is None, "good enough"
    assert too_small(many, noisy([1 - 2.0 * (step + 100) ** -0.3 for step in many], seed)) is None, "it rises"
    falling = noisy([0.8 * (step / many[0]) ** -0.4 for step in many], seed)
    assert too_small(many, falling) is None, "it falls, which a larger student does not mend"
    assert too_small(STEPS[::4], noisy([0.8] * len(STEPS[::4]), seed)) is None, "too few rounds to say that it is flat"
    assert too_small([], []) is None


def test_a_difficulty_that_stays_on_its_floor() -> None:
    values = [0.3, 0.24, 0.19, 0.15, 0.12] + [0.1] * 30
    steps = [24 * number for number in range(1, 36)]
    agreements = [0.2] * 5 + [0.42, 0.44] * 15
    said = on_floor(steps, values, agreements, 0.1, "transfer_set.difficulty")
    assert said is not None
    assert "(0.1) from step 144 on, with an agreement of 0.43" in said
    assert "transfer_set.difficulty.raise_above (to 0.35) and transfer_set.difficulty.lower_below (to 0.25)" in said


def test_thresholds_that_a_run_did_not_reach_need_a_longer_one() -> None:
    for usual, is_reached in ((0.03, False), (0.1, False), (0.12, True)):
        said = on_floor(list(range(20)), [0.1] * 20, [usual] * 20, 0.1, "key")
        assert said is not None
        assert "key.raise_above (to 0.10)" in said
        assert said.endswith("train longer: the student has not come that far") != is_reached


def test_a_difficulty_that_left_its_floor_says_nothing() -> None:
    steps = list(range(1, 41))
    assert on_floor(steps, [0.1] * 30 + [0.12] * 10, [0.6] * 40, 0.1, "key") is None
    assert on_floor(steps, [0.2] * 25 + [0.1] * 15, [0.6] * 40, 0.1, "key") is None, "less than half of the run"
    assert on_floor(steps[:7], [0.1] * 7, [0.6] * 7, 0.1, "key") is None, "too few rounds to say"
    assert on_floor([], [], [], 0.1, "key") is None


def test_the_thresholds_that_are_advised_are_in_order() -> None:
    for usual in (0.0, 0.05, 0.3, 0.69):
        said = on_floor(list(range(20)), [0.1] * 20, [usual] * 20, 0.1, "key")
        assert said is not None
        higher, lower = (float(part.split(")")[0]) for part in said.split("(to ")[1:])
        assert 0 <= lower < higher <= 1
        assert math.isclose(higher - lower, 0.1)
