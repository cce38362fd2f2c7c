"""Experiment trackers beside the JSON lines."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from synthkd.errors import ConfigError
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.settings.load import load_config

SMALL = {
    "data": {"kind": "digits"},
    "model": {"arch": "mlp", "width": 16},
    "training": {"steps": 4},
    "device": "cpu",
    "log_every": 2,
}


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    teach(load_config(TeachConfig, SMALL, [f"out={out}", "track=[tensorboard]"]))
    assert list((out / "track").rglob("events.out.tfevents.*"))
    assert (out / "metrics.jsonl").exists()


def test_tensorboard_gets_the_pictures_of_generated_images(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    recipe = {
        "teacher": {"kind": "train", "data": {"kind": "digits"}, "model": {"arch": "mlp", "width": 16}},
        "student": {"arch": "mlp", "width": 8},
        "transfer_set": {"generator": {"width": 8, "latent": 8, "batch_size": 20, "batch_norm": 0}},
        "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "refine", "steps": 2}],
        "grid_every": 1,
        "device": "cpu",
    }
    distill(load_config(DistillConfig, recipe, [f"out={out}", "track=[tensorboard]", "teacher.training.steps=4"]))
    (events,) = {path.parent for path in (out / "track").rglob("events.out.tfevents.*")}
    log = EventAccumulator(str(events))
    log.Reload()
    assert log.Tags()["images"] == ["samples"]
    assert [picture.step for picture in log.Images("samples")] == [1, 2]


def test_a_tracker_that_is_not_installed_names_the_pip_line(tmp_path: Path) -> None:
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    with pytest.raises(ConfigError, match="track: wandb is not installed: pip install wandb"):
        teach(load_config(TeachConfig, SMALL, [f"out={tmp_path / 'run'}", "track=[wandb]"]))


def test_what_has_no_run_directory_tells_no_tracker() -> None:
    pytest.importorskip("tensorboard")
    plan = teach(load_config(TeachConfig, SMALL, ["track=[tensorboard]"]), dry_run=True)
    assert "steps" in str(plan)
