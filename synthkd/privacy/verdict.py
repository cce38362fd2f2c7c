"""The verdict of a privacy report: one line, and the reason for it.

An attack that finds little proves nothing, so without differential privacy the verdict is that there is no guarantee,
whatever was measured. A claim of differential privacy is refuted by a lower bound above it. An audit whose controls
fail says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One condition without which an audit says nothing.

    Attributes:
        name: of the check.
        passed: whether it holds.
        found: the evidence, a sentence; the name of this field is a key of privacy reports.
    """

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Claim:
    """A claim of differential privacy for everything that is released.

    Attributes:
        epsilon: by privacy loss distributions, of all mechanisms composed; None without noise.
        delta: of the claim.
        adjacency: which data sets are neighbours.
        unit: what one example is, such as "image".
        insecure: True where the noise can be drawn again from a seed; then nothing is claimed.
    """

    epsilon: float | None
    delta: float
    adjacency: str
    unit: str
    insecure: bool


@dataclass(frozen=True)
class Verdict:
    """The verdict of a privacy report.

    Attributes:
        kind: no guarantee, a claim of differential privacy that was not refuted, or an audit that says nothing.
        text: the line, which never says more than was shown.
        detail: the reason, a sentence.
    """

    kind: Literal["no_guarantee", "dp", "invalid"]
    text: str
    detail: str


def rounded_up(epsilon: float) -> str:
    """An epsilon in three digits, never less than it is: 8.004 -> "8.01"."""
    return f"{float(_THREE_DIGITS.create_decimal_from_float(epsilon)):.3g}"


_THREE_DIGITS = Context(prec=3, rounding=ROUND_CEILING)


def verdict(claim: Claim | None, bounds: Sequence[float], checks: Sequence[Check]) -> Verdict:
    """The verdict that a claim, and the results of an audit, allow.

    Args:
        claim: of the flow; None where a part of it uses private images without noise.
        bounds: rigorous lower bounds of epsilon by the audit, which hold together; empty without an audit, and for an
            audit of given lists.
        checks: of the audit's validity; empty without an audit.
    """
    # The checks go first: numbers of an audit that failed one can neither support nor refute a claim.
    if failed := [check for check in checks if not check.passed]:
        reasons = "; ".join(f"{check.name}: {check.found}" for check in failed)
        return Verdict("invalid", f"INVALID AUDIT ({reasons})", "What was measured below cannot be relied on.")
    if claim is None or claim.insecure or claim.epsilon is None:
        why = "No mechanism bounds what the released files tell about a training image."
        if claim is not None:
            cause = "its noise can be drawn again from a seed" if claim.insecure else "its noise is 0"
            why = f"NOT DP: the training looked like differential privacy, but {cause}."
        measured = "measured only" if bounds or checks else "not measured either"
        return Verdict("no_guarantee", f"NO GUARANTEE ({measured})", why)
    # An attack can refute a claim, never confirm it.
    largest = max(bounds, default=0.0)
    if largest > claim.epsilon:
        return Verdict(
            "invalid",
            f"INVALID AUDIT (claimed epsilon {rounded_up(claim.epsilon)} is refuted: the audit shows at least "
            f"{largest:.3g})",
            "The noise is not what the accounting takes it to be; nothing may be released as differentially private.",
        )
    return Verdict(
        "dp",
        f"DP: epsilon={rounded_up(claim.epsilon)}, delta={claim.delta:g}",
        f"For adding, removing or replacing one {claim.unit} as said below ({claim.adjacency.replace('_', ' ')}), on "
        "the assumptions listed there.",
    )
