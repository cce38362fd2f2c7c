"""The content of `privacy_report.json`: all that a reader needs to judge the verdict.

The HTML page is rendered from it and adds nothing. The report is meant to be handed on, so it contains no path, no name
of private data, no private image and no seed of noise.
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
    """One arrow of the flow: `target` learns from `source`.

    Attributes:
        source, target: names of the boxes of the diagram.
        how: the mechanism, in a few words.
        noisy: whether differential privacy bounds what the target learns; None where the source is not private images.
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
"""Flow -> how its parts learn from the private images and from each other."""


def touches_of(flow: Flow, taught_generator: bool) -> tuple[Touch, ...]:
    """How the parts of a flow learn.

    Args:
        flow: of the report.
        taught_generator: whether the generator takes anything from the teacher; one that draws by rule does not.
    """
    return tuple(touch for touch in FLOWS[flow] if taught_generator or touch is not _INVERT)


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
"""By kind of audit; the first kind also where there was no audit."""
OF_DP_SGD = (
    "Batches are drawn by independent coins.",
    "The network computes the logits of an image from that image alone, which was tried on noise.",
)
"""Assumptions about DP-SGD; a single release has no batches and no network."""
ASSUMPTIONS = (
    "Randomness is seeded by the operating system, from a generator that is not cryptographic.",
    "Arithmetic is floating point; the accounting takes noise to be real numbers.",
    "Neighbouring data differ in one image of the training part; which images are held out or tested on counts as "
    "public, although another image in the dataset could draw them anew.",
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
"""By kind of audit; none without one."""


def privacy_report(
    verdict: Verdict,
    flow: Flow | None,
    released: Sequence[str],
    claims: Sequence[Mapping[str, object]],
    audit: Mapping[str, Any] | None,
    unaudited: str,
    checks: Sequence[Check],
    copies: Mapping[str, CopyTest],
    uncopied: str,
    provenance: Mapping[str, object],
    taught_generator: bool = True,
) -> dict[str, Any]:
    """The content of `privacy_report.json`, as JSON values.

    Args:
        verdict: the first line of the report.
        flow: how private images were used; None where finished models were given.
        released: what is handed over, one line each.
        claims: of each differentially private part, see `synthkd.privacy.claims.dp_statement`.
        audit: of the pipeline or, with "kind" `GIVEN`, of given lists; it may contain dataclasses. None without one.
        unaudited: why there is no audit.
        checks: of the audit.
        copies: space -> its copy test; empty where there was none.
        uncopied: why there was no copy test.
        provenance: hashes, versions and hardware.
        taught_generator: see `touches_of`.
    """
    insecure = any(claim["insecure"] for claim in claims)
    assumptions = ASSUMPTIONS if flow == "dp_generator" else (*OF_DP_SGD, *ASSUMPTIONS)
    audit = None if audit is None else {"kind": PIPELINE, **audit}
    kind = PIPELINE if audit is None else audit["kind"]
    report: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "verdict": verdict,
            "released": released,
            "attacker": ATTACKER,
            "not_covered": NOT_COVERED[kind],
            "flow": None if flow is None else {"name": flow, "touches": touches_of(flow, taught_generator)},
            "dp": {"claims": claims, "insecure": insecure, "assumptions": assumptions} if claims else None,
            "audit": audit,
            "unaudited": unaudited,
            "checks": checks,
            "copies": [_public(space, test) for space, test in copies.items()],
            "uncopied": uncopied,
            "caveats": (() if audit is None else CAVEATS[kind]) + _caveats(flow, audit, insecure),
            "provenance": provenance,
        }
    )
    return report


def _public(space: str, test: CopyTest) -> dict[str, Any]:
    """A copy test without the rows of private images."""
    # The rows would say which private images were copied.
    values = asdict(test)
    del values["closest_train"], values["closest_generated"]
    return {"note": NOT_EVIDENCE, "space": space, **values}


def _caveats(flow: Flow | None, audit: Mapping[str, Any] | None, insecure: bool) -> tuple[str, ...]:
    """The caveats that depend on this flow and this audit."""
    caveats = []
    if insecure:
        caveats.append("NOT DP: the noise came from a seed, for tests.")
    if audit is None:
        caveats.append("Nothing was measured: without an audit the verdict rests on the flow alone.")
    else:
        references = audit["references"].values()
        if 0 in references:
            caveats.append(
                "Without references only the plain log-odds are attacked, which take an image that is easy for any "
                "model for a member: the weakest attack there is."
            )
        if 1 in references:
            caveats.append("One reference model tells little of how an image is answered by a model that never saw it.")
        if any(references) and not audit["population"]:
            caveats.append("RMIA was left out: it needs 1,000 real images in no other role.")
        skipped = audit.get("skipped", {}).items()
        caveats += [f"Unreadable files of the {role} that were left out: {count}." for role, count in skipped if count]
    if flow == "plain":
        caveats.append(
            "Images that a generator inverts from a teacher can show a class as the teacher knows it; where a class is "
            "one person, that is this person."
        )
    return tuple(caveats)


def plain(value: object) -> Any:
    """The value for JSON: dataclasses become dicts, tensors and tuples lists, infinite and NaN floats None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain({name: getattr(value, name) for name in value.__dataclass_fields__})
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity
