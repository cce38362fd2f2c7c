"""Copies are flagged, fresh draws are not; the numbers agree with hand counts, slow loops and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm

from synthkd.errors import DataError
from synthkd.metrics import memorization
from synthkd.metrics.memorization import authenticity, copying, copying_statistic, nearest_neighbour_ratios
from synthkd.metrics.utility import proportion


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def to_nearest(samples: np.ndarray, train: np.ndarray) -> np.ndarray:
    return np.sqrt(((samples[:, None] - train[None]) ** 2).sum(axis=2)).min(axis=1)


def copying_by_pairs(train: np.ndarray, holdout: np.ndarray, generated: np.ndarray) -> float:
    """U by counting pairs, a tie as one half; its variance as the mean over all splits of the pooled distances."""
    far, reference = to_nearest(generated, train), to_nearest(holdout, train)

    def wins(one: np.ndarray, other: np.ndarray) -> float:
        return float((one[:, None] > other).sum() + 0.5 * (one[:, None] == other).sum())

    pooled = np.concatenate([far, reference])
    splits = [
        wins(pooled[list(chosen)], np.delete(pooled, list(chosen)))
        for chosen in itertools.combinations(range(len(pooled)), len(far))
    ]
    spread = float(np.std(splits))
    return (wins(far, reference) - float(np.mean(splits))) / spread if spread > 1e-12 else 0.0


class TestAuthenticity:
    def test_by_hand(self):
        """Train 0, 1, 5: nearest other at 1, 1, 4. Generated 0.4 (at .4), -2 (at 2), 8 (at 3), 10 (at 5), 6 (at 1)."""
        result = authenticity(column(0, 1, 5), column(0.4, -2, 8, 10, 6))
        assert (result.value, result.n) == (2 / 5, 5)
        assert result.low < 0.4 < result.high

    def test_the_sides_are_not_alike(self):
        assert authenticity(column(0, 1, 5), column(20, 21)).value == 1.0
        assert authenticity(column(20, 21), column(0, 1, 5)).value == 1.0
        assert authenticity(column(0, 10), column(1, 2, 12)).value == 0.0
        assert authenticity(column(1, 2, 12), column(0, 10)).value == 0.0  # both at a tie or nearer
        assert authenticity(column(1, 2, 12), column(-0.5, 10)).value == 0.5

    def test_copies_are_not_authentic_even_of_doubled_training_samples(self):
        train = normal(50, 4)
        assert authenticity(train, train[:20]).value == 0.0
        assert authenticity(train.repeat(2, 1), train[:20]).value == 0.0

    @pytest.mark.parametrize("d", [1, 3, 40])
    def test_slow_loop(self, d):
        train, generated = normal(80, d).numpy(), normal(60, d, 1).numpy()
        hits = 0
        for sample in generated:
            distances = np.linalg.norm(train - sample, axis=1)
            place = int(distances.argmin())
            hits += np.linalg.norm(np.delete(train, place, axis=0) - train[place], axis=1).min() < distances[place]
        assert authenticity(train, generated).value == hits / 60

    def test_a_fresh_draw_on_a_line_is_authentic_one_time_in_three(self):
        result = authenticity(normal(3000, 1), normal(3000, 1, 1))
        assert result.value == pytest.approx(1 / 3, abs=0.04)

    def test_one_training_sample_has_no_neighbour(self):
        with pytest.raises(DataError, match="train: at least 2 samples"):
            authenticity(normal(1, 2), normal(5, 2))


class TestCopyingStatistic:
    def test_by_hand(self):
        """Distances .1, .2 generated and 1, 2, 3 holdout: U = 0 of 6, mean 3, variance 6 * 6 / 12 = 3."""
        result = copying_statistic(column(0), column(1, 2, 3), column(0.1, -0.2))
        assert result == pytest.approx(-3 / math.sqrt(3))
        assert copying_statistic(column(0), column(0.1, -0.2), column(1, 2, 3)) == pytest.approx(3 / math.sqrt(3))

    @settings(max_examples=40, deadline=None)
    @given(
        holdout=st.lists(st.integers(-4, 4), min_size=1, max_size=5),
        generated=st.lists(st.integers(-4, 4), min_size=1, max_size=5),
    )
    def test_ties_take_middle_ranks_and_the_variance_of_all_splits(self, holdout, generated):
        sets = [np.array(values, dtype=float)[:, None] for values in ([0, 3], holdout, generated)]
        assert copying_statistic(*sets) == pytest.approx(copying_by_pairs(*sets), abs=1e-9)

    def test_equals_the_normal_score_of_scipy(self):
        train, holdout, generated = normal(100, 5), normal(70, 5, 1), normal(90, 5, 2) * 1.1
        sides = (to_nearest(side.numpy(), train.numpy()) for side in (generated, holdout))
        expected = mannwhitneyu(*sides, alternative="less", method="asymptotic", use_continuity=False)
        assert norm.cdf(copying_statistic(train, holdout, generated)) == pytest.approx(expected.pvalue, rel=1e-9)

    def test_copies_are_strongly_negative_and_fresh_draws_are_not(self):
        train, holdout = normal(400, 6), normal(300, 6, 1)
        near_copies = train[:200] + 0.05 * normal(200, 6, 3)
        assert copying_statistic(train, holdout, near_copies) < -10
        assert abs(copying_statistic(train, holdout, normal(300, 6, 2))) < 3
        assert copying_statistic(train, holdout, 2 * normal(300, 6, 2)) > 5

    def test_scores_of_fresh_draws_are_standard_normal(self):
        scores = []
        for draw in range(60):
            sides = (normal(n, 3, 10 * draw + i) for i, n in enumerate((50, 40, 45)))
            scores.append(copying_statistic(*sides))
        assert abs(np.mean(scores)) < 3 / math.sqrt(60)
        assert np.std(scores) == pytest.approx(1.0, abs=0.3)

    def test_turning_moving_and_scaling_change_nothing(self):
        sets = [normal(60, 4), normal(50, 4, 1), normal(40, 4, 2)]
        turn = torch.linalg.qr(normal(4, 4, 3)).Q
        expected = copying_statistic(*sets)
        assert copying_statistic(*((side @ turn) * 7 + 5 for side in sets)) == pytest.approx(expected, abs=1e-12)

    def test_equal_distances_say_nothing(self):
        assert copying_statistic(column(0), column(1, -1), column(1, 1, -1)) == 0.0


class TestRatios:
    def test_by_hand(self):
        """Train 0, 10; holdout 2, 14. Generated 1, 2, 13, 0 are 1, 2, 3, 0 from train and 1, 0, 1, 2 from holdout."""
        result = nearest_neighbour_ratios(column(0, 10), column(2, 14), column(1, 2, 13, 0))
        assert result.ratios.tolist() == [1.0, math.inf, 3.0, 0.0]
        assert result.median == 2.0
        assert (result.nearer_to_train.value, result.nearer_to_train.n) == (0.25, 4)
        assert result.n_each == 2

    def test_equally_near_by_being_in_both(self):
        result = nearest_neighbour_ratios(column(0, 1), column(0, 5), column(0))
        assert result.ratios.tolist() == [1.0]
        assert result.nearer_to_train.value == 0.0

    def test_copies_are_nearer_to_train_and_fresh_draws_are_not(self):
        train, holdout = normal(300, 6), normal(300, 6, 1)
        copies = nearest_neighbour_ratios(train, holdout, train[:150] + 0.05 * normal(150, 6, 3))
        assert copies.median < 0.3
        assert copies.nearer_to_train.low > 0.9
        fresh = nearest_neighbour_ratios(train, holdout, normal(300, 6, 2))
        assert fresh.median == pytest.approx(1.0, abs=0.1)

    def test_the_interval_holds_one_half_for_fresh_draws_though_many_share_a_neighbour(self):
        """60 draws of 30 real samples a side and 500 generated: Wilson's interval misses one time in three."""
        inside, by_wilson = 0, 0
        for draw in range(60):
            train, holdout, generated = (normal(n, 6, 10 * draw + i) for i, n in enumerate((30, 30, 500)))
            share = nearest_neighbour_ratios(train, holdout, generated).nearer_to_train
            wilson = proportion(round(share.value * 500), 500)
            inside += share.low < 0.5 < share.high
            by_wilson += wilson.low < 0.5 < wilson.high
        assert by_wilson < 48 < 53 < inside

    def test_interval_by_hand(self):
        """Nearest of 1.1, 0.9, 9, 21 are train 1, 1, 10 and holdout 20: weights 1/2, 1/4, 1/4, 0 of four points.

        Two of the four drawn without replacement: variance of the weights 1/32, times 2 * 2 / 3.
        """
        share = nearest_neighbour_ratios(column(1, 10), column(20, 30), column(1.1, 0.9, 9, 21)).nearer_to_train
        assert (share.value, share.n, share.high) == (0.75, 4, 1.0)
        assert share.low == pytest.approx(0.75 - 1.96 * math.sqrt(1 / 32 * 4 / 3))

    @pytest.mark.parametrize(("n_train", "n_holdout"), [(2000, 200), (200, 2000)])
    def test_size_alone_makes_no_difference(self, n_train, n_holdout):
        train, holdout, generated = normal(n_train, 3), normal(n_holdout, 3, 1), normal(400, 3, 2)
        result = nearest_neighbour_ratios(train, holdout, generated, seed=4)
        assert result.n_each == 200
        assert result.median == pytest.approx(1.0, abs=0.15)
        again = nearest_neighbour_ratios(train, holdout, generated, seed=4)
        assert torch.equal(result.ratios, again.ratios)
        assert not torch.equal(result.ratios, nearest_neighbour_ratios(train, holdout, generated, seed=5).ratios)


