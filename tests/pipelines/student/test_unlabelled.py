"""A student learns from unlabelled images what its teacher says of them, and the plan says how it labels them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.errors import ConfigError, DataError
from synthkd.models import Classifier, build
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.student.unlabelled import UnlabelledImages
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(1, 8, 8, 4)
COUNT = 60
RECIPE: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "phases": [{"kind": "refine", "steps": 4}],
    "distill": {"batch_size": 8, "alpha": 0.5},
    "device": "cpu",
}


def teacher() -> Classifier:
    torch.manual_seed(0)
    network = build(ZooModel(arch="convnet", width=4), SPEC)
    return network.eval()


def pictures(path: Path, **arrays: Any) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, **arrays)
    return images


def source(path: Path, **data: Any) -> dict[str, Any]:
    return {"kind": "real", "data": {"kind": "unlabelled", "path": str(path), **data}}


def test_the_teacher_labels_and_labels_of_the_file_change_nothing(tmp_path: Path) -> None:
    images = pictures(tmp_path / "a.npz")
    pictures(tmp_path / "b.npz", labels=np.arange(COUNT) % 3)
    students = []
    for name in ("a.npz", "b.npz"):
        out = tmp_path / f"run of {name}"
        done = distill(teacher=teacher(), transfer_set=source(tmp_path / name), out=str(out), **RECIPE)
        assert not isinstance(done, Plan)
        students.append((out / "student" / "model.safetensors").read_bytes())
        assert 0 < (done.values["real_images_used"] or 0) <= 32
        assert done.values["student"]["agreement_on"] == "held-out images"
        assert done.values["student"]["agreement_n"] == 6
    assert students[0] == students[1]
    plan = distill(teacher=teacher(), transfer_set=source(tmp_path / "a.npz", holdout=0.0), dry_run=True, **RECIPE)
    with torch.no_grad():
        counts = teacher()(to_float(torch.from_numpy(images))).argmax(1).bincount(minlength=4)
    found = counts[counts > 0]
    assert (
        f"  unlabelled images: 60 of a.npz (0 held out), labelled by the teacher: {len(found)} of 4 classes, "
        f"{int(found.min())} to {int(found.max())} images of each"
    ) in plan.lines


def test_without_a_teacher_nobody_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody labels the unlabelled images: set teacher"):
        load_config(DistillConfig, {**RECIPE, "transfer_set": source(tmp_path)}, [])
    merf = [{"generator": {"kind": "cgan"}, "data": {"kind": "digits"}}, {**source(tmp_path), "share": 0.5}]
    with pytest.raises(ConfigError, match="cgan learns from labelled images: leave the unlabelled ones out"):
        load_config(DistillConfig, {**RECIPE, "teacher": {"kind": "load", "model": "t"}, "transfer_set": merf}, [])


def test_what_is_learned_from_without_labels_tests_nothing(tmp_path: Path) -> None:
    labels = np.arange(COUNT) % 4
    pictures(tmp_path / "a.npz", labels=labels)
    test = {"kind": "npz", "path": str(tmp_path / "a.npz")}
    for share in ({}, {"test": 0.5}):
        with pytest.raises(DataError, match=r"the student learns from a.npz, without its labels"):
            distill(
                teacher=teacher(),
                transfer_set=source(tmp_path / "a.npz"),
                test={**test, **share},
                dry_run=True,
                **RECIPE,
            )
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    pictures(tmp_path / "a.npz", labels=labels, test_images=images, test_labels=np.arange(4))
    plan = distill(teacher=teacher(), transfer_set=source(tmp_path / "a.npz"), test=test, dry_run=True, **RECIPE)
    assert "  test images: 4 of 4 classes, a.npz" in plan.lines


def test_a_class_that_the_teacher_hardly_sees_is_an_alarm() -> None:
    logits = torch.eye(4)[torch.arange(400) % 3]
    one = object.__new__(UnlabelledImages)
    one.__dict__["_logits"] = logits
    (alarm,) = one.alarms()
    assert alarm is not None
    assert alarm.message.startswith("class 3 has 0% of an equal share of the images")
    one.__dict__["_logits"] = torch.eye(4)[torch.arange(400) % 4]
    assert one.alarms() == [None]
