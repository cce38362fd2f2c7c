"""The channels that a narrower network takes over from a wider one, the same wherever they are added or multiplied.

Either evenly spaced channels are taken (weight selection, Xu et al. 2024), or similar channels are merged into one
(Model Folding, Wang et al. 2025): the mean of what they give, and the sum of what is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.models.matching import Pair, UnmatchedError
from synthkd.models.structure import PADDED, Node

Nodes = Sequence[Node]
NEW = ("images", "conv", "linear", PADDED)
"""Kinds of nodes whose channels are not those of their input."""


@dataclass(frozen=True)
class Choice:
    """How the channels of one space of the teacher become those of the student.

    Attributes:
        own: channels of the student.
        taken: int64 `[S]`, the teacher's channels that the student takes; None if channels are merged.
        groups: int64 `[T]`, the student's channel for each of the teacher's; None if channels are taken.
    """

    own: int
    taken: Tensor | None = None
    groups: Tensor | None = None

    def outputs(self, values: Tensor) -> Tensor:
        """`[S, ...]` of values `[T, ...]` that give channels: those that are taken, or the means of groups."""
        if self.groups is None:
            return self.inputs(values, dim=0)
        counts = self.groups.bincount(minlength=self.own).to(values)
        return self.inputs(values, dim=0) / counts.view(-1, *[1] * (values.dim() - 1))

    def inputs(self, values: Tensor, dim: int = 1) -> Tensor:
        """Values with T entries along a dimension that work on channels, as S: those that are taken, or sums."""
        if self.groups is None:
            assert self.taken is not None
            return values.index_select(dim, self.taken)
        size = (*values.shape[:dim], self.own, *values.shape[dim + 1 :])
        return values.new_zeros(size).index_add_(dim, self.groups, values)


class Spaces:
    """Nodes of a network by the channels that they share.

    Args:
        nodes: of the network.

    Attributes:
        areas: number of features of each node for each channel of its space; above 1 in flattened maps.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._parents = list(range(len(nodes)))
        self.areas = [1] * len(nodes)
        for number, node in enumerate(nodes):
            if node.kind not in NEW:
                self.areas[number] = self.areas[node.inputs[0]]
                for one in node.inputs:
                    self._parents[self.of(one)] = self.of(number)
            if node.kind == "flatten":
                self.areas[number] *= node.label[1]

    def of(self, number: int) -> int:
        """The space of a node, as the number of one of its nodes."""
        while self._parents[number] != number:
            number = self._parents[number]
        return number


@dataclass(frozen=True)
class Source:
    """The space of the teacher from which a space of the student comes.

    Attributes:
        space: of the teacher.
        own: channels of the student.
        theirs: channels of the teacher.
    """

    space: int
    own: int
    theirs: int


def sources(student: Nodes, teacher: Nodes, pairs: Sequence[Pair]) -> dict[int, Source]:
    """The source of each space of the student.

    Args:
        student, teacher: the networks.
        pairs: of their nodes.

    Raises:
        UnmatchedError: channels that belong together in one network do not in the other.
    """
    own, theirs = Spaces(student), Spaces(teacher)
    by_space: dict[int, Source] = {}
    for pair in pairs:
        area = own.areas[pair.own]
        small, large = student[pair.own].channels // area, teacher[pair.theirs].channels // area
        source = Source(theirs.of(pair.theirs), small, large)
        if area != theirs.areas[pair.theirs] or by_space.setdefault(own.of(pair.own), source) != source:
            raise UnmatchedError("channels that are added up in one network are not in the other")
    return by_space


def evenly(source: Source) -> Choice:
    """Evenly spaced channels."""
    return Choice(source.own, taken=torch.arange(source.own) * source.theirs // source.own)


def groups_of_similar(features: Tensor, count: int) -> Tensor:
    """Numbers int64 `[T]` of `count` groups of similar rows, in the order of their first rows (Ward's method).

    Args:
        features: float `[T, D]`.
        count: of groups, from 1 to T.
    """
    if count == len(features):
        return torch.arange(count)
    from scipy.cluster.hierarchy import cut_tree, linkage

    clusters = torch.from_numpy(cut_tree(linkage(features.numpy(), "ward"), n_clusters=count)[:, 0]).long()
    order = list(dict.fromkeys(clusters.tolist()))
    return torch.tensor([order.index(group) for group in clusters.tolist()])
