"""The configuration of the parts every job shares, as frozen pydantic models. Nothing here imports torch.

A field is documented where it stands; `synthkd config schema` prints the same text as a JSON schema. The configuration
of a whole job is in `synthkd.pipelines.config`, that of a generator in `synthkd.generators.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, model_validator


class Settings(BaseModel):
    """Base of all configuration: frozen, unknown keys forbidden, values never coerced between kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def refuse_old_form(cls, recipe: Mapping[str, Any]) -> None:
        """Raise `ConfigError` with the present form of keys that have moved since an earlier version."""


def by_kind(default: str) -> Discriminator:
    """Discriminator on `kind` for a union in which an absent `kind` means `default`."""

    def tag(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return str(kind)

    return Discriminator(tag)


# Bounds lie far beyond any use and well before what makes a library hang, overflow or die. Several settings inside them
# can together still ask for more than a machine has: a network's size is counted before it is built
# (`synthkd.models.size`), and for the rest memory says no.

LARGE = 1e9
"""Of any factor, weight or rate: its square times another square is finite in float32."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=LARGE)]
NonNegative = Annotated[float, Field(ge=0.0, le=LARGE)]
Number = Annotated[float, Field(ge=-LARGE, le=LARGE)]
Count = Annotated[int, Field(ge=1, le=10**9)]
"""Of what takes time and no memory: steps, rounds. A step a millisecond makes that eleven days."""
Whole = Annotated[int, Field(ge=0, le=10**9)]
Images = Annotated[int, Field(ge=1, le=10**8)]
"""Of images that are kept: seven times ImageNet-21k."""
Batch = Annotated[int, Field(ge=1, le=2**16)]
"""Of images that are in the works at once."""
Units = Annotated[int, Field(ge=1, le=2**16)]
"""Of a layer, a space or a sketch of features; 53,248 is the widest layer of Llama 3.1 405B."""
Depth = Annotated[int, Field(ge=1, le=1202)]
"""Of a network: He et al. (2015) stopped at 1,202 layers."""
Side = Annotated[int, Field(ge=1, le=2**13)]
"""Of an image in pixels; its square is about the most that an image file may have (`LARGEST` in
`synthkd.data.read.decode`)."""
Shift = Annotated[int, Field(ge=0, le=2**8)]
"""Of an image in pixels; a batch is padded by so much on each side."""
Classes = Annotated[int, Field(ge=1, le=100_000)]
Channels = Annotated[int, Field(ge=1, le=2**10)]
"""Of an image; hyperspectral ones have some hundreds."""
Threads = Annotated[int, Field(ge=1, le=2**9)]
"""More make no small network faster, and OpenMP ends the process where the system starts no more threads."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What fits a signed word, as torch, numpy and files take it."""

MOST_ITEMS = 1000
"""In a list that somebody writes by hand: phases, teachers, peers, places, sets."""
MOST_CLASSES = 100_000
Listed = Field(max_length=MOST_ITEMS)
PerClass = Field(max_length=MOST_CLASSES)


def _is_noise(multiplier: float) -> float:
    if 0.0 < multiplier < LEAST_NOISE:
        raise ValueError(f"must be 0, which is no noise at all, or at least {LEAST_NOISE:g}")
    return multiplier


LEAST_NOISE = 0.01
"""Over the sensitivity; epsilon is in the thousands there, and a little below no accountant's tables fit a memory."""
Noise = Annotated[NonNegative, AfterValidator(_is_noise)]


# --- schedules ------------------------------------------------------------------------------------------------------


class Curve(Settings):
    """A value that moves from `start` to `end` over the run; a plain number stands for a constant."""

    kind: Literal["linear", "cosine", "step"]
    start: float
    end: float
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


def _within(low: float, high: float) -> AfterValidator:
    def check(schedule: Schedule) -> Schedule:
        ends = (schedule.start, schedule.end) if isinstance(schedule, Curve) else (schedule,)
        if not all(low <= value <= high for value in ends):
            raise ValueError(f"must be from {low:g} to {high:g}, at both ends of a curve")
        return schedule

    return AfterValidator(check)


Share = Annotated[Schedule, _within(0.0, 1.0)]
Weight = Annotated[Schedule, _within(0.0, LARGE)]
Temperature = Annotated[Schedule, _within(0.01, LARGE)]


# --- data -----------------------------------------------------------------------------------------------------------


# --- models ---------------------------------------------------------------------------------------------------------


# --- training -------------------------------------------------------------------------------------------------------


# --- difficulty, bank, mixing ---------------------------------------------------------------------------------------


# --- compression ----------------------------------------------------------------------------------------------------
