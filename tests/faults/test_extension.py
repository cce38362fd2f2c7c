"""More steps for a finished run: what is kept, what goes on, what a kill leaves, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import synthkd
from synthkd.distillation.step import DistillStep
from synthkd.errors import CheckpointError, ConfigError
from synthkd.models import build, save
from synthkd.pipelines import cli, distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run import extension
from synthkd.pipelines.run.result import Plan, Result
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from synthkd.training.monitor import read_rows, series
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 10)
PEAK = 0.02


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    save(build(ZooModel(arch="convnet", width=4), SPEC).eval(), out := tmp_path_factory.mktemp("teacher") / "model", {})
    return out


def recipe(teacher: Path) -> dict[str, Any]:
    return {
        "teacher": {"kind": "load", "model": str(teacher)},
        "student": {"arch": "convnet", "width": 4},
        "inherit": False,
        "transfer_set": {
            "generator": {"batch_size": 20, "width": 4, "latent": 8, "steps": 1},
            "bank": {"capacity": 40, "policy": "prioritized", "storage": "disk"},
        },
        "test": {"kind": "digits"},
        "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "joint", "steps": 8, "every": 4}],
        "distill": {"batch_size": 16, "optimizer": {"lr": PEAK, "schedule": "one_cycle", "final": 0.1, "ema": 0.9}},
        "device": "cpu",
        "checkpoint_every": 3,
        "log_every": 1,
    }


def config_for(teacher: Path, out: Path, *settings: str) -> DistillConfig:
    return load_config(DistillConfig, recipe(teacher), [f"out={out}", *settings])


def run(teacher: Path, out: Path, *settings: str) -> Result[Any]:
    result = distill(config_for(teacher, out, *settings))
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def finished(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run(teacher, out := tmp_path_factory.mktemp("finished") / "run")
    return out


@pytest.fixture(scope="module")
def straight(teacher: Path, finished: Path) -> Path:
    """A copy of the finished run that was extended without a kill."""
    run(teacher, out := Path(shutil.copytree(finished, finished.parent / "straight")), "more=6")
    return out


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def weights(model: Path) -> bytes:
    return (model / "student" / "model.safetensors").read_bytes()


def test_an_extension_keeps_the_old_result_and_its_curves_have_no_gap(
    finished: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["distill", str(again), "more=6"]) == 0
    told = capsys.readouterr().out
    assert f"8 steps, saved in {again / 'before-1'}" in told
    values = unsealed((again / "result.json").read_bytes())
    assert (values["cost"]["steps"], values["interrupted"]) == (14, 0)
    (before,) = values["before"]
    assert (before["folder"], before["steps"]) == ("before-1", 8)
    assert weights(again / "before-1") == weights(finished) != weights(again)
    assert synthkd.load(again / "before-1").spec == SPEC
    assert "Before it was extended" in (again / "report.html").read_text()
    steps, rates = series(read_rows(again / "metrics.jsonl"), "student/learning_rate")
    assert steps == list(range(2, 16)), "a step of the student each, after the round of pregenerate"
    # One step of warming up, then half a cosine over the other five: 0.1 is `final`.
    assert rates[8:10] == pytest.approx([PEAK, PEAK], rel=1e-12)
    assert rates[9] > rates[10] > rates[11] > rates[12] > rates[13] > 0.1 * PEAK


def test_a_run_is_extended_twice_and_its_recipe_finds_it_complete(teacher: Path, again: Path) -> None:
    for steps in (3, 2):
        run(teacher, again, f"more={steps}")
    content = run(teacher, again).content
    assert [(one.folder, one.steps) for one in content.before] == [("before-1", 8), ("before-2", 11)]
    assert content.cost.steps == 13
    assert "complete already" in str(run(teacher, again))
    assert weights(again / "before-2") not in (weights(again / "before-1"), weights(again))


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def dying(real: Callable[..., Any], after: int) -> Callable[..., Any]:
    left = iter(range(after))

    def call(*args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return real(*args, **options)

    return call


@pytest.mark.parametrize(
    ("place", "name", "after"),
    [
        (extension.shutil, "copytree", 0),
        (extension, "write_atomically", 0),
        (Path, "unlink", 1),
        (DistillStep, "__call__", 5),
    ],
)
def test_a_kill_at_any_moment_and_the_same_command_end_as_without_it(
    teacher: Path, again: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying(getattr(place, name), after))
        with pytest.raises(Killed):
            run(teacher, again, "more=6")
    assert run(teacher, again, "more=6").content.cost.steps == 14
    for model in (Path(), Path("before-1")):
        assert weights(again / model) == weights(straight / model)
    assert (again / "before-1/config.yaml").read_text().count("extended: []") == 1


def test_an_extension_that_has_begun_is_finished_before_another(
    teacher: Path, again: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DistillStep, "__call__", dying(DistillStep.__call__, 1))
        with pytest.raises(Killed):
            run(teacher, again, "more=6")
    with pytest.raises(ConfigError, match="is being extended by 6 steps; finish it first: synthkd distill"):
        run(teacher, again, "more=5")
    assert run(teacher, again).content.cost.steps == 14, "without `more` it is finished, too"


def test_an_extension_needs_the_folders_of_the_earlier_ones_before_any_step(
    teacher: Path, again: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(teacher, again, "more=3")
    away = (again / "before-1").rename(tmp_path / "away")
    monkeypatch.setattr(DistillStep, "__call__", dying(DistillStep.__call__, 0))
    with pytest.raises(CheckpointError, match=r"before-1 has no result\.json; copy the folder back"):
        run(teacher, again, "more=2")
    assert "complete already" in str(run(teacher, again)), "it is as it was"
    away.rename(again / "before-1")
    with pytest.raises(Killed):
        run(teacher, again, "more=2")
    (again / "before-2").rename(away)
    with pytest.raises(CheckpointError, match=r"before-2 has no result\.json"):
        run(teacher, again)


def test_a_plan_shows_the_extension_and_begins_none(teacher: Path, again: Path) -> None:
    plan = distill(config_for(teacher, again, "more=6"), dry_run=True)
    assert isinstance(plan, Plan)
    assert "extension: 6 steps more" in str(plan)
    assert "student steps: 14" in str(plan)
    assert not (again / "before-1").exists()


def test_what_cannot_be_extended_is_refused_in_a_line(teacher: Path, again: Path, tmp_path: Path) -> None:
    def refuses(error: type[Exception], said: str, out: Path, *settings: str) -> None:
        with pytest.raises(error, match=said) as raised:
            run(teacher, out, *settings)
        assert "\n" not in str(raised.value)

    refuses(ConfigError, "more: expected a whole number >= 1", again, "more=0")
    refuses(ConfigError, "more: expected a whole number >= 1", again, "more=-5")
    refuses(ConfigError, "is no run of `synthkd distill`", tmp_path / "nowhere", "more=5")
    refuses(ConfigError, "and none is named", tmp_path, "out=null", "more=5")
    refuses(ConfigError, "changed: seed", again, "more=5", "seed=3")
    refuses(ConfigError, "extended: it is a record", tmp_path / "new", "extended=[5]")
    outer = tmp_path / "outer"
    outer.mkdir()
    for name in (".lock", "config.yaml"):
        (outer / name).write_text("")
    refuses(ConfigError, "is a part of the run", Path(shutil.copytree(again, outer / "distill")), "more=5")
    shutil.rmtree(again / "checkpoints")
    refuses(CheckpointError, r"no checkpoint of the last step \(9\)", again, "more=5")
    (again / "result.json").unlink()
    refuses(ConfigError, "is not finished; finish it first", again, "more=5")


def test_a_run_of_another_job_is_refused_in_a_line(again: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["teach", str(again), "more=5"]) == 2
    assert f"error: {again}: a run of `synthkd distill`, not of `synthkd teach`" in capsys.readouterr().err
