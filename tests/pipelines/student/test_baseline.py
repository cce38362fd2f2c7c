"""The student of drawn pictures that stands beside one of generated images."""

from pathlib import Path
from typing import Any

import pytest

from synthkd.distillation import phases
from synthkd.errors import TrainingError
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.budget import recounted
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.student import baseline
from synthkd.pipelines.student.baseline import baseline_steps
from synthkd.settings import Joint
from synthkd.settings.load import load_config

STEPS = 12
RECIPE: dict[str, Any] = {
    "teacher": {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 8},
        "training": {"steps": 100, "batch_size": 64},
    },
    "student": {"arch": "convnet", "width": 4},
    "transfer_set": {"generator": {"kind": "inversion", "batch_size": 16, "steps": 1}},
    "distill": {"batch_size": 16},
    "phases": [{"kind": "joint", "steps": STEPS, "every": 4}],
    "grid_every": 100,
}


@pytest.fixture(autouse=True)
def _of_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "BASELINE_PART", 1)
    monkeypatch.setattr(phases, "LEAST_BASELINE", STEPS)


def test_it_is_the_student_of_a_run_on_drawn_pictures_alone(tmp_path: Path) -> None:
    test = {"test": {"kind": "digits"}}
    ran = distill(**RECIPE, **test, out=str(tmp_path / "a"))
    assert isinstance(ran, Result)
    drawn = ran.values["student"]["drawn"]
    teacher = {"teacher": {"kind": "load", "model": str(tmp_path / "a" / "teach")}}
    on_drawn = {"transfer_set": {"kind": "procedural"}, "phases": [{"kind": "refine", "steps": STEPS}]}
    # What the images decide by default is written out, so that it is that of the run.
    filled = load_config(DistillConfig, RECIPE, []).model_dump(mode="json")
    same = {key: filled[key] for key in ("distill", "mix")}
    alone = distill(**{**RECIPE, **test, **teacher, **on_drawn, **same}, out=str(tmp_path / "b"))
    assert isinstance(alone, Result)
    student = alone.values["student"]
    assert drawn == {key: student[key] for key in ("accuracy", "accuracy_interval", "n")} | {
        "agreement": None,
        "steps": STEPS,
    }
    share = f"{student['accuracy']:.2%}"
    said = f"{share} of {student['n']} test images right after {STEPS} steps on drawn pictures alone"
    assert f"baseline: {said}\n" in str(ran)
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert f"Baseline: {STEPS} steps on drawn pictures alone" in page
    assert "drawn" not in student, "a run on drawn pictures has none beside it"


def test_without_test_data_it_is_compared_with_the_teacher(tmp_path: Path) -> None:
    ran = distill(**RECIPE, out=str(tmp_path / "a"))
    assert isinstance(ran, Result)
    drawn, student = ran.values["student"]["drawn"], ran.values["student"]
    assert drawn["accuracy"] is None
    assert (drawn["agreement_n"], drawn["agreement_on"]) == (student["agreement_n"], student["agreement_on"])
    assert "baseline: agrees with its teacher on " in str(ran)
    assert f"after {STEPS} steps on drawn pictures alone\n" in str(ran)


def test_one_that_fails_costs_the_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise TrainingError("the loss is not finite\nand more")

    monkeypatch.setattr(baseline, "assemble", fails)
    ran = distill(**RECIPE, test={"kind": "digits"}, out=str(tmp_path / "a"))
    assert isinstance(ran, Result)
    assert "drawn" not in ran.values["student"]
    assert "alarm:   no baseline: a student of drawn pictures failed: the loss is not finite\n" in str(ran)


def test_an_extended_run_keeps_it_and_a_resumed_one_may_leave_it_out(tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    ran = distill(**RECIPE, test={"kind": "digits"}, out=out)
    assert isinstance(ran, Result)
    again = distill(**RECIPE, test={"kind": "digits"}, out=out, baseline=False)
    assert "complete already" in str(again)
    more = distill(**RECIPE, test={"kind": "digits"}, out=out, more=4)
    assert isinstance(more, Result)
    assert more.values["student"]["drawn"] == ran.values["student"]["drawn"]


def test_a_budget_has_time_for_that_of_a_recipe_which_is_too_short_for_one() -> None:
    short = {**RECIPE, "phases": [{"kind": "joint", "steps": STEPS - 1, "every": 4}]}
    planned = distill(**short, dry_run=True)
    assert isinstance(planned, Plan)
    assert "baseline" not in str(planned)
    (timed,) = [one for one in planned.time.timed if one.name == "baseline"]
    assert timed.count == 0
    assert timed.seconds > 0.0
    longer = [Joint(kind="joint", steps=STEPS, every=4)]
    assert [one.count for one in recounted([timed], longer)] == [STEPS]


def test_the_plan_has_its_time() -> None:
    planned = distill(**RECIPE, dry_run=True)
    assert isinstance(planned, Plan)
    assert f"baseline: {STEPS} steps on drawn pictures alone" in str(planned)
    assert [(one.count, one.per) for one in planned.time.timed if one.name == "baseline"] == [(STEPS, "baseline")]


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": False},
        {"phases": [{"kind": "joint", "steps": STEPS - 1, "every": 4}]},
        {"transfer_set": {"generator": {"kind": "procedural"}}},
        {"transfer_set": {"kind": "real", "data": {"kind": "digits"}}, "phases": [{"kind": "refine", "steps": 100}]},
        {"transfer_set": {"kind": "pictures"}, "phases": [{"kind": "refine", "steps": 100}]},
        {"transfer_set": [RECIPE["transfer_set"], {"kind": "real", "data": {"kind": "digits"}, "share": 0.5}]},
        {"online": {"peers": [{"model": {"arch": "convnet", "width": 4}}]}},
        {"inherit": False, "width": {"most": 2}},
    ],
)
def test_a_run_without_one(changes: dict[str, Any]) -> None:
    assert baseline_steps(load_config(DistillConfig, {**RECIPE, **changes}, [])) == 0


def test_it_takes_a_part_of_the_steps_and_never_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def steps(of: int) -> int:
        source = {**RECIPE, "phases": [{"kind": "joint", "steps": of, "every": 4}]}
        return baseline_steps(load_config(DistillConfig, source, []))

    assert [steps(of) for of in (999, 1000, 5000, 100_000)] == [0, 50, 250, 500]
