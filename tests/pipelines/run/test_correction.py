"""A run that failed before its first checkpoint is corrected in place: what it has is kept, what it logged is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from synthkd.errors import ConfigError, TrainingError
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run import job
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config

DIGITS = {"kind": "digits"}
SOURCE: dict[str, Any] = {
    "teacher": {"kind": "train", "data": DIGITS, "model": {"arch": "convnet", "width": 4}, "training": {"steps": 3}},
    "student": {"arch": "convnet", "width": 4},
    "transfer_set": {"generator": {"kind": "pixels", "batch_size": 20, "steps": 1}, "bank": {"capacity": 40}},
    "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "refine", "steps": 6}],
    "distill": {"batch_size": 8},
    "device": "cpu",
    "checkpoint_every": 4,
    "grid_every": 1,
    "log_every": 1,
}
NEVER_FINITE = "distill.terms={'never_finite:term': 1.0}"


def config_for(out: Path, *overrides: str) -> DistillConfig:
    return load_config(DistillConfig, SOURCE, [f"out={out}", *overrides])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_finite.py").write_text("def term(view):\n    return view.student.mean() * float('nan')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "write_report", lambda _: None)  # takes longer than these runs


def test_a_loss_that_was_never_finite_is_corrected_where_it_failed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"student: the loss is not finite at step 0 \(never_finite:term=nan\)"
    ) as said:
        distill(config_for(out, NEVER_FINITE))
    assert "checkpoint" not in str(said.value), "there is none"
    assert not (out / "checkpoints").exists()
    assert "pregenerate begins" in (out / "metrics.jsonl").read_text()
    assert (out / "samples" / "step_000001.png").exists()
    taught = (out / "teach" / "result.json").stat().st_mtime_ns

    result = distill(config_for(out, "grid_every=3"))
    assert isinstance(result, Result)
    assert (out / "teach" / "result.json").stat().st_mtime_ns == taught, "the teacher was not trained again"
    assert result.values["interrupted"] == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["event"] for row in rows if "event" in row] == ["pregenerate begins", "refine begins"]
    assert [path.name for path in (out / "samples").glob("*.png")] == ["step_000002.png"], "pictures of this run alone"


def test_after_a_checkpoint_or_of_another_teacher_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "finite_for_a_while.py").write_text(
        "def term(view, calls=[]):\n"
        "    calls.append(view)\n"
        "    return view.student.mean() * (float('nan') if len(calls) > 5 else 0.0)\n"
    )
    with pytest.raises(TrainingError, match="not finite at step"):
        distill(config_for(tmp_path / "late", "distill.terms={'finite_for_a_while:term': 1.0}"))
    with pytest.raises(ConfigError, match=r"late holds a run with another configuration; changed: distill\.terms"):
        distill(config_for(tmp_path / "late"))
    with pytest.raises(TrainingError, match="not finite at step 0"):
        distill(config_for(tmp_path / "run", NEVER_FINITE))
    with pytest.raises(ConfigError, match=r"run/teach holds a run with another configuration; changed: model\.width"):
        distill(config_for(tmp_path / "run", "teacher.model.width=5"))
