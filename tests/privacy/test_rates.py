"""Rates agree with closed forms and slow loops; bounds of epsilon hold in simulated audits."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import beta, norm

from synthkd.errors import ConfigError, DataError
from synthkd.privacy.intervals import auc, clopper_pearson
from synthkd.privacy.rates import attack


def normal(n: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon at which N(mu, 1) and N(0, 1) are (epsilon, delta)-close (Balle and Wang 2018, theorem 5)."""
    return brentq(
        lambda eps: norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta, 0.0, 60.0
    )


few = st.lists(st.integers(-3, 3), min_size=2, max_size=8)


class TestRates:
    def test_ties_do_not_help(self):
        """One of 100 non-members (0..99) may be mistaken: above 98. Members 99, 98.5 and 200 are, 98 is not."""
        result = attack("by hand", [98, 98.5, 99, 200], np.arange(100))
        assert (result.tpr[0].rate.value, result.tpr[0].rate.n) == (0.75, 4)
        ends = clopper_pearson(3, 4)
        assert (result.tpr[0].rate.low, result.tpr[0].rate.high) == (ends.low, ends.high)

    def test_non_members_tied_with_the_threshold_are_mistaken_together(self):
        """Two of 100 at the top tie: guessing there is two mistakes, so only what is above both counts."""
        outside = np.array([99.0] * 2 + [0.0] * 98)
        assert attack("tied", [99, 99, 50, 100], outside).tpr[0].rate.value == 0.25

    @settings(max_examples=60, deadline=None)
    @given(
        inside=st.lists(st.integers(0, 30), min_size=3, max_size=12),
        outside=st.lists(st.integers(0, 30), min_size=100, max_size=250),
    )
    def test_slow_search_of_all_thresholds(self, inside, outside):
        found = 0.0
        for threshold in inside + outside:
            if np.mean(np.array(outside) >= threshold) <= 0.01:
                found = max(found, float(np.mean(np.array(inside) >= threshold)))
        result = attack("slow", inside, outside).tpr[0].rate.value
        assert result == pytest.approx(found)

    def test_the_other_direction_is_the_mirror_image(self):
        inside, outside = normal(150, 0, 1.0), normal(120, 1)
        straight, mirrored = attack("a", inside, outside), attack("a", -outside, -inside)
        assert [at.rate for at in mirrored.tpr] == [at.rate for at in straight.tnr]
        assert straight.tnr[0].rate.n == 120 != straight.tpr[0].rate.n
        assert mirrored.epsilon == pytest.approx(straight.epsilon)

    def test_a_rate_that_the_counts_cannot_support_is_left_out_with_its_reason(self):
        result = attack("few", normal(100, 0), normal(999, 1))
        assert result.tpr[0].rate is not None
        assert result.tpr[1].rate is None
        assert result.tpr[1].reason == "an error rate of 0.1% needs 1,000 non-members or more, got 999"
        assert result.tnr[0].rate is not None
        assert "needs 1,000 members or more, got 100" in result.tnr[1].reason
        assert attack("enough", normal(99, 0), normal(1000, 1)).tpr[1].rate is not None
        assert attack("few", normal(99, 0), normal(99, 1)).tpr[0].rate is None


