"""Initialise a student with the part of its teacher's weights that fits it.

Weight selection (Xu et al. 2024, "Initializing Models with Larger Ones", section 3): of each tensor that both networks
have under the same name, the student takes evenly spaced channels; of a stage with more blocks, the first blocks. One
rule for all layers selects the same channels on both sides of a residual addition.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def inherit(student: nn.Module, teacher: nn.Module) -> int:
    """Copy the teacher's weights that fit into the student, in place.

    A layer of the student is filled if the teacher has a layer of the same class under the same path, with no smaller
    dimension and kernels of the same size. Other layers stay as they are. Nothing is copied if the first layer with
    weights does not fit, since the later ones were trained on its output.

    Args:
        student: freshly initialised.
        teacher: on any device; unchanged.

    Returns:
        Number of the student's parameters that now have the teacher's values; 0 for unlike architectures.
    """
    theirs = dict(teacher.named_modules())
    copied = 0
    # Outputs of the last convolution or linear layer in teacher and student: the channels of a flattened map.
    channels = (1, 1)
    for path, module in student.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        if not size:
            continue
        own, source = _tensors(module), theirs.get(path, nn.Identity())
        chosen = None if type(source) is not type(module) else _chosen(own, _tensors(source), channels)
        if chosen is None:
            if not copied:  # the first layer does not fit
                return 0
            continue
        for name, value in chosen.items():
            own[name].copy_(value)
        copied += size
        if isinstance(module, nn.Conv2d | nn.Linear):
            channels = (_tensors(source)["weight"].shape[0], own["weight"].shape[0])
    return copied


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Floating-point parameters and buffers of a module itself; BatchNorm's counter of batches is left out."""
    both = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: value for name, value in both if value.is_floating_point()}


def _chosen(
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
    chosen: dict[str, Tensor] = {}
    for name, small in own.items():
        large = theirs[name]
        if small.dim() != large.dim() or small.shape[2:] != large.shape[2:]:
            return None
        for dim in range(min(2, small.dim())):
            if small.shape[dim] > large.shape[dim]:
                return None
            rows = _evenly(large.shape[dim], small.shape[dim], channels if dim == 1 else (1, 1))
            large = large.index_select(dim, rows.to(large.device))
        chosen[name] = large.to(small)
    return chosen


def _evenly(large: int, small: int, channels: tuple[int, int]) -> Tensor:
    """Evenly spaced indices; of a flattened map, those of evenly spaced channels with all of their positions."""
    area = small // channels[1]
    if area > 1 and (large, small) == (channels[0] * area, channels[1] * area):
        rows = _evenly(*channels, (1, 1)).unsqueeze(1) * area + torch.arange(area)
        return rows.flatten()
    return torch.arange(small) * large // small
