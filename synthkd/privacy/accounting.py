"""What the noisy looks of a run at private images cost together: a ledger of events and the epsilon they add up to.

Epsilon is computed from the ledger whenever it is asked for. Of the two notions of neighbouring data sets no figure of
one may stand for the other:

| adjacency           | neighbours differ in           | sensitivity of a sum of vectors of norm C at most |
|---------------------|--------------------------------|---------------------------------------------------|
| `add_or_remove_one` | one example is there or not    | C                                                 |
| `replace_one`       | one example is another         | 2 C                                               |

The unit is the example: nothing is claimed for a person with several. Noise is taken to be real numbers, not floating
point. The package dp-accounting does the sums: its privacy loss distributions (PLD) give the claim, Renyi differential
privacy (RDP) a looser figure to show beside it.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Literal, get_args

from scipy.optimize import brentq
from scipy.special import log_ndtr

from synthkd.errors import CheckpointError, ConfigError
from synthkd.imports import optional
from synthkd.settings import LEAST_NOISE

Adjacency = Literal["add_or_remove_one", "replace_one"]

INTERVAL = 5e-4
"""Grid of privacy losses, which are rounded up to it: a coarser one claims more than was spent, never less."""
COARSER_ABOVE = 50.0
"""Epsilon from about which on the grid grows in proportion, so that it does not fill the memory."""
TOLERANCE = 2.5e-4
"""By how much, relative to it, a calibrated noise multiplier may lie above the smallest that will do."""
MOST_STEPS = 10_000_000
"""Steps that are accounted for: a sum over so many takes half a minute."""
LEAST_RATE = 1e-9
"""Sample rate, if it is not 0; the accountant fails far below."""
LEAST, MOST = math.log(LEAST_NOISE), math.log(1e6)
"""Logarithms of the noise multipliers between which one is looked for; sums for less noise would not fit in memory."""


@dataclass(frozen=True)
class PoissonSteps:
    """Steps of DP-SGD (Abadi et al. 2016): a noisy sum of clipped gradients of a batch drawn by independent coins.

    Attributes:
        sample_rate: probability with which each example is in the batch of a step, in [0, 1].
        noise_multiplier: standard deviation of the noise on the sum over the largest norm of a gradient, at least 0.
        steps: how many, in [0, MOST_STEPS].

    Raises:
        ConfigError: a value that is none of these.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        if not _is_number(self.sample_rate) or not (self.sample_rate == 0.0 or LEAST_RATE <= self.sample_rate <= 1.0):
            raise ConfigError(
                f"sample_rate must be 0 or in [{LEAST_RATE:g}, 1], got {self.sample_rate}; it is batch size over "
                "examples"
            )
        if type(self.steps) is not int or not 0 <= self.steps <= MOST_STEPS:
            raise ConfigError(
                f"steps must be a whole number from 0 to {MOST_STEPS:,}, got {reprlib.repr(self.steps)}; count every "
                "step that was ever taken"
            )
        _check_noise(self.noise_multiplier)


@dataclass(frozen=True)
class Release:
    """One look at all examples: a vector with Gaussian noise.

    Attributes:
        noise_multiplier: standard deviation of the noise over the sensitivity (L2), at least 0.
        adjacency: of the data sets between which that sensitivity is the largest distance.

    Raises:
        ConfigError: a negative or infinite noise multiplier.
    """

    noise_multiplier: float
    adjacency: Adjacency = "replace_one"

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)


Event = PoissonSteps | Release
_KINDS: dict[str, type[PoissonSteps] | type[Release]] = {"poisson_steps": PoissonSteps, "release": Release}


