"""Conventions of images and labels, and batches that change as a whole."""

import pytest
import torch

from synthkd.errors import DataError
from synthkd.types import Batch, ImageSpec, balanced_labels, check_labels, to_float, to_uint8


def test_every_level_survives_the_way_to_float_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_float(levels)
    assert values.dtype == torch.float32
    assert (float(values.min()), float(values.max())) == (0.0, 1.0)
    assert torch.equal(to_uint8(values), levels)


def test_floats_are_rounded_and_clamped() -> None:
    images = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5], requires_grad=True)
    assert to_uint8(images).tolist() == [0, 0, 1, 255, 255]


def test_labels_share_out_over_calls() -> None:
    assert balanced_labels(5, 3, 4).tolist() == [3, 0, 1, 2, 3]
    together = torch.cat([balanced_labels(3, 0, 4), balanced_labels(5, 3, 4)])
    assert torch.equal(together, balanced_labels(8, 0, 4))


@pytest.mark.parametrize("classes", [100, 101, 200, 365, 1000, 21841])
def test_rounds_of_fewer_images_than_classes_still_cover_all(classes: int) -> None:
    rounds = [balanced_labels(64, 64 * index, classes) for index in range(-(-classes // 64))]
    counts = torch.bincount(torch.cat(rounds)[:classes], minlength=classes)
    assert torch.equal(counts, torch.ones_like(counts))
    if classes > 100:  # a round has a class of every stretch of numbers, and not 64 neighbours
        gaps = [torch.cat([labels, labels[:1] * 0 - 1]).sort().values.diff().max() for labels in rounds[:-1]]
        assert max(gaps) <= 3 * classes / 64


def test_up_to_100_classes_come_by_number() -> None:
    assert balanced_labels(100, 0, 100).tolist() == list(range(100))


def test_labels_out_of_range_are_refused() -> None:
    check_labels(torch.tensor([0, 3]), 4, "here")
    check_labels(torch.tensor([], dtype=torch.int64), 4, "here")
    for labels in ([-1, 2], [0, 4]):
        message = rf"^here: labels must be in 0\.\.3, got {min(labels)}\.\.{max(labels)}; .*renumber"
        with pytest.raises(DataError, match=message):
            check_labels(torch.tensor(labels), 4, "here")


def test_a_batch_changes_all_its_tensors_and_keeps_what_is_absent() -> None:
    n = torch.arange(4)
    whole = Batch(
        images=torch.rand(4, 1, 2, 2),
        labels=n,
        teacher_logits=torch.rand(4, 3),
        weights=torch.ones(4),
        slots=n + 1,
        rows=n + 2,
        annotated=n > 1,
        teacher_features={"a": torch.rand(4, 5)},
    )
    part = whole.map(lambda value: value[2:])
    assert (len(whole), len(part)) == (4, 2)
    for name in ("images", "labels", "teacher_logits", "weights", "slots", "rows", "annotated"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:])
    assert torch.equal(part.teacher_features["a"], whole.teacher_features["a"][2:])
    bare = Batch(whole.images, whole.labels).to(torch.device("cpu"))
    assert bare.teacher_logits is bare.weights is bare.slots is bare.rows is bare.annotated is None
    assert bare.teacher_features == {}


def test_a_spec_is_readable() -> None:
    spec = ImageSpec(3, 32, 28, 10)
    assert spec.shape == (3, 32, 28)
    assert str(spec) == "3x32x28 images, 10 classes"
