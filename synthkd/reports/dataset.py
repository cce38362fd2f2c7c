"""The page of a generated dataset."""

from __future__ import annotations

from synthkd.metrics.utility import extremes
from synthkd.reports.curves import FRESH, draw_groups
from synthkd.reports.files import RunFiles
from synthkd.reports.marks import find_marks
from synthkd.reports.page import count, percent, picture, render
from synthkd.reports.results import GenerateResult


def dataset_page(run: RunFiles, result: GenerateResult) -> bytes:
    """The page of a finished `generate`, as UTF-8, with the picture `samples/classes.png` of the run."""
    dataset = result.dataset
    names, counts, shares = dataset.class_names, dataset.counts, dataset.scores.agreement_per_class
    places = extremes(shares)
    return render(
        "dataset.html.jinja",
        name=run.name,
        headline=f"{dataset.count:,} synthetic images of {len(names):,} classes",
        result=result,
        classes=[(names[label], count(counts[label]), percent(shares[label])) for label in places],
        grid=picture(run.directory / "samples" / "classes.png"),
        groups=draw_groups(run.rows, {}, scored=FRESH),
        marks=find_marks(run.rows),
        config_text=run.config_text,
    )
