"""The content of `privacy_report.json`: what a careful reader needs to judge a verdict, in one JSON-able value.

The page made from it adds nothing. It holds no path, no name of private data, no private image and no seed of noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import torch

from synthkd.privacy.audit import GIVEN, PIPELINE
from synthkd.privacy.copies import NOT_EVIDENCE, CopyTest
from synthkd.privacy.verdict import Check, Verdict
from synthkd.settings import Flow

SCHEMA = 1


@dataclass(frozen=True)
class Touch:
    """One arrow of the flow.

    Attributes:
        source, target: what is read and what learns from it.
        how: in a few words.
        noisy: True where differential privacy bounds what passes; None where nothing private is read directly.
    """

    source: str
    target: str
    how: str
    noisy: bool | None


_PLAIN = Touch("private images", "teacher", "trained on them, no noise", False)
_DP = Touch("private images", "teacher", "DP-SGD: clipped gradients, noise, Poisson batches", True)
_RELEASE = Touch("private images", "generator", "one noisy release of mean embeddings (DP-MERF)", True)
_INVERT = Touch("teacher", "generator", "learns what the teacher answers", None)
_LABEL = Touch("teacher", "student", "soft labels of synthetic images", None)
_DRAW = Touch("generator", "student", "synthetic images", None)
FLOWS: Mapping[Flow, tuple[Touch, ...]] = {
    "plain": (_PLAIN, _INVERT, _DRAW, _LABEL),
    "dp_teacher": (_DP, _INVERT, _DRAW, _LABEL),
    "dp_generator": (_RELEASE, Touch("generator", "teacher", "trained on synthetic images only", None), _DRAW, _LABEL),
    "dp_both": (_DP, _RELEASE, _DRAW, _LABEL),
}
"""Each touch of private images, and where what was learned goes from there."""

ATTACKER = (
    "Has the released files, so can look inside the models and ask them anything as often as wanted.",
    "Knows one image in full and wants to know whether it was trained on; has similar images of its own.",
)
_NEVER_COVERED = (
    "this report itself: accuracies and audit numbers are computed from real images without noise",
    "anything about a group: a guarantee for one image is none for a person with several",
)
NOT_COVERED: Mapping[str, tuple[str, ...]] = {
    PIPELINE: (
        "the teacher, checkpoints, logs and synthetic images inside the run directory, unless they are listed as "
        "released",
        *_NEVER_COVERED,
    ),
    GIVEN: (
        "whatever else was made of the members: other models, checkpoints, logs and synthetic images that were not "
        "given",
        *_NEVER_COVERED,
    ),
}
"""By kind of audit; the first where there was none."""
COINS = "Batches are drawn by independent coins."
"""Assumed where a teacher is trained with noise; a single look has no batches."""
ASSUMPTIONS = (
    "Randomness is seeded by the operating system, from a generator that is not cryptographic.",
    "Arithmetic is floating point; the accounting takes noise to be real numbers.",
    "The number of images, the classes and all settings are public; settings were not tuned on these private images, "
    "or that tuning is not counted.",
    "Weights that a model started from, where it did not start fresh, are public.",
    "Test images that are reported on are not private, or what their accuracy tells is not counted.",
)
CAVEATS: Mapping[str, tuple[str, ...]] = {
    PIPELINE: (
        "A small epsilon bound shown by an attack is no evidence that little leaks: look at the ceiling beside it, the "
        "most that a perfect attack could have shown with as many canaries.",
        "The audit attacks models that the same pipeline made from the same images with canaries among them, not the "
        "very files that are handed over.",
        "Average images say nothing about the most exposed one: read the rows of mislabelled canaries.",
        "Known attacks are lower bounds; a better one may find more.",
    ),
    GIVEN: (
        "Average-case, heuristic: not a bound. No coin decided who is on which list, so an epsilon is an estimate, and "
        "intervals say how much other images of the same kind might have changed a number.",
        "Average images say nothing about the most exposed one, such as an image with a wrong label; what a pipeline "
        "does to those is measured where it can be run again (audit in `synthkd compress`).",
        "Members and non-members are what the lists say. Members that were not trained on, and non-members that were, "
        "make a model look better than it is.",
        "Finding nothing is no evidence that little leaks: look at the ceiling, the most that so few images could have "
        "shown; and a better attack may find more.",
    ),
}
"""By kind of audit; the first where there was none."""


def privacy_report(
    verdict: Verdict,
    flow: Flow | None,
    released: Sequence[str],
    claims: Sequence[Mapping[str, Any]],
    audit: Mapping[str, Any] | None,
    unaudited: str,
    checks: Sequence[Check],
    copies: Mapping[str, CopyTest],
    uncopied: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The report.

    Args:
        verdict: its first line.
        flow: how private images were touched; None where finished models were given.
        released: what is handed over, a line each.
        claims: what each noisy part may claim, see `synthkd.privacy.dpsgd.statement`.
        audit: of the pipeline, or with the kind `GIVEN` of given lists, dataclasses inside; None where there was none.
        unaudited: why, then.
        checks: of the audit.
        copies: of the synthetic images, by what was compared; empty where it was not made.
        uncopied: why, then.
        provenance: hashes, versions and hardware.
    """
    insecure = any(claim["insecure"] for claim in claims)
    assumptions = ASSUMPTIONS if flow == "dp_generator" else (COINS, *ASSUMPTIONS)
    audit = None if audit is None else {"kind": PIPELINE, **audit}
    kind = PIPELINE if audit is None else audit["kind"]
    found: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "verdict": verdict,
            "released": released,
            "attacker": ATTACKER,
            "not_covered": NOT_COVERED[kind],
            "flow": None if flow is None else {"name": flow, "touches": FLOWS[flow]},
            "dp": {"claims": claims, "insecure": insecure, "assumptions": assumptions} if claims else None,
            "audit": audit,
            "unaudited": unaudited,
            "checks": checks,
            "copies": [_told(space, test) for space, test in copies.items()],
            "uncopied": uncopied,
            "caveats": CAVEATS[kind] + _computed(flow, audit, insecure),
            "provenance": provenance,
        }
    )
    return found


