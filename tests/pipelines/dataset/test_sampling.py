"""The order in which the classes of a dataset are sampled, and how processes wait for each other."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synthkd.data.written.filters import Sieve
from synthkd.pipelines.dataset import sampling
from synthkd.pipelines.dataset.sampling import in_turns
from synthkd.system.shares import Shares
from synthkd.types import balanced_labels


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_balanced_dataset_has_the_labels_that_fill_up_its_last_chunk(classes: int) -> None:
    assert torch.equal(in_turns([2] * classes), balanced_labels(2 * classes, 0, classes))


def test_each_class_has_its_count() -> None:
    counts = [label % 3 for label in range(1000)]
    assert in_turns(counts).bincount(minlength=1000).tolist() == counts
    assert in_turns([1, 3, 0, 2]).tolist() == [0, 1, 3, 1, 3, 1]


class Alone:
    """The accelerator of one process."""

    num_processes, process_index, is_main_process = 1, 0, True


def test_processes_wait_for_each_other_in_the_group_that_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    class Waiting(Shares):
        def values(self, mine: object) -> list[object]:
            waited.append(mine)
            return [mine]

    monkeypatch.setattr(sampling, "shares", Waiting)
    store: Any = SimpleNamespace(spans=lambda: [(0, 10)])
    sampler: Any = SimpleNamespace(real=None)
    job: Any = Alone()
    sampling.Sampling(sampler, store, Sieve([1] * 10), tuple("0123456789"), 64, job)._fill(
        0, torch.arange(10), "a title"
    )
    assert waited == [None]
