"""A budget of time: the plan is made once, whatever stops the run and however fast the machine is then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from synthkd.distillation.step import DistillStep
from synthkd.errors import ConfigError
from synthkd.pipelines import cli, distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student import budget
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from tests.faults.test_extension import Killed, dying, recipe, weights
from tests.faults.test_extension import teacher as teacher

BUDGET = "100s"


def machine(slowness: float) -> Callable[..., Sequence[Timed]]:
    """Stands for the measurement of a machine, on which the recipe of 8 steps takes 41 s times `slowness`."""

    def measure(*_: object, **__: object) -> Sequence[Timed]:
        return [
            Timed("rounds before the student", 1, slowness, per="round alone"),
            Timed("rounds", 2, 4 * slowness, per="round beside"),
            Timed("steps", 8, 4 * slowness, per="step"),
        ]

    return measure


class Still:
    """A clock, by which measuring takes no time."""

    @staticmethod
    def perf_counter() -> float:
        """Seconds."""
        return 0.0


@pytest.fixture(autouse=True, scope="module")
def measured() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "time", Still)
        patch.setattr(budget, "MOST_PASSES", 1)
        patch.setattr(budget, "distill_time", machine(1.0))
        yield


def config_for(teacher: Path, out: Path | None, *settings: str) -> DistillConfig:
    place = [] if out is None else [f"out={out}"]
    return load_config(DistillConfig, recipe(teacher), [*place, f"budget={BUDGET}", *settings])


def run(teacher: Path, out: Path, *settings: str) -> Result[Any]:
    result = distill(config_for(teacher, out, *settings))
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a kill. Rounds: 2 x 1 + 5 x 4; steps: 19 x 4; together 98 s."""
    run(teacher, out := tmp_path_factory.mktemp("whole") / "run")
    return out


@pytest.mark.parametrize(
    ("place", "name", "after"), [(budget, "assemble", 0), (DistillStep, "__call__", 0), (DistillStep, "__call__", 11)]
)
def test_a_kill_at_any_moment_and_a_machine_of_another_speed_change_no_byte(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, after: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying(getattr(place, name), after))
        with pytest.raises(Killed):
            run(teacher, out)
    if place is not budget:  # the plan was made
        monkeypatch.setattr(budget, "distill_time", machine(7.0))
    assert run(teacher, out).content.cost.steps == 19
    assert weights(out) == weights(whole)
    saved = [(one / "config.yaml").read_text().replace(str(one), "") for one in (out, whole)]
    assert saved[0] == saved[1]


def test_the_plan_is_told_and_what_became_of_it(teacher: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = distill(config_for(teacher, None), dry_run=True)
    assert isinstance(plan, Plan)
    assert "  budget: 100s, planned 98 s, 0 s of them measuring" in plan.lines
    assert "  phases: pregenerate 2 rounds, joint 19 steps with a round every 4" in plan.lines
    values = unsealed((whole / "result.json").read_bytes())["budget"]
    assert (values["budget"], values["planned"]) == ("100s", 98.0)
    assert values["seconds"] > 0
    assert cli.main(["distill", str(whole)]) == 0
    told = capsys.readouterr().out
    assert "was complete already" in told
    assert "100s, planned 98 s, took" in told
    assert "budget 100s, planned 1" in (whole / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_a_plan_that_is_sent_elsewhere_is_followed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "distill_time", machine(7.0))
    result = distill(load_config(DistillConfig, whole / "config.yaml", [f"out={tmp_path / 'new'}"]))
    assert isinstance(result, Result)
    assert weights(result.directory) == weights(whole)


def test_a_run_with_a_plan_is_of_its_budget_and_its_recipe_alone(teacher: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"changed: phases\.1\.steps\. Choose"):
        run(teacher, out, "phases.1.steps=9")
    for other in ("budget=90s", "budget=null"):
        with pytest.raises(ConfigError, match=r"changed: budget\. Choose"):
            run(teacher, out, other)


def test_it_is_extended_by_minutes_at_the_pace_of_its_log(teacher: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    log = out / "metrics.jsonl"
    lines = [paced(line) for line in log.read_text().splitlines()]
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match="more: 1 s are less than a step, which took 3 s"):
        run(teacher, out, "more=1s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillStep, "__call__", dying(DistillStep.__call__, 2))
        with pytest.raises(Killed):
            run(teacher, out, "more=16s")
    content = run(teacher, out, "more=16s").content
    assert content.cost.steps == 19 + 5, "the same command finds the same steps"
    assert content.budget is None, "of an extended run the folder of before tells it"
    assert unsealed((out / "before-1/result.json").read_bytes())["budget"]["planned"] == 98.0


def paced(line: str) -> str:
    """A row of a log whose steps take 3 s each."""
    row = json.loads(line)
    return json.dumps(row | {"seconds": 3.0 * row["step"]})


def test_what_may_not_be_measured_is_refused_before_anything(teacher: Path) -> None:
    merf = {"kind": "merf", "epsilon": 5.0}
    private = {"kind": "generated", "generator": merf, "data": {"kind": "digits"}}
    config = load_config(DistillConfig, recipe(teacher) | {"transfer_set": private}, ["budget=1m"])
    with pytest.raises(ConfigError, match=r"^budget: to measure a private generator takes of its epsilon"):
        distill(config, dry_run=True)
    box = {"kind": "labels", "function": "package.module:function", "size": 8, "classes": 10, "queries": 100}
    drawn = {"kind": "generated", "generator": {"kind": "procedural"}}
    config = load_config(DistillConfig, recipe(teacher) | {"teacher": box, "transfer_set": drawn}, ["budget=1m"])
    with pytest.raises(ConfigError, match=r"^budget: a generator asks the black box while the student learns"):
        distill(config, dry_run=True)