def _told(space: str, test: CopyTest) -> dict[str, Any]:
    """A copy test without the rows of private images that it found."""
    told = asdict(test)
    del told["closest_train"], told["closest_generated"]
    return {"note": NOT_EVIDENCE, "space": space, **told}


def _computed(flow: Flow | None, audit: Mapping[str, Any] | None, insecure: bool) -> tuple[str, ...]:
    said = []
    if insecure:
        said.append("NOT DP: the noise came from a seed, for tests.")
    if audit is None:
        said.append("Nothing was measured: without an audit the verdict rests on the flow alone.")
    else:
        counts = audit["references"].values()
        if 0 in counts:
            said.append("Without references only the plain log-odds are attacked, which take an image that is easy for "
                        "any model for a member: the weakest attack there is.")  # fmt: skip
        if 1 in counts:
            said.append("One reference model tells little of how an image is answered by a model that never saw it.")
        if any(counts) and not audit["population"]:
            said.append("RMIA was left out: it needs 1,000 real images in no other role.")
        said += [f"Unreadable files of the {role} that were left out: {count}."
                 for role, count in audit.get("skipped", {}).items() if count]  # fmt: skip
    if flow == "plain":
        said.append("Images that a generator inverts from a teacher can show a class as the teacher knows it; where a "
                    "class is one person, that is this person.")  # fmt: skip
    return tuple(said)


def plain(value: Any) -> Any:
    """JSON-able: dataclasses become objects, tensors lists, and infinities, which JSON does not have, null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain({name: getattr(value, name) for name in value.__dataclass_fields__})
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