class TestEpsilon:
    def test_the_ceiling_of_unequal_sides_is_that_of_the_better_direction(self):
        tail = 0.05 / 5 / 2  # 50 points have two different thresholds, 400 have three
        rate, error = tail ** (1 / 50), 1 - tail ** (1 / 400)
        few, many = (attack("perfect", np.ones(n), np.zeros(450 - n)).ceiling for n in (50, 400))
        assert few == pytest.approx(math.log((rate - 1e-5) / error))
        assert many == pytest.approx(few, rel=1e-4)

    def test_an_attack_without_a_mistake_reaches_its_ceiling(self):
        result = attack("perfect", np.ones(200), np.zeros(300))
        assert result.epsilon == pytest.approx(result.ceiling, rel=1e-12)
        assert 3.0 < result.ceiling < math.log(0.025 ** (1 / 200) / (1 - 0.025 ** (1 / 300)))  # that of one threshold

    def test_slow_bounds_of_the_declared_thresholds(self):
        inside, outside = normal(300, 0, 2.0), normal(400, 1)
        tail = 0.05 / 6 / 2
        best = 0.0
        for found, other, allowed in [
            *((inside, outside, k) for k in (0, 4, 40)),
            *((-outside, -inside, k) for k in (0, 3, 30)),
        ]:
            hits = int((found > sorted(other)[-1 - allowed]).sum())
            rate = beta.ppf(tail, hits, len(found) - hits + 1) if hits else 0.0
            error = beta.ppf(1 - tail, allowed + 1, len(other) - allowed)
            for right, wrong in ((rate, error), (1 - error, 1 - rate)):
                best = max(best, math.log(max(right - 0.01, 1e-300) / wrong))
        assert attack("slow", inside, outside, delta=0.01).epsilon == pytest.approx(best, rel=1e-9)

    @pytest.mark.parametrize("decimals", [12, 0])
    def test_scores_that_know_nothing_show_nothing(self, decimals):
        """300 audits of fresh scores, with and without ties: at most 5 % may claim more than 0."""
        rng = np.random.default_rng(decimals)
        claims = sum(attack("null", *rng.normal(size=(2, 150)).round(decimals)).epsilon > 0 for _ in range(300))
        assert claims <= 15

    @pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
    def test_the_bound_stays_below_the_truth(self, mu):
        truth = gaussian_epsilon(mu, 1e-5)
        bounds = [attack("known", normal(400, i, mu), normal(400, 1000 + i)).epsilon for i in range(100)]
        assert sum(bound > truth for bound in bounds) <= 5
        assert np.median(bounds) > 0.2 * truth / 2

    def test_the_bound_comes_near_the_truth_where_one_threshold_says_all(self):
        """A member shows 1 with probability 0.9, a non-member with 0.08: within the 10 % that are allowed."""
        rng = np.random.default_rng(0)
        bounds = [attack("response", rng.random(5000) < 0.9, rng.random(5000) < 0.08).epsilon for _ in range(40)]
        assert sum(bound > math.log(0.9 / 0.08) for bound in bounds) <= 2
        assert min(bounds) > math.log(0.9 / 0.12)

    def test_non_members_found_for_certain_count_too(self):
        inside, outside = normal(500, 0), normal(500, 1)
        outside[:250] = -100.0
        result = attack("other direction", inside, outside)
        assert result.tpr[0].rate.high < 0.1
        assert result.tnr[0].rate.low > 0.4
        assert result.epsilon > 2.0

    def test_more_attacks_and_more_confidence_lower_the_bound(self):
        inside, outside = normal(500, 0, 2.0), normal(500, 1)
        alone, one_of_four = (attack("a", inside, outside, family=family) for family in (1, 4))
        assert alone.epsilon > one_of_four.epsilon > 0
        assert alone.ceiling > one_of_four.ceiling
        assert alone.auc.low > one_of_four.auc.low
        assert one_of_four.epsilon == attack("a", inside, outside, confidence=1 - 0.05 / 4).epsilon
        assert (one_of_four.confidence, one_of_four.family) == (0.95, 4)

    def test_points_of_one_run_are_called_heuristic(self):
        assert attack("a", normal(30, 0), normal(30, 1)).heuristic
        assert not attack("a", normal(30, 0), normal(30, 1), independent=True).heuristic

    @pytest.mark.parametrize(
        "wrong", [{"delta": 1.0}, {"delta": -0.1}, {"confidence": 1.0}, {"confidence": 0.0}, {"family": 0}]
    )
    def test_levels_out_of_range_are_refused(self, wrong):
        with pytest.raises(ConfigError, match="got"):
            attack("a", [1, 2], [0, 1], **wrong)


class TestCurve:
    def test_by_hand(self):
        """From the top: a member, a tie of both, a non-member, a member."""
        assert attack("a", [9, 5, 1], [5, 3]).roc == ((0.0, 1 / 3), (0.5, 2 / 3), (1.0, 1.0))

    def test_a_long_curve_is_thinned_to_points_of_the_whole(self):
        inside, outside = normal(3000, 0, 1.0), normal(5000, 1)
        roc = np.array(attack("long", inside, outside).roc)
        assert 100 < len(roc) <= 200
        assert (roc[0, 0], tuple(roc[-1])) == (0.0, (1.0, 1.0))
        assert (np.diff(roc, axis=0) >= 0).all()
        assert (np.diff(roc[:, 0]) > 0).all()
        for error, rate in roc[1:-1:7]:
            threshold = np.sort(outside)[-1 - round(error * 5000)]
            assert rate == pytest.approx((inside > threshold).mean(), abs=1e-12)
        assert ((roc[:, 0] > 0) & (roc[:, 0] < 0.01)).sum() > 20  # the end that a logarithmic axis shows


class TestWorstClass:
    def test_the_exposed_class_is_named_and_small_ones_are_left_out(self):
        inside, outside = normal(90, 0), normal(120, 1)
        labels_in, labels_out = np.repeat([0, 1, 2], [40, 31, 19]), np.repeat([0, 1, 2], 40)
        inside[40:] += np.repeat([2.0, 50.0], [31, 19])  # class 2 stands out most, with too few members
        worst = attack("a", inside, outside, labels_in, torch.from_numpy(labels_out)).worst_class
        assert (worst.label, worst.n_in, worst.n_out) == (1, 31, 40)
        assert (worst.compared, worst.suppressed) == (2, 1)
        assert worst.auc == auc(inside[40:71], outside[40:80], 0.975)

    def test_none_without_labels_or_without_enough_points(self):
        assert attack("a", normal(50, 0), normal(50, 1)).worst_class is None
        assert attack("a", normal(50, 0), normal(50, 1), np.arange(50), np.arange(50)).worst_class is None

    def test_labels_of_one_side_or_of_another_length_are_refused(self):
        with pytest.raises(DataError, match="labels of non-members: one a score is needed, 50 in all, got none"):
            attack("a", normal(50, 0), normal(50, 1), np.arange(50))
        with pytest.raises(DataError, match=r"labels of members: .* got \[49\]"):
            attack("a", normal(50, 0), normal(50, 1), np.arange(49), np.arange(50))


def test_every_input_type_gives_the_same_numbers():
    inside, outside = normal(120, 0, 1.0).astype(np.float32), normal(150, 1).astype(np.float32)
    results = [
        attack("a", wrap(inside), wrap(outside)) for wrap in (np.asarray, torch.from_numpy, lambda side: side.tolist())
    ]
    assert all(one == other for one, other in itertools.pairwise(results))
