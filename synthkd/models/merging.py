"""Merge similar channels of a teacher (Model Folding, Wang et al. 2025, section 3).

Channels are compared by all weights that give them, each with its BatchNorm. Zero channels around those of a shortcut
without weights keep their place: the channels between them are merged as those of the shortcut's input are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synthkd.models.channels import Choice, Nodes, Source, Spaces, groups_of_similar
from synthkd.models.matching import Pair, UnmatchedError
from synthkd.models.structure import PADDED, Node

GIVING = ("conv", "linear", "depthwise")
"""Kinds of nodes whose weights give channels."""


def merged(student: Nodes, teacher: Nodes, pairs: Sequence[Pair], spaces: Mapping[int, Source]) -> dict[int, Choice]:
    """Groups of similar channels of each space of the student.

    Args:
        student, teacher: the networks.
        pairs: of their nodes.
        spaces: of the student, with their sources.

    Raises:
        UnmatchedError: there are other zero channels around a shortcut than can be merged.
    """
    own = Spaces(student)
    features: dict[int, list[Tensor]] = {}
    inside: dict[int, Pair] = {}
    for pair in pairs:
        space = own.of(pair.own)
        if teacher[pair.theirs].kind in GIVING and not pair.projects:
            features.setdefault(space, []).append(_features(teacher, pair.theirs))
        if student[pair.own].kind == PADDED:
            inside[space] = pair
    done: dict[int, Tensor] = {}

    def groups(space: int) -> Tensor:
        source = spaces[space]
        if space in done or source.own == source.theirs:
            return done.get(space, torch.arange(source.own))
        rows = torch.cat(features[space], dim=1) if space in features else torch.zeros(source.theirs, 1)
        if space not in inside:
            done[space] = groups_of_similar(rows, source.own)
            return done[space]
        pair = inside[space]
        inner = groups(own.of(student[pair.own].inputs[0]))
        before, theirs = student[pair.own].before, teacher[pair.theirs].before
        ends = before + int(inner.max()) + 1, theirs + len(inner)
        parts = [(rows[:theirs], before), (rows[ends[1] :], source.own - ends[0])]
        if any((count == 0) != (len(part) == 0) or count > len(part) for part, count in parts):
            raise UnmatchedError("other zero channels around a shortcut")
        first, last = (groups_of_similar(part, count) if count else torch.arange(0) for part, count in parts)
        done[space] = torch.cat([first, inner + before, last + ends[0]])
        return done[space]

    return {space: Choice(spaces[space].own, groups=groups(space)) for space in spaces}


def _features(teacher: Nodes, number: int) -> Tensor:
    """What tells the channels of a layer apart, float64 `[T, D]`: weights as its BatchNorm scales them, and the shift.

    The mean square over the layer is 1, so that each layer that gives the same channels counts alike.
    """
    weights = double(teacher[number].weights)
    rows = weights["weight"].flatten(1)
    shift = weights.get("bias", torch.zeros(len(rows), dtype=torch.float64))
    norm = norm_behind(teacher, number)
    if norm is not None:
        scale, mean, bias = affine(norm)
        rows, shift = rows * scale[:, None], (shift - mean) * scale + bias
    rows = torch.cat([rows, shift[:, None]], dim=1)
    return rows / rows.square().mean().sqrt().clamp_min(1e-12)


def norm_behind(nodes: Nodes, number: int) -> Node | None:
    """The BatchNorm that alone works on the output of a layer, or None."""
    users = [node for node in nodes if number in node.inputs]
    return users[0] if len(users) == 1 and users[0].kind == "norm" else None


def affine(norm: Node) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, mean and shift, float64 `[C]`: a BatchNorm gives `(x - mean) * scale + shift` in eval mode."""
    weights = double(norm.weights)
    mean, var = weights["running_mean"], weights["running_var"]
    scale = weights.get("weight", torch.ones_like(var)) / (var + norm.eps).sqrt()
    return scale, mean, weights.get("bias", torch.zeros_like(mean))


def double(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in float64 on the CPU."""
    return {name: value.detach().double().cpu().contiguous() for name, value in weights.items()}
