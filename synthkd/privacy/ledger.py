"""The ledger of a run: its noisy queries of private examples, as the events from which epsilon is computed.

There are two definitions of neighbouring data sets, and an epsilon is always under one of them:

| adjacency           | neighbours differ in           | sensitivity of a sum of vectors of norm C at most |
|---------------------|--------------------------------|---------------------------------------------------|
| `add_or_remove_one` | one example is there or not    | C                                                 |
| `replace_one`       | one example is another         | 2 C                                               |

The unit is the example: nothing is claimed for a person with several. The accounting takes noise to be real numbers,
not floating point.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from synthkd.errors import CheckpointError, ConfigError
from synthkd.settings import LEAST_NOISE

Adjacency = Literal["add_or_remove_one", "replace_one"]

MOST_STEPS = 10_000_000
"""Most steps of one event, which take the accountant half a minute."""
LEAST_RATE = 1e-9
"""Smallest sample rate above 0; the accountant fails far below it."""


@dataclass(frozen=True)
class PoissonSteps:
    """Steps of DP-SGD (Abadi et al. 2016): noisy sums of clipped gradients over Poisson-sampled batches.

    Attributes:
        sample_rate: probability with which each example is in the batch of a step, 0 or in [LEAST_RATE, 1].
        noise_multiplier: standard deviation of the noise on the sum, divided by the clipping norm; 0 (no noise) or at
            least `LEAST_NOISE`.
        steps: number of steps, in [0, MOST_STEPS].

    Raises:
        ConfigError: a value out of these ranges.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    # Checked here and not by callers: a ledger is also read from files, and a damaged value must not become a claim.
    def __post_init__(self) -> None:
        if not is_number(self.sample_rate) or not (self.sample_rate == 0.0 or LEAST_RATE <= self.sample_rate <= 1.0):
            raise ConfigError(
                f"sample_rate must be 0 or in [{LEAST_RATE:g}, 1], got {self.sample_rate}; it is batch size over "
                "examples"
            )
        # True would pass as the int 1, and a ledger may come from a damaged file.
        if type(self.steps) is not int or not 0 <= self.steps <= MOST_STEPS:
            raise ConfigError(
                f"steps must be a whole number from 0 to {MOST_STEPS:,}, got {reprlib.repr(self.steps)}; count every "
                "step that was ever taken"
            )
        _check_noise(self.noise_multiplier)


@dataclass(frozen=True)
class Release:
    """One Gaussian release: a vector computed from all examples, with Gaussian noise.

    Attributes:
        noise_multiplier: standard deviation of the noise, divided by the sensitivity (L2 norm); 0 (no noise) or at
            least `LEAST_NOISE`.
        adjacency: which data sets are neighbours in that sensitivity.

    Raises:
        ConfigError: a noise multiplier out of this range.
    """

    noise_multiplier: float
    adjacency: Adjacency = "replace_one"

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)


Event = PoissonSteps | Release
_KINDS: dict[str, type[PoissonSteps] | type[Release]] = {"poisson_steps": PoissonSteps, "release": Release}


@dataclass(frozen=True)
class Ledger:
    """All noisy queries of one set of private examples.

    Attributes:
        events: the queries, in any order; each may depend on the answers to others (adaptive composition).
    """

    events: tuple[Event, ...] = ()

    def __add__(self, other: Ledger) -> Ledger:
        """The events of both ledgers; steps of the same rate and noise become one event."""
        # A run of ten thousand steps stays one event, which the accountant composes at once.
        steps: dict[tuple[float, float], int] = {}
        releases: list[Release] = []
        for event in (*self.events, *other.events):
            if isinstance(event, Release):
                releases.append(event)
            else:
                kind = (event.sample_rate, event.noise_multiplier)
                steps[kind] = steps.get(kind, 0) + event.steps
        return Ledger((*(PoissonSteps(*kind, count) for kind, count in steps.items()), *releases))

    def to_json(self) -> list[dict[str, str | float]]:
        """One JSON object per event: its kind under "event", and its attributes."""
        names = {kind: name for name, kind in _KINDS.items()}
        return [{"event": names[type(event)], **asdict(event)} for event in self.events]

    @staticmethod
    def from_json(stored: object) -> Ledger:
        """The ledger that `to_json` wrote.

        Raises:
            CheckpointError: `stored` is no list of such events.
        """
        try:
            if not isinstance(stored, Iterable):
                raise TypeError(f"{type(stored).__name__} is no list")
            return Ledger(tuple(_event(entry) for entry in stored))
        except (TypeError, KeyError, ValueError, ConfigError) as error:
            raise CheckpointError(
                f"a privacy ledger must be the list of events that was saved, got {reprlib.repr(stored)} ({error}); "
                "restore the file from a copy: without it nothing can be claimed"
            ) from error


def is_number(value: object) -> bool:
    """True for an int or a float, False for a bool and everything else."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_noise(noise_multiplier: float) -> None:
    if not is_number(noise_multiplier) or not 0.0 <= noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier must be finite and at least 0, got {noise_multiplier}; 0 means no noise")
    if 0.0 < noise_multiplier < LEAST_NOISE:
        raise ConfigError(f"noise_multiplier must be 0 or from {LEAST_NOISE} on, got {noise_multiplier:g}; add noise")


def _event(entry: Mapping[str, object]) -> Event:
    """The event of one JSON object; raises TypeError, KeyError, ValueError or ConfigError for anything else."""
    values = dict(entry)
    # Dataclasses do not check a Literal, and an unknown adjacency would only fail when epsilon is computed.
    if values.get("adjacency", "replace_one") not in get_args(Adjacency):
        raise ValueError(f"unknown adjacency {values['adjacency']!r}")
    return _KINDS[values.pop("event")](**values)  # type: ignore[index, arg-type]
