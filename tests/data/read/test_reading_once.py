"""Inside `reading_once` a dataset is read once, and a run reads the data of its teacher once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthkd.data.read import real
from synthkd.data.read.real import load_splits, reading_once
from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.settings import DigitsData
from synthkd.settings.load import load_config

DIGITS = {"kind": "digits"}
TEACHER = {"kind": "train", "data": DIGITS, "model": {"arch": "mlp", "width": 4}}
SMALL = {"steps": 2, "batch_size": 8}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings of each dataset that is read."""
    done: list[Any] = []
    read = real._read

    def watched(settings: Any, lacks_classes: bool = False) -> Any:
        done.append(settings)
        return read(settings, lacks_classes)

    monkeypatch.setattr(real, "_read", watched)
    return done


def test_equal_settings_give_the_same_images_inside(reads: list[Any]) -> None:
    one, other = DigitsData(kind="digits"), DigitsData(kind="digits", holdout=0.3)
    with reading_once() as read:
        first = load_splits(one)
        with reading_once():
            assert load_splits(DigitsData(kind="digits")) is first
        assert len(load_splits(other).holdout) > len(first.holdout)
        assert reads == [one, other]
        del read[one]
        assert load_splits(one) is not first
    load_splits(one)
    load_splits(one)
    assert reads == [one, other, one, one, one]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_distillation_reads_the_data_of_its_teacher_once(reads: list[Any], tmp_path: Path, dry_run: bool) -> None:
    recipe = {
        "teacher": TEACHER | {"training": SMALL},
        "student": {"arch": "mlp", "width": 4},
        "transfer_set": {"kind": "real", "data": DIGITS},
        "test": DIGITS,
        "distill": {"batch_size": 8},
        "phases": [{"kind": "refine", "steps": 2}],
        "device": "cpu",
    }
    distill(load_config(DistillConfig, recipe, [f"out={tmp_path / 'run'}"]), dry_run=dry_run)
    assert len(reads) == 1


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_dataset_reads_the_data_of_its_teacher_once(reads: list[Any], tmp_path: Path, dry_run: bool) -> None:
    recipe = {
        "teacher": TEACHER | {"training": SMALL},
        "generator": {"kind": "pixels", "batch_size": 4, "steps": 1, "sample_steps": 1},
        "per_class": 1,
        "device": "cpu",
    }
    generate(load_config(GenerateConfig, recipe, [f"out={tmp_path / 'run'}"]), dry_run=dry_run)
    assert len(reads) == 1
