"""Classes of one set found among another's: by name, numbers as numbers, and refused where there is no telling."""

import pytest
import torch

from synthkd.data.read.classes import align_labels
from synthkd.errors import DataError

ANIMALS = ("cat", "dog", "owl")


def aligned(labels: list[int], names: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    found = align_labels(torch.tensor(labels), names, known, "ours", "theirs")
    assert found.labels.dtype == torch.int64
    assert found.note == ""
    return found.labels.tolist()


@pytest.mark.parametrize(
    ("labels", "names", "known", "expected"),
    [
        ([0, 1, 2, 0], ANIMALS, ANIMALS, [0, 1, 2, 0]),
        ([0, 1, 2, 0], ("owl", "cat", "dog"), ANIMALS, [2, 0, 1, 2]),
        ([0, 1], ("cat", "owl"), ANIMALS, [0, 2]),  # a class was not generated, so it has no directory
        ([0, 2], ("cat", "yeti", "owl"), ANIMALS, [0, 2]),  # a name without images asks for nothing
        ([0, 1], ("3", "7"), tuple("0123456789"), [3, 7]),
        ([2, 1, 4], ("0", "1", "10", "11", "2"), tuple(map(str, range(12))), [10, 1, 2]),  # sorted as directories are
        ([0, 1], ("00", "01"), ("1", "0"), [1, 0]),
        ([0], ("0",), ("cat", "0"), [1]),  # a name that happens to be a number
    ],
)
def test_classes_are_found_by_name(
    labels: list[int], names: tuple[str, ...], known: tuple[str, ...], expected: list[int]
) -> None:
    assert aligned(labels, names, known) == expected


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (("0", "1", "2"), ANIMALS),
        (ANIMALS, ("0", "1", "2")),
        (("0", "1", "2"), ("a", "b", "c", "d")),  # numbers go no further than the labels of a set
        (("a", "b", "c", "d"), ("0", "1", "2")),
    ],
)
def test_where_one_side_only_numbers_its_classes_numbers_are_taken(
    names: tuple[str, ...], known: tuple[str, ...]
) -> None:
    found = align_labels(torch.tensor([2, 0]), names, known, "ours", "theirs")
    assert found.labels.tolist() == [2, 0]
    assert found.note == "classes taken by number, since only one of ours and theirs names them"


def test_the_names_shown_are_those_that_say_more() -> None:
    named = align_labels(torch.tensor([0]), ANIMALS, tuple("012"), "ours", "theirs")
    assert named.class_names == ANIMALS
    numbered = align_labels(torch.tensor([0]), tuple("01"), ANIMALS, "ours", "theirs")
    assert numbered.class_names == ANIMALS
    some = align_labels(torch.tensor([0]), ("owl",), ANIMALS, "ours", "theirs")
    assert some.class_names == ANIMALS


@pytest.mark.parametrize(
    ("labels", "names", "known", "message"),
    [
        (
            [0, 1],
            ("cat", "yeti"),
            ANIMALS,
            r"^ours has images of classes that theirs does not have: yeti \(it has cat, dog, owl\); name",
        ),
        (
            [0, 3],
            tuple("0123"),
            tuple("012"),
            r"not have: 3 \(it has 0, 1, 2\); name the classes alike",
        ),
        ([0, 3], tuple("0123"), ANIMALS, r"not have: 0, 3 "),
        ([0, 1], ANIMALS[:2], tuple("012"), r"not have: cat, dog "),  # which two of the three, nobody can say
        ([0], ("1", "2", "3"), ANIMALS, r"not have: 1 "),  # counted from 1: not the index of a name
        ([0], ("1", "01"), ("0", "1"), None),
    ],
)
def test_classes_that_the_other_set_lacks_are_refused(
    labels: list[int], names: tuple[str, ...], known: tuple[str, ...], message: str | None
) -> None:
    if message is None:  # two names of one number are names
        assert aligned(labels, names, known) == [1]
        return
    with pytest.raises(DataError, match=message):
        aligned(labels, names, known)


@pytest.mark.parametrize(
    ("names", "expected", "noted"),
    [
        (("1", "2", "3"), [0, 2], True),  # directories that are counted from 1
        (("0", "1", "2"), [0, 2], False),
        (ANIMALS, [0, 2], True),
    ],
)
def test_the_classes_of_a_network_without_names_are_taken_in_order(
    names: tuple[str, ...], expected: list[int], noted: bool
) -> None:
    found = align_labels(torch.tensor([0, 2]), names, tuple("012"), "ours", "theirs", unnamed=True)
    assert (found.labels.tolist(), found.class_names, bool(found.note)) == (expected, names, noted)


def test_fewer_classes_than_a_network_without_names_has_go_by_number() -> None:
    found = align_labels(torch.tensor([0, 1]), ("1", "2"), tuple("012"), "ours", "theirs", unnamed=True)
    assert (found.labels.tolist(), found.note) == ([1, 2], "")
