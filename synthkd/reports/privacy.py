"""The page of a privacy report: the content of `privacy_report.json`, in the order of a careful reader's questions.

No number is computed here. The arrows of the flow and the ROC curves are drawn from the values in the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthkd.errors import CheckpointError
from synthkd.privacy.audit import GIVEN, MISLABELLED, NATURAL
from synthkd.privacy.report import SCHEMA
from synthkd.reports.page import SPACE, render
from synthkd.system.files import write_atomically
from synthkd.system.sealed import unsealed

SOURCE, PAGE = "privacy_report.json", "privacy_report.html"
TITLES = {
    MISLABELLED: "Worst case: canaries with a wrong label",
    NATURAL: "Average case: canaries with their own label",
    GIVEN: "Average case: the lists as they were given",
}
"""Groups of audited images, in the order of the page: the most exposed first."""

# The drawing of the flow, 400 x 292: the centres of the boxes, half their width and height, length of an arrow head.
PLACES = {"private images": (200, 34), "teacher": (70, 146), "generator": (330, 146), "student": (200, 258)}
HALF_BOX = (66.0, 22.0)
HEAD = 9.0
# The ROC curves, 350 x 340: logarithmic axes from LEFT to RIGHT and from BOTTOM to TOP. A rate of 0 has no logarithm
# and is drawn BESIDE the axis.
LEFT, RIGHT, TOP, BOTTOM = 88.0, 328.0, 14.0, 254.0
BESIDE = 32.0


@dataclass(frozen=True)
class Arrow:
    """One arrow of the flow, in the coordinates of the drawing.

    Attributes:
        number: of the touch, from 1.
        noisy: whether noise protects it; None where it reads nothing private.
        line: x1, y1, x2, y2, from the edge of one box to the arrow head.
        head: corners of the arrow head, as an SVG polygon.
        middle: x, y of the middle between the boxes.
    """

    number: int
    noisy: bool | None
    line: tuple[float, float, float, float]
    head: str
    middle: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One ROC curve, in the coordinates of the drawing.

    Attributes:
        who: "teacher" or "student".
        attack: name of the attack.
        steps: SVG path along the curve, which keeps its height until the next false positive.
        points: SVG path that marks each point.
    """

    who: str
    attack: str
    steps: str
    points: str


@dataclass(frozen=True)
class Roc:
    """The headline attacks on one group of images, on logarithmic axes from 1/n to 1.

    Attributes:
        ticks: (x, y, label) of each tick, which stands at x on the one axis and at y on the other.
        curves: one per model.
    """

    ticks: tuple[tuple[float, float, str], ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Group:
    """The audit of one group of images: one half of the canaries, or the lists as they were given.

    Attributes:
        title: what the group stands for.
        audits: "teacher", "student", each where it was audited -> its `synthkd.privacy.audit.GroupAudit` as JSON.
        rows: name of an attack -> teacher, student -> its `synthkd.privacy.rates.Attack` as JSON, or None.
        headlines: teacher, student -> the attack that shows most.
        reasons: why rates are missing, each once.
        ratio: true positives, student over teacher, or None.
        roc: the curves of the headlines.
    """

    title: str
    audits: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Mapping[str, Mapping[str, Any] | None]]
    headlines: Mapping[str, Mapping[str, Any]]
    reasons: Sequence[str]
    ratio: Mapping[str, Any] | None
    roc: Roc


