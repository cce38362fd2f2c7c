"""Initialise a student with the part of its teacher's weights that fits it.

Weight selection (Xu et al. 2024, "Initializing Models with Larger Ones", section 3): of each tensor the student takes
evenly spaced channels; of a stage with more blocks, the first blocks. All layers have the same rule, so both sides of a
residual addition have the same channels. Layers are found by module path, or else by what both networks compute
(`synthkd.models.matching`). Instead of taking channels, similar ones can be merged (`synthkd.models.merging`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from synthkd.models.classifier import Classifier, parameters
from synthkd.models.filling import fill, filling
from synthkd.models.matching import UnmatchedError
from synthkd.rng import stream

NOISE = 64
"""Images of noise for the statistics of new shortcuts, where no others are given."""


@dataclass(frozen=True)
class Inherited:
    """What a student has from its teacher.

    Attributes:
        parameters: number of its parameters that have values of the teacher.
        by: how its layers were found: by "path" or by "structure"; "" if none was.
        why: why they were not found by structure; empty if they were, or if it was not tried.
    """

    parameters: int = 0
    by: Literal["path", "structure", ""] = ""
    why: str = ""


@torch.no_grad()
def inherit(
    student: nn.Module, teacher: nn.Module, merge: bool = False, images: Callable[[], Tensor] | None = None
) -> Inherited:
    """Copy the teacher's weights that fit into the student, in place.

    A layer of the student is filled if the teacher has a layer of the same class under the same path, with no smaller
    dimension and kernels of the same size. If that would leave layers of a classifier as they are, and both classifiers
    compute the same but for widths and residual blocks, all of its layers are filled.

    Args:
        student: freshly initialised.
        teacher: on any device; unchanged.
        merge: merge similar channels instead of taking evenly spaced ones; by structure alone.
        images: gives float32 `[N, C, H, W]` in [0, 1], for the statistics behind a projection in place of a shortcut
            without weights; None: noise.
    """
    by_path, count = ([], 0) if merge else _by_path(student, teacher)
    why = ""
    if count < parameters(student) and isinstance(student, Classifier) and isinstance(teacher, Classifier):
        try:
            values = filling(student, teacher, merge)
        except UnmatchedError as error:
            why = str(error)
        else:
            fill(student, values, images or partial(_noise, student))
            return Inherited(values.parameters, "structure")
    for own, value in by_path:
        own.copy_(value)
    return Inherited(count, "path" if count else "", why)


def _noise(student: Classifier) -> Tensor:
    return torch.rand(NOISE, *student.spec.shape, generator=stream(0, "inheritance"))


def _by_path(student: nn.Module, teacher: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """The student's tensors that fit those of the teacher under their paths with their values, and their parameters."""
    theirs = dict(teacher.named_modules())
    assigned: list[tuple[Tensor, Tensor]] = []
    count = 0
    # Channels of the map that a linear layer may flatten, in teacher and student; (1, 1): of no map.
    channels = (1, 1)
    for path, module in student.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        if not size:
            continue
        own, source = _tensors(module), theirs.get(path, nn.Identity())
        flattened = channels if isinstance(module, nn.Linear) else (1, 1)
        values = _select(own, _tensors(source), flattened) if _are_alike(module, source) else None
        if values is None:
            # If this is the first layer with weights, nothing is copied: the later ones were trained on its output.
            if not count:
                return [], 0
            continue
        assigned += [(own[name], value) for name, value in values.items()]
        count += size
        width = own["weight"].shape[0] if "weight" in own and own["weight"].dim() else 1
        if isinstance(module, nn.Conv2d):
            channels = (_tensors(source)["weight"].shape[0], width)
        elif isinstance(module, nn.Linear) or width not in (1, channels[1]):  # of another map, as where maps are joined
            channels = (1, 1)
    return assigned, count


def _are_alike(module: nn.Module, source: nn.Module) -> bool:
    """Whether two layers are of one class and, if they convolve in groups, read the same share of the channels."""
    if type(source) is not type(module):
        return False
    if not (isinstance(module, nn.Conv2d) and isinstance(source, nn.Conv2d)):
        return True
    are_depthwise = module.groups == module.in_channels > 1 and source.groups == source.in_channels > 1
    return source.groups == module.groups or are_depthwise


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
        channels: of the map that the module flattens, in teacher and student; (1, 1): of none.
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
