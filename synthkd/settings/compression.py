"""Settings of a compression: the flow of private images, and the search of a student. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from synthkd.settings.base import Count, Depth, Fraction, Listed, Seed, Settings, Units
from synthkd.settings.models import Architecture

_OLD_FLOWS = {"f1": "plain", "f2": "dp_teacher", "f3": "dp_generator", "f4": "dp_both"}


def _not_an_old_name(value: object) -> object:
    """Refuse a name of version 0.1; the error has the present name."""
    if isinstance(value, str) and value in _OLD_FLOWS:
        raise ValueError(f"{value} is called {_OLD_FLOWS[value]} now: write flow: {_OLD_FLOWS[value]}")
    return value


Flow = Annotated[Literal["plain", "dp_teacher", "dp_generator", "dp_both"], BeforeValidator(_not_an_old_name)]
"""The parts of a compression that learn from private images, and those with differential privacy; see
`CompressConfig.flow`."""

Goal = Literal["error", "latency", "bytes", "energy"]
"""A quantity that the search minimises."""

GOALS: tuple[Goal, ...] = ("error", "latency", "bytes")
"""Default quantities to minimise."""

POPULATION = 10
"""Default number of parents."""


class Family(Settings):
    """Candidate students of one architecture."""

    arch: Architecture
    """The architecture."""
    width: tuple[Units, Units]
    """Smallest and largest width, in the architecture's own unit (see `synthkd.models.zoo`)."""
    depth: Annotated[tuple[Depth, ...], Listed] = ()
    """Candidate depths; empty: the architecture's default."""

    @model_validator(mode="after")
    def _ordered(self) -> Family:
        if self.width[0] > self.width[1]:
            raise ValueError("the smallest width must not be above the largest")
        return self


class SearchSettings(Settings):
    """Search of a student among networks of the zoo."""

    families: Annotated[tuple[Family, ...], Field(min_length=1, max_length=len(get_args(Architecture)))] = (
        Family(arch="mlp", width=(16, 256), depth=(1, 2)),
        Family(arch="convnet", width=(4, 32)),
        Family(arch="resnet", width=(4, 16), depth=(8, 14)),
        Family(arch="slim", width=(4, 24), depth=(1, 2)),
    )
    """Candidate networks; each architecture once."""
    objectives: Annotated[tuple[Goal, ...], Field(min_length=2, max_length=3)] = GOALS
    """Two or three quantities to minimise; energy requires a machine with an energy counter."""
    max_parameters: Count | None = None
    """Largest number of parameters of a candidate; None: a quarter of the teacher's."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 60
    """Number of candidates to evaluate."""
    population: Annotated[int, Field(ge=2, le=10_000)] = POPULATION
    """Number of the best candidates that are parents."""
    generation: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of children that are proposed by the same scores, so that as many processes of torchrun can train them at
    the same time. 1: each child knows the scores of all candidates before it."""
    steps: Count = 60
    """Training steps of a candidate before its agreement with the teacher is measured."""
    rounds: Count = 40
    """Rounds of the generator, whose images train the candidates."""
    tolerance: Fraction = 0.02
    """The result is the fastest candidate whose agreement with the teacher is at most this below the best."""
    seed: Seed | None = None
    """Seed of the proposals and of the candidates' initial weights; None: the run's seed."""

    @model_validator(mode="after")
    def _each_once(self) -> SearchSettings:
        for name, values in (("families", [f.arch for f in self.families]), ("objectives", list(self.objectives))):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each may stand only once, got {', '.join(values)}")
        return self
