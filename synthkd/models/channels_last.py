"""Networks in channels_last, the memory order in which convolutions are fast, without a faulty kernel of oneDNN.

For the gradient by the weights of a 1x1 convolution with a stride, oneDNN copies the positions it needs to a workspace.
For images in channels_last the workspace has room for the layer's channels, but it is filled in steps of a whole vector
(8 channels with AVX2, 16 with AVX-512). With fewer channels, and a map too large for one piece (AVX2: from 8x8 on,
AVX-512: from 64x64 on), the kernel writes beyond the end: wrong gradients, a hang, or an abort ("corrupted
double-linked list"). https://github.com/uxlfoundation/oneDNN/issues/6035
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from synthkd.taps import evaluating
from synthkd.types import ImageSpec

VECTOR = 16
"""float32 numbers in the widest vector; layers with fewer input channels must avoid that kernel."""

Network = TypeVar("Network", bound=nn.Module)


def frozen_channels_last(network: Network) -> Network:
    """Put a network that is not trained into channels_last, in place, and return it.

    Weights of other than four dimensions, as a 3D convolution has, stay as they are. So does a classifier whose own
    code reads maps in the contiguous order, as `maps.view(len(maps), -1)` does.
    """
    # `network.to` fails at weights of five dimensions.
    weights = [value for value in (*network.parameters(), *network.buffers()) if value.dim() == 4]
    for value in weights:
        value.data = value.data.to(memory_format=torch.channels_last)
    if not _runs(network):
        for value in weights:
            # A clone: a 1x1 kernel counts as contiguous in both orders, so `contiguous` would change nothing.
            value.data = value.data.clone(memory_format=torch.contiguous_format)
        _give_contiguous(network)
    return network


def take_channels_last(network: nn.Module) -> None:
    """Let a classifier take images in channels_last, as generators make them, also if its own code views its maps."""
    if not _runs(network):
        _give_contiguous(network)


def _give_contiguous(network: nn.Module) -> None:
    if not _gets_contiguous(network):
        network.get_submodule("body").register_forward_pre_hook(_all_contiguous)


def _gets_contiguous(network: nn.Module) -> bool:
    body = network._modules.get("body")
    return body is not None and _all_contiguous in body._forward_pre_hooks.values()


def _runs(network: nn.Module) -> bool:
    """Whether a classifier takes two images in channels_last; True for a network that does not tell its images."""
    spec = getattr(network, "spec", None)
    weight = next(network.parameters(), None)
    if not isinstance(spec, ImageSpec) or weight is None or "body" not in network._modules:
        return True
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(network):
            # `contiguous` would leave the order of images of one channel.
            images = torch.empty(2, *spec.shape, device=weight.device, memory_format=torch.channels_last)
            network(images.zero_())
    except Exception:  # of other people's code; what it says in the contiguous order counts
        return False
    return True


def channels_last(network: Network) -> Network:
    """Put a network into channels_last, in place, and return it; outputs and gradients stay the same numbers.

    While their weights are trained on a CPU, strided 1x1 convolutions of few channels run in the contiguous order.
    """
    frozen_channels_last(network)
    if _gets_contiguous(network):
        return network
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and max(layer.stride) > 1:
            layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
            # A teacher may be prepared twice, or be a copy that has the hooks already.
            if _contiguous not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_contiguous)
                layer.register_forward_hook(_channels_last)
    return network


def _all_contiguous(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in args)


def _contiguous(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:]) if _at_risk(layer, args[0]) else args


def _channels_last(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.contiguous(memory_format=torch.channels_last) if _at_risk(layer, args[0]) else output


HOOKS = (_all_contiguous, _contiguous, _channels_last)
"""The hooks that a layer may have from here: they change the memory order and no value."""


def _at_risk(layer: nn.Module, images: Tensor) -> bool:
    # Decided in each pass, since a network may be frozen or run at a part of its width.
    weight = layer.weight
    assert isinstance(weight, Tensor)
    learns = torch.is_grad_enabled() and weight.requires_grad
    return learns and images.device.type == "cpu" and images.shape[1] < VECTOR
