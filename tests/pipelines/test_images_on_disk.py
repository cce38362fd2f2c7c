"""Jobs on images that are not in memory: the same networks to the last bit, and plans that say so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthkd.data.read.on_disk import CHUNK, DiskImages
from synthkd.data.read.real import load_splits
from synthkd.errors import ConfigError, DataError
from synthkd.models import build_model, save
from synthkd.pipelines import audit, distill, teach
from synthkd.pipelines.config import AuditConfig, DistillConfig, TeachConfig
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.teacher import learning
from synthkd.privacy import copies
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from synthkd.types import ImageSpec
from tests.data.read.test_listing import folder
from tests.data.read.test_on_disk import damaged, pictures

MODEL = {"kind": "zoo", "arch": "mlp", "width": 8}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    root = folder(tmp_path / "set", pictures(60))
    return {"kind": "folder", "root": str(root), "size": 8, "cache": str(tmp_path / "cache"), "workers": 2}


def weights(path: Path) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in load_file(path / "model.safetensors").items()}


def test_a_teacher_and_a_student_are_those_of_images_in_memory(tmp_path: Path, data: dict[str, Any]) -> None:
    shared = {"device": "cpu", "evaluate_every": 4}
    for memory in (2.0, 0.0):
        taught = {
            "data": data | {"memory": memory},
            "model": MODEL,
            "training": {"steps": 6, "batch_size": 9},
            **shared,
        }
        teach(load_config(TeachConfig, taught, [f"out={tmp_path / f'teach{memory}'}"]))
        source = {
            "teacher": {"kind": "load", "model": str(tmp_path / "teach2.0")},
            "student": MODEL,
            "transfer_set": {"kind": "real", "data": data | {"memory": memory}},
            "test": data | {"memory": memory, "root": data["root"]},
            "phases": [{"kind": "refine", "steps": 7}],
            "distill": {"batch_size": 9},
            "inherit": False,
            **shared,
        }
        # A cache of its own: the teacher's has all images already.
        source["transfer_set"]["data"]["cache"] = str(tmp_path / "second cache")  # type: ignore[index]
        config = load_config(DistillConfig, source, [f"out={tmp_path / f'distill{memory}'}"])
        kept = ", 0.0 MB decoded, read from disk" if memory == 0 else ""
        plan = str(distill(config, dry_run=True))
        assert f"learned from{kept}\n" in plan
        assert f"of 3 classes, set{kept}\n" in plan
        distill(config)
    assert weights(tmp_path / "teach0.0/teacher") == weights(tmp_path / "teach2.0/teacher")
    assert weights(tmp_path / "distill0.0/student") == weights(tmp_path / "distill2.0/student")


def test_a_teacher_normalises_by_a_sample_of_images_on_disk(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "MEASURED_IMAGES", 7)

    def mean(memory: float, seed: int) -> tuple[int, list[float]]:
        cache = str(tmp_path / f"cache{memory}{seed}")
        settings = {"data": data | {"memory": memory, "cache": cache}, "model": MODEL, "seed": seed}
        config = load_config(TeachConfig, settings, [])
        splits = load_splits(config.data)
        model = learning.build(config, splits)
        images = splits.train.images
        decoded = 0 if isinstance(images, torch.Tensor) else len(images) - images.lacking()
        return decoded, model.normalize.mean.flatten().tolist()

    in_memory = mean(2.0, 0)
    assert in_memory == mean(2.0, 1), "of all images"
    assert mean(0.0, 0)[0] == 7
    assert in_memory[1] != mean(0.0, 0)[1] != mean(0.0, 1)[1]
    assert mean(0.0, 1) == (7, mean(0.0, 1)[1]), "it follows from the seed"
    monkeypatch.setattr(learning, "MEASURED_IMAGES", 60)
    assert mean(0.0, 0)[1] == in_memory[1], "few images are all measured"


def test_a_run_may_go_on_with_another_cache_and_other_workers(tmp_path: Path, data: dict[str, Any]) -> None:
    source = {
        "data": data | {"memory": 0.0},
        "model": MODEL,
        "training": {"steps": 2, "batch_size": 9},
        "device": "cpu",
    }
    out = f"out={tmp_path / 'run'}"
    teach(load_config(TeachConfig, source, [out]))
    again = teach(load_config(TeachConfig, source, [out, "data.workers=0", f"data.cache={tmp_path / 'other'}"]))
    assert "complete already" in str(again)
    with pytest.raises(ConfigError, match=r"changed: data\.memory"):
        teach(load_config(TeachConfig, source, [out, "data.memory=2"]))


def test_a_damaged_file_ends_a_job_with_its_name(tmp_path: Path, data: dict[str, Any]) -> None:
    root = folder(tmp_path / "damaged", damaged(pictures(60, "PNG"), "b/04.png"))
    settings = data | {"root": str(root), "memory": 0.0, "test": 0.0, "holdout": 0.0}
    source = {"data": settings, "model": MODEL, "training": {"steps": 2, "batch_size": 9}, "device": "cpu"}
    with pytest.raises(DataError, match=r"damaged: b/04.png \(.*\) cannot be read as an image; delete it"):
        teach(load_config(TeachConfig, source, [f"out={tmp_path / 'run'}"]))
    settings["skip_bad"] = True
    teach(load_config(TeachConfig, source, [f"out={tmp_path / 'run'}"]))


def test_an_audit_is_that_of_images_in_memory(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    networks = {name: str(tmp_path / name) for name in ("teacher", "reference")}
    for path in networks.values():
        save(
            build_model(ZooModel(arch="mlp", width=8), ImageSpec(3, 8, 8, 3), [0.5] * 3, [0.5] * 3, tuple("abc")), path
        )
    other = folder(tmp_path / "other", pictures(21, "PNG"))
    blocks: list[int] = []
    decoded = DiskImages.__getitem__

    def watched(self: DiskImages, rows: torch.Tensor | slice) -> torch.Tensor:
        images = decoded(self, rows)
        blocks.append(len(images))
        return images

    monkeypatch.setattr(DiskImages, "__getitem__", watched)

    def report(name: str, memory: float) -> dict[str, Any]:
        real = data | {"memory": memory, "test": 0.0, "holdout": 0.5}
        source = {
            "teacher": {"kind": "load", "model": networks["teacher"]},
            "references": {"teacher": [{"kind": "load", "model": networks["reference"]}]},
            "members": {"data": real, "split": "train"},
            "nonmembers": {"data": real, "split": "holdout"},
            "generated": {"data": real | {"root": str(other), "holdout": 0.0}, "split": "train"},
            "device": "cpu",
        }
        result = audit(load_config(AuditConfig, source, [f"out={tmp_path / name}"]))
        assert isinstance(result, Result)
        values: dict[str, Any] = unsealed((result.directory / "privacy_report.json").read_bytes())
        assert values["provenance"].pop("config_sha256"), "which has the memory"
        return values

    in_memory = report("memory", 2.0)
    assert not blocks
    assert in_memory["copies"]
    assert report("disk", 0.0) == in_memory
    assert 0 < max(blocks) <= CHUNK
    monkeypatch.setattr(copies, "BLOCK", 7 * 3 * 8 * 8)
    monkeypatch.setattr("synthkd.data.read.sample_set.CHUNK", 7)
    blocks.clear()
    assert report("blocks", 0.0) == in_memory
    assert max(blocks) == 7, "no more are in memory at a time"