@dataclass(frozen=True)
class Ledger:
    """Everything that was released about one set of private examples.

    Attributes:
        events: what was done, in any order; each may depend on what others showed.
    """

    events: tuple[Event, ...] = ()

    def __add__(self, other: Ledger) -> Ledger:
        """Both together; steps of the same rate and noise become one event."""
        steps: dict[tuple[float, float], int] = {}
        releases: list[Release] = []
        for event in (*self.events, *other.events):
            if isinstance(event, Release):
                releases.append(event)
            else:
                kind = (event.sample_rate, event.noise_multiplier)
                steps[kind] = steps.get(kind, 0) + event.steps
        return Ledger((*(PoissonSteps(*kind, count) for kind, count in steps.items()), *releases))

    def to_json(self) -> list[dict[str, Any]]:
        """A plain list of objects, one an event, for JSON."""
        names = {kind: name for name, kind in _KINDS.items()}
        return [{"event": names[type(event)], **asdict(event)} for event in self.events]

    @staticmethod
    def from_json(stored: Any) -> Ledger:
        """What `to_json` gave.

        Raises:
            CheckpointError: anything else.
        """
        try:
            return Ledger(tuple(_event(**entry) for entry in stored))
        except (TypeError, KeyError, ValueError, ConfigError) as error:
            raise CheckpointError(
                f"a privacy ledger must be the list of events that was saved, got {reprlib.repr(stored)} ({error}); "
                "restore the file from a copy: without it nothing can be claimed"
            ) from error


@dataclass(frozen=True)
class Epsilon:
    """The privacy loss of a ledger.

    Attributes:
        pld: epsilon by privacy loss distributions, an upper bound and the figure to claim; infinite without noise.
        rdp: epsilon by Renyi differential privacy, an upper bound too; None where it has no formula (Poisson batches
            under `replace_one`).
        delta: the probability that both leave aside.
        adjacency: of the neighbouring data sets.
        library: what computed them.
        version: of the library.
    """

    pld: float
    rdp: float | None
    delta: float
    adjacency: Adjacency
    library: str
    version: str

    def __str__(self) -> str:
        return f"epsilon={self.pld:.3f}, delta={self.delta:g} ({self.adjacency}, {self.library} {self.version} PLD)"


def epsilon(ledger: Ledger, delta: float, adjacency: Adjacency = "add_or_remove_one") -> Epsilon:
    """The epsilon of everything in a ledger.

    Args:
        ledger: the events.
        delta: in (0, 1); for a claim one that `check_delta` passes.
        adjacency: of the neighbouring data sets. What was released under `add_or_remove_one` counts at half its noise
            under `replace_one`, which is one removal and one addition. The other way round there is no rule.

    Raises:
        ConfigError: a delta out of bounds, or a release under `replace_one` asked about under `add_or_remove_one`.
        MissingExtraError: dp-accounting is not installed.
    """
    _check_delta(delta)
    rdp = _by_rdp(ledger.events, delta, adjacency)
    pld = _by_pld(ledger.events, delta, adjacency, rdp)
    bound = adjacency == "add_or_remove_one" or all(isinstance(event, Release) for event in ledger.events)
    return Epsilon(pld, rdp if bound else None, delta, adjacency, "dp-accounting", version("dp-accounting"))


def claimed(ledger: Ledger, spent: Epsilon, examples: int, insecure: bool, **mechanism: Any) -> dict[str, Any]:
    """What a noisy part of a run may claim and what that rests on, for JSON.

    Args:
        ledger: what it did.
        spent: what that comes to; a figure that is infinite becomes None.
        examples: how many there are.
        insecure: the noise can be drawn again from a seed, so nothing is claimed.
        mechanism: numbers and names that say how the noise came about.
    """
    return {
        "insecure": insecure,
        "epsilon": None if math.isinf(spent.pld) else spent.pld,
        "epsilon_rdp": None if spent.rdp is None or math.isinf(spent.rdp) else spent.rdp,
        "delta": spent.delta,
        "adjacency": spent.adjacency,
        "unit": "image",
        "examples": examples,
        **mechanism,
        "accountant": f"{spent.library} {spent.version}, privacy loss distributions",
        "ledger": ledger.to_json(),
    }


def ledger_of(claim: object) -> Ledger:
    """The ledger of what `claimed` gave, as it was read from JSON.

    Raises:
        CheckpointError: anything else.
    """
    told: dict[str, Any] = claim if isinstance(claim, dict) else {}
    delta: Any = told.get("delta")
    sound = _is_number(delta) and 0.0 < delta < 1.0 and told.get("adjacency") in get_args(Adjacency)
    if not sound or type(told.get("insecure")) is not bool or not isinstance(told.get("unit"), str):
        raise CheckpointError(
            f"a finished run must say what it may claim, got dp: {reprlib.repr(claim)}; restore its result.json from a "
            "copy: without it nothing can be claimed"
        )
    return Ledger.from_json(told.get("ledger"))


