"""The order in which the classes of a dataset are sampled."""

import pytest
import torch

from synthkd.pipelines.dataset.sampling import in_turns
from synthkd.types import balanced_labels


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_balanced_dataset_has_the_labels_that_fill_up_its_last_chunk(classes: int) -> None:
    assert torch.equal(in_turns([2] * classes), balanced_labels(2 * classes, 0, classes))


def test_each_class_has_its_count() -> None:
    counts = [label % 3 for label in range(1000)]
    assert in_turns(counts).bincount(minlength=1000).tolist() == counts
    assert in_turns([1, 3, 0, 2]).tolist() == [0, 1, 3, 1, 3, 1]
