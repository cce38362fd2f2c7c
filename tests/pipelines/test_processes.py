"""Two processes under torchrun: one run directory, and the student of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from synthkd.models import load
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
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


def under_torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A job in two processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "synthkd"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_two_processes_teach_and_distil_what_one_does(tmp_path: Path) -> None:
    few = [{"kind": "pregenerate", "rounds": 2}, {"kind": "joint", "steps": 6, "every": 3}]
    training = {**TEACHER["training"], "steps": 12}
    teacher = {"kind": "train", **{key: TEACHER[key] for key in ("data", "model")}, "training": training}
    recipe = tmp_path / "recipe.yaml"
    # With an average of the weights, auxiliary layers, and views of the batch that go through the networks with it.
    terms = {"average": 0.5, "transfer": [{"kind": "crd", "negatives": 8}, {"kind": "sskd"}]}
    distilled = {**RECIPE["distill"], **terms, "optimizer": {"lr": 5e-3, "ema": 0.9}}
    recipe.write_text(
        json.dumps(
            {
                **RECIPE,
                "student": {"arch": "convnet", "width": 6},
                "phases": few,
                "teacher": teacher,
                "distill": distilled,
            }
        )
    )
    alone = distill(load_config(DistillConfig, recipe, [f"out={tmp_path / 'one'}"]))
    assert isinstance(alone, Result)
    done = under_torchrun("distill", str(recipe), f"out={tmp_path / 'two'}")
    assert done.stdout.count("report:") == 1, "one process speaks"
    for network in ("teach/teacher", "student", "generator"):
        one, two = (load_file(tmp_path / run / network / "model.safetensors") for run in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3, msg=f"{network}: {name}")


@pytest.mark.slow
def test_two_fast_processes_train_a_student_much_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    taught = teach(load_config(TeachConfig, TEACHER, [f"out={tmp_path / 'teacher'}"]))
    assert isinstance(taught, Result)
    recipe.write_text(json.dumps({**RECIPE, "teacher": {"kind": "load", "model": str(taught.directory)}}))
    alone = distill(load_config(DistillConfig, recipe, [f"out={tmp_path / 'one'}"]))
    assert isinstance(alone, Result)
    under_torchrun("distill", str(recipe), f"out={tmp_path / 'two'}", "sync=fast")
    one, two = (load(tmp_path / name) for name in ("one", "two"))
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        agreement = (one(images).argmax(1) == two(images).argmax(1)).float().mean()
    assert float(agreement) > 0.7, "of ten classes, after a few steps from the same weights"


def test_two_fast_processes_go_on_where_a_term_has_no_weight_at_first(tmp_path: Path) -> None:
    # The layers of the hint are in the pass, and DistributedDataParallel waits for their gradients.
    terms = {"hint": {"kind": "linear", "start": 0.0, "end": 1.0}, "transfer": [{"kind": "exits", "weight": 0.1}]}
    teacher = {"kind": "train", "data": TEACHER["data"], "model": TEACHER["model"], "training": {"steps": 12}}
    changes = {
        "student": {"arch": "convnet", "width": 6},
        "teacher": teacher,
        "distill": {**RECIPE["distill"], **terms},
        "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "joint", "steps": 4, "every": 2}],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**RECIPE, **changes}))
    under_torchrun("distill", str(recipe), f"out={tmp_path / 'run'}", "sync=fast")
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
