"""A budget of time with a black box: what is asked before the first step is asked first and timed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthkd.errors import ConfigError
from synthkd.models.black_box import ANSWERS
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.distill import Distilled
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student import budget, timing
from synthkd.settings.load import load_config
from synthkd.training.checkpoint import CheckpointStore
from tests.pipelines.test_black_box import ASKED, KILL_AT, Killed, service  # noqa: F401, recipes name service


class Clock:
    """A clock that stands still but for the answers."""

    @staticmethod
    def perf_counter() -> float:
        """Seconds."""
        return sum(ASKED) / 10


class Ticking:
    """A clock that goes on by a second when somebody looks at it."""

    def __init__(self) -> None:
        self.looks = 0.0

    def perf_counter(self) -> float:
        """Seconds."""
        self.looks += 1
        return self.looks


def killed(*_: object) -> None:
    """Dies."""
    raise Killed


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """All works are done, of which a step takes a second; the others take nothing."""
    ASKED.clear()
    KILL_AT.clear()

    def measure(*arguments: Any, **options: Any) -> Sequence[Timed]:
        before = len(ASKED)
        timed = timing.distill_time(*arguments, **options)
        assert len(ASKED) == before, "to measure asks nothing"
        return [replace(one, seconds=float(one.name == "steps")) for one in timed]

    monkeypatch.setattr(budget, "time", Clock)
    monkeypatch.setattr(budget, "MOST_PASSES", 2)
    monkeypatch.setattr(budget, "distill_time", measure)


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """120 images in training (12 of them held out) and 30 in test, with labels that nobody uses."""
    images, labels = np.random.default_rng(0).integers(0, 256, (150, 8, 8), dtype=np.uint8), np.arange(150) % 4
    path = tmp_path / "task.npz"
    np.savez(path, images=images[:120], labels=labels[:120], test_images=images[120:], test_labels=labels[120:])
    return {"kind": "npz", "path": str(path)}


def config(task: dict[str, Any], out: Path | None, queries: int = 200, time: str = "30s", **more: Any) -> DistillConfig:
    name = "tests.pipelines.student.test_budget_of_queries:service"
    teacher = {"kind": "labels", "function": name, "queries": queries, "channels": 1, "size": 8, "classes": 4}
    source = {
        "teacher": {**teacher, "batch_size": 16},
        "student": {"arch": "convnet", "width": 4},
        "transfer_set": {"kind": "real", "data": task},
        "test": task,
        "phases": [{"kind": "refine", "steps": 100}],
        "distill": {"batch_size": 16, "adapt": {"every": 4}},
        "device": "cpu",
        "budget": time,
        "out": None if out is None else str(out),
        "checkpoint_every": 4,
        **more,
    }
    return load_config(DistillConfig, source, [])


def run(task: dict[str, Any], out: Path, *arguments: Any, **more: Any) -> Distilled:
    done = distill(config(task, out, *arguments, **more))
    assert isinstance(done, Distilled)
    return done


def files(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in (ANSWERS, "student/model.safetensors")]


def test_steps_fill_what_the_answers_leave_and_no_kill_changes_the_plan(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = run(task, tmp_path / "whole").content
    # 12 s for 12 held-out images and 108 to learn from, 3 s for the 30 test images at the end, and 15 steps.
    assert content.cost.steps == 15
    assert content.budget is not None
    assert content.budget.planned == 30.0
    assert [12, *[16] * 6, 12, 16, 14] == ASKED, "each image once"
    assert content.queries is not None
    assert content.queries.used == 150
    planned = load_config(DistillConfig, tmp_path / "whole/config.yaml", []).planned
    assert planned is not None
    assert planned.measuring == 12.0

    ASKED.clear()
    save = CheckpointStore.save

    def dying(store: CheckpointStore, step: int, content: Any) -> Any:
        if step == 12:
            raise Killed
        return save(store, step, content)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", dying)
        with pytest.raises(Killed):
            run(task, tmp_path / "killed")
    assert any((tmp_path / "killed/checkpoints").iterdir())
    run(task, tmp_path / "killed")
    assert sum(ASKED) == 150
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert "was complete already" in str(run(task, tmp_path / "killed"))


def test_a_run_that_was_killed_while_it_asked_asks_the_rest(task: dict[str, Any], tmp_path: Path) -> None:
    KILL_AT.append(4)
    with pytest.raises(Killed):
        run(task, tmp_path / "run")
    KILL_AT.clear()
    ASKED.clear()
    # 44 answers were there: 7.6 s for the others, as before 3 s for the test images, and 19 steps.
    assert run(task, tmp_path / "run").content.cost.steps == 19
    assert sum(ASKED) == 106


def test_answers_of_the_record_tell_no_time_of_an_answer(
    task: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(budget, "filled", killed)
        with pytest.raises(Killed):
            run(task, tmp_path / "run")
    monkeypatch.setattr(budget, "time", Ticking())
    # A second is a look at the clock: some 10 of them, and no second for each of the 30 test images.
    steps = run(task, tmp_path / "run", time="60s").content.cost.steps
    assert 45 <= steps < 60


def test_queries_bound_the_answers_and_test_images_that_they_do_not_cover_take_no_time(
    task: dict[str, Any], tmp_path: Path
) -> None:
    content = run(task, tmp_path / "run", 50).content
    assert content.cost.steps == 25
    assert sum(ASKED) == 50


@pytest.mark.parametrize("kind", ["procedural", "pictures"])
def test_pictures_are_asked_about_first(task: dict[str, Any], tmp_path: Path, kind: str) -> None:
    content = run(task, tmp_path / "run", 100, transfer_set={"kind": kind}).content
    assert content.cost.steps == 20
    assert sum(ASKED) == 100


def test_a_budget_that_the_answers_use_up_ends_in_a_line_and_loses_none(task: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^budget: 6s is over after 76 answers of the black box and before the first"
    ):
        run(task, tmp_path / "run", time="6s")
    assert sum(ASKED) == 76
    run(task, tmp_path / "run", time="9s")
    assert sum(ASKED) == 150, "the answers were kept"


def test_a_dry_run_asks_nothing_and_says_what_is_not_in_its_plan(task: dict[str, Any]) -> None:
    plan = distill(config(task, None), dry_run=True)
    assert isinstance(plan, Plan)
    assert ASKED == []
    line = (
        "  budget: 30s, planned 30 s, 0 s of them measuring; a run asks the black box first and takes fewer steps for "
    )
    assert f"{line}that time" in plan.lines
