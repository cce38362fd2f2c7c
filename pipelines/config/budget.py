"""A budget of time in place of numbers of steps, and the record of the plan that came of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from synthkd.pipelines.config.base import JobConfig, TrainingConfig
from synthkd.settings import Count, Listed, NonNegative, PhaseSettings, Settings

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
"""Letter of a duration -> its seconds."""
LONGEST = 1000 * 3600.0
"""Seconds of the longest budget, six weeks."""
_FORM = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smh])")

Config = TypeVar("Config", bound=JobConfig)


def seconds_of(duration: str) -> float:
    """Seconds of a duration that was checked, e.g. 1800 of `30m`."""
    match = _FORM.fullmatch(duration)
    assert match is not None
    return float(match[1]) * UNITS[match[2]]


def _is_duration(value: Any) -> str:
    if not isinstance(value, str) or _FORM.fullmatch(value) is None:
        raise ValueError("a duration is a number and its unit: 90s, 30m or 2h")
    if not 1.0 <= seconds_of(value) <= LONGEST:
        raise ValueError(f"a duration is from 1s to {LONGEST / 3600:.0f}h")
    return value


Duration = Annotated[
    str, BeforeValidator(_is_duration), WithJsonSchema({"type": "string", "pattern": "^[0-9.]+[smh]$"})
]
"""A number and its unit: `90s`, `30m`, `2h`."""


def _is_extension(value: Any) -> Any:
    steps = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, str) or (steps and value >= 1):
        return value
    raise ValueError("expected a whole number >= 1 of steps, or a duration as 90s, 30m or 2h")


Extension = Annotated[Count | Duration, BeforeValidator(_is_extension)]
"""Steps, or a duration."""

Seeds = Annotated[int, Field(ge=2, le=100)]
"""Number of runs that differ by their seed alone."""


class Planned(Settings):
    """The plan of a budget: what `phases` were scaled to, and how long that should take."""

    budget: Duration
    """That the plan was made for."""
    phases: Annotated[tuple[PhaseSettings, ...], Listed]
    """As the recipe has them. `phases` of the configuration are those of the plan."""
    seconds: NonNegative
    """That the run should take, with those of `measuring`."""
    measuring: NonNegative
    """Seconds that measuring this machine took."""


class BudgetedConfig(TrainingConfig):
    """Settings of a training that fills a time."""

    budget: Duration | None = None
    """Wall time of the distillation, e.g. `90s`, `30m`, `2h`: this machine is measured, and `phases` are scaled by one
    factor so that they fill it. None: `phases` are as they stand."""
    planned: Planned | None = None
    """The plan that a run made of its budget: a record that `budget` writes, no setting."""

    seeds: Seeds | None = None
    """Run the recipe with so many seeds, from `seed` on, in `seed-N` below the run, and report mean and spread. The
    student that is handed over is that of the first."""
    more: Extension | None = None
    """Extend the finished run in `out` by so many steps, as its last phase has them, or by so many minutes (`30m`)."""
    extended: Annotated[tuple[Count, ...], Listed] = ()
    """The extensions that a run has had, in steps: a record that `more` writes, no setting."""

    if TYPE_CHECKING:  # the class of the job declares it
        phases: Annotated[tuple[PhaseSettings, ...], Listed]

    @model_validator(mode="after")
    def _fits_its_plan(self) -> BudgetedConfig:
        if self.seeds is not None and (self.more is not None or self.extended):
            raise ValueError("seeds: what several seeds came to is not extended; take a longer budget, or more steps")
        if self.planned is not None and self.planned.budget != self.budget:
            # The plan alone tells by what the phases were scaled, and the horizon with them.
            raise ValueError(
                f"planned: it is the plan of budget={self.planned.budget}, and budget is {self.budget or 'not set'}; "
                f"set planned=null {'for a plan of its own' if self.budget else 'to keep its phases'}, and the horizon "
                "of a diffusion generator, which is that of the recipe, to suit these phases"
            )
        return self


def as_asked(saved: Config, config: JobConfig) -> Config:
    """A configuration that a run recorded, without its plan if `config`, with which it is compared, has none."""
    plan = saved.planned if isinstance(saved, BudgetedConfig) else None
    if plan is None or (isinstance(config, BudgetedConfig) and config.planned is not None):
        return saved
    return saved.model_copy(update={"planned": None, "phases": plan.phases})


def recorded(config: Config, saved: JobConfig | None) -> Config:
    """The configuration with the plan that its run recorded, or as it is.

    Args:
        config: as somebody asks for it.
        saved: of the run directory; None if there is none.
    """
    if not isinstance(config, BudgetedConfig) or not isinstance(saved, BudgetedConfig):
        return config
    plan = saved.planned
    if config.planned is not None or plan is None or (plan.budget, plan.phases) != (config.budget, config.phases):
        return config
    return config.model_copy(update={"planned": plan, "phases": saved.phases})
