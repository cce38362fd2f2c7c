"""A ledger keeps every event, through sums and through JSON, and refuses events that cannot have been."""

import json
import math
from typing import Any

import pytest

from synthkd.errors import CheckpointError, ConfigError
from synthkd.privacy.ledger import Ledger, PoissonSteps, Release

RUN = PoissonSteps(sample_rate=0.1, noise_multiplier=1.0, steps=30)
"""Three epochs of batches of a tenth."""


def one(*events: PoissonSteps | Release) -> Ledger:
    return Ledger(events)


def test_adding_keeps_every_event_that_differs() -> None:
    first, second = one(RUN, Release(2.0)), one(PoissonSteps(0.1, 1.1, 5), Release(2.0), RUN)
    counted = (PoissonSteps(0.1, 1.0, 60), PoissonSteps(0.1, 1.1, 5), Release(2.0), Release(2.0))
    assert (first + second).events == counted
    assert sum([first, second], Ledger()).events == counted


def test_it_goes_through_json() -> None:
    ledger = one(RUN, Release(2.5), Release(1.0, "add_or_remove_one"))
    stored = json.loads(json.dumps(ledger.to_json()))
    assert stored[0] == {"event": "poisson_steps", "sample_rate": 0.1, "noise_multiplier": 1.0, "steps": 30}
    assert Ledger.from_json(stored) == ledger


@pytest.mark.parametrize(
    "stored",
    [
        [{"event": "laplace", "noise_multiplier": 1.0}],
        [{"event": "release"}],
        [{"event": "release", "noise_multiplier": -1.0}],
        [{"event": "release", "noise_multiplier": 1.0, "adjacency": "person"}],
        [{"event": "poisson_steps", "sample_rate": 1.5, "noise_multiplier": 1.0, "steps": 1}],
        ["release"],
        [{"noise_multiplier": 1.0}],
    ],
)
def test_a_damaged_one_is_refused(stored: Any) -> None:
    with pytest.raises(CheckpointError, match="nothing can be claimed"):
        Ledger.from_json(stored)


def test_impossible_events_are_refused() -> None:
    for rate, noise, steps in ((1.1, 1.0, 1), (-0.1, 1.0, 1), (0.1, -1.0, 1), (0.1, math.nan, 1), (0.1, 1.0, -1)):
        with pytest.raises(ConfigError):
            PoissonSteps(rate, noise, steps)
    with pytest.raises(ConfigError, match="0 means no noise"):
        Release(math.inf)
