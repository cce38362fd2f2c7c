"""Views of images, against what they must be."""

import torch

from synthkd.generators.views import cropped, rolled


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_roll_moves_the_whole_batch_alike_and_loses_no_pixel() -> None:
    images = torch.arange(2 * 25.0).reshape(2, 1, 5, 5)
    rolls = [rolled(images, 2, False, rng(seed)) for seed in range(40)]
    assert all(torch.equal(one.flatten(1).sort().values, images.flatten(1)) for one in rolls)
    assert all(torch.equal(one[1] - one[0], images[1] - images[0]) for one in rolls)
    # 25 shifts are possible: two each way, in both directions.
    assert {int(one[0, 0, 2, 2]) for one in rolls} > {0, 12}
    assert len({int(one[0, 0, 0, 0]) for one in rolls}) > 12
    assert torch.equal(rolled(images, 0, False, rng()), images)


def test_a_flip_is_of_the_whole_batch_in_half_of_the_cases() -> None:
    images = torch.rand(3, 2, 4, 4, generator=rng())
    flips = [rolled(images, 0, True, rng(seed)) for seed in range(60)]
    mirrored = [torch.equal(one, images.flip(-1)) for one in flips]
    assert all(m or torch.equal(one, images) for m, one in zip(mirrored, flips, strict=True))
    assert 15 < sum(mirrored) < 45


def test_a_crop_of_the_whole_area_may_only_lose_what_its_aspect_cuts_off() -> None:
    ramp = torch.linspace(0, 1, 16).expand(200, 1, 16, 16)  # brightness is the place from left to right
    seen = cropped(ramp, 0.25, rng())
    width = (seen[..., -1] - seen[..., 0]).mean((1, 2))  # the share of the width that each crop has
    assert float(width.min()) > 0.4
    assert float(width.max()) <= 1.0
    # Areas are uniform from 1/4 to 1: the mean of sqrt(area) is 14/18, less what aspect ratios cut off.
    assert abs(float(width.mean()) - 0.76) < 0.04
    centres = seen.mean((1, 2, 3))
    assert float(centres.min()) < 0.42
    assert float(centres.max()) > 0.58
    assert torch.allclose(cropped(ramp.new_full((4, 3, 8, 8), 0.3), 0.1, rng()), torch.full((4, 3, 8, 8), 0.3))


def test_gradients_pass_to_the_pixels_that_are_seen() -> None:
    images = torch.rand(2, 1, 8, 8, generator=rng()).requires_grad_()
    cropped(images, 0.3, rng()).sum().backward()
    assert images.grad is not None
    # A crop is enlarged to 64 pixels, whose weights come from the pixels seen.
    assert torch.allclose(images.grad.sum((1, 2, 3)), torch.full((2,), 64.0), rtol=1e-4)
