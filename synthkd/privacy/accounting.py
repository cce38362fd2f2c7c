"""The epsilon of a ledger, computed by the package dp-accounting each time it is needed.

Privacy loss distributions (PLD) give the epsilon that is claimed. Renyi differential privacy (RDP) gives a looser bound
that is reported beside it. Both are upper bounds under the given adjacency (`synthkd.privacy.ledger`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any

from synthkd.errors import ConfigError
from synthkd.imports import optional
from synthkd.privacy.ledger import Adjacency, Event, Ledger, Release

INTERVAL = 5e-4
"""Grid of privacy losses, which are rounded up to it: a coarser grid gives a larger epsilon, never a smaller one."""
COARSER_ABOVE = 50.0
"""Epsilon above which the grid grows in proportion to it, so that it does not fill the memory."""


@dataclass(frozen=True)
class Epsilon:
    """The privacy loss of a ledger.

    Attributes:
        pld: epsilon by privacy loss distributions, an upper bound and the one to claim; infinite without noise.
        rdp: epsilon by Renyi differential privacy, an upper bound; None where there is no formula (Poisson batches
            under `replace_one`).
        delta: probability for which neither bound need hold, in (0, 1).
        adjacency: which data sets are neighbours.
        library: package that computed them.
        version: version of the package.
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
    """The epsilon of all events of a ledger together.

    Args:
        ledger: the events.
        delta: in (0, 1); for a claim also below 1 / examples, see `check_delta`.
        adjacency: which data sets are neighbours. A release under `add_or_remove_one` counts at half its noise under
            `replace_one`, since replacing is one removal and one addition. There is no rule for the other direction.

    Raises:
        ConfigError: a delta out of range, or a release under `replace_one` and epsilon under `add_or_remove_one`.
        MissingExtraError: dp-accounting is not installed.
    """
    check_delta(delta)
    # RDP first: it is fast, and its size sets the grid of the PLD.
    rdp = _rdp_epsilon(ledger.events, delta, adjacency)
    pld = pld_epsilon(ledger.events, delta, adjacency, rdp)
    has_rdp = adjacency == "add_or_remove_one" or all(isinstance(event, Release) for event in ledger.events)
    return Epsilon(pld, rdp if has_rdp else None, delta, adjacency, "dp-accounting", version("dp-accounting"))


def check_delta(delta: float, examples: int | None = None) -> None:
    """Raise `ConfigError` unless delta is in (0, 1) and, where the number of examples is given, below 1 / examples.

    A mechanism that publishes each example with probability delta has an epsilon of 0. At delta = 1 / examples it
    publishes one of them on average, so a claim needs a smaller delta.
    """
    if examples is None:
        if not 0.0 < delta < 1.0:
            raise ConfigError(f"delta must be in (0, 1), got {delta}; take a power of ten below one over the examples")
    elif not 0.0 < delta < 1.0 / examples:
        advice = 10.0 ** math.floor(math.log10(0.5 / examples))
        raise ConfigError(f"delta must be above 0 and below 1 / {examples} (examples), got {delta:g}; take {advice:g}")


def pld_epsilon(events: Sequence[Event], delta: float, adjacency: Adjacency, size: float) -> float:
    """Epsilon by privacy loss distributions, an upper bound; infinite without noise.

    Args:
        events: of a ledger.
        delta: in (0, 1).
        adjacency: which data sets are neighbours.
        size: about what epsilon will be; it sets the grid of the privacy losses.

    Raises:
        ConfigError: a release under `replace_one` and epsilon under `add_or_remove_one`.
        MissingExtraError: dp-accounting is not installed.
    """
    library = _library()
    grid = INTERVAL * max(1.0, min(size, 1e6) / COARSER_ABOVE)
    accountant = library.pld.PLDAccountant(library.NeighboringRelation[adjacency.upper()], grid)
    # The accountant takes the noise over the norm of one example's vector. A `Release` has it over the sensitivity,
    # which is twice that norm under replace_one.
    release_factor = 1.0 if adjacency == "add_or_remove_one" else 2.0
    return _compose(accountant, events, delta, adjacency, release_factor, 1.0)


def _rdp_epsilon(events: Sequence[Event], delta: float, adjacency: Adjacency) -> float:
    """Epsilon by RDP; for Poisson batches under `replace_one` only an estimate of its size, not a bound."""
    # The accountant takes the noise over the sensitivity, whatever the neighbours are. `PoissonSteps` has it over the
    # clipping norm, which is half the sensitivity under replace_one.
    step_factor = 1.0 if adjacency == "add_or_remove_one" else 0.5
    # The library warns of RDP orders that it leaves out. Without them its bound is looser, and still a bound.
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        return _compose(_library().rdp.RdpAccountant(), events, delta, adjacency, 1.0, step_factor)
    finally:
        log.disabled = before


def _compose(
    accountant: Any,
    events: Sequence[Event],
    delta: float,
    adjacency: Adjacency,
    release_factor: float,
    step_factor: float,
) -> float:
    """Epsilon by an accountant that takes the noise multipliers of releases and of steps times these factors."""
    library = _library()
    # Steps that no example can be in reveal nothing, even without noise; and the accountant refuses a count of 0.
    queries = [event for event in events if isinstance(event, Release) or event.steps * event.sample_rate > 0]
    if not all(event.noise_multiplier > 0 for event in queries):
        return math.inf
    for event in queries:
        if isinstance(event, Release):
            accountant.compose(library.GaussianDpEvent(release_factor * _noise_under(event, adjacency)))
        else:
            gaussian = library.GaussianDpEvent(step_factor * event.noise_multiplier)
            accountant.compose(library.PoissonSampledDpEvent(event.sample_rate, gaussian), event.steps)
    return float(accountant.get_epsilon(delta)) if queries else 0.0


def _noise_under(release: Release, adjacency: Adjacency) -> float:
    """Standard deviation over sensitivity under an adjacency that may differ from the release's own."""
    if release.adjacency == adjacency:
        return release.noise_multiplier
    if adjacency == "add_or_remove_one":
        raise ConfigError(
            "a release whose sensitivity holds under replace_one says nothing under add_or_remove_one; ask for the "
            "epsilon under replace_one"
        )
    # A replacement is a removal and an addition: twice the sensitivity.
    return release.noise_multiplier / 2


def _library() -> ModuleType:
    return optional("dp_accounting", "dp", "the accounting of differential privacy")
