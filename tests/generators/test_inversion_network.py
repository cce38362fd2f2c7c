"""The network of the data-free generator at many image sizes."""

import pytest
import torch
from torch import nn

from synthkd.generators.inversion_network import GeneratorNetwork
from synthkd.types import ImageSpec


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "start"),
    [
        (8, 8, (2, 2)),
        (16, 16, (4, 4)),
        (28, 28, (7, 7)),
        (30, 17, (8, 5)),
        (32, 32, (8, 8)),
        (33, 33, (5, 5)),
        (64, 64, (8, 8)),
        (96, 96, (6, 6)),
        (75, 100, (5, 7)),
        (224, 224, (7, 7)),
        (225, 33, (8, 5)),
        (256, 256, (8, 8)),
        (32, 256, (8, 8)),
        (20, 256, (5, 8)),
    ],
)
def test_any_image_size_has_a_small_start(height: int, width: int, channels: int, start: tuple[int, int]) -> None:
    spec = ImageSpec(channels, height, width, 4)
    network = GeneratorNetwork(spec, 5, 1).eval()
    assert network.start[1:] == start
    with torch.no_grad():
        assert network(torch.zeros(1, 5)).shape == (1, *spec.shape)


def test_images_up_to_32_pixels_have_the_two_stages_of_the_first_version() -> None:
    network = GeneratorNetwork(ImageSpec(3, 30, 32, 4), 5, 6)
    first = nn.Sequential(
        nn.BatchNorm2d(12),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(12, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(12, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.Conv2d(6, 3, 3, padding=1),
        nn.Sigmoid(),
    )
    first.load_state_dict(network.layers.state_dict())
    latent = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    start = network.project(latent).unflatten(1, (12, 8, 8)).contiguous(memory_format=torch.channels_last)
    by_hand = first(start)[:, :, :30]
    assert torch.equal(network(latent), by_hand)


def test_channels_grow_with_every_halving_up_to_a_limit() -> None:
    network = GeneratorNetwork(ImageSpec(3, 512, 512, 4), 5, 2)
    channels = [layer.out_channels for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert channels == [16, 16, 8, 4, 4, 2, 3]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (225, 131), (32, 256)])
def test_a_latent_vector_reaches_every_pixel_through_every_position_of_the_start(height: int, width: int) -> None:
    network = GeneratorNetwork(ImageSpec(1, height, width, 4), 5, 1).eval()
    hidden = torch.rand(1, *network.start, requires_grad=True)
    network.layers(hidden).sum().backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.abs().sum(1).gt(0).all())
