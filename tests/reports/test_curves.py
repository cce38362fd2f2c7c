"""Curves show what was logged, the fitted gap beside what it is fitted to, and words no stronger than the fit."""

import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import yaml
from test_report import CONFIG, fake_log, text_of

from synthkd.reports import curves as figures
from synthkd.reports.curves import draw_groups
from synthkd.reports.gap import gap_curve
from synthkd.reports.marks import Marks, find_marks
from synthkd.reports.report import write_report
from synthkd.reports.results import Evaluations, from_json
from synthkd.training.monitor import Monitor


def test_marks_and_groups_of_curves(tmp_path):
    fake_log(tmp_path, 360)
    rows = Monitor(tmp_path).rows()
    marks = find_marks(rows)
    assert marks.phases == (("joint", 5), ("refine", 305))
    assert marks.resumes == (150,)
    assert marks.last_step == 360
    groups = draw_groups(rows, {"test/accuracy": ("teacher", 0.98)})
    assert [group.title for group in groups] == ["Outcome and difficulty", "Student", "Generator"]
    outcome = {panel.title: panel for panel in groups[0].panels}
    assert list(outcome) == ["Test accuracy", "Test agreement", "Fresh agreement", "Difficulty"]
    assert "reported only" in outcome["Test accuracy"].note
    assert "grey line: teacher" in outcome["Test accuracy"].note
    assert outcome["Difficulty"].last == "0.8958"
    assert outcome["Difficulty"].note == ""
    generator = {panel.title: panel for panel in groups[2].panels}
    assert "log scale" in generator["Batch norm"].note
    assert "log scale" not in generator["Adversarial"].note


