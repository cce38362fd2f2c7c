"""Which layers of a teacher a student has, by what both compute.

A network is a chain of blocks: a block ends where everything passes through one node. The blocks of the student have to
be those of the teacher in the same order. The teacher may have further residual blocks that keep the shape of their
input; so of a stage with more blocks the student has the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from synthkd.models.structure import IMAGES, PADDED, POINTWISE, SLICED, SYMMETRIC, Node

Nodes = Sequence[Node]
Form = tuple[Any, ...]
SHORTCUT = "shortcut"
"""A projection, or pixels and channels that are left out or added: what is added to a branch in place of its input."""


class UnmatchedError(Exception):
    """Two networks differ in more than width and number of residual blocks."""


@dataclass(frozen=True)
class Pair:
    """A node of the student and the node of the teacher that does the same.

    Attributes:
        own: number of the student's node.
        theirs: number of the teacher's.
        projects: whether the student projects where the teacher leaves out pixels and adds channels.
    """

    own: int
    theirs: int
    projects: bool = False


def match(student: Nodes, teacher: Nodes) -> list[Pair]:
    """The pairs of nodes; each node of the student is in one pair.

    Raises:
        UnmatchedError: the structures differ, or a layer of the student is wider than the teacher's.
    """
    own, theirs = _Graph(student), _Graph(teacher)
    pairs: dict[Pair, None] = {Pair(IMAGES, IMAGES): None}
    place = 0
    for end in own.ends:
        while (form := _form(theirs, place)) != own.form(end, own.start(end)):
            if (after := _skipped(theirs, place)) == place:
                raise UnmatchedError(_difference(own.nodes[end], form))
            place = after
        _pair(own, theirs, end, theirs.ends[place], pairs)
        place += 1
    while (after := _skipped(theirs, place)) != place:
        place = after
    if place < len(theirs.ends):
        raise UnmatchedError("the teacher has further layers")
    if any(student[pair.own].channels > teacher[pair.theirs].channels for pair in pairs):
        raise UnmatchedError("the student has a wider layer")
    return list(pairs)


def _form(graph: _Graph, place: int) -> Form | None:
    """The form of a block; None behind the last."""
    if place == len(graph.ends):
        return None
    end = graph.ends[place]
    return graph.form(end, graph.start(end))


def _difference(own: Node, theirs: Form | None) -> str:
    """Where the structures part, in words."""
    where = f"at the student's {own.kind} that gives {'x'.join(map(str, own.shape))}"
    other = "nothing" if not theirs else "another block" if theirs[0][0] == own.kind else theirs[0][0]
    return f"{where}, the teacher has {other}"


class _Graph:
    """A network as a chain of blocks.

    Attributes:
        nodes: of the network.
        ends: the last node of each block, in order.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.ends: list[int] = []
        self._starts: dict[int, int] = {}
        self._forms: dict[int, Form] = {}
        last_use = list(range(len(nodes)))
        for number, node in enumerate(nodes):
            for one in node.inputs:
                last_use[one] = number
        start, open_until = IMAGES, last_use[IMAGES]
        for number in range(1, len(nodes)):
            self._starts[number] = start
            if open_until <= number:
                self.ends.append(number)
                start = number
            open_until = max(open_until, last_use[number])

    def start(self, number: int) -> int:
        """The end of the block before that of a node: the only node outside of the block that it works on."""
        return self._starts[number]

    def form(self, number: int, start: int) -> Form:
        """What a node does to the start of its block, in nested tuples without numbers of channels."""
        if number == start:
            return ()
        if number not in self._forms:
            node = self.nodes[number]
            self._forms[number] = (node.label, *(form for form, _ in self.inputs(number, start)))
        return self._forms[number]

    def inputs(self, number: int, start: int) -> list[tuple[Form, int]]:
        """The forms of a node's inputs with their numbers, in an order that does not depend on that of execution."""
        node = self.nodes[number]
        forms = [(self.form(one, start), one) for one in node.inputs]
        if node.kind not in SYMMETRIC:
            return forms
        adds = node.kind == "add"
        forms = [((SHORTCUT,) if adds and self._is_shortcut(one, start) else form, one) for form, one in forms]
        return sorted(forms, key=lambda pair: repr(pair[0]))

    def _is_shortcut(self, number: int, start: int) -> bool:
        return self.projection(number, start) is not None or self.is_without_weights(number, start)

    def projection(self, number: int, start: int) -> int | None:
        """The 1x1 convolution of the start whose output, or BatchNorm of it, a node gives; None for other nodes."""
        if number != start and self.nodes[number].kind == "norm":
            number = self.nodes[number].inputs[0]
        node = self.nodes[number]
        is_one = number != start and node.label[:2] == ("conv", (1, 1)) and node.inputs == (start,)
        return number if is_one and node.label[3] == (0, 0) else None

    def is_without_weights(self, number: int, start: int) -> bool:
        """Whether a node adds channels to every n-th pixel of the start."""
        padded = False
        while number != start:
            node = self.nodes[number]
            if node.kind == SLICED and node.label[2] != 0:
                return False
            padded |= node.kind == PADDED
            if node.kind not in (SLICED, PADDED):
                return False
            number = node.inputs[0]
        return padded

    def is_residual(self, end: int) -> bool:
        """Whether a block adds something to its input: without it, later blocks get an input of the same kind."""
        start = self._starts[end]
        return self.nodes[end].kind == "add" and start in self.nodes[end].inputs and self._keeps_shape(end)

    def is_activation(self, end: int) -> bool:
        """Whether a block is an activation alone."""
        return self.nodes[end].kind in POINTWISE and self.nodes[end].inputs == (self._starts[end],)

    def _keeps_shape(self, end: int) -> bool:
        return self.nodes[end].shape == self.nodes[self._starts[end]].shape


def _skipped(teacher: _Graph, place: int) -> int:
    """The place behind a residual block and its activation; the same place if there is none."""
    ends = teacher.ends
    if place == len(ends) or not teacher.is_residual(ends[place]):
        return place
    place += 1
    return place + 1 if place < len(ends) and teacher.is_activation(ends[place]) else place


def _pair(student: _Graph, teacher: _Graph, own: int, theirs: int, pairs: dict[Pair, None]) -> None:
    """Add the pairs of two nodes of one form, and of all that they depend on within their blocks."""
    starts = student.start(own), teacher.start(theirs)
    waiting = [(own, theirs)]
    while waiting:
        own, theirs = waiting.pop()
        if Pair(own, theirs) in pairs or (own, theirs) == starts:
            continue
        pairs[Pair(own, theirs)] = None
        inputs = zip(student.inputs(own, starts[0]), teacher.inputs(theirs, starts[1]), strict=True)
        for (form, one), (_, other) in inputs:
            if form == (SHORTCUT,) and student.form(one, starts[0]) != teacher.form(other, starts[1]):
                pairs[_shortcuts(student, teacher, one, other, starts)] = None
            else:
                waiting.append((one, other))


def _shortcuts(student: _Graph, teacher: _Graph, own: int, theirs: int, starts: tuple[int, int]) -> Pair:
    """The pair of a projection and of a shortcut without weights."""
    if student.projection(own, starts[0]) is None or not teacher.is_without_weights(theirs, starts[1]):
        raise UnmatchedError("other shortcuts")
    return Pair(own, theirs, projects=True)
