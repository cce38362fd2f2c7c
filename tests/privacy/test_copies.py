"""Copies of training images are found, fresh draws and copies of the holdout are not; p-values agree with oracles."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from synthkd.errors import ConfigError, DataError
from synthkd.metrics import nearest_neighbour_ratios
from synthkd.privacy import copies
from synthkd.privacy.copies import CopyTest, copy_test


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distances(samples: torch.Tensor, base: torch.Tensor) -> np.ndarray:
    return torch.cdist(samples, base, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.numpy()


def as_lists(result: CopyTest) -> dict[str, object]:
    return {key: v.tolist() if isinstance(v, torch.Tensor) else v for key, v in vars(result).items()}


class TestShare:
    def test_by_hand(self):
        """1, 2, 9, 30 and 31 are nearest to train 0, holdout 3, train 10, holdout 20 and 20."""
        result = copy_test(column(0, 10), column(3, 20), column(1, 2, 9, 30, 31))
        assert result.nearer_to_train == 0.4
        assert (result.n_generated, result.n_each) == (5, 2)

    def test_the_sides_are_not_alike(self):
        train, holdout = normal(100, 5), normal(100, 5, 1)
        generated = train[:40] + 0.01 * normal(40, 5, 2)
        assert copy_test(train, holdout, generated).p_value == 1 / 2001
        turned = copy_test(holdout, train, generated)
        assert (turned.nearer_to_train, turned.p_value) == (0.0, 1.0)

    def test_the_p_value_of_all_exchanges_of_names(self):
        """Weights 3, 2, 0, 1 of training and 1, 1, 0, 0 of holdout images, over the 70 ways to call four training."""
        train, holdout = column(0, 10, 20, 30), column(40, 50, 60, 70)
        generated = column(0, 0, 0, 10, 10, 30, 40, 50)
        weights = [3, 2, 0, 1, 1, 1, 0, 0]
        exact = np.mean([sum(chosen) >= 6 for chosen in itertools.combinations(weights, 4)])
        result = copy_test(train, holdout, generated, permutations=4000)
        assert result.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000))

    def test_fresh_draws_are_seldom_called_copies_though_many_share_a_neighbour(self):
        """100 draws of 40 real images a side, 300 generated; a binomial test of the same share errs far more often."""
        by_test, by_binomial = 0, 0
        for draw in range(100):
            train, holdout, generated = (normal(n, 6, 10 * draw + i) for i, n in enumerate((40, 40, 300)))
            result = copy_test(train, holdout, generated, permutations=200)
            by_test += result.p_value <= 0.05
            hits = round(result.nearer_to_train * 300)
            by_binomial += binomtest(hits, 300, 0.5, alternative="greater").pvalue <= 0.05
        assert by_test <= 10 < 15 <= by_binomial

    def test_real_images_on_both_sides_are_shared_by_lot(self):
        both = normal(300, 4)
        result = copy_test(both, both, both)
        assert abs(result.nearer_to_train - 0.5) < 4 * 0.5 / np.sqrt(300)
        assert result.p_value > 0.01

    def test_the_share_is_that_of_the_neighbour_ratios_and_the_pairs_are_the_closest(self):
        train, holdout, generated = normal(120, 5), normal(120, 5, 1), normal(90, 5, 2)
        result, ratios = copy_test(train, holdout, generated), nearest_neighbour_ratios(train, holdout, generated)
        assert result.nearer_to_train == ratios.nearer_to_train.value
        nearest = torch.cdist(generated.double(), train.double()).min(dim=1)
        order = nearest.values.argsort()[:20]
        assert torch.equal(result.closest_generated, order)
        assert torch.equal(result.closest_train, nearest.indices[order])


class TestNearCopies:
    def test_by_hand(self):
        """Holdout images are 1 and 1.5 from the nearest training image, which fixes the radius at 1.005.

        0.4 and -1 are near copies of the training image 0, 11 of 10, and 1.1 of the holdout image 1; 12 is none.
        """
        near = copy_test(column(0, 10), column(1, 1.5), column(0.4, -1, 11, 1.1, 12)).near_copies
        assert near.radius == pytest.approx(1.005)
        assert (near.of_train, near.of_holdout, near.train_images, near.holdout_images) == (3, 1, 2, 1)
        assert near.p_value == pytest.approx(0.5)

    def test_slow_counts(self):
        train, holdout, generated = normal(300, 3), normal(300, 3, 1), normal(400, 3, 2)
        generated[:12] = train[5] + 1e-3 * normal(12, 3, 3)
        near = copy_test(train, holdout, generated).near_copies
        radius = np.quantile(distances(holdout, train), 0.01)
        assert near.radius == pytest.approx(radius)
        to_train, to_holdout = distances(generated, train), distances(generated, holdout)
        of_train, of_holdout = (
            (to_train <= radius) & (to_train < to_holdout),
            (to_holdout <= radius) & (to_holdout < to_train),
        )
        assert (near.of_train, near.of_holdout) == (of_train.sum(), of_holdout.sum())
        reached = [
            len({int((side - generated[i]).norm(dim=1).argmin()) for i in np.flatnonzero(mask)})
            for side, mask in ((train, of_train), (holdout, of_holdout))
        ]
        assert [near.train_images, near.holdout_images] == reached
        assert near.of_train >= near.train_images + 11  # twelve copies of one image reach one image
        expected = binomtest(reached[0], sum(reached), 0.5, alternative="greater").pvalue
        assert near.p_value == pytest.approx(expected)

    def test_a_few_copies_are_found_that_the_share_does_not_see(self):
        """3 % near copies of training images among 1,000 in 8 dimensions."""
        train, holdout, generated = normal(600, 8), normal(600, 8, 1), normal(1000, 8, 2)
        before = copy_test(train, holdout, generated, permutations=200).near_copies
        generated[:30] = train[:30] + 0.02 * normal(30, 8, 3)
        after = copy_test(train, holdout, generated, permutations=200).near_copies
        assert before.p_value > 0.05
        assert after.p_value < 0.001
        assert after.train_images >= before.train_images + 25
        assert after.of_holdout <= before.of_holdout

    def test_fresh_draws_are_seldom_called_copies(self):
        errors = 0
        for draw in range(100):
            train, holdout, generated = (normal(n, 4, 10 * draw + i) for i, n in enumerate((150, 150, 400)))
            errors += copy_test(train, holdout, generated, permutations=1).near_copies.p_value <= 0.05
        assert errors <= 8

    def test_none_at_all_says_nothing(self):
        near = copy_test(column(0, 1), column(2.5, 4), column(100, 200)).near_copies
        assert (near.of_train, near.of_holdout, near.train_images, near.holdout_images) == (0, 0, 0, 0)
        assert near.p_value == 1.0


class TestSets:
    @pytest.mark.parametrize("block", [1, 35, 1000])
    def test_blocks_find_what_the_whole_finds(self, monkeypatch: pytest.MonkeyPatch, block: int):
        train, holdout, generated = (normal(n, 5, i).round() for i, n in enumerate((90, 30, 40)))  # with ties
        whole = copy_test(train, holdout, generated)
        monkeypatch.setattr(copies, "BLOCK", block)
        assert as_lists(copy_test(train, holdout, generated)) == as_lists(whole)

    def test_closest_pairs_search_all_of_a_larger_training_set(self):
        train, holdout, generated = normal(500, 5), normal(50, 5, 1), normal(60, 5, 2)
        generated[[7, 30]] = train[[444, 3]] + torch.tensor([[0.0], [1e-4]], dtype=torch.float64)
        result = copy_test(train, holdout, generated, pairs=2)
        assert result.n_each == 50
        assert result.closest_generated.tolist() == [7, 30]
        assert result.closest_train.tolist() == [444, 3]
        assert result.closest_distances.tolist() == pytest.approx([0.0, 1e-4 * np.sqrt(5)])

    @pytest.mark.parametrize(("n_train", "n_holdout"), [(400, 60), (60, 400)])
    def test_sets_of_unequal_size_are_compared_at_the_smaller_one(self, n_train, n_holdout):
        shares = [
            copy_test(
                normal(n_train, 4, 3 * i), normal(n_holdout, 4, 3 * i + 1), normal(200, 4, 3 * i + 2)
            ).nearer_to_train
            for i in range(10)
        ]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.06)

    def test_the_seed_decides(self):
        sets = normal(300, 4), normal(100, 4, 1), normal(200, 4, 2)
        one, same, other = (copy_test(*sets, seed=seed, permutations=50) for seed in (1, 1, 2))
        assert (one.nearer_to_train, one.p_value, one.near_copies) == (
            same.nearer_to_train,
            same.p_value,
            same.near_copies,
        )
        assert one.nearer_to_train != other.nearer_to_train

    def test_sets_that_cannot_be_compared_are_refused(self):
        with pytest.raises(DataError, match="train and holdout: features of 2 and 3 dimensions"):
            copy_test(normal(5, 2), normal(5, 3), normal(5, 2))
        with pytest.raises(DataError, match="generated: at least 1 samples"):
            copy_test(normal(5, 2), normal(5, 2), normal(0, 2))
        with pytest.raises(ConfigError, match="needs 1 permutation or more"):
            copy_test(normal(5, 2), normal(5, 2), normal(5, 2), permutations=0)
        with pytest.raises(ConfigError, match="0 pairs or more"):
            copy_test(normal(5, 2), normal(5, 2), normal(5, 2), pairs=-1)
