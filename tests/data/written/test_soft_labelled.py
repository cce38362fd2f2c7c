"""Images and logits in a .npz teach a student without a teacher, or one line says what is wrong with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.data.written.soft_labelled import read_soft_labelled
from synthkd.errors import DataError
from synthkd.pipelines import distill
from synthkd.pipelines.run.result import Plan
from synthkd.types import ImageSpec

COUNT = 40
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)
LOGITS = RNG.normal(size=(COUNT, 3))


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path / "a.npz", **{"images": IMAGES, "logits": LOGITS, **arrays})
    return path / "a.npz"


def test_arrays_come_back(tmp_path: Path) -> None:
    found = read_soft_labelled(write(tmp_path))
    assert torch.equal(found.images[:, 0], torch.from_numpy(IMAGES))
    assert torch.equal(found.logits, torch.from_numpy(LOGITS).float())
    assert found.labels.tolist() == LOGITS.argmax(1).tolist()
    assert (found.spec, found.class_names) == (ImageSpec(1, 8, 8, 3), ("0", "1", "2"))
    assert found.mean[0] == pytest.approx(IMAGES.mean() / 255)
    assert found.std[0] == pytest.approx(IMAGES.std() / 255)
    labels, names = np.arange(COUNT) % 3, np.array(["cat", "dog", "bird"])
    found = read_soft_labelled(write(tmp_path, logits=LOGITS.astype(np.float16), labels=labels, class_names=names))
    assert (found.labels.tolist(), found.class_names) == (labels.tolist(), ("cat", "dog", "bird"))
    assert found.logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": LOGITS[:-1]}, r"logits must be a row per image and a column per class, \[40, K\], got \[39, 3\]"),
        ({"logits": LOGITS[:, :1]}, r"got \[40, 1\]"),
        ({"logits": LOGITS[0]}, r"got \[3\]"),
        ({"logits": LOGITS.astype(np.int64)}, r"logits must be floats, got int64"),
        ({"logits": np.where(np.arange(COUNT)[:, None] == 7, np.nan, LOGITS)}, r"1 rows are not \(first: 7\)"),
        ({"logits": LOGITS * 1e300}, r"logits must be finite, and 40 rows are not"),
        ({"logits": np.full((COUNT, 4), 0.25)}, r"logits are probabilities.* give np.log"),
        ({"labels": np.full(COUNT, 3)}, r"a.npz"),
        ({"labels": np.zeros(COUNT - 1, dtype=np.int64)}, r"labels must be one per image"),
        ({"class_names": np.array(["a", "b"])}, r"2 class_names for logits of 3 classes"),
        ({"images": IMAGES.astype(np.int64)}, r"images must be uint8"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_soft_labelled(write(tmp_path, **arrays))


def test_a_file_without_logits(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES)
    with pytest.raises(DataError, match=r"has no array \['logits'\], only \['images'\]"):
        read_soft_labelled(tmp_path / "a.npz")


def test_a_student_learns_from_them_without_a_teacher(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "student": {"arch": "convnet", "width": 4},
        "transfer_set": {"kind": "stored", "path": str(write(tmp_path))},
        "phases": [{"kind": "refine", "steps": 60}],
        "distill": {"batch_size": 38, "optimizer": {"lr": 0.02}},
        "mix": {"mixup": 0.0},
        "device": "cpu",
    }
    done = distill(out=str(tmp_path / "run"), **recipe)
    assert not isinstance(done, Plan)
    assert done.values["real_images_used"] is None
    with torch.no_grad():
        predicted = done.student(torch.from_numpy(IMAGES)[:, None].float() / 255).argmax(1)
    # The two held-out images may be wrong; it remembers the others.
    assert int((predicted == torch.from_numpy(LOGITS).argmax(1)).sum()) >= COUNT * 0.8
