"""The students that a search chooses among: architectures, depths and widths, as genes that can be combined."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from synthkd.errors import ConfigError
from synthkd.models import zoo
from synthkd.models.classifier import parameters
from synthkd.settings import Architecture, SearchSettings, ZooModel
from synthkd.types import ImageSpec


@dataclass(frozen=True)
class Range:
    """Widths of one architecture at one depth, both ends included; depth None if the architecture has no choice."""

    arch: Architecture
    depth: int | None
    low: int
    high: int


class Genes(TypedDict):
    """A candidate as NSGA-II varies it: an architecture, and numbers in [0, 1] for depth and width."""

    arch: str
    depth: float
    width: float


@dataclass(frozen=True)
class Space:
    """All candidates of a search, encoded as genes.

    0 is small and 1 is large in every architecture, so genes of parents with different architectures can be combined.

    Attributes:
        ranges: those of one architecture by rising depth.
    """

    ranges: tuple[Range, ...]

    def __len__(self) -> int:
        return sum(r.high - r.low + 1 for r in self.ranges)

    @property
    def archs(self) -> list[str]:
        """Architectures, in the order of their ranges."""
        return list(dict.fromkeys(r.arch for r in self.ranges))

    def decode(self, genes: Genes) -> ZooModel:
        """The student with these genes."""
        depths = [r for r in self.ranges if r.arch == genes["arch"]]
        r = depths[min(int(genes["depth"] * len(depths)), len(depths) - 1)]
        # A logarithmic scale: a step of the gene changes every width by the same factor.
        return ZooModel(arch=r.arch, width=round(r.low * (r.high / r.low) ** genes["width"]), depth=r.depth)

    def ends(self) -> Iterator[Genes]:
        """Genes of the smallest and of the largest student of every range."""
        for r in self.ranges:
            depths = [other.depth for other in self.ranges if other.arch == r.arch]
            for width in (0.0, 1.0):
                yield {"arch": r.arch, "depth": (depths.index(r.depth) + 0.5) / len(depths), "width": width}

    def draw(self, rng: np.random.Generator, scored: Container[ZooModel]) -> Genes:
        """Genes of a student that is not among `scored`, drawn uniformly; there must be such a student."""
        while True:
            arch = self.archs[rng.integers(len(self.archs))]
            genes: Genes = {"arch": arch, "depth": rng.random(), "width": rng.random()}
            if self.decode(genes) not in scored:
                return genes


def space_of(settings: SearchSettings, spec: ImageSpec, max_parameters: int | None = None) -> Space:
    """The search space of families of networks, with the widths that a limit of parameters allows.

    Args:
        settings: families and limit.
        spec: images and classes of the student.
        max_parameters: the limit if the settings have none; None: no limit.

    Raises:
        ConfigError: no network fits, or a family has a depth that its architecture does not have.
    """
    limit = max_parameters if settings.max_parameters is None else settings.max_parameters
    ranges = []
    for family in settings.families:
        for depth in sorted(set(family.depth)) or (None,):
            low, high = family.width

            def count(width: int, arch: Architecture = family.arch, depth: int | None = depth) -> int:
                with torch.device("meta"):  # shapes without weights, and without a random draw
                    return parameters(zoo.build(ZooModel(arch=arch, width=width, depth=depth), spec))

            count(low)  # raises for a wrong depth, also without a limit
            # Parameters rise with the width, so bisection builds a few networks and not one for every width.
            if limit is not None:
                high = low - 1 + bisect_right(range(low, high + 1), limit, key=count)
            if high >= low:
                ranges.append(Range(family.arch, depth, low, high))
    if not ranges:
        raise ConfigError(f"search: no family has a student of at most {limit:,} parameters; give smaller widths")
    return Space(tuple(ranges))
