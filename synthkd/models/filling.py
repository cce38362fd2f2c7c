"""A student's weights from those of a teacher with the same structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.models.channels import Choice, Nodes, Spaces, evenly, sources
from synthkd.models.classifier import Classifier
from synthkd.models.matching import Pair, UnmatchedError, match
from synthkd.models.merging import GIVING, affine, double, merged, norm_behind
from synthkd.models.structure import IMAGES, PADDED, SLICED, Node, UnclearError, structure
from synthkd.system.text import first_line
from synthkd.taps import evaluating, observe

TINY = 1e-30


@dataclass(frozen=True)
class Filling:
    """Values for all of a student's weights.

    Attributes:
        values: the student's tensors whose values come from the teacher's, each with its value.
        shortcuts: those of projections where the teacher's shortcuts have no weights.
        means: the running means of BatchNorm layers behind such projections.
    """

    values: Sequence[tuple[Tensor, Tensor]]
    shortcuts: Sequence[tuple[Tensor, Tensor]]
    means: Sequence[Tensor]

    @property
    def parameters(self) -> int:
        """Number of the student's parameters that come from the teacher's."""
        return sum(own.numel() for own, _ in self.values if isinstance(own, nn.Parameter))


def filling(student: Classifier, teacher: Classifier, merge: bool) -> Filling:
    """The values of a student by structure; nothing is copied yet.

    Args:
        student, teacher: of the same images.
        merge: merge similar channels instead of taking evenly spaced ones.

    Raises:
        UnmatchedError: the structures differ or cannot be seen; with the reason in words.
    """
    own, theirs = _nodes(student, "student"), _nodes(teacher, "teacher")
    pairs = match(own, theirs)
    spaces = sources(own, theirs, pairs)
    if merge:
        choices = merged(own, theirs, pairs, spaces)
    else:
        choices = {space: evenly(source) for space, source in spaces.items()}
    return _Filler(own, theirs, choices, merge).fill(pairs)


def _nodes(network: Classifier, who: str) -> Nodes:
    device = network.normalize.mean.device
    try:
        return structure(network.body, torch.rand(1, *network.spec.shape, device=device))
    except UnclearError as error:
        raise UnmatchedError(f"the {who} cannot be followed: {error}") from error
    except Exception as error:  # other people's code may refuse to run under PyTorch's dispatch
        raise UnmatchedError(f"the {who} cannot be followed: {first_line(error)}") from error


class _Filler:
    """Makes the values of the student's layers.

    Args:
        student, teacher: the networks.
        choices: of the student's spaces.
        merge: whether channels are merged.
    """

    def __init__(self, student: Nodes, teacher: Nodes, choices: Mapping[int, Choice], merge: bool) -> None:
        self._student, self._teacher, self._merge = student, teacher, merge
        self._spaces, self._choices = Spaces(student), choices
        self._values: dict[int, tuple[Tensor, Tensor]] = {}
        self._shortcuts: dict[int, tuple[Tensor, Tensor]] = {}
        self._means: list[Tensor] = []

    def fill(self, pairs: Sequence[Pair]) -> Filling:
        """The values for the layers of all pairs."""
        for pair in pairs:
            own, theirs = self._student[pair.own], self._teacher[pair.theirs]
            if pair.projects:
                self._project(pair)
            elif own.kind == "norm":
                self._set(own, self._norm(pair.own, theirs))
            elif own.weights:
                self._set(own, self._layer(pair.own, theirs))
        for pair in pairs if self._merge else ():
            norm = self._teacher[pair.theirs]
            before = (*norm.inputs, IMAGES)[0]
            if self._teacher[before].kind in GIVING and norm_behind(self._teacher, before) is norm:
                self._merge_with_norm(pair.own, self._teacher[before], norm)
        return Filling(list(self._values.values()), list(self._shortcuts.values()), self._means)

    def _set(self, own: Node, values: Mapping[str, Tensor]) -> None:
        self._values |= _assigned(own, values)

    def _choice(self, number: int) -> Choice:
        return self._choices[self._spaces.of(number)]

    def _layer(self, number: int, theirs: Node) -> dict[str, Tensor]:
        """Weights of a convolution or linear layer."""
        values, choice = double(theirs.weights), self._choice(number)
        rows = choice.outputs(values["weight"])
        if theirs.kind != "depthwise":
            before = self._student[number].inputs[0]
            # A linear layer after a flattened map has several inputs for each channel, which belong together.
            area = self._spaces.areas[before]
            rows = self._choice(before).inputs(rows.view(len(rows), rows.shape[1] // area, -1))
        values["weight"] = rows
        if "bias" in values:
            values["bias"] = choice.outputs(values["bias"])
        return values

    def _norm(self, number: int, theirs: Node) -> dict[str, Tensor]:
        choice, area = self._choice(number), self._spaces.areas[number]
        return {name: choice.outputs(value.view(-1, area)) for name, value in double(theirs.weights).items()}

    def _project(self, pair: Pair) -> None:
        """A projection that does what the teacher's shortcut does without weights; its BatchNorm does nothing."""
        number, norm = pair.own, None
        if self._student[number].kind == "norm":
            norm, number = self._student[number], self._student[number].inputs[0]
        node, placed, before = self._student[number], pair.theirs, 0
        while self._teacher[placed].kind in (SLICED, PADDED):
            before += self._teacher[placed].before
            placed = self._teacher[placed].inputs[0]
        inner, outer = self._teacher[placed].channels, self._teacher[pair.theirs].channels
        place = torch.zeros(outer, inner, dtype=torch.float64)
        place[before : before + inner] = torch.eye(inner, dtype=torch.float64)
        weight = self._choice(node.inputs[0]).inputs(self._choice(pair.own).outputs(place))
        weights = {"weight": weight, "bias": torch.zeros(len(weight))}
        self._shortcuts |= _assigned(node, weights)
        if norm is not None:
            ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight))
            var = ones - norm.eps
            weights = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": var}
            self._shortcuts |= _assigned(norm, weights)
            self._means.append(norm.weights["running_mean"])

    def _merge_with_norm(self, number: int, layer: Node, norm: Node) -> None:
        """A layer and its BatchNorm, which give the mean of what the teacher's give.

        The weights have the size of those that are merged, for the length of a step depends on it. The mean of channels
        varies less than they do; so the stored variance is such that the outputs vary as those of the teacher.
        """
        own = self._student[self._student[number].inputs[0]], self._student[number]
        outputs = self._choice(number).outputs
        if own[1].channels == norm.channels:
            return
        scale, mean, shift = affine(norm)
        values = double(layer.weights)
        given = Node(layer.label, layer.inputs, layer.shape, {"weight": _scaled(values["weight"], scale)})
        weight = self._layer(self._student[number].inputs[0], given)["weight"]
        mean = outputs(scale * (mean - values.get("bias", torch.zeros_like(mean))))
        sizes = outputs(values["weight"].flatten(1).norm(dim=1))
        size = outputs(_scaled(values["weight"], scale).flatten(1)).norm(dim=1)
        factor = torch.where(size > 0, sizes / size.clamp_min(TINY), 1.0)
        gain = torch.ones_like(mean)
        if "weight" in norm.weights:
            gain = outputs(norm.weights["weight"].double().cpu().square()).sqrt()
        self._set(own[0], {"weight": _scaled(weight, factor), "bias": torch.zeros_like(mean)})
        var = ((factor * gain).square() - own[1].eps).clamp_min(0.0)
        self._set(own[1], {"weight": gain, "bias": outputs(shift), "running_mean": factor * mean, "running_var": var})


