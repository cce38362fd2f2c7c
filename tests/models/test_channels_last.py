"""A network in channels_last is the same network, however often it is put there."""

import pytest
import torch
from torch import nn

from synthkd.models import Classifier, build
from synthkd.models.channels_last import channels_last, take_channels_last
from synthkd.models.folding import fold_batch_norm
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_outputs_stay_and_hooks_are_set_once() -> None:
    torch.manual_seed(0)
    network = build(ZooModel(arch="resnet", width=4, depth=8), ImageSpec(3, 16, 16, 5)).eval()
    images = torch.rand(2, 3, 16, 16)
    before = network(images)
    assert channels_last(network) is network
    count = hooks(network)
    assert count == 2 * 2, "before and after each of the two shortcuts with a stride"
    channels_last(network)
    assert hooks(network) == count
    torch.testing.assert_close(network(images), before)


def test_weights_of_five_dimensions_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 2, 1)).eval()
    images = torch.rand(2, 3, 6, 6)
    before = network(images)
    channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[2].weight.is_contiguous()
    torch.testing.assert_close(network(images), before)


class Viewing(nn.Module):
    """LeNet as it is taught: its map is flattened by `view`, which goes by the order of the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 5, padding=2), nn.Conv2d(6, 16, 1, stride=2)
        self.last = nn.Linear(16 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.second(torch.relu(self.first(images)))
        return self.last(maps.view(maps.size(0), -1))


def test_a_network_that_views_its_maps_stays_in_their_order() -> None:
    torch.manual_seed(0)
    network = Classifier(Viewing(), ImageSpec(3, 8, 8, 10))
    images = torch.rand(4, 3, 8, 8)
    before = network(images)
    for _ in range(2):
        channels_last(network)
        given = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        torch.testing.assert_close(network(given), before)
        network(given).sum().backward()
    assert network.training
    folded = fold_batch_norm(network)
    torch.testing.assert_close(folded(images.contiguous(memory_format=torch.channels_last)), before)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_that_views_its_images_takes_those_of_a_generator(channels: int) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4 * 64, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.conv(images.view(len(images), channels, 8, 8))
            return self.last(maps.view(len(maps), -1))

    network = Classifier(Flat(), ImageSpec(channels, 8, 8, 10)).eval()
    images = torch.empty(2, channels, 8, 8, memory_format=torch.channels_last).fill_(0.5)
    take_channels_last(network)
    assert network(images).shape == (2, 10)
