"""Two processes under torchrun: one run directory, one student, much the same as from one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synthkd.models import load
from synthkd.pipelines import teach
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config

TEACHER = {
    "data": {"kind": "digits"},
    "model": {"arch": "convnet", "width": 12},
    "training": {"steps": 60, "batch_size": 64, "optimizer": {"lr": 1e-2}},
    "device": "cpu",
}
RECIPE = {
    "student": {"arch": "mlp", "width": 32},
    "test": {"kind": "digits"},
    "transfer_set": {
        "generator": {"batch_size": 32, "width": 8, "latent": 32},
        "bank": {"capacity": 200, "policy": "prioritized"},
        "difficulty": {"augment": False},
    },
    "phases": [
        {"kind": "pregenerate", "rounds": 4},
        {"kind": "joint", "steps": 30, "every": 10},
    ],
    "distill": {"batch_size": 32, "optimizer": {"lr": 5e-3}},
    "mix": {"mixup": 0.0},
    "device": "cpu",
    "checkpoint_every": 20,
}


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    taught = teach(load_config(TeachConfig, TEACHER, [f"out={tmp_path / 'teacher'}"]))
    assert isinstance(taught, Result)
    recipe.write_text(json.dumps({**RECIPE, "teacher": {"kind": "load", "model": str(taught.directory)}}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    plain = [sys.executable, "-m", "synthkd", "distill", str(recipe), f"out={tmp_path / 'one'}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "synthkd"]
    subprocess.run(plain, env=environment, check=True, capture_output=True, timeout=300)
    done = subprocess.run(
        [*torchrun, "distill", str(recipe), f"out={tmp_path / 'two'}"],
        env=environment, check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report:") == 1, "one process speaks"
    one, two = (load(tmp_path / name) for name in ("one", "two"))
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        agreement = (one(images).argmax(1) == two(images).argmax(1)).float().mean()
    assert float(agreement) > 0.9
