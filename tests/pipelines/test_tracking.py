"""Experiment trackers beside the JSON lines."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from synthkd.errors import ConfigError
from synthkd.pipelines import teach
from synthkd.pipelines.config import TeachConfig
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


def test_a_tracker_that_is_not_installed_names_the_pip_line(tmp_path: Path) -> None:
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    with pytest.raises(ConfigError, match="track: wandb is not installed: pip install wandb"):
        teach(load_config(TeachConfig, SMALL, [f"out={tmp_path / 'run'}", "track=[wandb]"]))
