"""Where a student starts, as the plan, the result and the summary say it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from synthkd.errors import ConfigError
from synthkd.models import Classifier, Inherited, build, save
from synthkd.pipelines import distill
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.student.start import Start
from synthkd.settings import ZooModel
from synthkd.training.measuring import unwatched
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 10)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("teacher")
    save(build(ZooModel(arch="lenet5", width=6), SPEC).eval(), out, {"seed": 0})
    return out


def recipe(teacher: Path, **changes: Any) -> dict[str, Any]:
    return {
        "teacher": {"kind": "load", "model": str(teacher)},
        "student": {"arch": "lenet5", "width": 3},
        "transfer_set": {"generator": {"kind": "procedural", "batch_size": 16}},
        # Steps that change nothing: so the student is at its end what it was before the first.
        "distill": {"batch_size": 16, "optimizer": {"kind": "sgd", "lr": 1e-12, "weight_decay": 0.0}},
        "phases": [{"kind": "joint", "steps": 2, "every": 1}],
        "grid_every": 100,
        **changes,
    }


@pytest.mark.parametrize("inherit", [True, "merged"])
def test_a_student_that_learned_nothing_is_as_it_started(inherit: object, teacher: Path, tmp_path: Path) -> None:
    tested = distill(**recipe(teacher, inherit=inherit, test={"kind": "digits"}), out=str(tmp_path / "a"))
    assert isinstance(tested, Result)
    student, share = tested.values["student"], f"{tested.values['student']['accuracy']:.2%}"
    assert student["inherited_parameters"] == student["parameters"]
    assert student["start"] == {key: student[key] for key in ("accuracy", "accuracy_interval", "n")} | {
        "agreement": None
    }
    assert f"as it started: {share} of {student['n']} test images right" in str(tested)
    assert "As it started" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_without_test_data_it_is_compared_with_the_teacher(teacher: Path, tmp_path: Path) -> None:
    result = distill(**recipe(teacher), out=str(tmp_path / "a"))
    assert isinstance(result, Result)
    student = result.values["student"]
    assert student["start"]["agreement"] == student["agreement"]
    assert "as it started: agrees with its teacher on " in str(result)


def test_a_student_of_random_weights_has_no_such_line(teacher: Path, tmp_path: Path) -> None:
    result = distill(**recipe(teacher, inherit=False, test={"kind": "digits"}), out=str(tmp_path / "a"))
    assert isinstance(result, Result)
    assert "start" not in result.values["student"]
    assert "as it started" not in str(result)


@pytest.mark.parametrize("size", [1, 7])
def test_no_part_of_its_statistics_is_one_image(size: int) -> None:
    layers = nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10)  # maps of one pixel
    start = Start(Inherited(), Classifier(nn.Sequential(*layers), SPEC))
    images = torch.rand(8, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    norm = start.reset(images, size, unwatched).body[1]
    assert torch.allclose(norm.running_mean, layers[0](images).mean((0, 2, 3)), atol=1e-6)


def test_the_plan_says_how_layers_were_matched(teacher: Path) -> None:
    plan = str(distill(**recipe(teacher), dry_run=True))
    assert ", 15,660 of them start from its weights, matched by path" in plan
    plan = str(distill(**recipe(teacher, inherit="merged"), dry_run=True))
    assert ", 15,660 of them start from its weights, matched by structure" in plan
    plan = str(distill(**recipe(teacher, student={"arch": "convnet", "width": 4}), dry_run=True))
    assert "freshly initialised (at the student's conv that gives 4x4x4, the teacher has another block)" in plan


def small() -> nn.Module:
    """The student of `recipe`, built by a function of the user."""
    return build(ZooModel(arch="lenet5", width=3), SPEC).body


def test_a_network_of_the_users_inherits_where_that_is_written(teacher: Path) -> None:
    own: dict[str, Any] = {"student": {"kind": "load", "model": f"{__name__}:small"}}
    plan = str(distill(**recipe(teacher, **own), dry_run=True))
    assert "15,660 parameters" in plan
    assert ", as its function returns it; `inherit: true` lets it start from its teacher\n" in plan
    assert "normalisation: the student gets mean [0] and std [1]; write student.mean and student.std of 0 and 1" in plan
    own["student"] |= {"mean": [0.5], "std": [0.5]}
    plan = str(distill(**recipe(teacher, **own, inherit=False), dry_run=True))
    assert ", as its function returns it\n" in plan
    assert "normalisation:" not in plan
    for inherit, how in ((True, "path"), ("merged", "structure")):
        plan = str(distill(**recipe(teacher, **own, inherit=inherit), dry_run=True))
        assert f", 15,660 of them start from its weights, matched by {how}" in plan


def test_a_student_with_weights_of_its_own_keeps_them(teacher: Path) -> None:
    own = {"student": {"kind": "load", "model": str(teacher)}}
    assert ", with weights of its own\n" in str(distill(**recipe(teacher, **own), dry_run=True))
    with pytest.raises(ConfigError, match="inherit: the student has weights of its own: leave inherit out"):
        distill(**recipe(teacher, **own, inherit=True), dry_run=True)


def test_what_cannot_be_merged_is_refused(teacher: Path) -> None:
    other = {"student": {"arch": "convnet", "width": 4}, "inherit": "merged"}
    with pytest.raises(ConfigError, match=r"inherit: merged needs .* the teacher has another block; set inherit to"):
        distill(**recipe(teacher, **other), dry_run=True)
