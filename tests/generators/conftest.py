"""Small teachers that have learned real digits."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from synthkd.data.read.real import channel_statistics, load_splits
from synthkd.data.read.splits import Splits
from synthkd.models import Classifier, build
from synthkd.settings import DigitsData, ZooModel
from synthkd.types import Round, TrainableGenerator


@pytest.fixture(scope="module")
def digits() -> Splits:
    """Real digits, some of them held out."""
    return load_splits(DigitsData(kind="digits"))


@pytest.fixture(scope="module")
def taught() -> Callable[[ZooModel, float], Classifier]:
    """(architecture, learning rate) -> a teacher after 120 steps on digits, in eval mode."""

    def make(settings: ZooModel, lr: float) -> Classifier:
        train = load_splits(DigitsData(kind="digits")).train
        torch.manual_seed(0)
        model = build(settings, train.spec, *channel_statistics(train.images), class_names=train.class_names)
        optimizer = torch.optim.AdamW(model.parameters(), lr)
        for step in range(120):
            rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(step))[:64]
            loss = nn.functional.cross_entropy(model(train.images[rows].float() / 255), train.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return model.eval()

    return make


@pytest.fixture(scope="module")
def teacher(taught: Callable[[ZooModel, float], Classifier]) -> Classifier:
    """A teacher with BatchNorm."""
    return taught(ZooModel(arch="convnet", width=8), 1e-2)


@pytest.fixture(scope="session")
def resumed_rounds() -> Callable[[Callable[[], TrainableGenerator]], list[Round]]:
    """Two rounds, a new generator with their state, two more: as four without a break, which are given back."""

    def check(make: Callable[[], TrainableGenerator]) -> list[Round]:
        straight, first, second = (make() for _ in range(3))
        expected = [straight.round(i, 0.3) for i in range(4)]
        for i in range(2):
            first.round(i, 0.3)
        second.load_state_dict(first.state_dict())
        for i in (2, 3):
            made = second.round(i, 0.3)
            assert torch.equal(made.images, expected[i].images)
            assert made.terms == expected[i].terms
        return expected

    return check
