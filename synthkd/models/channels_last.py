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

VECTOR = 16
"""float32 numbers in the widest vector; layers with fewer input channels must avoid that kernel."""

Network = TypeVar("Network", bound=nn.Module)


def frozen_channels_last(network: Network) -> Network:
    """Put a network that is not trained into channels_last, in place, and return it.

    Weights of other than four dimensions, as a 3D convolution has, stay as they are.
    """
    # `network.to` fails at weights of five dimensions.
    for value in (*network.parameters(), *network.buffers()):
        if value.dim() == 4:
            value.data = value.data.to(memory_format=torch.channels_last)
    return network


def channels_last(network: Network) -> Network:
    """Put a network into channels_last, in place, and return it; outputs and gradients stay the same numbers.

    While their weights are trained on a CPU, strided 1x1 convolutions of few channels run in the contiguous order.
    """
    for layer in frozen_channels_last(network).modules():
        if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and max(layer.stride) > 1:
            # A clone: a 1x1 kernel counts as contiguous in both orders, so `contiguous` would change nothing.
            layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
            # A teacher may be prepared twice, or be a copy that has the hooks already.
            if _contiguous not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_contiguous)
                layer.register_forward_hook(_channels_last)
    return network


def _contiguous(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:]) if _at_risk(layer, args[0]) else args


def _channels_last(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.contiguous(memory_format=torch.channels_last) if _at_risk(layer, args[0]) else output


HOOKS = (_contiguous, _channels_last)
"""The hooks that a layer may have from here: they change the memory order and no value."""


def _at_risk(layer: nn.Module, images: Tensor) -> bool:
    # Decided in each pass, since a network may be frozen or run at a part of its width.
    weight = layer.weight
    assert isinstance(weight, Tensor)
    learns = torch.is_grad_enabled() and weight.requires_grad
    return learns and images.device.type == "cpu" and images.shape[1] < VECTOR
