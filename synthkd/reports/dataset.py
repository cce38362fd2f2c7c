"""The page of a generated dataset."""

from __future__ import annotations

from synthkd.reports.files import RunFiles
from synthkd.reports.page import picture, render
from synthkd.reports.results import GenerateResult


def dataset_page(run: RunFiles, result: GenerateResult) -> bytes:
    """The page of a finished `generate`, as UTF-8, with the picture `samples/classes.png` of the run."""
    dataset = result.dataset
    return render(
        "dataset.html.jinja",
        name=run.name,
        result=result,
        dataset=dataset,
        scores=dataset.scores,
        classes=list(zip(dataset.class_names, dataset.counts, dataset.scores.agreement_per_class, strict=True)),
        grid=picture(run.directory / "samples" / "classes.png"),
        config_text=run.config_text,
    )
