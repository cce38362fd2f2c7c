"""The page of a privacy report: the content of `privacy_report.json`, in the order of a careful reader's questions.

No number is computed here; the figures are drawn from the values in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from synthkd.errors import CheckpointError
from synthkd.privacy.audit import GIVEN, MISLABELLED, NATURAL
from synthkd.privacy.report import SCHEMA, Touch
from synthkd.reports.figures import flow_figure, roc_chart
from synthkd.reports.page import DASH, bold, render, under
from synthkd.system.files import write_atomically
from synthkd.system.sealed import unsealed

SOURCE, PAGE = "privacy_report.json", "privacy_report.html"
TITLES = {
    MISLABELLED: "Worst case: canaries with a wrong label",
    NATURAL: "Average case: canaries with their own label",
    GIVEN: "Average case: the lists as they were given",
}
"""Groups of audited images, in the order of the page: the most exposed first."""

NOTHING = Markup('<span class="muted">{}</span>').format(DASH)
"""In the place of a number that there is not."""

Json = Mapping[str, Any]


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
        roc: the ROC curves of the headlines.
    """

    title: str
    audits: Mapping[str, Json]
    rows: Mapping[str, Mapping[str, Json | None]]
    headlines: Mapping[str, Json]
    reasons: Sequence[str]
    ratio: Json | None
    roc: Markup

    def table(self, columns: Sequence[Callable[[object], str]], has_headline: bool) -> list[list[str]]:
        """A row for each attack, with a cell for each column and model; with `has_headline` that of a headline is bold.

        Args:
            columns: attack -> what the column shows of it.
            has_headline: whether headlines stand out.
        """
        rows = []
        for name, by in self.rows.items():
            of = [who for who, audit in self.audits.items() if has_headline and audit["headline"] == name]
            cells = [(who, column(one) if one else NOTHING) for column in columns for who, one in by.items()]
            title = under(name, f"headline: {', '.join(of)}" if of else "")
            rows.append([title, *(bold(cell) if who in of else cell for who, cell in cells)])
        return rows


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
    touches = [Touch(**touch) for touch in (report["flow"] or {}).get("touches", ())]
    page = render(
        "privacy.html.jinja",
        name="privacy",  # the name of the run may be that of private data
        report=report,
        flow=flow_figure(touches, {line.partition(":")[0] for line in report["released"]}),
        groups=groups(report["audit"]),
    )
    write_atomically(run / PAGE, page)
    return run / PAGE


def groups(audit: Mapping[str, Any] | None) -> list[Group]:
    """The audit of each group of images, the worst case first; empty without an audit."""
    models, ratios = (audit["models"], audit["ratios"]) if audit else ({}, {})
    by_name = {name: {who: model[name] for who, model in models.items() if name in model} for name in TITLES}
    return [_group(TITLES[name], audits, ratios.get(name)) for name, audits in by_name.items() if audits]


def _group(title: str, audits: Mapping[str, Json], ratio: Json | None) -> Group:
    attacks = {who: {one["name"]: one for one in audit["attacks"]} for who, audit in audits.items()}
    names = dict.fromkeys(name for by_name in attacks.values() for name in by_name)
    rows = {name: {who: by_name.get(name) for who, by_name in attacks.items()} for name in names}
    headlines = {who: attacks[who][audit["headline"]] for who, audit in audits.items()}
    rates = [at for by_name in attacks.values() for one in by_name.values() for at in (*one["tpr"], *one["tnr"])]
    reasons = list(dict.fromkeys(at["reason"] for at in rates if at["reason"]))
    n = max(one[side] for one in headlines.values() for side in ("n_in", "n_out"))
    roc = roc_chart({who: one["roc"] for who, one in headlines.items()}, n)
    return Group(title, audits, rows, headlines, reasons, ratio, roc)
