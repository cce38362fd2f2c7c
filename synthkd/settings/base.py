"""The base class of all configuration, and types of its fields with their bounds. Nothing here imports torch.

The docstring of a field is its description in the JSON schema that `synthkd config schema` prints. The configuration of
a whole job is in `synthkd.pipelines.config`, that of a generator in `synthkd.generators.settings`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    WithJsonSchema,
    model_validator,
)


def _tell_retired(schema: dict[str, Any], model: type[Settings]) -> None:
    """Write the retired keys of a model into its JSON schema, by which `load_config` reads files."""
    if model.RETIRED:
        schema["retired"] = dict(model.RETIRED)


class Settings(BaseModel):
    """Base of all configuration: frozen, without unknown keys, NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        json_schema_extra=_tell_retired,
    )

    RETIRED: ClassVar[Mapping[str, object]] = {}
    """Keys that earlier versions had -> the value that is fixed now. `load_config` drops a key with this value, which
    files of earlier runs hold, and refuses any other."""

    @classmethod
    def refuse_old_form(cls, recipe: Mapping[str, Any]) -> None:
        """Raise `ConfigError` with the present form of keys that have moved since an earlier version."""

    @classmethod
    def defaults_for(cls, _recipe: Mapping[str, object], /) -> Mapping[str, object]:
        """Defaults of a recipe that differ from those of the class, because of what else is in it.

        Args:
            _recipe: as it was read, before it is checked.

        Returns:
            Sections and values in the form of a recipe. A key that is written has the written value, at every depth.
        """
        return {}


PathText = Annotated[str, AfterValidator(os.path.expanduser), WithJsonSchema({"type": "string", "path": True})]
"""A path on this machine; `~` is the home directory. `load_config` takes those in a file relative to that file."""


def by_kind(default: str) -> Discriminator:
    """A discriminator for a union of sections: the value of `kind`, `default` if there is none; "list" for a list."""

    def tag(value: Any) -> str:
        if isinstance(value, list | tuple):
            return "list"
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return str(kind)

    return Discriminator(tag)


# The bounds are far beyond any use and well below what makes a library hang, overflow or crash. Several settings within
# them can together still exceed a machine: the size of a network is counted before it is built
# (`synthkd.models.size`); everything else ends as out of memory.

LARGE = 1e9
"""Largest factor, weight or rate: the product of two squares is finite in float32."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
Delta = Annotated[float, Field(gt=0.0, lt=1.0)]
"""Delta of differential privacy."""
Positive = Annotated[float, Field(gt=0.0, le=LARGE)]
NonNegative = Annotated[float, Field(ge=0.0, le=LARGE)]
Number = Annotated[float, Field(ge=-LARGE, le=LARGE)]
Count = Annotated[int, Field(ge=1, le=10**9)]
"""Steps, rounds and other counts that take time but no memory; 10^9 steps of a millisecond are eleven days."""
Whole = Annotated[int, Field(ge=0, le=10**9)]
Images = Annotated[int, Field(ge=1, le=10**8)]
"""Images of a dataset or a bank; the bound is seven times ImageNet-21k."""
Batch = Annotated[int, Field(ge=1, le=2**16)]
"""Images that are processed at once."""
Units = Annotated[int, Field(ge=1, le=2**16)]
"""Width of a layer or a feature space; the widest layer of Llama 3.1 405B has 53,248 units."""
Depth = Annotated[int, Field(ge=1, le=1202)]
"""Depth of a network; the deepest of He et al. (2015) has 1,202 layers."""
Side = Annotated[int, Field(ge=1, le=2**13)]
"""Height or width of an image in pixels; the square of the bound is about the largest number of pixels of an image file
(`LARGEST` in `synthkd.data.read.decode`)."""
Shift = Annotated[int, Field(ge=0, le=2**8)]
"""Pixels by which an image is shifted; a batch is padded by that many on each side."""
MOST_CLASSES = 100_000
Classes = Annotated[int, Field(ge=1, le=MOST_CLASSES)]
Channels = Annotated[int, Field(ge=1, le=2**10)]
"""Channels of an image; hyperspectral images have some hundreds."""
Threads = Annotated[int, Field(ge=1, le=2**9)]
"""CPU threads. More do not make a small network faster, and OpenMP ends the process when the system has no more."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""A seed; the bound is the largest signed 64-bit integer, which torch, numpy and file formats accept."""

MOST_ITEMS = 1000
"""Most items of a list that is written by hand, e.g. phases, teachers, peers, sets."""
Listed = Field(max_length=MOST_ITEMS)
PerClass = Field(max_length=MOST_CLASSES)


def _is_noise(multiplier: float) -> float:
    if 0.0 < multiplier < LEAST_NOISE:
        raise ValueError(f"must be 0, which is no noise at all, or at least {LEAST_NOISE:g}")
    return multiplier


LEAST_NOISE = 0.01
"""Smallest noise multiplier other than 0. There epsilon is in the thousands; a little below, an accountant's
tables fit no memory."""
Noise = Annotated[NonNegative, AfterValidator(_is_noise)]


class Curve(Settings):
    """A value that moves from `start` to `end` during the run; a plain number means a constant."""

    kind: Literal["linear", "cosine", "step"]
    """linear, or half a cosine, from `start` to `end`; step: a jump at `until`."""
    start: float
    """First value."""
    end: float
    """Last value."""
    begin: Fraction = 0.0
    """Fraction of the run at which the value leaves `start`."""
    until: Fraction = 1.0
    """Fraction of the run at which the value reaches `end`."""

    @model_validator(mode="after")
    def _ordered(self) -> Curve:
        if self.begin > self.until:
            raise ValueError("begin must not be after until")
        if self.kind == "step" and self.begin:
            raise ValueError("a step jumps from start to end at until; leave begin out")
        return self


Schedule = float | Curve
"""A setting that may change during a run; `synthkd.schedules.value_at` gives its value at a step."""


def _within(low: float, high: float) -> AfterValidator:
    """A validator of schedules whose value stays in [low, high]."""

    def check(schedule: Schedule) -> Schedule:
        ends = (schedule.start, schedule.end) if isinstance(schedule, Curve) else (schedule,)
        if not all(low <= value <= high for value in ends):
            raise ValueError(f"must be from {low:g} to {high:g}, at both ends of a curve")
        return schedule

    return AfterValidator(check)


def _at_once(schedule: Schedule) -> Schedule:
    if (schedule.start if isinstance(schedule, Curve) else schedule) == 0.0:
        raise ValueError("must be above 0, at the start of a curve")
    return schedule


Share = Annotated[Schedule, _within(0.0, 1.0)]
Weight = Annotated[Schedule, _within(0.0, LARGE)]
Rate = Annotated[Schedule, _within(0.0, LARGE), AfterValidator(_at_once)]
Temperature = Annotated[Schedule, _within(0.01, LARGE)]
