"""Exact intervals and areas under the curve agree with closed forms and slow loops, and hold as often as they say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from synthkd.errors import DataError
from synthkd.privacy.intervals import auc, clopper_pearson


def normal(n: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


few = st.lists(st.integers(-3, 3), min_size=2, max_size=8)


class TestClopperPearson:
    def test_no_hits_and_only_hits_have_closed_forms(self):
        none, all_of_them = clopper_pearson(0, 30), clopper_pearson(30, 30)
        assert (none.value, none.low, none.n) == (0.0, 0.0, 30)
        assert none.high == pytest.approx(1 - 0.025 ** (1 / 30), rel=1e-12)
        assert (all_of_them.low, all_of_them.high) == (pytest.approx(0.025 ** (1 / 30), rel=1e-12), 1.0)

    @pytest.mark.parametrize(("n", "limit"), [(300, 0.0122), (1000, 0.0037), (3689, 0.0010)])
    def test_what_no_hit_leaves_possible(self, n, limit):
        assert clopper_pearson(0, n).high == pytest.approx(limit, abs=5e-5)

    @pytest.mark.parametrize(("k", "n", "confidence"), [(3, 17, 0.95), (16, 17, 0.9), (250, 1000, 0.99)])
    def test_the_ends_are_where_the_tails_are_used_up(self, k, n, confidence):
        result = clopper_pearson(k, n, confidence)
        assert binom.sf(k - 1, n, result.low) == pytest.approx((1 - confidence) / 2, rel=1e-9)
        assert binom.cdf(k, n, result.high) == pytest.approx((1 - confidence) / 2, rel=1e-9)

    def test_the_interval_holds_every_rate_at_least_as_often_as_it_says(self):
        """Exact: all 21 outcomes of 20 trials, weighed by their probability."""
        ends = [clopper_pearson(k, 20) for k in range(21)]
        for rate in np.linspace(0.01, 0.99, 99):
            held = sum(binom.pmf(k, 20, rate) for k, end in enumerate(ends) if end.low <= rate <= end.high)
            assert held >= 0.95

    @pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
    def test_impossible_counts_are_refused(self, k, n):
        with pytest.raises(ValueError, match="need 0 <= k <= n"):
            clopper_pearson(k, n)


class TestArea:
    def test_by_hand(self):
        """Members 1, 3 against 0, 2, 3: pairs won 1, 0, 0 and 1, 1, 1/2 of six."""
        assert auc([1, 3], [0, 2, 3]).value == pytest.approx(3.5 / 6)

    def test_higher_scores_of_members_are_above_one_half(self):
        assert auc([2, 3, 4], [0, 1, 2.5]).value > 0.5 > auc([0, 1, 2.5], [2, 3, 4]).value

    @settings(max_examples=60, deadline=None)
    @given(inside=few, outside=few)
    def test_slow_pairs_and_delongs_variance(self, inside, outside):
        wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in outside] for a in inside])
        result = auc(inside, outside)
        assert result.value == pytest.approx(wins.mean(), abs=1e-12)
        spread = wins.mean(1).var(ddof=1) / len(inside) + wins.mean(0).var(ddof=1) / len(outside)
        assert result.standard_error == pytest.approx(math.sqrt(spread), abs=1e-12)
        assert 0 <= result.low <= result.value <= result.high <= 1

    def test_any_rising_function_of_the_scores_changes_nothing_and_exchanged_sides_mirror(self):
        inside, outside = normal(40, 0, 0.7), normal(30, 1)
        result = auc(inside, outside)
        assert auc(np.exp(inside), np.exp(outside)) == result
        mirrored = auc(torch.from_numpy(outside), torch.from_numpy(inside))
        assert mirrored.value == pytest.approx(1 - result.value)
        assert mirrored.low == pytest.approx(1 - result.high)

    def test_the_interval_holds_the_truth_as_often_as_it_says(self):
        truth = float(norm.cdf(1 / math.sqrt(2)))
        held = 0
        for draw in range(400):
            result = auc(normal(60, 2 * draw, 1.0), normal(40, 2 * draw + 1))
            held += result.low <= truth <= result.high
        assert 0.92 <= held / 400 <= 0.98

    def test_sides_apart_are_no_certainty(self):
        result = auc([3, 4, 5, 6], [0, 1, 2])
        assert (result.value, result.standard_error, result.high) == (1.0, 0.0, 1.0)
        assert result.low == pytest.approx(0.025 ** (1 / 3))
        assert auc([0, 1, 2], [3, 4, 5, 6]).high == pytest.approx(1 - 0.025 ** (1 / 3))

    def test_equal_scores_say_nothing(self):
        result = auc(np.zeros(9), np.zeros(5))
        assert result.value == 0.5
        assert result.low < 0.2 < 0.8 < result.high

    @pytest.mark.parametrize("bad", [[1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]]])
    def test_scores_that_are_none_are_refused(self, bad):
        with pytest.raises(DataError, match="scores of members: "):
            auc(bad, [1.0, 2.0])
        with pytest.raises(DataError, match="scores of non-members: "):
            auc([1.0, 2.0], torch.tensor(bad))
