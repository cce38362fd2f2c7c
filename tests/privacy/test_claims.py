"""A claim has what a reader needs to judge it, and no figure that JSON does not have."""

import json

import pytest

from synthkd.privacy.accounting import epsilon
from synthkd.privacy.claims import dp_statement
from synthkd.privacy.ledger import Ledger, PoissonSteps

DELTA = 1e-5


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_claim_has_no_figure_that_is_infinite_or_has_no_formula(noise: float) -> None:
    pytest.importorskip("dp_accounting")
    ledger = Ledger((PoissonSteps(0.1, noise, 30),))
    spent = epsilon(ledger, DELTA, "replace_one")
    claim = dp_statement(ledger, spent, 500, insecure=True, noise_multiplier=noise, clip=2.0)
    assert json.loads(json.dumps(claim, allow_nan=False)) == {
        "insecure": True,
        "epsilon": spent.pld if noise else None,
        "epsilon_rdp": None,
        "delta": DELTA,
        "adjacency": "replace_one",
        "unit": "image",
        "examples": 500,
        "noise_multiplier": noise,
        "clip": 2.0,
        "accountant": f"dp-accounting {spent.version}, privacy loss distributions",
        "ledger": ledger.to_json(),
    }
    unbounded = dp_statement(ledger, epsilon(ledger, DELTA), 500, insecure=False)
    assert (unbounded["epsilon_rdp"] is None) == (noise == 0.0)