def _assigned(own: Node, values: Mapping[str, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """The tensors of a layer by identity, with their values."""
    return {id(tensor): (tensor, values[name].reshape(tensor.shape)) for name, tensor in own.weights.items()}


def _scaled(weight: Tensor, factors: Tensor) -> Tensor:
    """A tensor whose rows are multiplied by a number each."""
    return weight * factors.view(-1, *[1] * (weight.dim() - 1))


@torch.no_grad()
def fill(student: Classifier, values: Filling, images: Callable[[], Tensor]) -> None:
    """Copy values into a student, in place.

    A BatchNorm behind a projection that the teacher does not have then stores the moments of images, and undoes what
    it does by its weight and bias, so that it does nothing in training mode either.

    Args:
        student: the student of `filling`.
        values: of it.
        images: gives float32 `[N, C, H, W]` in [0, 1].
    """
    for own, value in (*values.values, *values.shortcuts):
        own.copy_(value)
    if not values.means:
        return
    with evaluating(student):
        statistics = observe(student, images().to(student.normalize.mean.device), statistics=True).statistics
    means = {id(one) for one in values.means}
    for path, moments in statistics.items():
        norm: Any = student.get_submodule(path)
        if id(norm.running_mean) in means:
            norm.running_mean.copy_(moments.mean)
            norm.running_var.copy_(moments.var)
            if norm.affine:
                norm.weight.copy_((moments.var + norm.eps).sqrt())
                norm.bias.copy_(moments.mean)


@torch.no_grad()
def reset_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Let every BatchNorm layer store the moments of its input in training mode, the mean over batches, in place.

    Args:
        network: any; its mode stays.
        batches: of images, as the network takes them; at least one.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with evaluating(network):
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        for images in batches:
            network(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
