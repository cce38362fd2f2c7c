"""Vendi score, semantic cosine and missed modes: closed forms, hand counts, invariances."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact

from synthkd.errors import DataError
from synthkd.metrics.diversity import cluster_modes, mode_collapse, semantic_cosine, vendi_score, vendi_with_error


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counted(*counts: int) -> np.ndarray:
    """Labels 0, 1, ... as often as said."""
    return np.repeat(np.arange(len(counts)), counts)


class TestVendi:
    def test_orthogonal_samples_count_each(self):
        assert vendi_score(torch.eye(7)) == pytest.approx(7)

    def test_samples_of_one_direction_count_once(self):
        assert vendi_score(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]])) == pytest.approx(1)

    def test_two_directions_in_unequal_shares(self):
        """Eigenvalues 3/4 and 1/4: exp of their entropy."""
        expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
        assert vendi_score(torch.tensor([[2.0, 0.0]] * 3 + [[0.0, 5.0]])) == pytest.approx(expected)

    def test_two_samples_at_an_angle(self):
        """Cosine c: eigenvalues (1 + c) / 2 and (1 - c) / 2."""
        c = math.cos(0.4)
        expected = math.exp(-sum(p * math.log(p) for p in ((1 + c) / 2, (1 - c) / 2)))
        assert vendi_score(np.array([[1.0, 0.0], [c, math.sin(0.4)]])) == pytest.approx(expected)

    @pytest.mark.parametrize(("n", "d"), [(30, 12), (12, 30)])
    def test_both_gram_matrices_give_the_entropy_of_the_singular_values(self, n, d):
        features = normal(n, d) + 0.5
        unit = features / features.norm(dim=1, keepdim=True)
        shares = torch.linalg.svdvals(unit) ** 2 / n
        assert vendi_score(features) == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-10)

    def test_turning_and_repeating_change_nothing_and_moving_does(self):
        features = normal(25, 6)
        turn = torch.linalg.qr(normal(6, 6, 1)).Q
        lengths = torch.linspace(0.1, 9, 25)[:, None]
        expected = vendi_score(features)
        for same in (features @ turn, features.repeat(4, 1), features * lengths):
            assert vendi_score(same) == pytest.approx(expected, rel=1e-10)
        assert vendi_score(features + 5) < 0.7 * expected

    def test_a_collapsed_set_scores_less(self):
        features = normal(200, 20)
        assert vendi_score(features[:3].repeat(67, 1)) < 3.001 < 15 < vendi_score(features)

    @pytest.mark.parametrize(("n", "d"), [(300, 8), (40, 60)])
    def test_standard_error_is_the_spread_of_repeated_draws(self, n, d):
        weights = torch.linspace(2.0, 0.1, d)
        # samples of two kinds, so that shares of the kinds vary too
        found = [
            vendi_with_error(weights * normal(n, d, i) + 3 * (normal(n, 1, 1000 + i) > 0.5) * weights)
            for i in range(200)
        ]
        spread = float(np.std([one.value for one in found], ddof=1))
        assert float(np.mean([one.standard_error for one in found])) == pytest.approx(spread, rel=0.25)

    @pytest.mark.parametrize(("n", "d"), [(30, 12), (12, 30), (9, 9)])
    def test_influence_is_what_a_sample_moves_the_score_by(self, n, d):
        """The jackknife: leaving a sample out moves the score by its influence over n - 1, nearly."""
        features = (normal(n, d) + 0.5).repeat(20, 1)  # many of each, so that one is a small part
        left_out = [vendi_score(torch.cat([features[:i], features[i + 1 :]])) for i in range(n)]
        influences = (len(features) - 1) * (vendi_score(features) - np.array(left_out))
        expected = float(np.std(influences)) / math.sqrt(len(features))
        result = vendi_with_error(features)
        assert result.standard_error == pytest.approx(expected, rel=0.03)
        assert result.value == pytest.approx(vendi_score(features), rel=1e-12)

    def test_error_of_what_cannot_vary_is_nothing(self):
        assert vendi_with_error(torch.eye(6)).standard_error == pytest.approx(0, abs=1e-12)
        assert vendi_with_error(torch.ones(5, 3)).standard_error == pytest.approx(0, abs=1e-12)

    def test_a_row_of_zeros_has_no_direction(self):
        with pytest.raises(DataError, match="features: 1 of 3 rows are zero"):
            vendi_score(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))


class TestSemanticCosine:
    def test_by_hand(self):
        """Real means (1, 0) and (0, 1); generated (1, 1) and (0, 2), and a class on each side that the other lacks."""
        real = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        generated = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 2.0], [1.0, 3.0]])
        result = semantic_cosine(real, generated, [4, 4, 6, 9], np.array([4, 4, 6, 2]))
        assert result.per_class == pytest.approx({4: math.sqrt(0.5), 6: 1.0})
        assert result.value == pytest.approx((math.sqrt(0.5) + 1) / 2)
        assert result.across == pytest.approx((0.0 + math.sqrt(0.5)) / 2)  # (1, 0).(0, 1) and (0, 1).(1, 1)
        assert (result.missing_generated, result.missing_real) == ((9,), (2,))

    def test_real_halves_agree_and_swapped_labels_fall_to_across(self):
        centres = normal(3, 20)
        labels = torch.arange(300) % 3
        real, generated = (centres[labels] + 0.5 * normal(300, 20, seed) for seed in (1, 2))
        right = semantic_cosine(real, generated, labels, labels)
        swapped = semantic_cosine(real, generated, labels, (labels + 1) % 3)
        assert right.value > 0.98
        assert right.across < 0.7
        # both ways of moving every label give the mean of the cosines between different classes
        other = semantic_cosine(real, generated, labels, (labels + 2) % 3)
        assert (swapped.value + other.value) / 2 == pytest.approx(right.across)

    def test_scale_and_rotation_change_nothing(self):
        labels = torch.arange(40) % 4
        real, generated = normal(40, 6) + 1, normal(40, 6, 1) + 1
        turn = torch.linalg.qr(normal(6, 6, 2)).Q
        expected = semantic_cosine(real, generated, labels, labels)
        same = semantic_cosine(real @ turn, generated @ turn * 3, labels, labels)
        assert same.value == pytest.approx(expected.value)
        assert same.across == pytest.approx(expected.across)

    def test_classes_count_alike_whatever_their_size(self):
        real = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        generated = torch.tensor([[1.0, 0.0]] + [[1.0, 0.0]] * 9)
        assert semantic_cosine(real, generated, [0, 1], [0] + [1] * 9).value == pytest.approx(0.5)

    @pytest.mark.parametrize("apart", [0.3, 1.5])
    def test_standard_error_is_the_spread_of_repeated_draws(self, apart):
        centres, moved = normal(3, 6), normal(3, 6, 1)
        known, asked = torch.from_numpy(counted(40, 20, 30)), torch.from_numpy(counted(25, 60, 35))
        found = []
        for i in range(300):
            real = centres[known] + 0.8 * normal(len(known), 6, 10 + 2 * i)
            generated = (centres + apart * moved)[asked] + 0.5 * normal(len(asked), 6, 11 + 2 * i)
            found.append(semantic_cosine(real, generated, known, asked))
        spread = float(np.std([one.value for one in found], ddof=1))
        assert float(np.mean([one.standard_error for one in found])) == pytest.approx(spread, rel=0.15)

    def test_single_samples_give_no_standard_error(self):
        labels = torch.tensor([0, 0, 1])
        assert semantic_cosine(normal(3, 4), normal(3, 4, 1), labels, labels).standard_error is None

    def test_one_class_has_nothing_across(self):
        assert semantic_cosine(normal(3, 2), normal(3, 2), [1] * 3, [1] * 3).across is None

    @pytest.mark.parametrize(
        ("real_labels", "generated_labels", "message"),
        [
            ([0, 1], [2, 3], r"share no class \(real: 0, 1; generated: 2, 3\)"),
            ([0, 1, 1], [0, 1], "real labels: 3 labels for 2 samples"),
            ([0, 1], [0.0, 1.0], "generated labels: must be integers"),
        ],
    )
    def test_labels_that_do_not_fit(self, real_labels, generated_labels, message):
        with pytest.raises(DataError, match=message):
            semantic_cosine(normal(2, 3), normal(2, 3), real_labels, generated_labels)

    def test_a_class_mean_of_zero_has_no_direction(self):
        with pytest.raises(DataError, match="generated: 1 of 1 class means are zero"):
            semantic_cosine(normal(2, 2), torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), [0, 0], [0, 0])


class TestModeCollapse:
    def test_a_mode_without_samples_is_missed(self):
        result = mode_collapse(counted(50, 50, 50, 50), counted(80, 70, 0, 50))
        assert result.missed == (2,)
        assert result.rate == 0.25
        assert result.judged == (0, 1, 2, 3)
        assert result.shares[0] == (0.25, 0.4)
        assert result.shares[2] == (0.25, 0.0)

    def test_which_side_is_real(self):
        """What the holdout lacks is no mode; what the generated set lacks is missed."""
        assert mode_collapse(counted(0, 100), counted(50, 50)).rate == 0.0
        assert mode_collapse(counted(50, 50), counted(0, 100)).rate == 0.5

    def test_the_share_has_to_be_below_the_fraction(self):
        holdout = counted(500, 500)
        assert mode_collapse(holdout, counted(950, 50)).missed == ()  # a tenth of the due 500, not below
        assert mode_collapse(holdout, counted(951, 49)).missed == (1,)
        assert mode_collapse(holdout, counted(951, 49), fraction=0.05).missed == ()

    @pytest.mark.parametrize("size", [1, 7, 8, 20])
    def test_rare_modes_are_judged_from_the_count_on_that_fisher_allows(self, size):
        """None of the mode among 300 generated, `size` among 300 real; two modes share the level of 1 %."""
        result = mode_collapse(counted(300 - size, size), counted(300))
        table = [[0, 300], [size, 300 - size]]
        told = fisher_exact(table, alternative="less").pvalue < 0.005
        assert result.missed == ((1,) if told else ())
        assert result.too_rare == (() if told else (1,))
        assert told == (size >= 8)

    def test_a_faultless_generator_is_hardly_ever_charged(self):
        """Many rare modes, fraction 1: only the chance bound holds back. 200 draws at level 0.05."""
        rng = np.random.default_rng(0)
        shares = rng.dirichlet(np.full(15, 0.5))
        draws = [rng.choice(15, size=(2, 400), p=shares) for _ in range(200)]
        charged = sum(bool(mode_collapse(real, made, fraction=1.0, level=0.05).missed) for real, made in draws)
        assert charged <= 0.08 * 200

    def test_sizes_may_differ(self):
        assert mode_collapse(counted(20, 20), counted(5000, 5000)).rate == 0.0
        assert mode_collapse(counted(20, 20), counted(9990, 10)).missed == (1,)

    def test_nothing_to_judge_is_no_number(self):
        result = mode_collapse(counted(1, 1), counted(1, 1))
        assert result.rate is None
        assert result.too_rare == (0, 1)

    @pytest.mark.parametrize("bad", [np.array([]), np.zeros((2, 2), dtype=int), np.array([0.5])])
    def test_modes_that_are_none(self, bad):
        with pytest.raises(DataError, match="generated modes: must be integers"):
            mode_collapse(counted(5), bad)

    def test_bounds_of_fraction_and_level(self):
        with pytest.raises(ValueError, match="0 < fraction <= 1"):
            mode_collapse(counted(5), counted(5), fraction=0.0)


class TestClusterModes:
    def blobs(self, labels: torch.Tensor, seed: int) -> torch.Tensor:
        return 30 * normal(6, 8, 99)[labels] + normal(len(labels), 8, seed)

    def test_clusters_are_the_blobs(self):
        real = self.blobs(torch.arange(600) % 6, 0)
        holdout = torch.arange(300) % 6
        generated = torch.tensor([0, 1, 1, 5, 3]).repeat(60)
        modes = cluster_modes(real, self.blobs(holdout, 1), self.blobs(generated, 2), clusters=6)
        names = {(int(a), int(b)) for a, b in zip(holdout, modes.holdout, strict=True)}
        assert len(names) == 6  # one name for each blob
        assert all(dict(names)[int(a)] == int(b) for a, b in zip(generated, modes.generated, strict=True))
        result = mode_collapse(modes.holdout, modes.generated)
        assert result.rate == pytest.approx(2 / 6)
        assert set(result.missed) == {dict(names)[2], dict(names)[4]}

    def test_a_fresh_sample_misses_none_and_the_seed_decides(self):
        sets = normal(600, 4), normal(300, 4, 1), normal(300, 4, 2)
        modes = cluster_modes(*sets, clusters=10, seed=3)
        assert mode_collapse(modes.holdout, modes.generated).rate == 0.0
        assert torch.equal(modes.generated, cluster_modes(*sets, clusters=10, seed=3).generated)
        assert not torch.equal(modes.generated, cluster_modes(*sets, clusters=10, seed=4).generated)

    def test_more_clusters_than_samples(self):
        with pytest.raises(DataError, match="real: at least 20 samples are needed, got 5"):
            cluster_modes(normal(5, 2), normal(5, 2), normal(5, 2))
