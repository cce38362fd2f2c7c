"""What lets an image act on more than its own clipped gradient is found on noise and in each pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import ConfigError
from synthkd.privacy.dpsgd import Mechanism, PrivateLearner
from synthkd.privacy.journal import Journal
from synthkd.privacy.own_gradients import require_independent
from synthkd.settings import DPSettings, OptimizerSettings
from synthkd.types import Batch

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")


class Own(nn.Module):
    """A network whose forward is somebody's own code.

    Args:
        between: what it does with the hidden values `[N, 8]` and its training mode.
    """

    def __init__(self, between: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.between = nn.Linear(64, 8), nn.Linear(8, 4), between

    def hidden(self, x: Tensor) -> Tensor:
        return self.between(self.first(x.flatten(1)).relu(), self.training)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.hidden(x))
        return logits


class Flipped(Own):
    """Averages the logits of an image and of its mirror image, two rows of one pass."""

    def forward(self, x: Tensor) -> Tensor:
        image, mirrored = super().forward(torch.cat([x, x.flip(-1)])).chunk(2)
        return (image + mirrored) / 2


class Compared(Own):
    """Subtracts the logits of a vector that is no image's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - self.last(torch.ones(1, 8))


class Twice(Own):
    """Averages the logits of an image and of its mirror image, in two passes."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) + super().forward(x.flip(-1))) / 2


class Idle(Own):
    """Does not use its last layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden(x)[:, :4]


class Counting(Own):
    """Counts its passes in a buffer."""

    def __init__(self, between: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__(between)
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x)


def alone(h: Tensor, _: bool) -> Tensor:
    return h


def dropped(h: Tensor, training: bool) -> Tensor:
    return F.dropout(h, 0.5, training)


def normalized(h: Tensor, training: bool) -> Tensor:
    return (h - h.mean(0)) / (h.std(0, correction=0) + 1e-3) if training else h


def centred(h: Tensor, training: bool) -> Tensor:
    return h - h.mean(0).detach() if training else h


def mixed(h: Tensor, training: bool) -> Tensor:
    return torch.lerp(h, h[torch.randperm(len(h))], 0.3) if training else h


def step(module: nn.Module) -> None:
    mechanism = Mechanism(8, 1.0, 1.0, 1.0, 10, 1e-3, insecure=False)
    optimizer, dp = OptimizerSettings(kind="sgd", lr=1.0), DPSettings(noise_multiplier=1.0)
    learner = PrivateLearner("teacher", module, optimizer, mechanism, dp, torch.device("cpu"), Journal(None))
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    learner.update(lambda: Batch(images, torch.arange(6) % 4), F.cross_entropy, 0)


@pytest.mark.parametrize("between", [normalized, centred, mixed])
@pytest.mark.parametrize("start", ["fresh", "zero"])
def test_a_network_that_mixes_images_in_training_alone_is_refused(
    between: Callable[[Tensor, bool], Tensor], start: str
) -> None:
    module = Own(between)
    if start == "zero":  # as many networks begin: their logits depend on nothing yet
        nn.init.zeros_(module.last.weight)
    with pytest.raises(ConfigError, match="logits of an image change with the other images of its batch"):
        step(module.eval())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Flipped, r"layer first takes an input of \[12, 64\] for 6 images"),
        (Compared, r"layer last takes an input of \[1, 8\] for 6 images"),
        (Idle, "parameter last.weight has no gradient"),
    ],
)
def test_a_network_whose_layers_do_not_take_each_image_once_is_refused(kind: type[Own], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        step(kind(alone))


@pytest.mark.parametrize("module", [Own(dropped), Twice(alone)], ids=["dropout", "two passes"])
def test_chance_and_several_passes_of_an_image_are_taken(module: nn.Module) -> None:
    step(module)


def test_the_trial_leaves_network_and_random_state_as_they_were() -> None:
    module = Counting(dropped)
    before, random = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    require_independent(module, torch.rand(0, 1, 8, 8))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
