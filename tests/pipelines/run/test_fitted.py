"""Real data takes the classes and the channels of the teacher, or is refused in a line."""

import pytest
import torch

from synthkd.data.read.splits import RealData, Splits
from synthkd.data.written.stored import StoredDataset
from synthkd.errors import ConfigError, DataError
from synthkd.pipelines.run.images import fitted, fitted_dataset, fitted_splits
from synthkd.types import ImageSpec

ANIMALS = ("cat", "dog", "owl")
LABELS = [0, 1, 2, 0]


def data(names: tuple[str, ...], labels: list[int], channels: int = 1, grey: bool = True) -> RealData:
    images = torch.arange(len(labels) * 4, dtype=torch.uint8).view(-1, 1, 2, 2).repeat(1, channels, 1, 1)
    if not grey:
        images[0, 0, 0, 0] += 1
    return RealData(images, torch.tensor(labels), ImageSpec(channels, 2, 2, len(names)), names, "pets")


def spec(channels: int = 1) -> ImageSpec:
    return ImageSpec(channels, 2, 2, 3)


@pytest.mark.parametrize(
    ("names", "teacher", "expected"),
    [
        (ANIMALS, ANIMALS, [0, 1, 2, 0]),
        (("owl", "cat", "dog"), ANIMALS, [2, 0, 1, 2]),
        (("0", "1", "2"), ANIMALS, [0, 1, 2, 0]),
        (ANIMALS, (), [0, 1, 2, 0]),
    ],
)
def test_labels_are_numbers_of_the_teachers_classes(
    names: tuple[str, ...], teacher: tuple[str, ...], expected: list[int]
) -> None:
    found = fitted("data", data(names, LABELS), spec(), teacher)
    assert found.labels.tolist() == expected
    assert found.class_names == (teacher or names)


def test_only_test_data_may_lack_a_class() -> None:
    few = data(("owl", "cat"), [0, 1, 1])
    found = fitted("test", few, spec(), ANIMALS, lacks_classes=True)
    assert (found.labels.tolist(), found.spec, found.class_names) == ([2, 0, 0], spec(), ANIMALS)
    with pytest.raises(ConfigError, match=r"^data: pets has .*2 classes, the teacher takes .*3 classes"):
        fitted("data", few, spec(), ANIMALS)
    with pytest.raises(DataError, match=r"test \(pets\) has images of classes .*: eel \(it has cat, dog, owl\)"):
        fitted("test", data(("eel", "cat"), [0, 1]), spec(), ANIMALS, lacks_classes=True)


def test_numbers_of_fewer_classes_than_a_teacher_without_names_has_are_told(caplog: pytest.LogCaptureFixture) -> None:
    found = fitted("test", data(("1", "2"), [0, 1]), spec(), (), lacks_classes=True)
    assert found.labels.tolist() == [1, 2]
    assert "test (pets): classes taken by number, of which the teacher's first is 0" in caplog.text


def test_all_parts_are_fitted() -> None:
    part = data(("owl", "cat", "dog"), LABELS)
    found = fitted_splits("data", Splits(part, part, part, ("a note",)), spec(), ANIMALS)
    assert all(one.labels.tolist() == [2, 0, 1, 2] for one in (found.train, found.holdout, found.test))
    assert found.notes == ("a note",)


def test_logits_move_with_the_labels_of_a_stored_dataset() -> None:
    part = data(("owl", "cat", "dog"), LABELS)
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(4, 1)
    stored = StoredDataset(part.images, part.labels, logits, part.class_names, (0.5,), (0.5,), spec(), {})
    found = fitted_dataset("transfer_set.path", stored, ANIMALS)
    assert found.labels.tolist() == [2, 0, 1, 2]
    assert found.logits[0].tolist() == [1.0, 2.0, 0.0]
    assert found.class_names == ANIMALS
    assert fitted_dataset("transfer_set.path", stored, ()) is stored


@pytest.mark.parametrize(("channels", "wanted"), [(3, 1), (1, 3)])
def test_grey_images_fit_either_number_of_channels(channels: int, wanted: int) -> None:
    found = fitted("test", data(ANIMALS, LABELS, channels), spec(wanted), ANIMALS)
    assert torch.equal(found.images, data(ANIMALS, LABELS, wanted).images)
    assert found.spec == spec(wanted)


def test_colour_images_need_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^test: pets has 3x2x2 .*; set test\.channels to 1$"):
        fitted("test", data(ANIMALS, LABELS, 3, grey=False), spec(), ANIMALS)
    with pytest.raises(ConfigError, match=r"images as data have 1 or 3 channels, so take another teacher$"):
        fitted("test", data(ANIMALS, LABELS), spec(4), ANIMALS)
