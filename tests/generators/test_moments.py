"""Moments of BatchNorm inputs that are averaged over rounds."""

import pytest
import torch

from synthkd.generators.moments import MovingMoments
from synthkd.types import BatchNormStatistics


def statistics(mean: float, var: float) -> dict[str, BatchNormStatistics]:
    zero, one = torch.zeros(1), torch.ones(1)
    return {"a": BatchNormStatistics(torch.tensor([mean], requires_grad=True), torch.tensor([var]), zero, one)}


def test_moments_are_an_average_over_rounds_and_survive_a_checkpoint() -> None:
    moments = MovingMoments(0.75, torch.device("cpu"))
    first = moments.averaged(statistics(4.0, 8.0))
    assert (first["a"].mean.item(), first["a"].var.item()) == (4.0, 8.0)
    moments.keep(first)
    again = MovingMoments(0.75, torch.device("cpu"))
    again.load_state_dict(moments.state_dict())
    for one in (moments, again):
        second = one.averaged(statistics(0.0, 4.0))
        assert (second["a"].mean.item(), second["a"].var.item()) == (3.0, 7.0)
        assert torch.autograd.grad(second["a"].mean.sum(), second["a"].mean)[0] == pytest.approx(1.0)
        one.keep(second)
        assert not one.state_dict()["a"][0].requires_grad


def test_without_memory_nothing_is_kept() -> None:
    moments = MovingMoments(0.0, torch.device("cpu"))
    moments.keep(statistics(4.0, 8.0))
    assert not moments.state_dict()
