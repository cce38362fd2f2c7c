"""The network of the data-free generator at many image sizes."""

import pytest
import torch
from torch import nn

from synthkd.generators.inversion_network import DoublingConv2d, GeneratorNetwork
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
    torch.testing.assert_close(network(latent), by_hand, rtol=0, atol=1e-5)


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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3), (4, 5)])
def test_a_doubling_convolution_is_upsampling_and_a_padded_convolution(height: int, width: int) -> None:
    """Values, borders and gradients, in float64; the state dict is that of the convolution."""
    torch.manual_seed(0)
    doubling = DoublingConv2d(3, 4, 3, padding=1).double()
    plain = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1)).double()
    plain[1].load_state_dict(doubling.state_dict())
    maps = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(2, 4, 2 * height, 2 * width, dtype=torch.float64)
    of_plain, of_doubling = plain(maps), doubling(maps)
    torch.testing.assert_close(of_doubling, of_plain, rtol=0, atol=1e-12)
    expected = torch.autograd.grad(of_plain, [maps, *plain.parameters()], slope)
    found = torch.autograd.grad(of_doubling, [maps, *doubling.parameters()], slope)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_in_half_precision_a_map_is_doubled_as_well_as_by_upsampling() -> None:
    generator = torch.Generator().manual_seed(0)
    doubling, maps = DoublingConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 4, 4, generator=generator)
    doubled = nn.Upsample(scale_factor=2)(maps)
    exact = nn.functional.conv2d(doubled, doubling.weight, doubling.bias, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        upsampled = nn.functional.conv2d(doubled, doubling.weight, doubling.bias, padding=1)
        found = doubling(maps)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2 * (upsampled - exact).abs().max() + 1e-3


def test_only_maps_that_are_doubled_exactly_skip_the_upsampling() -> None:
    network = GeneratorNetwork(ImageSpec(1, 225, 33, 4), 5, 1)
    sizes = [layer.size for layer in network.layers if isinstance(layer, nn.Upsample)]
    assert sizes == [(15, 5), (29, 5), (57, 9)]
    assert sum(isinstance(layer, DoublingConv2d) for layer in network.layers) == 2
