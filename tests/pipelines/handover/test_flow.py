"""What does not fit together ends a compression before it trains a teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.errors import SynthkdError
from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.handover.flow import DISTILL, TEACH, require_fitting
from synthkd.settings.load import load_config

RECIPE: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "teacher": {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "mlp", "width": 8, "depth": 1},
        "training": {"steps": 2, "batch_size": 8},
    },
    "student": {"arch": "mlp", "width": 4, "depth": 1},
    "distillation": {
        "transfer_set": {"generator": {"kind": "pixels", "batch_size": 8}},
        "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "refine", "steps": 1}],
    },
    "export": {"formats": []},
}
FAMILIES = "search.families=[{arch: mlp, width: [5000, 5001]}]"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["test={kind: folder, root: typo}"], "typo"),
        (["test={kind: npz, path: large.npz}"], "the teacher takes"),
        (["student={arch: resnet, depth: 9}"], r"6n \+ 2 layers, got depth=9"),
        (["distillation.transfer_set.generator={kind: inversion}"], "BatchNorm"),
        (["student=null", FAMILIES], "no family has a student of at most"),
    ],
)
def test_a_mistake_ends_the_run_before_a_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("large.npz", images=np.zeros((20, 9, 9), dtype=np.uint8), labels=np.arange(20) % 10)
    with pytest.raises(SynthkdError, match=said):
        compress(load_config(CompressConfig, RECIPE, ["out=run", *settings]))
    assert not (tmp_path / "run" / TEACH).exists()


def test_the_check_draws_nothing_and_writes_nothing(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    require_fitting(load_config(CompressConfig, RECIPE, []), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_teacher_is_trained_is_checked_before_its_search_alone(tmp_path: Path) -> None:
    (tmp_path / TEACH).mkdir()
    (tmp_path / TEACH / "result.json").touch()
    wrong = load_config(CompressConfig, RECIPE, ["test={kind: folder, root: typo}"])
    searched = load_config(CompressConfig, RECIPE, ["test={kind: folder, root: typo}", "student=null", "search={}"])
    require_fitting(wrong, tmp_path)  # the distillation comes next
    with pytest.raises(SynthkdError, match="typo"):
        require_fitting(searched, tmp_path)
    (tmp_path / DISTILL).mkdir()
    require_fitting(searched, tmp_path)