def adapting_rows() -> list[dict]:
    """A log of 200 rounds of generation and 600 steps of a student whose gap falls as 0.8 e^(-t / 100) + 0.02."""
    rows = [{"step": 0, "event": "pregenerate begins", "kind": "phase", "phase": "pregenerate"}]
    rows += [{"step": 200, "event": "refine begins", "kind": "phase", "phase": "refine"}]
    for t in range(0, 600, 30):
        row = {"step": 200 + t + 1, "phase": "refine"}  # an evaluation has a row at once, which counts its step as done
        row |= {"adapt/gap": 0.8 * math.exp(-t / 100) + 0.02, "adapt/temperature": 5.0 - t / 200}
        row |= {"adapt/teaching": float(t > 200) * 2, "adapt/selected_teacher": float(t // 30 % 3 == 0)}
        row |= {"evaluation/accuracy": t / 600, "evaluation/accuracy of peer 1": t / 700}
        row |= {"evaluation/transfer_efficiency": (t + 1) / 650}
        row |= {
            f"{who}/{what}": 1.0 / (t + 1) for who in ("student", "peer 10", "peer 2") for what in ("loss", "agreement")
        }
        rows.append(row | ({"adapt/gap_fitted": 0.5} if t >= 90 else {}))
    return rows


def gap_of(**more: object) -> Evaluations:
    gap = {"alpha": 0.8, "beta": 0.01, "gamma": 0.02, "start": 0.0, "n": 20, "errors": [0.011, 1e-5, 0.0012],
           "threshold": 0.05, "below_from_step": 100 * math.log(0.8 / 0.03)}  # fmt: skip
    return from_json(Evaluations, {"gap": gap | more})


def panel_of(evaluations: Evaluations | None, title: str) -> figures.Panel:
    rows = [{k: v for k, v in row.items() if "/" not in k or k.startswith("adapt/")} for row in adapting_rows()]
    return next(panel for group in draw_groups(rows, {}, evaluations) for panel in group.panels if panel.title == title)


def paths(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each path drawn in the colour of the curve."""
    drawn = re.findall(r'stroke="var\(--line\)"[^>]*>\s*<path d="([^"]*)"[^>]*stroke-dasharray', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path)] for path in drawn]


def test_evaluations_what_adapts_and_each_peer_are_groups():
    drawn = draw_groups(adapting_rows(), {})
    groups = {group.title: [panel.title for panel in group.panels] for group in drawn}
    panels = {panel.title: panel for group in drawn for panel in group.panels}
    assert list(groups) == [
        "Outcome and difficulty", "Evaluations of the students", "What adapts", "Student", "Peer 2", "Peer 10",
    ]  # fmt: skip
    assert groups["Outcome and difficulty"] == ["Student agreement"]
    assert groups["Evaluations of the students"] == ["Accuracy", "Transfer efficiency η", "Accuracy of peer 1"]
    assert (
        panels["Transfer efficiency η"].note == "I(p_T; p_S) / H(p_T)"
    )  # a share: no log scale, from 1/650 to 571/650
    assert groups["What adapts"] == ["Temperature", "Capacity gap", "Who teaches", "Selected teacher"]
    assert groups["Peer 2"] == ["Agreement", "Loss"]
    assert groups["Peer 10"] == ["Agreement", "Loss"]


def test_choices_are_drawn_as_steps_and_named():
    shown = {"Who teaches": ["student", "peer 2"], "Selected teacher": ["teacher 2", "teacher 1"]}
    for title, names in shown.items():
        panel = panel_of(None, title)
        assert panel.last == names[-1]
        assert all(f">{name}<" in panel.svg for name in names)
        (line,) = paths(panel.svg)
        assert {before[0] == after[0] or before[1] == after[1] for before, after in pairwise(line)} == {True}
        assert len({point[1] for point in line}) == 2


def test_gap_shows_what_was_measured_the_curve_and_the_threshold_in_one_panel():
    panel = panel_of(gap_of(), "Capacity gap")
    assert panel.note == (
        "share of the teacher’s accuracy still missing; dots: measured; curve: fitted; grey line: threshold 0.05"
    )
    assert panel.below.replace("\N{NO-BREAK SPACE}", " ") == (
        "Curve: α e^(−β t) + γ, α = 0.8 ± 0.011, β = 0.01 ± 1e−05, γ = 0.02 ± 0.0012 (± standard error); "
        "t: the student’s steps. Below the threshold 0.05 from step 529 on."
    )
    assert panel.svg.count(" h0") == 20
    (curve,) = paths(panel.svg)
    assert len(curve) > 90
    plain = panel_of(Evaluations(gap=None), "Capacity gap")
    assert (plain.below, len(paths(plain.svg)[0])) == ("", 17)
    assert panel.svg.count('stroke="var(--muted)"') == plain.svg.count('stroke="var(--muted)"') + 1


def test_curve_of_the_gap_goes_through_what_was_measured_at_the_step_of_each_evaluation():
    rows = adapting_rows()
    marks = find_marks(rows)
    steps, gaps = figures._values(rows, "adapt/gap")
    assert steps == [200 + t for t in range(0, 600, 30)]
    assert figures._values(rows, "student/loss")[0] == [step + 1 for step in steps], "a loss is that of a step done"
    drawn = gap_curve(gap_of().gap, steps[-1], marks)
    assert (drawn[0][0], drawn[0][-1]) == (steps[0], steps[-1])
    assert np.interp(steps, *drawn) == pytest.approx(gaps, abs=1e-3)


def test_student_stands_still_while_images_are_generated():
    marks = Marks((("joint", 0), ("pregenerate", 50), ("refine", 80)), (), 200)
    assert [marks.run_step(time) for time in (0, 49, 50, 60)] == [0, 49, 80, 90]
    assert Marks((), (), 9).run_step(7) == 7


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"below_from_step": None}, "It stays above the threshold 0.05."),
        ({"below_from_step": 5000.0}, "Below the threshold 0.05 from step 5,200 on, after the end of the run."),
        ({"threshold": None}, "t: the student’s steps."),
        ({"start": 30.0}, "α e^(−β (t − 30)) + γ"),
        ({"gamma": -0.004, "errors": [None, 0.1, None]}, "γ = −0.004 (without ±: the evaluations do not determine it)"),
    ],
)
def test_words_on_the_gap_are_no_stronger_than_the_fit(more, said):
    assert said in panel_of(gap_of(**more), "Capacity gap").below.replace("\N{NO-BREAK SPACE}", " ")


def test_long_curves_stay_small_and_keep_their_extremes():
    rows = [{"step": step, "loss": 1.0 + (step == 40_001) * 5.0} for step in range(100_000)]
    (group,) = draw_groups(rows, {})
    assert len(group.panels[0].svg) < 80_000
    assert ">6<" in group.panels[0].svg


def test_gap_of_an_unfinished_run_has_its_threshold_from_the_configuration(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, adapting_rows())) + "\n")
    adapt = {"every": 30, "strength": {"beta": 1.0, "threshold": 0.07}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"distill": {"adapt": adapt}}))
    text = text_of(write_report(tmp_path))
    assert "dots: measured; curve: fitted; grey line: threshold 0.07" in text
    assert "Curve: α" not in text
    assert "On held-out images, which nobody learns from" in text
