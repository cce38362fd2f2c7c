"""Networks in the memory order in which convolutions are quick, without the one kernel that writes where it may not.

oneDNN's backward pass by the weights of a 1x1 convolution with a stride copies the positions it needs to a workspace.
For images in channels_last that has room for as many channels as there are, and is filled at steps of a whole vector
(8 channels with AVX2, 16 with AVX-512). With fewer channels than that, and a map too large for one piece (AVX2: from
8x8 on, AVX-512: from 64x64 on), it writes behind the end: wrong gradients, a hang, or an abort ("corrupted
double-linked list"). https://github.com/uxlfoundation/oneDNN/issues/6035
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

VECTOR = 16
"""float32 numbers of the widest vector; layers that read fewer channels are kept away from that kernel."""

Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network) -> Network:
    """Put a network into channels_last, in place; its answers and gradients are the same numbers.

    On a CPU, where weights learn, a strided 1x1 convolution of few channels works in the contiguous order inside.
    """
    network.to(memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and max(layer.stride) > 1:
            # a clone: of a 1x1 kernel `contiguous` says that it is so already
            layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
            layer.register_forward_pre_hook(_contiguous)
            layer.register_forward_hook(_channels_last)
    return network


def _contiguous(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:]) if _at_risk(layer, args[0]) else args


def _channels_last(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.contiguous(memory_format=torch.channels_last) if _at_risk(layer, args[0]) else output


def _at_risk(layer: nn.Module, images: Tensor) -> bool:
    # asked at each pass: a network may run at a part of its width, or frozen
    weight = layer.weight
    assert isinstance(weight, Tensor)
    learns = torch.is_grad_enabled() and weight.requires_grad
    return learns and images.device.type == "cpu" and images.shape[1] < VECTOR
