"""The report while a run goes: written from the loop, reloading itself, and replaced by the final page."""

import logging
from pathlib import Path
from typing import Any

import pytest

from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run import live
from synthkd.settings.load import load_config
from synthkd.training.monitor import Monitor

TEACH: dict[str, Any] = {
    "data": {"kind": "digits"}, "model": {"arch": "mlp", "width": 8}, "training": {"steps": 4}, "device": "cpu",
    "evaluate_every": 2, "log_every": 1,
}  # fmt: skip
REFRESH = '<meta http-equiv="refresh" content="10">'


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The page after each writing; every page is due."""
    written: list[str] = []

    def write(run: Path) -> Path:
        path = original(run)
        written.append(path.read_text())
        return path

    original = live.write_report
    monkeypatch.setattr(live, "write_report", write)
    monkeypatch.setattr(live, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(live, "SECONDS", 0.0)
    monkeypatch.setattr(live, "LARGEST_SHARE", 1e9)
    return written


def test_a_run_has_a_page_that_reloads_itself_until_its_end(tmp_path: Path, pages: list[str]) -> None:
    recipe = {
        "teacher": {"kind": "train", "data": {"kind": "digits"}, "model": {"arch": "mlp", "width": 16}},
        "student": {"arch": "mlp", "width": 8},
        "transfer_set": {"generator": {"width": 8, "latent": 8, "batch_size": 20, "batch_norm": 0}},
        "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "refine", "steps": 2}],
        "grid_every": 1,
        "log_every": 1,
        "device": "cpu",
    }
    out = tmp_path / "run"
    distill(load_config(DistillConfig, recipe, [f"out={out}", "teacher.training.steps=2"]))
    assert len(pages) == 4, "of the teacher, of two grids, and of the end of the second phase"
    assert all(REFRESH in page and "The run is going" in page for page in pages)
    assert "data:image/png" in pages[1]
    assert "generator/loss" in pages[2] or "Curves" in pages[2]
    for page in (out / "report.html", out / "teach" / "report.html"):
        assert "http-equiv" not in page.read_text()
        assert "The run is going" not in page.read_text()


def test_a_killed_run_keeps_its_last_page_and_the_resumed_one_replaces_it(
    tmp_path: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(TeachConfig, TEACH, [f"out={tmp_path / 'run'}", "checkpoint_every=1"])
    log = Monitor.log

    def killed(self: Monitor, step: int, *rest: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "log", killed)
        with pytest.raises(KeyboardInterrupt):
            teach(config)
    page = tmp_path / "run" / "report.html"
    assert page.read_text() == pages[-1]
    assert REFRESH in page.read_text()
    teach(config)
    assert "http-equiv" not in page.read_text()


def test_a_failing_page_is_one_warning(
    tmp_path: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "write_report", lambda _: 1 / 0)
    with caplog.at_level(logging.WARNING):
        teach(load_config(TeachConfig, TEACH, [f"out={tmp_path / 'run'}"]))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'run'}: the page of the run cannot be written: division by zero"
    ]
    assert "http-equiv" not in (tmp_path / "run" / "report.html").read_text()
    assert pages == []


def test_pages_are_seconds_apart_and_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, times, cost = [0.0], [], [1.0]

    def write(run: Path) -> Path:
        times.append(now[0])
        now[0] += cost[0]
        return run

    monkeypatch.setattr(live, "write_report", write)
    action = live.LivePage(tmp_path, True, lambda: now[0]).every(1)
    other = live.LivePage(tmp_path, False, lambda: now[0]).every(1)
    while now[0] < 300:
        action.run(0)
        other.run(0)
        cost[0] = 1.0 if now[0] < 60 else 3.0
        now[0] += 1
    assert times[:2] == [5.0, 36.0]
    assert times[-1] - times[-2] == 63.0
