"""Initialise a student with the part of its teacher's weights that fits it.

Weight selection (Xu et al. 2024, "Initializing Models with Larger Ones", section 3): of each tensor that both networks
have under the same name, the student takes evenly spaced channels; of a stage with more blocks, the first blocks. All
layers have the same rule, so both sides of a residual addition have the same channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> int:
    """Copy the teacher's weights that fit into the student, in place.

    A layer of the student is filled if the teacher has a layer of the same class under the same path, with no smaller
    dimension and kernels of the same size. Other layers stay as they are.

    Args:
        student: freshly initialised.
        teacher: on any device; unchanged.

    Returns:
        Number of the student's parameters that now have the teacher's values; 0 if the first layer does not fit.
    """
    theirs = dict(teacher.named_modules())
    count = 0
    # Outputs of the last convolution or linear layer in teacher and student: the channels of a flattened map.
    channels = (1, 1)
    for path, module in student.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        if not size:
            continue
        own, source = _tensors(module), theirs.get(path, nn.Identity())
        values = None if type(source) is not type(module) else _select(own, _tensors(source), channels)
        if values is None:
            # If this is the first layer with weights, nothing is copied: the later ones were trained on its output.
            if not count:
                return 0
            continue
        for name, value in values.items():
            own[name].copy_(value)
        count += size
        if isinstance(module, nn.Conv2d | nn.Linear):
            channels = (_tensors(source)["weight"].shape[0], own["weight"].shape[0])
    return count


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters and buffers of a module itself; BatchNorm's counter of batches is left out."""
    both = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: value for name, value in both if value.is_floating_point()}


def _select(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], channels: tuple[int, int]
) -> dict[str, Tensor] | None:
    """The teacher's values for each tensor of the student; None if they do not fit.

    Args:
        own: tensors of the student's module.
        theirs: tensors of the teacher's module.
        channels: outputs of the layer before, in teacher and student.
    """
    if own.keys() != theirs.keys():
        return None
    values: dict[str, Tensor] = {}
    for name, small in own.items():
        large = theirs[name]
        if small.dim() != large.dim() or small.shape[2:] != large.shape[2:]:
            return None
        # Dimension 0 is outputs and dimension 1 inputs; kernels (2 and 3) are not cut.
        for dim in range(min(2, small.dim())):
            if small.shape[dim] > large.shape[dim]:
                return None
            rows = _evenly(large.shape[dim], small.shape[dim], channels if dim == 1 else (1, 1))
            large = large.index_select(dim, rows.to(large.device))
        values[name] = large.to(small)
    return values


def _evenly(large: int, small: int, channels: tuple[int, int]) -> Tensor:
    """Evenly spaced indices; of a flattened map, those of evenly spaced channels with all of their positions."""
    # A linear layer after a flattened map has `area` inputs for each channel, which belong together.
    area = small // channels[1]
    if area > 1 and (large, small) == (channels[0] * area, channels[1] * area):
        rows = _evenly(*channels, (1, 1)).unsqueeze(1) * area + torch.arange(area)
        return rows.flatten()
    return torch.arange(small) * large // small
