"""The flow of private images, and the search of a student. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from synthkd.settings.base import Count, Depth, Fraction, Listed, Seed, Settings, Units
from synthkd.settings.models import Architecture

_OLD_FLOWS = {"f1": "plain", "f2": "dp_teacher", "f3": "dp_generator", "f4": "dp_both"}


def _not_an_old_name(value: Any) -> Any:
    """Say the present name of a flow that has its name of version 0.1."""
    if isinstance(value, str) and value in _OLD_FLOWS:
        raise ValueError(f"{value} is called {_OLD_FLOWS[value]} now: write flow: {_OLD_FLOWS[value]}")
    return value


Flow = Annotated[Literal["plain", "dp_teacher", "dp_generator", "dp_both"], BeforeValidator(_not_an_old_name)]
"""How a pipeline touches private images; see `CompressConfig.flow`."""

Goal = Literal["error", "latency", "bytes", "energy"]

GOALS: tuple[Goal, ...] = ("error", "latency", "bytes")

POPULATION = 10


class Family(Settings):
    """Students of one architecture."""

    arch: Architecture
    width: tuple[Units, Units]
    """Smallest and largest width, in the architecture's own unit (see `synthkd.models.zoo`)."""
    depth: Annotated[tuple[Depth, ...], Listed] = ()
    """Depths to choose from; empty: the architecture's own."""

    @model_validator(mode="after")
    def _ordered(self) -> Family:
        if self.width[0] > self.width[1]:
            raise ValueError("the smallest width must not be above the largest")
        return self


class SearchSettings(Settings):
    """The search of a student among networks of the zoo."""

    families: Annotated[tuple[Family, ...], Field(min_length=1, max_length=len(get_args(Architecture)))] = (
        Family(arch="mlp", width=(16, 256), depth=(1, 2)),
        Family(arch="convnet", width=(4, 32)),
        Family(arch="resnet", width=(4, 16), depth=(8, 14)),
        Family(arch="slim", width=(4, 24), depth=(1, 2)),
    )
    """What there is to choose from; each architecture once."""
    objectives: Annotated[tuple[Goal, ...], Field(min_length=2, max_length=3)] = GOALS
    """What to make small, two or three of them; energy only where a counter measures it."""
    max_parameters: Count | None = None
    """Largest number of parameters of a candidate; None: a quarter of the teacher's."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 60
    """How many to score."""
    population: Annotated[int, Field(ge=2, le=10_000)] = POPULATION
    """Parents are taken from so many of the best."""
    steps: Count = 60
    """Training steps of a candidate before its agreement is measured."""
    rounds: Count = 40
    """Rounds of the generator whose images the candidates learn from."""
    tolerance: Fraction = 0.02
    """The fastest is chosen whose agreement with the teacher is at most this below the best."""
    seed: Seed | None = None
    """Of the proposals and of the candidates' first weights; None: the run's."""

    @model_validator(mode="after")
    def _each_once(self) -> SearchSettings:
        for name, values in (("families", [f.arch for f in self.families]), ("objectives", list(self.objectives))):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each may stand only once, got {', '.join(values)}")
        return self