def write_privacy_page(run: Path) -> Path:
    """Write `run/privacy_report.html` from `run/privacy_report.json` alone, and return its path.

    Raises:
        CheckpointError: there is no such file, or one of another version.
    """
    source = run / SOURCE
    try:
        report = unsealed(source.read_bytes())
        if report["schema"] != SCHEMA:
            raise ValueError(f"its schema is {report['schema']}, not {SCHEMA}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{source} cannot be shown ({error}); run the job that made it again") from error
    page = render(
        "privacy.html.jinja",
        name="privacy",  # the name of the run may be that of private data
        report=report,
        boxes=PLACES,
        half_box=HALF_BOX,
        arrows=arrows(report["flow"]["touches"]) if report["flow"] else [],
        handed_over={line.partition(":")[0] for line in report["released"]},
        groups=groups(report["audit"]),
        axes={"left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM, "beside": BESIDE},
    )
    path = run / PAGE
    write_atomically(path, page)
    return path


def arrows(touches: Sequence[Mapping[str, Any]]) -> list[Arrow]:
    """The touches of private images and of what was learned from them, as arrows between their boxes."""
    result = []
    for number, touch in enumerate(touches, start=1):
        (x1, y1), (x2, y2) = PLACES[touch["source"]], PLACES[touch["target"]]
        dx, dy = x2 - x1, y2 - y1
        inside = min(half / abs(way) for half, way in zip(HALF_BOX, (dx, dy), strict=True) if way)
        ends = (x1 + inside * dx, y1 + inside * dy, x2 - inside * dx, y2 - inside * dy)
        length = math.hypot(dx, dy)
        along, across = (HEAD * dx / length, HEAD * dy / length), (-HEAD * dy / length / 2, HEAD * dx / length / 2)
        back = (ends[2] - along[0], ends[3] - along[1])
        corners = [ends[2:], *((back[0] + side * across[0], back[1] + side * across[1]) for side in (1, -1))]
        result.append(
            Arrow(
                number=number,
                noisy=touch["noisy"],
                line=(*ends[:2], *back),
                head=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners),
                middle=((x1 + x2) / 2, (y1 + y2) / 2),
            )
        )
    return result


def groups(audit: Mapping[str, Any] | None) -> list[Group]:
    """The audit of each group of images, the worst case first; empty without an audit."""
    if audit is None:
        return []
    models, ratios = audit["models"], audit["ratios"]
    present = {group for model in models.values() for group in model}
    return [_group(group, title, models, ratios.get(group)) for group, title in TITLES.items() if group in present]


def _group(group: str, title: str, models: Mapping[str, Any], ratio: Mapping[str, Any] | None) -> Group:
    audits = {who: model[group] for who, model in models.items()}
    by_name = {who: {one["name"]: one for one in audited["attacks"]} for who, audited in audits.items()}
    names = dict.fromkeys(name for attacks in by_name.values() for name in attacks)
    headlines = {who: by_name[who][audited["headline"]] for who, audited in audits.items()}
    rates = [at for attacks in by_name.values() for one in attacks.values() for at in (*one["tpr"], *one["tnr"])]
    return Group(
        title=title,
        audits=audits,
        rows={name: {who: attacks.get(name) for who, attacks in by_name.items()} for name in names},
        headlines=headlines,
        reasons=list(dict.fromkeys(at["reason"] for at in rates if at["reason"])),
        ratio=ratio,
        roc=roc(headlines),
    )


def roc(headlines: Mapping[str, Mapping[str, Any]]) -> Roc:
    """The curves of attacks on the same images.

    Args:
        headlines: teacher, student -> the attack, with its `roc`, `n_in` and `n_out`.
    """
    n = max(one[side] for one in headlines.values() for side in ("n_in", "n_out"))
    decades = [0.1**power for power in range(math.ceil(math.log10(n)))]
    labels = [(rate, f"{100 * rate:.4g}{SPACE}%") for rate in decades if rate * n >= 2]  # nearer, they would overlap
    ticks = [(0.0, "0"), (1 / n, f"1/{n:,}"), *reversed(labels)]
    curves = []
    for who, one in headlines.items():
        places = [(_across(false, n), _up(true, n)) for false, true in one["roc"]]
        steps = " ".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
        curves.append(
            Curve(
                who=who,
                attack=one["name"],
                steps=f"M{places[0][0]:.1f} {places[0][1]:.1f}{steps}",
                points="".join(f"M{x:.1f} {y:.1f}h0" for x, y in places),
            )
        )
    return Roc(tuple((_across(rate, n), _up(rate, n), label) for rate, label in ticks), tuple(curves))


def _across(rate: float, n: int) -> float:
    return LEFT - BESIDE if rate <= 0 else RIGHT + (RIGHT - LEFT) * math.log(rate) / math.log(n)


def _up(rate: float, n: int) -> float:
    return BOTTOM + BESIDE if rate <= 0 else TOP - (BOTTOM - TOP) * math.log(rate) / math.log(n)
