"""The page of an evaluation: scores side by side, pictures, and what each number rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synthkd.metrics.score import Score
from synthkd.reports.files import RunFiles
from synthkd.reports.page import picture, render
from synthkd.reports.results import EvaluateResult, GeneratedSet

QUALITY = ("precision", "recall", "density", "coverage")
"""The scores that the scatter plots show."""


@dataclass(frozen=True)
class ScoreRow:
    """A score of every set.

    Attributes:
        name: of the score.
        direction: where it should go, as an arrow.
        cells: the score of each set.
        best: the best of several values; None where fewer than two were measured.
        notes: what the notes of the cells say, each part once.
        kind: what the uncertainties are.
    """

    name: str
    direction: str
    cells: Sequence[Score]
    best: float | None
    notes: Sequence[str]
    kind: str


@dataclass(frozen=True)
class ClassBars:
    """A class: its name and, for each set, its Frechet distance (None: not measured) and its bar in percent."""

    name: str
    bars: Sequence[tuple[float | None, float]]


def evaluation_page(run: RunFiles, result: EvaluateResult) -> bytes:
    """The page as UTF-8, with the pictures in the folder `samples` of the run."""
    pictures = {path.stem: picture(path) for path in sorted((run.directory / "samples").glob("*.png"))}
    sets = result.generated
    return render(
        "evaluation.html.jinja",
        name=run.name,
        result=result,
        sets=sets,
        table=score_table(sets),
        bars=class_bars(sets, result.class_names),
        scatter=scatter(sets),
        pictures=pictures,
        shows_real=any(key == "real" or key.startswith("pairs.") for key in pictures),
        config_text=run.config_text,
    )


def direction(score: Score) -> str:
    """Where a score should go, as an arrow."""
    if score.better != "near":
        return "↓" if score.better == "lower" else "↑"
    return "" if score.target is None else f"→ {score.target:.2g}"


def score_table(sets: Sequence[GeneratedSet]) -> list[ScoreRow]:
    """A row for each score."""
    rows = []
    for cells in zip(*(one.scores for one in sets), strict=True):
        values = [cell.value for cell in cells if cell.value is not None]
        best = _best(values, cells[0]) if len(values) > 1 else None
        kind = next((cell.kind for cell in cells if cell.kind), "")
        notes = _notes([one.name for one in sets], cells)
        rows.append(ScoreRow(cells[0].name, direction(cells[0]), cells, best, notes, kind))
    return rows


def _notes(names: Sequence[str], cells: Sequence[Score]) -> list[str]:
    """Each part of the notes once, with the sets that it holds for unless it holds for all."""
    holds: dict[str, list[str]] = {}
    for name, cell in zip(names, cells, strict=True):
        for part in dict.fromkeys(filter(None, cell.note.split("; "))):
            holds.setdefault(part, []).append(name)
    return [part if len(of) == len(cells) else f"{', '.join(of)}: {part}" for part, of in holds.items()]


def _best(values: Sequence[float], score: Score) -> float:
    if score.better == "near":
        return min(values, key=lambda value: abs(value - (score.target or 0.0)))
    return min(values) if score.better == "lower" else max(values)


def class_bars(sets: Sequence[GeneratedSet], names: Sequence[str]) -> list[ClassBars]:
    """For each class its Frechet distance in each set, as a share of the largest of all."""
    by_set: list[dict[int, float]] = [
        {} if one.per_class is None else dict(zip(one.per_class.labels, one.per_class.distances, strict=True))
        for one in sets
    ]
    labels = sorted({label for one in by_set for label in one})
    largest = max((value for one in by_set for value in one.values()), default=0.0) or 1.0
    return [
        ClassBars(
            names[label] if label < len(names) else str(label),
            [(one.get(label), 100.0 * one.get(label, 0.0) / largest) for one in by_set],
        )
        for label in labels
    ]


def scatter(sets: Sequence[GeneratedSet]) -> list[tuple[str, Mapping[str, float]]]:
    """(name, score -> value) of each set whose precision, recall, density and coverage were measured."""
    points: list[tuple[str, Mapping[str, float]]] = []
    for one in sets:
        values = {score.name.split("-")[0]: score.value for score in one.scores}
        quality = {key: value for key in QUALITY if (value := values.get(key)) is not None}
        if len(quality) == len(QUALITY):
            points.append((one.name, quality))
    return points
