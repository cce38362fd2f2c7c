"""Several seeds: each is a run of its own, a kill loses none that is finished, and the first is handed over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

import synthkd
from synthkd.distillation.alarms import NEAR_CHANCE, ONE_CLASS
from synthkd.distillation.step import DistillStep
from synthkd.errors import ConfigError
from synthkd.pipelines import cli, distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.handover.finished import read_finished
from synthkd.pipelines.run.result import Plan, Result, read_result
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student import budget
from synthkd.pipelines.student.seeds import DistilledSeeds, distill_seeds
from synthkd.reports.results import DistillResult, RaisedAlarm
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from tests.faults.test_budget import Still, machine
from tests.faults.test_extension import Killed, dying, recipe, weights
from tests.faults.test_extension import teacher as teacher


@pytest.fixture(autouse=True, scope="module")
def measured() -> Iterator[list[object]]:
    """The measurements that were made."""
    calls: list[object] = []

    def measure(config: object, *_: object, **__: object) -> Sequence[Timed]:
        calls.append(config)
        return machine(1.0)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "time", Still)
        patch.setattr(budget, "MOST_PASSES", 1)
        patch.setattr(budget, "distill_time", measure)
        yield calls


def config_for(teacher: Path, out: Path, *settings: str) -> DistillConfig:
    return load_config(DistillConfig, recipe(teacher), [f"out={out}", "seeds=2", "seed=4", "budget=60s", *settings])


def run(teacher: Path, out: Path, *settings: str) -> DistilledSeeds:
    result = distill(config_for(teacher, out, *settings))
    assert isinstance(result, DistilledSeeds)
    return result


def values_of(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = unsealed((directory / "result.json").read_bytes())
    return values


@pytest.fixture(scope="module")
def whole(measured: list[object], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    earlier = len(measured)
    run(teacher, out := tmp_path_factory.mktemp("whole") / "run")
    assert len(measured) == earlier + 1, "one plan for all seeds"
    return out


def test_mean_and_spread_are_those_of_the_runs(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, each = values_of(whole), [values_of(whole / name) for name in ("seed-4", "seed-5")]
    assert [one["seed"] for one in each] == [4, 5]
    for key in ("accuracy", "agreement"):
        numbers = [one["student"][key] for one in each]
        assert values[key] == {
            "mean": fmean(numbers),
            "deviation": stdev(numbers),
            "low": min(numbers),
            "high": max(numbers),
            "n": 2,
        }
    assert [one["folder"] for one in values["runs"]] == ["seed-4", "seed-5"]
    assert cli.main(["distill", str(whole)]) == 0
    told = capsys.readouterr().out
    mean, deviation = (100 * values["accuracy"][key] for key in ("mean", "deviation"))
    assert f"mean of 2 seeds {mean:.2f}% ({deviation:.2f})" in told
    assert f"that of seed 4, in {whole / 'student'}; no seed was chosen by a measurement" in told
    page = (whole / "report.html").read_text()
    assert "seed-4" in page
    assert "seed-5" in page


def test_the_first_is_handed_over_and_all_follow_one_plan(whole: Path, tmp_path: Path) -> None:
    assert weights(whole) == weights(whole / "seed-4") != weights(whole / "seed-5")
    assert synthkd.load(whole).spec == synthkd.load(whole / "seed-5").spec
    plans = [(whole / name / "config.yaml").read_text().partition("planned:")[2] for name in ("seed-4", "seed-5")]
    assert plans[0].partition("seeds:")[0] == plans[1].partition("seeds:")[0] != ""
    alone = distill(load_config(DistillConfig, whole / "seed-5" / "config.yaml", [f"out={tmp_path / 'alone'}"]))
    assert weights(tmp_path / "alone") == weights(whole / "seed-5"), "as an ordinary run with that seed"
    assert not isinstance(alone, Plan)


def test_what_a_seed_warns_of_is_in_the_summary_and_on_the_page(teacher: Path, whole: Path, tmp_path: Path) -> None:
    constant = RaisedAlarm(ONE_CLASS, "the student answers class 2")
    broken = RaisedAlarm(NEAR_CHANCE, "the teacher is right on 10 % of the images")

    def summary(name: str, *alarms: RaisedAlarm) -> str:
        def one(config: DistillConfig) -> Result[DistillResult]:
            content = read_result(whole / f"seed-{config.seed}", DistillResult)
            assert content is not None
            raised = alarms if config.seed == 5 else ()
            return Result(whole, replace(content, alarms=raised, advice=("run longer",) if raised else None))

        return str(distill_seeds(config_for(teacher, tmp_path / name), one))

    told = summary("constant", constant)
    assert "With seed 5 the student answers one class" in told.splitlines()[0]
    assert re.search("alarm: +seed 5: one class: the student answers class 2\n", told)
    assert re.search("advice: +seed 5: run longer\n", told)
    page = (tmp_path / "constant" / "report.html").read_text()
    for words in ("With seed 5 the student answers", "Seed 5: one class.</strong> the student answers", "run longer"):
        assert words in page
    assert "With seed 5 the teacher is broken" in summary("broken", broken).splitlines()[0]
    silent = summary("silent")
    assert "alarm:" not in silent
    assert "<h2>Alarms" not in (tmp_path / "silent" / "report.html").read_text()


@pytest.mark.parametrize("after", [3, 16])
def test_a_kill_loses_no_seed_that_is_finished(
    teacher: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(DistillStep, "__call__", dying(DistillStep.__call__, after))
        with pytest.raises(Killed):
            run(teacher, out)
    is_finished = (out / "seed-4/result.json").exists()
    assert is_finished == (after > 11)
    finished = values_of(out / "seed-4")["finished"] if is_finished else None
    monkeypatch.setattr(budget, "distill_time", machine(7.0))
    run(teacher, out)
    if is_finished:
        assert values_of(out / "seed-4")["finished"] == finished
    for folder in (".", "seed-4", "seed-5"):
        names = [path.relative_to(whole) for path in sorted((whole / folder).rglob("*.safetensors"))]
        assert {path.parent.name for path in names} >= {"student", "generator"}
        assert [name for name in names if (out / name).read_bytes() != (whole / name).read_bytes()] == []


def test_a_seed_that_was_removed_after_the_end_is_not_run_again(teacher: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(out / "seed-4")
    result = run(teacher, out)
    assert "nothing was run" in str(result)
    assert [one.directory.name for one in result.runs] == ["seed-5"]
    assert not (out / "seed-4").exists()


def test_a_run_of_other_seeds_is_refused(teacher: Path, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    with pytest.raises(ConfigError, match="changed: seeds"):
        run(teacher, out, "seeds=3")
    with pytest.raises(ConfigError, match="seeds: what several seeds came to is not extended"):
        run(teacher, out, "more=30m")
    with pytest.raises(ConfigError, match="is a part of the run"):
        distill(load_config(DistillConfig, whole / "seed-4" / "config.yaml", ["more=5"]))
    with pytest.raises(ConfigError, match=r"finished: .* has 2 seeds; name the run of one: .*/seed-4$"):
        read_finished(whole)
    plan = distill(config_for(teacher, tmp_path / "new"), dry_run=True)
    assert "  seeds: 2 such runs, from seed 4 on" in str(plan)
    assert not (tmp_path / "new").exists()


def test_private_images_are_not_queried_for_each_seed(teacher: Path, tmp_path: Path) -> None:
    private = {"kind": "generated", "generator": {"kind": "merf", "epsilon": 5.0}, "data": {"kind": "digits"}}
    config = load_config(DistillConfig, recipe(teacher) | {"transfer_set": private}, ["seeds=2", f"out={tmp_path}"])
    with pytest.raises(ConfigError, match="seeds: each seed would spend an epsilon of its own on the same images"):
        distill(config)


def test_a_black_box_is_not_asked_for_each_seed(teacher: Path, tmp_path: Path) -> None:
    service = {"kind": "labels", "function": "os:getcwd", "queries": 40, "channels": 1, "size": 8, "classes": 10}
    drawn = {"transfer_set": {"generator": {"kind": "procedural"}}}
    config = load_config(
        DistillConfig, recipe(teacher) | drawn | {"teacher": service, "inherit": None}, ["seeds=3", f"out={tmp_path}"]
    )
    with pytest.raises(ConfigError, match="seeds: each seed would ask the black box for itself, 120 queries in all"):
        distill(config)