def noise_for(
    sample_rate: float,
    steps: int,
    epsilon: float,
    delta: float,
    adjacency: Adjacency = "add_or_remove_one",
    beside: Ledger | None = None,
) -> float:
    """The smallest noise multiplier from 0.01 on, to three digits, with which steps of DP-SGD stay within a budget.

    Args:
        sample_rate: as in `PoissonSteps`.
        steps: likewise, at least 1.
        epsilon: the budget, above 0; the noise keeps it in the sense of `epsilon(...).pld`.
        delta: in (0, 1).
        adjacency: of the neighbouring data sets.
        beside: what else is released about the same examples.

    Raises:
        ConfigError: values out of bounds, a budget that `beside` alone exceeds or that no noise keeps.
        MissingExtraError: dp-accounting is not installed.
    """
    others = () if beside is None else beside.events
    if (spent := _by_pld(others, delta, adjacency, epsilon)) >= epsilon:
        raise ConfigError(f"epsilon {epsilon:g} is spent: the other releases cost {spent:.3f}; raise it")

    def excess(log_noise: float) -> float:
        planned = PoissonSteps(sample_rate, math.exp(log_noise), steps)
        return _by_pld((*others, planned), delta, adjacency, epsilon) - epsilon

    # Where the central limit of the steps has it (Bu et al. 2020): it claims too little, so it only says where to look.
    shift = (1.0 if adjacency == "add_or_remove_one" else 0.5) / release_noise_for(epsilon, delta)
    start = -0.5 * math.log(math.log1p(shift * shift / max(sample_rate * sample_rate * steps, 1e-12)))
    return math.exp(_least(excess, start, 0.05, TOLERANCE))