def test_all_measures_at_once_are_each_of_them():
    train, holdout, generated = normal(120, 4), normal(50, 4, 1), normal(70, 4, 2)
    result = copying(train, holdout, generated, seed=3)
    assert result.authenticity == authenticity(train, generated)
    assert result.authenticity_of_holdout == authenticity(train, holdout)
    assert result.statistic == copying_statistic(train, holdout, generated)
    expected = nearest_neighbour_ratios(train, holdout, generated, seed=3)
    assert torch.equal(result.ratios.ratios, expected.ratios)
    assert result.ratios.nearer_to_train == expected.nearer_to_train


def test_authenticity_of_both_sides_takes_one_search(monkeypatch):
    asked = []
    original = memorization.nearest_others

    def record(base, k, of, shares):
        asked.append(of)
        return original(base, k, of, shares)

    monkeypatch.setattr(memorization, "nearest_others", record)
    copying(normal(120, 4), normal(50, 4, 1), normal(70, 4, 2))
    (of,) = asked
    assert len(of) == len(of.unique()) < 120


@pytest.mark.parametrize("score", [copying_statistic, nearest_neighbour_ratios, copying])
def test_sides_are_named_when_they_do_not_fit(score):
    with pytest.raises(DataError, match="train and holdout: features of 2 and 3 dimensions"):
        score(normal(5, 2), normal(5, 3), normal(5, 2))
    with pytest.raises(DataError, match="holdout: at least 1 samples"):
        score(normal(5, 2), normal(0, 2), normal(5, 2))
