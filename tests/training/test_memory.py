"""Batch sizes that adapt to the memory at hand."""

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from synthkd.losses.objective import Loss
from synthkd.models import build
from synthkd.settings import OptimizerSettings, ZooModel
from synthkd.training.learner import Learner
from synthkd.training.memory import TensorBytes, fitting_batch_size, need_of, restored
from synthkd.types import ImageSpec


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_batch_that_fits_is_kept_and_the_trial_leaves_nothing_behind(ema: float) -> None:
    spec = ImageSpec(1, 8, 8, 3)
    settings = OptimizerSettings(kind="adam", lr=0.1, ema=ema)
    learner = Learner("student", build(ZooModel(arch="convnet", width=4), spec), settings, 4, Accelerator(cpu=True))

    def step(batch_size: int) -> torch.Tensor:
        torch.rand(())
        total = learner.model.train()(torch.ones(batch_size, *spec.shape)).square().sum()
        learner.update(Loss(total, {"sum": total}), 0)
        return total.detach()

    before = {name: value.clone() for name, value in learner.module.state_dict().items()}
    average = {name: value.clone() for name, value in learner.evaluated.state_dict().items()}
    random = torch.get_rng_state()
    with restored([learner]):
        assert fitting_batch_size(64, step) == 64
        assert not torch.equal(step(64), step(64)), "a trial trains"
    assert all(torch.equal(value, before[name]) for name, value in learner.module.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in learner.evaluated.state_dict().items())
    assert not learner.state_dict()["optimizer"]["state"], "no moments are left"
    assert torch.equal(torch.get_rng_state(), random)


def test_what_a_trial_changed_is_restored_when_it_fails() -> None:
    class Part:
        def __init__(self) -> None:
            self.values = [1.0]

        def state_dict(self) -> dict[str, list[float]]:
            return {"values": self.values}

        def load_state_dict(self, state: dict[str, list[float]]) -> None:
            self.values = state["values"]

    part = Part()

    def fail() -> None:
        part.values.append(2.0)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"), restored([part]):
        fail()
    assert part.values == [1.0]


def test_a_batch_that_does_not_fit_is_reduced_until_it_does() -> None:
    tried = []

    def attempt(batch_size: int) -> None:
        tried.append(batch_size)
        if batch_size > 20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    assert fitting_batch_size(100, attempt) == tried[-1] <= 20
    assert tried == sorted(tried, reverse=True)


@pytest.mark.parametrize("message", ["could not create a primitive", "std::bad_alloc"])
def test_what_libraries_say_when_memory_runs_out_reduces_the_batch(message: str) -> None:
    def attempt(batch_size: int) -> None:
        if batch_size > 5:
            raise RuntimeError(message)

    assert fitting_batch_size(8, attempt) == 5


def test_other_errors_are_not_swallowed() -> None:
    def attempt(_: int) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        fitting_batch_size(8, attempt)


class TestTensorBytes:
    def test_views_and_results_in_place_take_nothing_and_what_is_dropped_is_free_again(self) -> None:
        outside = torch.zeros(1000)
        with TensorBytes(torch.device("cpu")) as tensors:
            inside = outside * 2
            view = inside.view(10, 100)
            outside.add_(1.0)
            inside.mul_(2.0)
            assert tensors.live == 4000
            del inside
            assert tensors.live == 4000, "the view holds it"
            del view
            assert tensors.live == 0
        assert max(tensors.timeline) == 4000

    def test_what_autograd_saves_counts_until_the_backward_pass(self) -> None:
        x = torch.zeros(100, requires_grad=True)
        with TensorBytes(torch.device("cpu")) as tensors:
            y = (x * 1.0).exp().sum()
            assert tensors.live == 400 + 4, "exp saves its result"
            y.backward()  # type: ignore[no-untyped-call]
            del y
        assert tensors.live == 400, "the gradient of x"


def test_the_memory_of_a_batch_in_closed_form() -> None:
    """Two linear layers without bias, N images of 100 pixels.

    The most is needed in the backward pass of the ReLU: its 200 N results, their gradients and those of its inputs,
    beside the gradients of the last weights, the sum and its gradient. The gradients of all weights stay.
    """
    first, last = nn.Linear(100, 200, bias=False), nn.Linear(200, 3, bias=False)
    network = nn.Sequential(first, nn.ReLU(), last)
    images = {count: torch.zeros(count, 100) for count in (2, 4, 50, 5000)}

    def prepare(count: int) -> Callable[[], object]:
        network.zero_grad()
        return lambda: network(images[count]).sum().backward()

    weights = 4 * (100 * 200 + 200 * 3)
    for count in (50, 5000):
        need = need_of(prepare, count, torch.device("cpu"))
        assert need.lasting == weights
        run = prepare(count)
        with TensorBytes(torch.device("cpu")) as tensors:
            run()
        assert need.peak == max(tensors.timeline), "told from 2 and 4 images as it is"
    assert need.peak == 4 * (3 * 200 * 5000 + 200 * 3 + 2)


def test_trials_of_other_operations_are_compared_by_their_peaks() -> None:
    def prepare(count: int) -> Callable[[], object]:
        return lambda: [torch.zeros(count * 100) for _ in range(count)]

    assert need_of(prepare, 6, torch.device("cpu")).peak == 4 * (200 * 2 + (400 * 4 - 200 * 2) * 2)
