"""Features that several machines saved, joined by `synthkd statistics` and scored by `synthkd evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.models import build_model, save
from synthkd.pipelines.cli import main
from synthkd.settings import ZooModel
from synthkd.system.sealed import unsealed
from synthkd.types import ImageSpec

COMMON = "device=cpu cache=null subsets=3 subset_size=20 splits=2 teacher.kind=load teacher.model=teacher"


def write(name: str, *seeds: int) -> None:
    labels = np.tile(np.arange(60) % 3, len(seeds))
    images = np.concatenate([np.random.default_rng(seed).integers(0, 128, (60, 1, 8, 8)) for seed in seeds])
    images = images + 40 * labels[:, None, None, None]
    np.savez(name, images=images.astype(np.uint8), labels=labels)


def scores(words: str, out: str) -> dict[str, Any]:
    assert main(f"evaluate {words} {COMMON} out={out}".split()) == 0
    (generated,) = unsealed((Path(out) / "result.json").read_bytes())["generated"]
    return {"n": generated["n"], **{score["name"]: score for score in generated["scores"]}}


def test_joined_files_are_scored_as_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(build_model(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 3), [0.4], [0.3]).eval(), "teacher", {})
    for name, seeds in (("a", (0,)), ("b", (1,)), ("both", (0, 1)), ("real", (2,))):
        write(name, *seeds)
    scores("a.npz real=real.npz save_generated=a.safetensors save_features=real.safetensors", "runs/a")
    scores("b.npz real=real.npz save_generated=b.safetensors", "runs/b")
    exact = scores("both.npz real=real.npz", "runs/both")
    capsys.readouterr()
    assert main(["statistics", "a.safetensors", "b.safetensors", "-o", "all"]) == 0
    assert "all.safetensors: 120 images of 2 files, features of teacher" in capsys.readouterr().out
    assert main(["statistics", "b.safetensors", "a.safetensors", "--keep", "50", "-o", "some.safetensors"]) == 0
    assert "of a uniform sample of 50 images" in capsys.readouterr().out
    assert main(["statistics", "some.safetensors", "--keep", "0", "-o", "none"]) == 0
    whole = scores("all.safetensors real=real.safetensors cas=true", "runs/all")
    for name in ("FD", "KD", "precision", "recall", "density", "coverage", "semantic cosine"):
        assert whole[f"{name}-teacher"]["value"] == pytest.approx(exact[f"{name}-teacher"]["value"], rel=1e-6, abs=1e-9)
    assert whole["CAS"]["value"] is None
    some, none = (
        scores("some.safetensors real=real.npz", "runs/some"),
        scores("none.safetensors real=real.npz", "runs/0"),
    )
    for one in (some, none):
        assert one["n"] == 120
        assert one["FD-teacher"]["value"] == pytest.approx(exact["FD-teacher"]["value"], rel=1e-6)
    assert some["KD-teacher"]["note"].endswith("of a uniform sample: 50 of 120 generated images")
    assert none["KD-teacher"]["value"] is None
    learned = "train=a.safetensors holdout=real.npz out=none"
    assert main(f"evaluate both.npz real=real.npz {learned} {COMMON}".split()) == 2
    assert "train: saved features stand for the real and the generated sets only" in capsys.readouterr().err
    assert main(["statistics", "some.safetensors", "--keep", "1", "-o", "one"]) == 0
    for few in ("none", "one"):
        assert main(f"evaluate {few}.safetensors real=real.npz {COMMON} out=dry --dry-run".split()) == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("statistics nothing -o all", 3, "features file not found: nothing.safetensors"),
        ("statistics nothing -o taken", 2, "-o: taken.safetensors exists and holds no features"),
        ("statistics nothing -o all --keep -1", 2, "--keep"),
        ("statistics nothing -o .", 2, "'.' names no file"),
        ("statistics / -o all", 2, "'/' names no file"),
        ("evaluate a.npz b.npz real=c.npz save_generated=x.safetensors", 2, "one file has the features of one set"),
    ],
)
def test_what_cannot_be_joined_is_refused(
    words: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.safetensors").write_text("something else")
    assert main(words.split()) == code
    assert message in capsys.readouterr().err
