"""What surrounds a run and is recorded nowhere changes nothing: the environment, torch's default type of floats."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from synthkd.errors import ConfigError
from synthkd.models import build, load
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.result import Plan
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.system.environment import TORCHRUN, own_environment
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 3)
RECIPE: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "transfer_set": {"generator": {"kind": "inversion", "batch_size": 4, "width": 4, "latent": 4}},
    "phases": [{"kind": "joint", "steps": 4, "every": 2}],
    "distill": {"batch_size": 4},
    "device": "cpu",
}
LEFT_OVER = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_USE_FSDP": "true",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMI_SIZE": "2",
}


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    forget()
    yield
    torch.set_default_dtype(torch.float32)
    forget()


def student(out: Path) -> bytes:
    torch.manual_seed(0)
    done = distill(teacher=build(ZooModel(arch="convnet", width=4), SPEC).eval(), out=str(out), **RECIPE)
    assert not isinstance(done, Plan)
    assert {value.dtype for value in done.student.parameters()} == {torch.float32}
    return (out / "student" / "model.safetensors").read_bytes()


def test_the_student_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = student(tmp_path / "plain")
    forget()
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)
    assert student(tmp_path / "environment") == expected
    assert {name: os.environ[name] for name in LEFT_OVER} == LEFT_OVER
    torch.set_default_dtype(torch.float64)
    assert student(tmp_path / "floats") == expected
    assert torch.get_default_dtype() == torch.float64
    assert {value.dtype for value in load(tmp_path / "floats").parameters()} == {torch.float32}


def test_sizes_of_others_are_ignored_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {**LEFT_OVER, "PMI_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    with own_environment():
        assert not {*LEFT_OVER} & {*os.environ}
    assert [record.getMessage() for record in caplog.records] == [
        "WORLD_SIZE=2 is ignored: torchrun starts several processes",
        "OMPI_COMM_WORLD_SIZE=2 is ignored: torchrun starts several processes",
    ]


def test_torchrun_is_heard_and_a_part_of_it_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.setenv(name, "1")
    with own_environment():
        assert {*TORCHRUN} <= {*os.environ}
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.delenv("MASTER_PORT")
    refused = pytest.raises(ConfigError, match="has RANK, but no MASTER_ADDR and MASTER_PORT: start with torchrun")
    with refused, own_environment():
        pass


def test_paths_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces, umlauts and bytes that are not UTF-8, in the folder of a run and inside its data."""
    top = tmp_path / os.fsdecode(b"with space \xc3\xb6 \xff")
    for label, name in enumerate(("a b", "ö", os.fsdecode(b"c\xfe"))):
        for number in range(6):
            path = top / "my set" / name / f"{number} ö.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 40 * number + label).save(path)
    monkeypatch.chdir(top)
    taught = {"kind": "train", "data": {"kind": "folder", "root": "my set", "channels": 1}}
    taught |= {"model": {"arch": "convnet", "width": 4}, "training": {"steps": 2, "batch_size": 4}}
    pictures = {"kind": "real", "data": {"kind": "unlabelled", "path": "./my set/ö", "channels": 1}}
    recipe = {**RECIPE, "teacher": taught, "transfer_set": pictures, "phases": [{"kind": "refine", "steps": 2}]}
    recipe |= {"test": {"kind": "folder", "root": "my set", "channels": 1}, "out": "my run"}
    done = distill(load_config(DistillConfig, recipe, []))
    assert not isinstance(done, Plan)
    assert load("my run").class_names[1] == "c\udcfe"
    assert (top / "my run" / "report.html").is_file()
    assert "was complete already" in str(distill(load_config(DistillConfig, recipe, [])))
