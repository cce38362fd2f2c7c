"""The blind baseline sees sets that differ by themselves, and seldom calls sets different that are alike."""

import pytest
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.privacy.audit import blind_check
from synthkd.privacy.blind import blind_baseline


def pixels(n: int, side: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(256, (n, 1, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


class TestBlindBaseline:
    def test_sides_alike_are_seldom_called_different(self):
        """60 draws: as often as a 95 % interval may miss, within chance; DeLong's own error misses in 12."""
        leaks, uncorrected = 0, 0
        for draw in range(60):
            result = blind_baseline(pixels(60, seed=2 * draw), pixels(50, seed=2 * draw + 1), seed=draw)
            leaks += result.excludes_chance
            uncorrected += abs(result.value - 0.5) > 1.96 * result.standard_error / 1.5
        assert leaks <= 6 < uncorrected

    def test_a_difference_in_brightness_is_seen(self):
        brighter = (pixels(100).float() * 0.7 + 80).clamp(0, 255).to(torch.uint8)
        result = blind_baseline(brighter, pixels(80, seed=1))
        assert result.excludes_chance
        assert result.low > 0.7

    def test_the_interval_has_the_asked_confidence(self):
        sides = pixels(60), pixels(50, seed=1)
        usual, wide = blind_baseline(*sides), blind_baseline(*sides, confidence=0.99)
        assert (wide.value, wide.standard_error) == (usual.value, usual.standard_error)
        assert wide.high - wide.low == pytest.approx((usual.high - usual.low) * 2.5758 / 1.9600, rel=1e-4)

    def test_a_control_is_judged_at_99_percent(self):
        """These are alike, and the interval of 95 % excludes 0.5 by chance."""
        sides = pixels(60, seed=78), pixels(50, seed=79)
        assert blind_baseline(*sides, seed=39).excludes_chance
        assert blind_check(*sides, seed=39).passed

    def test_it_is_also_seen_in_large_images(self):
        large = pixels(60, 40, seed=1)
        marked = pixels(60, 40)
        marked[:, :, :20, :20] = marked[:, :, :20, :20] // 2
        assert blind_baseline(marked, large).low > 0.9

    def test_the_seed_draws_the_folds(self):
        sides = pixels(60), pixels(60, seed=1)
        assert blind_baseline(*sides, seed=1) == blind_baseline(*sides, seed=1) != blind_baseline(*sides, seed=2)

    def test_constant_pixels_and_copies_of_one_image_say_nothing(self):
        same = pixels(1).expand(40, -1, -1, -1)
        assert not blind_baseline(same, same).excludes_chance

    def test_too_few_or_unlike_images_are_refused(self):
        with pytest.raises(DataError, match="needs 20 non-members or more"):
            blind_baseline(pixels(20), pixels(19))
        with pytest.raises(DataError, match=r"needs 20 members or more, uint8 .* got torch.float32"):
            blind_baseline(pixels(20).float(), pixels(20))
        with pytest.raises(DataError, match="take both from one dataset"):
            blind_baseline(pixels(20), pixels(20, side=5))
