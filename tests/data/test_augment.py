"""Augmentation: against torchvision and brute force for one image, and per sample, in range and seeded for a batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from synthkd.data import augment
from synthkd.settings import AugmentSettings

Operation = Callable[[Tensor, torch.Generator], Tensor]
OPERATIONS: dict[str, Operation] = {
    "shift": lambda images, rng: augment.shift(images, 3, rng),
    "flip": lambda images, rng: augment.flip(images, rng),
    "crop": lambda images, rng: augment.crop(images, 0.3, rng),
    "erase": lambda images, rng: augment.erase(images, 0.7, rng),
    "jitter": lambda images, rng: augment.jitter(images, 0.5, rng),
    "mixup": lambda images, rng: augment.mixup(images, 0.6, rng),
    "cutmix": lambda images, rng: augment.cutmix(images, 0.6, rng),
    "by_difficulty": lambda images, rng: augment.by_difficulty(images, 0.9, rng),
    "augment_for_critic": lambda images, rng: augment.augment_for_critic(images, 0.8, rng),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, channels: int = 3, height: int = 9, width: int = 12, seed: int = 7) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(seed))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_range_and_purity(name: str, channels: int, dtype: torch.dtype) -> None:
    images = noise(40, channels).to(dtype)
    images[0], images[1] = 0.0, 1.0
    before = images.clone()
    result = OPERATIONS[name](images, seeded())
    assert result.shape == images.shape
    assert result.dtype == dtype
    assert result.min() >= 0.0
    assert result.max() <= 1.0
    assert torch.equal(images, before)
    assert not torch.equal(result, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_seed_decides_everything(name: str) -> None:
    images = noise(64)
    first = OPERATIONS[name](images, seeded(1))
    assert torch.equal(first, OPERATIONS[name](images, seeded(1)))
    assert not torch.equal(first, OPERATIONS[name](images, seeded(2)))


@pytest.mark.parametrize("name", ["shift", "flip", "crop", "erase", "jitter", "by_difficulty", "augment_for_critic"])
def test_equal_images_of_a_batch_come_out_different(name: str) -> None:
    results = OPERATIONS[name](noise(1).expand(200, -1, -1, -1), seeded())
    distinct = len(torch.unique(results.flatten(1), dim=0))
    assert distinct >= {"flip": 2, "shift": 40, "erase": 100}.get(name, 190)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    images = noise(4, height=4, width=5).double().mul(0.5).add(0.1).requires_grad_()  # away from the clamps
    assert torch.autograd.gradcheck(lambda x: OPERATIONS[name](x, seeded(3)), (images,))


@pytest.mark.parametrize(
    "nothing",
    [
        lambda x, rng: augment.shift(x, 0, rng),
        lambda x, rng: augment.flip(x, rng, 0.0),
        lambda x, rng: augment.crop(x, 1.0, rng),
        lambda x, rng: augment.erase(x, 0.0, rng),
        lambda x, rng: augment.jitter(x, 0.0, rng),
        lambda x, rng: augment.mixup(x, 0.0, rng),
        lambda x, rng: augment.cutmix(x, 0.0, rng),
        lambda x, rng: augment.mixup(x[:1], 1.0, rng),
        lambda x, rng: augment.cutmix(x[:1], 1.0, rng),
        lambda x, rng: augment.by_difficulty(x, 0.5, rng),
        lambda x, rng: augment.augment_real(x, AugmentSettings(), rng),
        lambda x, rng: augment.augment_for_critic(x, 0.0, rng),
    ],
)
def test_settings_that_ask_for_nothing_change_nothing(nothing: Operation) -> None:
    images = noise(8)
    result = nothing(images, seeded())
    assert torch.equal(result, images[: len(result)])


def test_shift_is_one_of_the_shifts_by_brute_force_and_all_occur() -> None:
    images = noise(500, channels=2, height=5, width=7)
    seen = set()
    for image, moved in zip(images, augment.shift(images, 2, seeded()), strict=True):
        matches = []
        for down in range(-2, 3):
            for right in range(-2, 3):
                expected = torch.zeros_like(image)
                for y in range(5):
                    for x in range(7):
                        if 0 <= y - down < 5 and 0 <= x - right < 7:
                            expected[:, y, x] = image[:, y - down, x - right]
                if torch.equal(expected, moved):
                    matches.append((down, right))
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25


def test_shift_beyond_the_image_leaves_black() -> None:
    moved = augment.shift(noise(300, height=3, width=3) + 0.1, 9, seeded())
    black = (moved == 0).flatten(1).all(1).float().mean()
    assert float(black) == pytest.approx(1 - (5 / 19) ** 2, abs=0.06)


def test_flip_mirrors_half_of_the_images() -> None:
    images = noise(2000, 1, 3, 4)
    result = augment.flip(images, seeded())
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    kept = (result == images).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    assert abs(int(mirrored.sum()) - 1000) < 4 * 22.4
    assert torch.equal(augment.flip(images, seeded(), 1.0), images.flip(-1))


def test_a_square_image_is_turned_by_a_quarter_a_half_or_three_quarters_alike_often() -> None:
    images = noise(3000, 2, 5, 5)
    before = images.clone()
    result = augment.turn(images, seeded())
    turned = [(result == images.rot90(k, (2, 3))).flatten(1).all(1) for k in range(4)]
    assert torch.equal(images, before)
    assert torch.stack(turned).sum(0).tolist() == [1] * 3000
    assert not turned[0].any()
    assert all(abs(int(rows.sum()) - 1000) < 4 * 25.8 for rows in turned[1:])
    assert torch.equal(result, augment.turn(images, seeded()))
    assert not torch.equal(result, augment.turn(images, seeded(1)))


def test_an_image_that_is_not_square_is_turned_by_a_half() -> None:
    images = noise(5)
    assert torch.equal(augment.turn(images, seeded()), images.rot90(2, (2, 3)))
    assert augment.turn(images[:0], seeded()).shape == (0, 3, 9, 12)
    assert augment.turn(noise(0, 1, 4, 4), seeded()).shape == (0, 1, 4, 4)


def test_erase_paints_one_rectangle_of_one_colour_as_often_and_as_large_as_asked() -> None:
    size = 32
    images = torch.full((2000, 3, size, size), 2.0)  # no colour of the range: a pixel that differs was painted
    changed = augment.erase(images, 0.5, seeded(), area=(0.05, 0.3)) != 2.0
    painted = augment.erase(images, 0.5, seeded(), area=(0.05, 0.3))
    hit = changed.flatten(1).any(1)
    assert abs(int(hit.sum()) - 1000) < 4 * 22.4
    areas, ratios = [], []
    for image, mask in zip(painted[hit], changed[hit], strict=True):
        assert torch.equal(mask[0], mask[1])
        assert torch.equal(mask[0], mask[2])
        rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        box = image[:, top:bottom, left:right].flatten(1)
        assert bool(mask[0, top:bottom, left:right].all())
        assert torch.equal(box, box[:, :1].expand_as(box))
        areas.append((bottom - top) * (right - left) / size**2)
        ratios.append((bottom - top) / (right - left))
    share, ratio = torch.tensor(areas), torch.tensor(ratios)
    assert float(share.mean()) == pytest.approx(0.175, abs=0.01)  # uniform in (0.05, 0.3)
    assert float(share.std()) == pytest.approx(0.25 / 12**0.5, abs=0.01)
    assert float(ratio.log().mean()) == pytest.approx(0.0, abs=0.08)
    assert 0.2 < float(ratio.min()) < 0.4
    assert 2.5 < float(ratio.max()) < 4.5


@pytest.mark.parametrize("shape", [(4, 64), (64, 4), (1, 1), (1, 30)])
def test_erase_keeps_the_area_where_the_ratio_cannot_fit(shape: tuple[int, int]) -> None:
    images = torch.full((400, 1, *shape), 2.0)
    share = (augment.erase(images, 1.0, seeded(), area=(0.3, 0.3)) != 2.0).flatten(1).float().mean(1)
    expected = max(0.3, 1 / (shape[0] * shape[1]))
    assert float(share.mean()) == pytest.approx(expected, abs=0.06)


def test_jitter_is_torchvisions_brightness_contrast_and_saturation() -> None:
    images = noise(1)
    brightness, contrast, saturation = (torch.rand(3, generator=seeded(5)) * 0.8 + 0.6).tolist()  # 1 -+ 0.4
    expected = reference.adjust_brightness(images, brightness)
    expected = reference.adjust_contrast(expected, contrast)
    expected = reference.adjust_saturation(expected, saturation)
    assert torch.allclose(augment.jitter(images, 0.4, seeded(5)), expected, atol=1e-6)


def test_jitter_of_grey_images_is_torchvisions_brightness_and_contrast() -> None:
    images = noise(1, channels=1)
    brightness, contrast = (torch.rand(3, generator=seeded(5)) * 0.8 + 0.6).tolist()[:2]
    expected = reference.adjust_contrast(reference.adjust_brightness(images, brightness), contrast)
    assert torch.allclose(augment.jitter(images, 0.4, seeded(5)), expected, atol=1e-6)


def test_mixup_mixes_the_first_rows_with_another_image_of_the_batch() -> None:
    count = 50
    images = torch.eye(count)[:, None, None, :]  # image i is the i-th unit vector, so a mixture names its parents
    mixed = augment.mixup(images, 0.4, seeded()).flatten(1)
    assert torch.equal(mixed[20:], images.flatten(1)[20:])
    for row in range(20):
        parents = mixed[row].nonzero().flatten().tolist()
        assert len(parents) == 2
        assert row in parents
        assert float(mixed[row].sum()) == pytest.approx(1.0, abs=1e-6)
    own = torch.stack([mixed[row, row] for row in range(20)])
    assert 0.3 < float(own.mean()) < 0.7
    assert len(own.unique()) == 20


@pytest.mark.parametrize("count", [2, 3, 17])
def test_mixup_partners_are_a_permutation_without_self(count: int) -> None:
    for seed in range(20):
        mixed = augment.mixup(torch.eye(count)[:, None, None, :], 1.0, seeded(seed)).flatten(1)
        partners = [next(j for j in row.nonzero().flatten().tolist() if j != i) for i, row in enumerate(mixed)]
        assert sorted(partners) == list(range(count))


def test_cutmix_pastes_a_rectangle_of_another_image_into_the_last_rows() -> None:
    count, size = 300, 20
    images = torch.arange(count).float()[:, None, None, None].expand(-1, 2, size, size) / count
    result = augment.cutmix(images, 0.5, seeded())
    assert torch.equal(result[:150], images[:150])
    shares = []
    for before, after in zip(images[150:], result[150:], strict=True):
        pasted = before != after
        assert torch.equal(pasted[0], pasted[1])
        assert len(after[pasted].unique()) == 1
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        assert torch.equal(pasted[0], rows[:, None] & columns[None, :])
        assert int(rows.sum()) == int(columns.sum())
        shares.append(float(pasted.float().mean()))
    assert float(torch.tensor(shares).mean()) == pytest.approx(0.5, abs=0.08)  # uniform in (0, 1)


def test_difficulty_switches_erasing_and_then_jitter_on() -> None:
    images = noise(500, 1) * 0.5 + 0.25
    untouched = (augment.by_difficulty(images, 0.6, seeded()) == images).flatten(1)
    share = float((~untouched.all(1)).float().mean())
    assert share == pytest.approx(0.6, abs=0.09)
    assert float(untouched.float().mean()) > 0.7  # erasing alone leaves most pixels as they were
    jittered = augment.by_difficulty(images, 0.8, seeded())
    assert float((jittered == images).float().mean()) < 0.05
    only_jitter = augment.by_difficulty(images, 0.8, seeded(), erase_above=0.9)
    assert torch.equal(only_jitter, augment.jitter(images, 0.4, seeded()))
    assert torch.equal(augment.by_difficulty(images, 0.8, seeded(), 0.9, 0.9), images)


def test_real_images_are_shifted_and_flipped_by_the_settings() -> None:
    images = noise(100)
    settings = AugmentSettings(shift=2, flip=True)
    rng = seeded()
    expected = augment.flip(augment.shift(images, 2, rng), rng)
    assert torch.equal(augment.augment_real(images, settings, seeded()), expected)


def test_a_critic_sees_each_kind_of_change_as_often_as_asked() -> None:
    images = torch.full((4000, 1, 16, 16), 0.5)
    seen = augment.augment_for_critic(images, 0.4, seeded()).flatten(1)
    moved = 0.4 * 24 / 25  # one shift of 25 is none
    kept, black = (seen == 0.5).all(1), ((seen == 0.5) | (seen == 0.0)).all(1)
    assert float(kept.float().mean()) == pytest.approx((1 - moved) * 0.6 * 0.6, abs=0.03)
    assert float((black & ~kept).float().mean()) == pytest.approx(moved * 0.6 * 0.6, abs=0.03)
    assert float((seen.mode(1).values != 0.5).float().mean()) == pytest.approx(0.4, abs=0.03), "jitter moves the level"


def test_what_a_critic_sees_of_a_generated_image_moves_the_image() -> None:
    images = noise(64, 1, 8, 8).requires_grad_()
    augment.augment_for_critic(images, 1.0, seeded()).sum().backward()
    assert images.grad is not None
    assert float((images.grad != 0).float().mean()) > 0.5


def test_a_crop_is_a_window_inside_the_image_of_the_area_and_shape_that_were_drawn() -> None:
    height, width, count = 30, 40, 2000
    # Pixels that hold their own place show where the window of each image lies, and that it is not turned.
    rows, columns = (torch.arange(size).add(0.5) / size for size in (height, width))
    places = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])
    cropped = augment.crop(places.expand(count, 2, height, width), 0.3, seeded())
    inner = slice(4, -4)  # away from the border, where places cannot grow
    steps = [cropped[:, 0].diff(dim=1)[:, inner, inner] * height, cropped[:, 1].diff(dim=2)[:, inner, inner] * width]
    for step in steps:
        torch.testing.assert_close(step, step[:, :1, :1].expand_as(step), rtol=0, atol=1e-3)
    heights, widths = (step[:, 0, 0] for step in steps)
    areas, ratios = heights * widths, heights / widths * height / width
    assert 0.299 < areas.min() < 0.31
    assert 0.99 < areas.max() < 1.001
    assert areas.mean().item() == pytest.approx(0.65, abs=0.02)
    assert 0.749 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.335
    for side, centres in ((heights, cropped[:, 0, 15, 20]), (widths, cropped[:, 1, 15, 20])):
        centres = centres - side * (0.5 / height if side is heights else 0.5 / width)
        assert bool(((centres - side / 2 > -1e-3) & (centres + side / 2 < 1 + 1e-3)).all())
        small = side < 0.8
        assert (centres - side / 2)[small].min() < 0.01, "a window may lie at either border"
        assert (centres + side / 2)[small].max() > 0.99


def test_a_crop_agrees_with_torchvision_on_the_window_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(1, height=8, width=8)
    monkeypatch.setattr(augment, "_sides", lambda *_: (torch.tensor([4.0]), torch.tensor([4.0])))
    monkeypatch.setattr(augment, "_uniform", lambda count, _, high, *__: torch.full((count,), high))
    corner = augment.crop(images, 0.3, seeded())
    expected = reference.resize(images[:, :, 4:, 4:], [8, 8], antialias=False)
    inner = slice(1, -1)  # torchvision's window does not see the pixels beside it
    torch.testing.assert_close(corner[:, :, inner, inner], expected[:, :, inner, inner], rtol=0, atol=1e-6)
