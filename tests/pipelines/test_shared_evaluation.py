"""`synthkd evaluate` under torchrun: the result of one process, one voice, and the same end for all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.data.read.sample_set import READ_AGAIN
from synthkd.models import build_model, save
from synthkd.pipelines.cli import main
from synthkd.settings import ZooModel
from synthkd.system.sealed import unsealed
from synthkd.types import ImageSpec
from tests.data.read.test_listing import folder
from tests.data.read.test_samples import tarred

SCRIPT = """
import json, os, sys
from pathlib import Path
from synthkd.data.read import decode
from synthkd.pipelines.cli import main
from synthkd.pipelines.scores import cas
cas.RECIPE["training"] = {"steps": 3, "batch_size": 8}
rank, codes, here = os.environ["RANK"], [], os.getcwd()
decoded, counts, decode_one = [], [], decode.decode
decode.decode = lambda *rest: decoded.append(1) or decode_one(*rest)
for words in sys.argv[1:]:
    if words.startswith("lost ") and rank == "1":  # the second machine lacks a file
        Path("machine").mkdir()
        os.chdir("machine")
    decoded.clear()
    codes.append(main(words.removeprefix("lost ").split()))
    counts.append(len(decoded))
    os.chdir(here)
Path(f"codes.{rank}").write_text(json.dumps([codes, counts]))
"""
COMMON = "device=cpu subsets=3 subset_size=20 splits=2"


def write(path: Path, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 128, (count, 1, 8, 8)) + 40 * labels[:, None, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels)


def pictures(seed: int, count: int) -> dict[str, bytes]:
    """Files of three classes."""
    rng, files = np.random.default_rng(seed), {}
    for row in range(count):
        pixels = rng.integers(0, 128, (8, 8)) + 40 * (row % 3)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        files[f"{'abc'[row % 3]}/{row:03}.png"] = buffer.getvalue()
    return files


def same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal but for times and the rounding of sums."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            if key not in ("seconds", "cost", "finished", "hardware"):
                same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{where}.{number}")
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9), where
    else:
        assert ours == theirs, where


def test_two_processes_give_the_scores_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synthkd.pipelines.scores import cas

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cas.RECIPE, "training", {"steps": 3, "batch_size": 8})
    torch.manual_seed(0)
    model = build_model(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 3), [0.4], [0.3])
    save(model.eval(), tmp_path / "teacher", {})
    for seed, name in enumerate(("one", "two", "train", "holdout")):
        write(tmp_path / f"{name}.npz", seed, 300 - 40 * seed)
    (tmp_path / "script.py").write_text(SCRIPT)
    sets = f"one.npz real=two.npz teacher.kind=load teacher.model={tmp_path / 'teacher'} {COMMON}"
    folder(tmp_path / "folder", pictures(2, 280))
    folder(tmp_path / "bad", pictures(3, 140) | {"a/000.png": b"", "b/139.png": b"no image"})
    tarred(tmp_path / "set.tar", pictures(4, 260))
    files = f"evaluate folder real=set.tar {sets.split(maxsplit=2)[2]} cache=null pairs=0 name=run"
    every = f"evaluate {sets} train=train.npz holdout=holdout.npz cas=true cache=null name=run"
    commands = [
        f"{every} out=shared",
        f"{every} out=shared",
        f"evaluate {sets} cache=cache out=cached",
        f"evaluate {sets} cache=cache out=again save_features=real.safetensors",
        f"lost evaluate {sets} out=lost",
        f"evaluate model={tmp_path / 'teacher'} data=one.npz device=cpu out=network",
        f"evaluate {sets} out=none --dry-run",
        f"{files} out=files",
        f"{files} out=unread".replace("folder", "bad"),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*torchrun, "script.py", *commands],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        codes, counts = json.loads((tmp_path / f"codes.{rank}").read_text())
        assert codes == [0, 0, 0, 0, 3, 0, 0, 0, 3], done.stderr[-3000:]
        # Blocks of 128 files: two of 280 and of 260 and one of 140 for the first process, the rest for the second.
        own = ([256 + 256, 128], [24 + 4, 12])[rank]
        more = 2 * READ_AGAIN + (20 if rank == 0 else 0)
        assert own[0] <= counts[-2] <= own[0] + more, "some of each set again, and the first process its pictures"
        assert counts[-1] == own[1]
    assert done.stdout.count("report:") == 6, "one process speaks"
    assert done.stdout.count("  time: about") == 1
    assert done.stderr.count("error: ") == 2
    assert "error: bad: 2 of 140 files cannot be read as images: a/000.png (empty file), b/139.png (not" in done.stderr
    assert "error: process 1: one.npz does not exist; check the path" in done.stderr
    assert not (tmp_path / "lost" / "result.json").exists()
    assert (tmp_path / "real.safetensors").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert main([*every.split(), "out=alone"]) == 0
    shared, alone, cached, again = (
        unsealed((tmp_path / name / "result.json").read_bytes()) for name in ("shared", "alone", "cached", "again")
    )
    same(shared, alone)
    assert main([*files.split(), "out=files_alone"]) == 0
    same(*(unsealed((tmp_path / name / "result.json").read_bytes()) for name in ("files", "files_alone")))
    assert all(score["value"] is not None for score in shared["generated"][0]["scores"])
    assert {**again, "name": ""}["generated"] == cached["generated"]
