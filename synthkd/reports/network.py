"""The page of an evaluated network: accuracy, each class, calibration, what is confused, and another network."""

from __future__ import annotations

from synthkd.reports.files import RunFiles
from synthkd.reports.page import percent, render
from synthkd.reports.results import NetworkResult

MOST_CLASSES = 200
MOST_PAIRS = 20


def network_page(run: RunFiles, result: NetworkResult) -> bytes:
    """The page as UTF-8."""
    quality, names = result.quality, result.class_names
    classes = [] if quality is None else [(names[k], one) for k, one in enumerate(quality.per_class) if one is not None]
    classes.sort(key=lambda one: one[1].value)
    pairs = [] if quality is None else quality.confusions[:MOST_PAIRS]
    return render(
        "network.html.jinja",
        name=run.name,
        headline=headline(result),
        result=result,
        classes=classes[:MOST_CLASSES],
        classes_left_out=max(0, len(classes) - MOST_CLASSES),
        pairs=[(names[one.label], names[one.predicted], one.count, one.of) for one in pairs],
        config_text=run.config_text,
    )


def headline(result: NetworkResult) -> str:
    """The accuracy in a sentence, or without labels the agreement."""
    if result.quality is not None:
        return f"The network gets {percent(result.quality.top1.value)} of {result.images.n:,} images right."
    assert result.against is not None  # refused before
    agreement = percent(result.against.agreement.value)
    return f"Both networks give the same class for {agreement} of {result.images.n:,} images."
