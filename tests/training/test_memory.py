"""Batch sizes that adapt to the memory at hand."""

import pytest
import torch

from synthkd.models import build
from synthkd.settings import ZooModel
from synthkd.training.memory import fitting_batch_size, training_step
from synthkd.types import ImageSpec


def test_a_batch_that_fits_is_kept() -> None:
    spec = ImageSpec(1, 8, 8, 3)
    student = build(ZooModel(arch="convnet", width=4), spec)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    assert fitting_batch_size(64, training_step(student, spec, torch.device("cpu"))) == 64
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_a_batch_that_does_not_fit_is_reduced_until_it_does() -> None:
    tried = []

    def attempt(batch_size: int) -> None:
        tried.append(batch_size)
        if batch_size > 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    assert fitting_batch_size(100, attempt) == tried[-1] <= 20
    assert tried == sorted(tried, reverse=True)


def test_other_errors_are_not_swallowed() -> None:
    def attempt(_: int) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fitting_batch_size(8, attempt)
