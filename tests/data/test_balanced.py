"""Images that a teacher labels once, drawn so that the classes it names are equally likely."""

import torch
from torch import Tensor

from synthkd.data.sources import RealImages, RealSource
from synthkd.types import Outputs


def drawn(balanced: bool, steps: int = 20) -> Tensor:
    """How often each of three classes is drawn, of 95 images that the teacher takes for class 0 and 5 for class 1."""
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    images[::20] = 255

    def teacher(some: Tensor) -> Outputs:
        return Outputs(torch.nn.functional.one_hot((some[:, 0, 0, 0] > 0.5).long(), 3).float())

    unlabelled = torch.full((100,), -1)
    source = RealSource(RealImages(images, unlabelled), 3, teacher, balanced=balanced)
    batches = [source.draw(50, step)[0] for step in range(steps)]
    assert all(torch.equal(one.images[:, 0, 0, 0].long(), one.teacher_logits.argmax(1)) for one in batches)  # type: ignore[union-attr]
    again = RealSource(RealImages(images, unlabelled), 3, teacher, balanced=balanced)
    assert torch.equal(again.draw(50, 7)[0].images, batches[7].images), "a batch is a function of seed and step"
    return torch.bincount(torch.cat([one.images[:, 0, 0, 0].long() for one in batches]), minlength=3)


def test_classes_are_equally_likely_however_few_images_have_one() -> None:
    counts = drawn(balanced=True)
    assert counts[2] == 0, "nobody names it"
    assert 400 < int(counts[1]) < 600
    assert int(drawn(balanced=False)[1]) < 100
