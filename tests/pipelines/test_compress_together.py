"""`synthkd compress` in two processes is that of one; an error of one of them, and another number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.run.result import Result
from synthkd.privacy.journal import Journal
from synthkd.settings.load import load_config

pytest.importorskip("optuna")

RECIPE: dict[str, Any] = {
    "device": "cpu",
    "threads": 1,
    "teacher": {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 4},
        "training": {"steps": 6, "batch_size": 16},
    },
    "search": {
        "candidates": 5,
        "generation": 2,
        "population": 2,
        "steps": 2,
        "rounds": 1,
        "objectives": ["error", "bytes"],
        "families": [{"arch": "mlp", "width": [4, 16], "depth": [1]}],
    },
    "distillation": {
        "transfer_set": {"generator": {"batch_size": 16, "width": 4, "latent": 8, "steps": 2}},
        "distill": {"batch_size": 16},
        "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "joint", "steps": 4}],
        "grid_every": 100,
    },
    "audit": {"canaries": 80, "references": 1},
    "export": {"formats": []},
}
MERF = {"kind": "merf", "epsilon": 8.0, "delta": 1e-4, "features": 64, "width": 8, "batch_size": 16, "steps": 2}
NOISY = {
    **{key: value for key, value in RECIPE.items() if key not in ("search", "audit")},
    "student": {"arch": "mlp", "width": 4, "depth": 1},
    "flow": "dp_generator",
    "synthetic": {"rounds": 2, "per_class": 10},
    "distillation": {**RECIPE["distillation"], "transfer_set": {"generator": MERF}},
}


def two(folder: Path, recipe: dict[str, Any], out: str) -> "subprocess.CompletedProcess[str]":
    """The job in two processes."""
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "synthkd"]
    return subprocess.run(
        [*torchrun, "compress", "recipe.yaml", f"out={out}"],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def weights(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}


def report(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "privacy_report.json").read_text())
    del content["checksum"], content["provenance"]["config_sha256"]  # of the name of the run directory
    return content


@pytest.mark.slow
def test_two_processes_search_and_audit_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = compress(load_config(CompressConfig, RECIPE, ["out=one"]))
    assert isinstance(one, Result)
    # An error that one process meets alone: its reference has no place.
    (tmp_path / "two" / "audit").mkdir(parents=True)
    shutil.copy(tmp_path / "one" / "config.yaml", tmp_path / "two")
    (tmp_path / "two" / "audit" / "reference-0").touch()
    failed = two(tmp_path, RECIPE, "two")
    assert failed.returncode != 0
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, failed.stderr[-3000:]
    assert "reference-0" in errors[0]
    assert failed.stdout == ""
    (tmp_path / "two" / "audit" / "reference-0").unlink()

    finished = two(tmp_path, RECIPE, "two")  # what is finished is kept
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout.count("report:") == 1
    assert "search run" in failed.stderr
    assert "search run" not in finished.stderr
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    assert len(weights(tmp_path / "two")) > 8
    assert report(tmp_path / "two") == report(tmp_path / "one")

    # One process goes on where two have stopped.
    (tmp_path / "two" / "result.json").unlink()
    (tmp_path / "two" / "audit" / "audited" / "distill" / "result.json").unlink()
    again = compress(load_config(CompressConfig, RECIPE, ["out=two"]))
    assert isinstance(again, Result)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")


@pytest.mark.slow
def test_two_processes_release_a_private_generator_once(tmp_path: Path) -> None:
    done = two(tmp_path, NOISY, "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert Journal(tmp_path / "two" / "release").releases == 1
