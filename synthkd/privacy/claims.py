"""The claim of a differentially private part of a run: the entry "dp" of its result.json, written and read back."""

from __future__ import annotations

import math
import reprlib
from typing import Any, get_args

from synthkd.errors import CheckpointError
from synthkd.privacy.accounting import Epsilon
from synthkd.privacy.ledger import Adjacency, Ledger, is_number


def dp_statement(
    ledger: Ledger, epsilon: Epsilon, examples: int, insecure: bool, **mechanism: str | float
) -> dict[str, object]:
    """The claim of a part of a run, for JSON.

    Args:
        ledger: all its queries of the private examples.
        epsilon: the epsilon of the ledger; an infinite one becomes None.
        examples: number of private examples.
        insecure: True where the noise can be drawn again from a seed; then nothing is claimed.
        mechanism: parameters of the mechanism, such as `noise_multiplier`.
    """
    # JSON has no infinity. The ledger goes along, so that epsilon can be computed again from the result alone.
    return {
        "insecure": insecure,
        "epsilon": None if math.isinf(epsilon.pld) else epsilon.pld,
        "epsilon_rdp": None if epsilon.rdp is None or math.isinf(epsilon.rdp) else epsilon.rdp,
        "delta": epsilon.delta,
        "adjacency": epsilon.adjacency,
        "unit": "image",
        "examples": examples,
        **mechanism,
        "accountant": f"{epsilon.library} {epsilon.version}, privacy loss distributions",
        "ledger": ledger.to_json(),
    }


def ledger_of(statement: object) -> Ledger:
    """The ledger in a `dp_statement` that was read from JSON.

    Raises:
        CheckpointError: `statement` is no such statement.
    """
    fields: dict[str, Any] = statement if isinstance(statement, dict) else {}
    delta: Any = fields.get("delta")
    sound = is_number(delta) and 0.0 < delta < 1.0 and fields.get("adjacency") in get_args(Adjacency)
    if not sound or type(fields.get("insecure")) is not bool or not isinstance(fields.get("unit"), str):
        raise CheckpointError(
            f"a finished run must say what it may claim, got dp: {reprlib.repr(statement)}; restore its result.json "
            "from a copy: without it nothing can be claimed"
        )
    return Ledger.from_json(fields.get("ledger"))
