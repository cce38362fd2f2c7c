"""The ratio of two rates pairs its points, and its interval holds as often as it says."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from synthkd.errors import ConfigError, DataError
from synthkd.privacy.intervals import clopper_pearson
from synthkd.privacy.ratio import tpr_ratio


def normal(n: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


class TestRatio:
    def test_by_hand(self):
        """Of 100 members 60 are found in the teacher and 15 in the student."""
        outside = np.arange(100.0)
        teacher, student = np.where(np.arange(100) < 60, 200.0, 0.0), np.where(np.arange(100) < 15, 200.0, 0.0)
        result = tpr_ratio(student, outside, teacher, outside)
        assert result.value == 0.25
        assert 0.1 < result.low < 0.2 < 0.3 < result.high < 0.4
        assert tpr_ratio(teacher, outside, student, outside).value == 4.0

    def test_the_same_scores_give_exactly_one(self):
        inside, outside = normal(300, 0, 2.0), normal(300, 1)
        result = tpr_ratio(inside, outside, 3 * inside, 3 * outside)
        assert (result.value, result.low, result.high) == (1.0, 1.0, 1.0)
        assert result.method.startswith("paired bootstrap")

    def test_pairs_count_and_the_seed_decides(self):
        inside, outside = normal(500, 0, 3.0), normal(500, 1)
        other_in, other_out = inside + 0.3 * normal(500, 2), outside + 0.3 * normal(500, 3)
        paired = tpr_ratio(other_in, other_out, inside, outside)
        shuffled = tpr_ratio(np.roll(other_in, 1), np.roll(other_out, 1), inside, outside)
        assert paired.value == shuffled.value
        assert paired.high - paired.low < 0.8 * (shuffled.high - shuffled.low)
        assert tpr_ratio(other_in, other_out, inside, outside) == paired
        assert tpr_ratio(other_in, other_out, inside, outside, seed=1) != paired

    def test_the_interval_holds_the_truth_about_as_often_as_it_says(self):
        """Found at 10 % errors: a share of norm.sf(norm.isf(0.1) - mean)."""
        truth = norm.sf(norm.isf(0.1) - 1.0) / norm.sf(norm.isf(0.1) - 2.0)
        rng = np.random.default_rng(0)
        held = 0
        for _ in range(80):
            inside, outside = rng.normal(2, 1, 200), rng.normal(0, 1, 200)
            other_in, other_out = 1 + 0.6 * (inside - 2) + 0.8 * rng.normal(size=200), rng.normal(0, 1, 200)
            result = tpr_ratio(other_in, other_out, inside, outside, error=0.1, draws=200)
            held += result.low <= truth <= result.high
        assert held >= 70

    def test_no_hit_in_the_student_is_not_a_ratio_of_nothing(self):
        outside = np.arange(100.0)
        result = tpr_ratio(np.zeros(50), outside, np.full(50, 200.0), outside)
        assert (result.value, result.low) == (0.0, 0.0)
        limits = clopper_pearson(0, 50, 0.975).high, clopper_pearson(50, 50, 0.975).low
        assert result.high == pytest.approx(limits[0] / limits[1])
        assert result.method == "exact intervals of both rates"

    def test_no_hit_in_the_teacher_leaves_no_ratio(self):
        outside = np.arange(100.0)
        result = tpr_ratio(np.full(50, 200.0), outside, np.zeros(50), outside)
        assert result.value is None
        assert (result.low > 5, result.high) == (True, math.inf)

    def test_points_that_do_not_match_or_do_not_suffice_are_refused(self):
        inside, outside = normal(50, 0), normal(100, 1)
        with pytest.raises(DataError, match="the same members, got 49 and 50"):
            tpr_ratio(inside[1:], outside, inside, outside)
        with pytest.raises(DataError, match="the same non-members, got 100 and 99"):
            tpr_ratio(inside, outside, inside, outside[1:])
        with pytest.raises(DataError, match="needs 100 non-members or more, got 99"):
            tpr_ratio(inside, outside[1:], inside, outside[1:])
        with pytest.raises(DataError, match="teacher's scores of members: 1 of 50"):
            tpr_ratio(inside, outside, np.where(np.arange(50) == 3, np.nan, inside), outside)
        for wrong in ({"error": 0.0}, {"error": 1.0}, {"draws": 0}, {"confidence": 1.5}):
            with pytest.raises(ConfigError, match="need"):
                tpr_ratio(inside, outside, inside, outside, **wrong)
