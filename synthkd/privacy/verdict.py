"""The one line that a privacy report may end with, and what it rests on.

A number of an attack that found little is no guarantee, so without differential privacy the verdict says that there is
none, whatever was measured. A claim of differential privacy is refuted by a lower bound above it, and an audit whose
controls fail says nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One condition without which an audit says nothing.

    Attributes:
        name: of the check.
        passed: whether it holds.
        found: what was seen, a sentence.
    """

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Claim:
    """A claim of differential privacy for everything that is released.

    Attributes:
        epsilon: by privacy loss distributions, all mechanisms composed; None without noise.
        delta: of the claim.
        adjacency: of the neighbouring data sets.
        unit: what one example is.
        insecure: True where the noise can be drawn again; then nothing is claimed.
    """

    epsilon: float | None
    delta: float
    adjacency: str
    unit: str
    insecure: bool


@dataclass(frozen=True)
class Verdict:
    """What a reader takes away.

    Attributes:
        kind: one of three.
        text: the line, which never says more than was shown.
        detail: what stands behind it, a sentence.
    """

    kind: Literal["no_guarantee", "dp", "invalid"]
    text: str
    detail: str


def verdict(claim: Claim | None, bounds: Sequence[float], checks: Sequence[Check]) -> Verdict:
    """The verdict of a report.

    Args:
        claim: of the flow; None where a part of it looks at private images without noise.
        bounds: rigorous lower bounds of epsilon that the audit found, which hold together; none without an audit, or
            where it is one of given lists.
        checks: of the audit's validity; none without an audit.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        reasons = "; ".join(f"{check.name}: {check.found}" for check in failed)
        return Verdict("invalid", f"INVALID AUDIT ({reasons})", "What was measured below cannot be relied on.")
    if claim is None or claim.insecure or claim.epsilon is None:
        why = "No mechanism bounds what the released files tell about a training image."
        if claim is not None:
            cause = "its noise can be drawn again from a seed" if claim.insecure else "its noise is 0"
            why = f"NOT DP: the training looked like differential privacy, but {cause}."
        measured = "measured only" if bounds or checks else "not measured either"
        return Verdict("no_guarantee", f"NO GUARANTEE ({measured})", why)
    shown = max(bounds, default=0.0)
    if shown > claim.epsilon:
        return Verdict(
            "invalid",
            f"INVALID AUDIT (claimed epsilon {claim.epsilon:.3g} is refuted: the audit shows at least {shown:.3g})",
            "The noise is not what the accounting takes it to be; nothing may be released as differentially private.",
        )
    return Verdict(
        "dp",
        f"DP: epsilon={claim.epsilon:.3g}, delta={claim.delta:g}",
        f"For adding, removing or replacing one {claim.unit} as said below ({claim.adjacency.replace('_', ' ')}), on "
        "the assumptions listed there.",
    )
