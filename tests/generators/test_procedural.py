"""Drawn images: a function of their row, and their tones."""

import pytest
import torch

from synthkd.generators.procedural import draw, fit_tone_curve
from synthkd.rng import Rows
from synthkd.types import ImageSpec


@pytest.mark.parametrize("spec", [ImageSpec(1, 8, 8, 10), ImageSpec(3, 32, 32, 10), ImageSpec(1, 17, 30, 4)])
def test_drawn_images_depend_on_their_row_alone(spec: ImageSpec) -> None:
    together = draw(40, spec, Rows(0, "x", 5))
    apart = torch.cat([draw(1, spec, Rows(0, "x", 5 + i)) for i in range(40)])
    assert torch.allclose(together, apart, atol=1e-5)
    assert together.shape == (40, *spec.shape)
    assert 0.0 <= float(together.min()) <= float(together.max()) <= 1.0
    assert float(torch.pdist(together.flatten(1)).min()) > 0.1, "all different"


def test_half_of_the_drawn_images_are_figures_mostly_on_black() -> None:
    images = draw(2000, ImageSpec(1, 16, 16, 10), Rows(0, "y"))
    black = ((images == 0).float().mean((1, 2, 3)) > 0.02).float().mean()
    assert 0.25 < float(black) < 0.6


def test_tone_curve_reaches_mean_and_deviation() -> None:
    images = draw(500, ImageSpec(1, 28, 28, 10), Rows(0, "z"))
    toned = fit_tone_curve(images, 0.286, 0.353)(images)
    assert float(toned.mean()) == pytest.approx(0.286, abs=0.02)
    assert float(toned.std()) == pytest.approx(0.353, abs=0.03)
