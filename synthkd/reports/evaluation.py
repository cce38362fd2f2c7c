"""The page of an evaluation: scores side by side, pictures, and what each number rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from synthkd.metrics.score import Score
from synthkd.metrics.utility import extremes
from synthkd.reports.figures import scatter_chart
from synthkd.reports.files import RunFiles
from synthkd.reports.page import UNKNOWN, bold, key, picture, render, under
from synthkd.reports.results import EvaluateResult, GeneratedSet

COLOURS = ("student", "generator", "teacher", "mark", "good")
"""Of the sets, in turn."""
QUALITY = ("precision", "recall", "density", "coverage")
SCATTERS = (("recall", "precision", 1.0), ("coverage", "density", 1.5))
"""The scores that the scatter plots show: across, up, and the highest that is drawn."""


def evaluation_page(run: RunFiles, result: EvaluateResult) -> bytes:
    """The page as UTF-8, with the pictures in the folder `samples` of the run."""
    sets = result.generated
    paths = {path.stem: path for path in sorted((run.directory / "samples").glob("*.png"))}
    images = [("real", f"Real: {result.real.name}")]
    images += [(f"generated.{place}", f"Generated: {one.name}") for place, one in enumerate(sets)]
    pairs = [(f"pairs.generated.{place}", one.name) for place, one in enumerate(sets)]
    points, coloured = quality_points(sets), zip(sets, cycle(COLOURS), strict=False)
    return render(
        "evaluation.html.jinja",
        name=run.name,
        headline=f"{len(sets)} generated set{'s' if len(sets) > 1 else ''} against {result.real.n:,} real images",
        result=result,
        titles=[under(key(one.name, colour), f"n = {one.n:,}") for one, colour in coloured],
        scores=score_rows(sets),
        pictures=[(title, picture(paths[name])) for name, title in images if name in paths],
        pairs=[(title, picture(paths[name])) for name, title in pairs if name in paths],
        classes=class_bars(sets, result.class_names),
        scatter=[scatter_chart(*axes, points) for axes in SCATTERS if points],
        shows_real=any(name == "real" or name.startswith("pairs.") for name in paths),
        config_text=run.config_text,
    )


def direction(score: Score) -> str:
    """Where a score should go, as an arrow."""
    if score.better != "near":
        return "↓" if score.better == "lower" else "↑"
    return "" if score.target is None else f"→ {score.target:.2g}"


def score_rows(sets: Sequence[GeneratedSet]) -> list[list[str]]:
    """For each score its name, a cell for each set with the best of them in bold, and what the numbers rest on."""
    rows = []
    for scores in zip(*(one.scores for one in sets), strict=True):
        first, values = scores[0], [score.value for score in scores if score.value is not None]
        best = _best(values, first) if len(values) > 1 else None
        kind = next((f"±: {score.kind}" for score in scores if score.kind), "")
        notes = ". ".join(filter(None, [kind, "; ".join(_notes([one.name for one in sets], scores))]))
        notes += f" ({first.dimension:,} dimensions)" if first.dimension else ""
        cells = [_cell(score, is_best=score.value == best) for score in scores]
        rows.append([f"{first.name} {direction(first)}", *cells, under("", notes)])
    return rows


def _best(values: Sequence[float], score: Score) -> float:
    if score.better == "near":
        return min(values, key=lambda value: abs(value - (score.target or 0.0)))
    return min(values) if score.better == "lower" else max(values)


def _cell(score: Score, is_best: bool) -> str:
    """The value of a score, with its interval or its uncertainty."""
    if score.value is None:
        return UNKNOWN
    value = bold(f"{score.value:.4g}") if is_best else f"{score.value:.4g}"
    if score.interval is not None:
        return under(value, "{:.3g} to {:.3g}".format(*score.interval))
    uncertainty = score.uncertainty
    return under(value, "" if uncertainty is None else f"± {uncertainty:{'.0f' if uncertainty >= 100 else '.2g'}}")


def _notes(names: Sequence[str], cells: Sequence[Score]) -> list[str]:
    """Each part of the notes once, with the sets that it holds for unless it holds for all."""
    holds: dict[str, list[str]] = {}
    for name, cell in zip(names, cells, strict=True):
        for part in dict.fromkeys(filter(None, cell.note.split("; "))):
            holds.setdefault(part, []).append(name)
    return [part if len(of) == len(cells) else f"{', '.join(of)}: {part}" for part, of in holds.items()]


def class_bars(sets: Sequence[GeneratedSet], names: Sequence[str]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """For each class its Frechet distance in each set, with the length of its bar in percent, and its colour.

    Of many classes, those with the lowest and the highest distance in any set.
    """
    by_set = [
        {} if one.per_class is None else dict(zip(one.per_class.labels, one.per_class.distances, strict=True))
        for one in sets
    ]
    labels = sorted({label for one in by_set for label in one})
    most_of = [max(one[label] for one in by_set if label in one) for label in labels]
    columns = [labels[place] for place in extremes(most_of)]
    largest = max((distance for one in by_set for distance in one.values()), default=0.0) or 1.0
    return [
        (
            names[label] if label < len(names) else str(label),
            [
                (f"{one[label]:.4g}" if label in one else UNKNOWN, round(86 * one.get(label, 0.0) / largest, 2), colour)
                for one, colour in zip(by_set, cycle(COLOURS), strict=False)
            ],
        )
        for label in columns
    ]


def quality_points(sets: Sequence[GeneratedSet]) -> list[tuple[str, str, Mapping[str, float]]]:
    """(name, colour, score -> value) of each set whose precision, recall, density and coverage were measured."""
    points: list[tuple[str, str, Mapping[str, float]]] = []
    for one, colour in zip(sets, cycle(COLOURS), strict=False):
        values = {score.name.split("-")[0]: score.value for score in one.scores}
        quality = {name: value for name in QUALITY if (value := values.get(name)) is not None}
        points += [(one.name, colour, quality)] if len(quality) == len(QUALITY) else []
    return points
