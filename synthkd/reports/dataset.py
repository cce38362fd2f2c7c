"""The page of a generated dataset, made when it is finished."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthkd.reports.page import picture, render
from synthkd.system.files import write_atomically


def write_dataset_report(run: Path, result: Mapping[str, Any]) -> Path:
    """Write `run/report.html` and return its path.

    Args:
        run: the run directory, with its `config.yaml` and `samples/classes.png`.
        result: the content of `result.json`, which may be written later.
    """
    about = result["dataset"]
    shares = about["scores"]["agreement_per_class"]
    classes = [
        {"name": name, "count": count, "agreement": share}
        for name, count, share in zip(about["class_names"], about["counts"], shares, strict=True)
    ]
    page = render(
        "dataset.html.jinja",
        name=result["name"],
        result=result,
        about=about,
        scores=about["scores"],
        classes=classes,
        grid=picture(run / "samples" / "classes.png"),
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
    )
    path = run / "report.html"
    write_atomically(path, page)
    return path
