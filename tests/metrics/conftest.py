"""A small teacher for the tests of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from synthkd.models import Classifier, build_model
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec


@pytest.fixture
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def train_norms() -> Callable[[nn.Module], None]:
    """Sets BatchNorm layers as after training; without it folding them would change nothing."""
    return _train_norms


def _train_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)


@pytest.fixture
def teacher() -> Classifier:
    spec = ImageSpec(1, 12, 12, 4)
    model = build_model(ZooModel(arch="resnet", width=4, depth=8), spec, (0.3,), (0.2,))
    _train_norms(model)
    return model
