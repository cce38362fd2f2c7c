"""What is handed over is what was asked for, calibrated on as many images as were asked for."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from synthkd.models import build
from synthkd.pipelines.config import CompressConfig, ExportSettings
from synthkd.pipelines.handover import export
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

compress_module: Any = import_module("synthkd.pipelines.compress")


def test_files_of_formats_that_are_not_wanted_any_more_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "cost", lambda *_: None)
    spec = ImageSpec(1, 8, 8, 3)
    teacher, student = (build(ZooModel(arch="mlp", width=width), spec).eval() for width in (8, 4))
    for name in (*export.NAMES.values(), "mine.txt"):
        (tmp_path / name).write_text("of before")
    images = torch.zeros(4, *spec.shape, dtype=torch.uint8)
    settings = ExportSettings(formats=("program",))
    files = export.hand_over(settings, teacher, student, images, None, tmp_path, torch.device("cpu")).files
    assert list(files) == ["program"]
    assert {path.name for path in tmp_path.iterdir()} == {"student.pt2", "mine.txt"}
    assert (tmp_path / "student.pt2").stat().st_size == files["program"].bytes > 9


@pytest.mark.parametrize(("calibration", "count"), [(512, 1000), (2500, 2500)])
def test_calibration_has_as_many_images_as_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, calibration: int, count: int
) -> None:
    recipe = {
        "teacher": {"kind": "load", "model": "t"},
        "student": {"arch": "mlp"},
        "export": {"calibration": calibration},
    }
    config = load_config(CompressConfig, recipe, [])
    monkeypatch.setattr(compress_module, "build_generator", lambda *_: None)
    monkeypatch.setattr(compress_module, "sample", lambda _, count, *__: (torch.zeros(count, 1, 2, 2),))
    flow = SimpleNamespace(generator=None, teacher=SimpleNamespace(spec=ImageSpec(1, 2, 2, 3)))
    images = compress_module._synthetic(config, SimpleNamespace(accelerator=None), cast(Any, flow))
    assert len(images) == count
