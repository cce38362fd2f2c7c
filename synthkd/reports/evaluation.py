"""The page of an evaluation: scores side by side, pictures, what each number rests on; made from the run's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synthkd.errors import CheckpointError
from synthkd.reports.page import picture, render
from synthkd.system.files import write_atomically
from synthkd.system.text import parse_json


def write_evaluation(run: Path) -> Path:
    """Write `run/report.html` from `run/result.json` and the pictures beside it, and return its path.

    Raises:
        CheckpointError: when there is no result to show.
    """
    try:
        result = parse_json((run / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run}: no result.json that can be read ({error}); run the evaluation again") from error
    sets = result["generated"]
    pictures = {path.stem: picture(path) for path in sorted((run / "samples").glob("*.png"))}
    page = render(
        "evaluation.html.jinja",
        name=result["name"],
        result=result,
        sets=sets,
        table=score_table(sets),
        bars=class_bars(sets, result["class_names"]),
        scatter=scatter(sets),
        pictures=pictures,
        shows_real=any(key == "real" or key.startswith("pairs.") for key in pictures),
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
    )
    path = run / "report.html"
    write_atomically(path, page)
    return path


def direction(score: Mapping[str, Any]) -> str:
    """Where a score should go, as an arrow."""
    if score["better"] != "near":
        return "↓" if score["better"] == "lower" else "↑"
    return "" if score["target"] is None else f"→ {score['target']:.2g}"


def score_table(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each score: its name and direction, a cell for each set, and which sets are best."""
    rows = []
    for number, first in enumerate(sets[0]["scores"]):
        cells = [one["scores"][number] for one in sets]
        values = [cell["value"] for cell in cells if cell["value"] is not None]
        best = _best(values, first) if len(values) > 1 else None
        rows.append(
            {
                "name": first["name"],
                "direction": direction(first),
                "cells": [{**cell, "is_best": best is not None and cell["value"] == best} for cell in cells],
                "notes": _notes([one["name"] for one in sets], cells),
                "kind": next((cell["kind"] for cell in cells if cell["kind"]), ""),
            }
        )
    return rows


def _notes(names: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the notes of the cells say, each part once, with the sets it holds for unless it holds for all."""
    holds: dict[str, list[str]] = {}
    for name, cell in zip(names, cells, strict=True):
        for part in dict.fromkeys(filter(None, cell["note"].split("; "))):
            holds.setdefault(part, []).append(name)
    return [part if len(of) == len(cells) else f"{', '.join(of)}: {part}" for part, of in holds.items()]


def _best(values: Sequence[float], score: Mapping[str, Any]) -> float:
    if score["better"] == "near":
        return min(values, key=lambda value: abs(value - (score["target"] or 0.0)))
    return min(values) if score["better"] == "lower" else max(values)


def class_bars(sets: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its Frechet distance in each set, as a share of the largest of all."""
    found = [one["per_class"] or {"labels": [], "distances": []} for one in sets]
    by_set = [dict(zip(one["labels"], one["distances"], strict=True)) for one in found]
    labels = sorted({label for one in by_set for label in one})
    largest = max((value for one in by_set for value in one.values()), default=0.0) or 1.0
    return [
        {
            "name": names[label] if label < len(names) else str(label),
            "bars": [(one.get(label), 100.0 * one.get(label, 0.0) / largest) for one in by_set],
        }
        for label in labels
    ]


def scatter(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Precision and recall, and density and coverage, of each set as points; density is cut at 1.5."""
    points = []
    for one in sets:
        found = {score["name"].split("-")[0]: score["value"] for score in one["scores"]}
        values = [found.get(key) for key in ("precision", "recall", "density", "coverage")]
        if all(value is not None for value in values):
            points.append(
                {"name": one["name"], **dict(zip(("precision", "recall", "density", "coverage"), values, strict=True))}
            )
    return points