def release_noise_for(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier from 0.01 on of one Gaussian release (Balle and Wang 2018, theorem 8; exact).

    Args:
        epsilon: above 0.
        delta: in (0, 1).

    Returns:
        Standard deviation over sensitivity, whatever the adjacency of that sensitivity.

    Raises:
        ConfigError: values out of these bounds.
    """
    _check_delta(delta)
    if not 0.0 < epsilon < math.inf:
        raise ConfigError(f"epsilon must be finite and above 0, got {epsilon}; usual budgets are 1 to 8")
    return math.exp(_least(lambda x: _log_gaussian_delta(math.exp(x), epsilon) - math.log(delta), 0.0, 1.0, 1e-9))


def without_amplification(noise_multiplier: float, steps: int, batch_size: int, examples: int) -> Ledger:
    """Steps of DP-SGD on shuffled batches, counted without the benefit of hidden sampling.

    Accounting for Poisson batches does not hold for shuffled ones (Chua et al. 2024). What holds is that each example
    takes part in at most `ceil(steps * batch_size / examples)` noisy sums: so many releases, each at its full cost. The
    number of examples is taken to be public, and one that is "removed" to leave its place in the batch empty.

    Args:
        noise_multiplier: as in `PoissonSteps`.
        steps: likewise.
        batch_size: examples of a step.
        examples: size of the data set, of which each epoch shows every example once; at least `batch_size`.

    Raises:
        ConfigError: numbers that are no such training.
    """
    if steps < 0 or not 1 <= batch_size <= examples:
        raise ConfigError(
            "shuffled batches need steps >= 0 and 1 <= batch_size <= examples, got "
            f"{steps} steps of {batch_size} of {examples}; correct them"
        )
    return Ledger((Release(noise_multiplier, "add_or_remove_one"),) * -(-steps * batch_size // examples))


def check_delta(delta: float, n: int) -> None:
    """Refuse a delta that would let an example be published outright.

    To show each of n examples with probability delta costs an epsilon of 0, and at delta = 1 / n shows one of them.

    Raises:
        ConfigError: delta is not in (0, 1 / n).
    """
    if not 0.0 < delta < 1.0 / n:
        advised = 10.0 ** math.floor(math.log10(0.5 / n))
        raise ConfigError(f"delta must be above 0 and below 1 / {n} (examples), got {delta:g}; take {advised:g}")


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"delta must be in (0, 1), got {delta}; take a power of ten below one over the examples")


def _check_noise(noise_multiplier: float) -> None:
    if not _is_number(noise_multiplier) or not 0.0 <= noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier must be finite and at least 0, got {noise_multiplier}; 0 means no noise")
    if 0.0 < noise_multiplier < LEAST_NOISE:
        raise ConfigError(f"noise_multiplier must be 0 or from {LEAST_NOISE} on, got {noise_multiplier:g}; add noise")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _event(event: str, **values: Any) -> Event:
    if values.get("adjacency", "replace_one") not in get_args(Adjacency):
        raise ValueError(f"unknown adjacency {values['adjacency']!r}")
    return _KINDS[event](**values)


def _least(excess: Callable[[float], float], start: float, step: float, tolerance: float) -> float:
    """About the smallest x from LEAST on at which a falling function is not positive; never one at which it is.

    Raises:
        ConfigError: there is none up to MOST.
    """
    excess = lru_cache(excess)  # the ends of the bracket are asked for again
    high = max(start, LEAST)
    while excess(high) > 0:
        if high > MOST:
            raise ConfigError("not even a noise multiplier of 1e6 keeps that budget; raise epsilon or take fewer steps")
        high, step = high + step, 2 * step
    low = max(high - step, LEAST)
    while excess(low) <= 0:
        if low == LEAST:
            return LEAST
        high, low, step = low, max(low - step, LEAST), 2 * step
    root = float(brentq(excess, low, high, xtol=tolerance))
    while excess(root) > 0:
        root += tolerance
    return root


def _by_rdp(events: Sequence[Event], delta: float, adjacency: Adjacency) -> float:
    """Epsilon by RDP; with Poisson batches under `replace_one` no bound, only about as large as one would be."""
    library = _library()
    steps = 1.0 if adjacency == "add_or_remove_one" else 0.5
    with _quiet():
        # of one Gaussian it knows noise over sensitivity, whatever the neighbours are
        return _spent(library.rdp.RdpAccountant(), events, delta, adjacency, 1.0, steps)


def _by_pld(events: Sequence[Event], delta: float, adjacency: Adjacency, size: float) -> float:
    """Epsilon by privacy loss distributions, on a grid for an epsilon of about that size."""
    library = _library()
    grid = INTERVAL * max(1.0, min(size, 1e6) / COARSER_ABOVE)
    accountant = library.pld.PLDAccountant(library.NeighboringRelation[adjacency.upper()], grid)
    # it takes noise over the norm of an example's vector, which is half the sensitivity of replacing the example
    release = 1.0 if adjacency == "add_or_remove_one" else 2.0
    return _spent(accountant, events, delta, adjacency, release, 1.0)


def _spent(
    accountant: Any, events: Sequence[Event], delta: float, adjacency: Adjacency, release: float, steps: float
) -> float:
    """Epsilon by an accountant that wants the noise of releases and of steps times these factors."""
    library = _library()
    looking = [event for event in events if isinstance(event, Release) or event.steps * event.sample_rate > 0]
    if not all(event.noise_multiplier > 0 for event in looking):
        return math.inf
    for event in looking:
        if isinstance(event, Release):
            accountant.compose(library.GaussianDpEvent(release * _noise_under(event, adjacency)))
        else:
            gaussian = library.GaussianDpEvent(steps * event.noise_multiplier)
            accountant.compose(library.PoissonSampledDpEvent(event.sample_rate, gaussian), event.steps)
    return float(accountant.get_epsilon(delta)) if looking else 0.0


def _noise_under(release: Release, adjacency: Adjacency) -> float:
    """Standard deviation over sensitivity under an adjacency that may not be the release's own."""
    if release.adjacency == adjacency:
        return release.noise_multiplier
    if adjacency == "add_or_remove_one":
        raise ConfigError(
            "a release whose sensitivity holds under replace_one says nothing under add_or_remove_one; ask for the "
            "epsilon under replace_one"
        )
    return release.noise_multiplier / 2


def _log_gaussian_delta(noise: float, epsilon: float) -> float:
    """log of `Phi(1 / 2s - eps s) - e^eps Phi(-1 / 2s - eps s)` at noise multiplier s (Balle and Wang 2018)."""
    first = float(log_ndtr(0.5 / noise - epsilon * noise))
    second = epsilon + float(log_ndtr(-0.5 / noise - epsilon * noise))
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf


def _library() -> Any:
    return optional("dp_accounting", "dp", "the accounting of differential privacy")


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of the library's on orders of RDP that it leaves out: its bound is looser then, and no less true."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
