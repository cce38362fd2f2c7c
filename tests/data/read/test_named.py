"""Datasets by name, from small files in the real formats; nothing here touches the network."""

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from synthkd.data.read import named as named_module
from synthkd.data.read.named import read_idx
from synthkd.data.read.real import load_splits
from synthkd.errors import DataError
from synthkd.settings import NamedData
from synthkd.types import ImageSpec

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FOLDERS = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def mnist_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for part, count in (("train", 40), ("t10k", 20)):
        files[f"{part}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{part}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def store(folder: Path, files: dict[str, bytes], zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)


def named(kind: str, root: Path, **more: Any) -> NamedData:
    return NamedData.model_validate({"kind": kind, "root": str(root), **more})


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_mnist_family_is_read_from_either_place(tmp_path: Path, kind: str, inside: bool, zipped: bool) -> None:
    files = mnist_files()
    store(tmp_path / FOLDERS[kind] if inside else tmp_path, files, zipped)
    splits = load_splits(named(kind, tmp_path, holdout=0.0))
    pixels = np.frombuffer(files["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(20, 1, 28, 28)
    assert np.array_equal(splits.test.images.numpy(), pixels)
    assert splits.test.labels.tolist() == [*range(10)] * 2
    assert splits.train.images.shape == (40, 1, 28, 28)
    assert splits.train.class_names[9] == ("9" if kind == "mnist" else "Ankle boot")
    assert splits.train.spec == ImageSpec(1, 28, 28, 10)


def test_fashion_class_names_are_torchvisions(tmp_path: Path) -> None:
    store(tmp_path, mnist_files())
    assert list(load_splits(named("fashion_mnist", tmp_path)).test.class_names) == datasets.FashionMNIST.classes


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_is_read_whole() -> None:
    splits = load_splits(named("fashion_mnist", DEBIAN))
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [54_000, 6_000, 10_000]
    assert torch.bincount(splits.test.labels).tolist() == [1000] * 10
    assert torch.bincount(splits.holdout.labels).tolist() == [600] * 10


def test_missing_files_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^fashion_mnist: .*set download: true .*package dataset-fashion-mnist"):
        load_splits(named("fashion_mnist", tmp_path))
    with pytest.raises(DataError, match=r"^mnist: .*set download: true to fetch them$"):
        load_splits(named("mnist", tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"^cifar10: .*missing.*set download: true to fetch them$"):
        load_splits(named("cifar10", tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x08", "not an idx file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", "not an idx file of bytes, it begins with '00 00 0d 01'"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x01", "not an idx file"),
        (idx(np.zeros((3, 4, 4), np.uint8))[:-1], r"\[3, 4, 4\] needs 48 bytes of data, got 47"),
        (idx(np.zeros((3, 4, 4), np.uint8)) + b"x", "got 49"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "needs 79228162458924105385300197375 bytes"),
        (gzip.compress(idx(np.ones((3, 4, 4), np.uint8)), mtime=0)[:-9], "truncated or unreadable"),
        (b"\x1f\x8b" + b"\xff" * 30, "truncated or unreadable"),
    ],
)
def test_broken_idx_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_images_and_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    files = mnist_files()
    store(tmp_path, {**files, "t10k-labels-idx1-ubyte": idx(np.zeros(19, np.uint8))})
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: images \[20, 28, 28\] do not fit labels \[19\]"):
        load_splits(named("mnist", tmp_path))
    store(tmp_path, {**files, "train-labels-idx1-ubyte": idx(np.full(40, 11, np.uint8))})
    with pytest.raises(DataError, match=r"mnist: labels must be in 0\.\.9, got 0\.\.11"):
        load_splits(named("mnist", tmp_path))
    store(tmp_path, {**files, "train-labels-idx1-ubyte": idx(np.arange(40, dtype=np.uint8) % 9)})
    with pytest.raises(DataError, match="mnist: every class needs a training image, none is of 9"):
        load_splits(named("mnist", tmp_path))


@pytest.mark.parametrize("kind", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_download_that_fails_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def offline(_: str, download_root: str, **__: object) -> None:
        Path(download_root, "half.gz").write_bytes(b"half")
        raise URLError("no route to host")

    module = datasets.cifar if kind.startswith("cifar") else datasets.mnist
    monkeypatch.setattr(module, "download_and_extract_archive", offline)
    root = tmp_path / "new"
    message = rf"^{kind}: the download to .* failed \(.*no route to host.*check the network"
    with pytest.raises(DataError, match=message) as caught:
        load_splits(named(kind, root, download=True))
    assert "\n" not in str(caught.value)
    assert list(root.iterdir()) == []


def test_a_download_lands_where_the_next_run_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mnist_files()
    fetched = []

    def fetch(url: str, download_root: str, filename: str, md5: str) -> None:
        assert url.endswith(filename)
        assert len(md5) == 32
        fetched.append(filename)
        name = filename.removesuffix(".gz")
        store(Path(download_root), {name: files[name]}, zipped=True)
        store(Path(download_root), {name: files[name]})

    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", fetch)
    first = load_splits(named("mnist", tmp_path, download=True))
    assert len(fetched) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]
    again = load_splits(named("mnist", tmp_path, download=True))
    assert len(fetched) == 4
    assert torch.equal(first.train.images, again.train.images)


def cifar_files(kind: str) -> dict[str, bytes]:
    """A CIFAR of 20 + 10 (or 200 + 100) images in the layout of the real one, with all training images in one batch."""
    rng = np.random.default_rng(0)
    classes = 10 if kind == "cifar10" else 100
    key = "labels" if kind == "cifar10" else "fine_labels"
    names = {"label_names" if kind == "cifar10" else "fine_label_names": [f"thing {i}" for i in range(classes)]}

    def batch(count: int) -> bytes:
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return pickle.dumps({"data": data, key: [i % classes for i in range(count)]})

    return {"train": batch(2 * classes), "test": batch(classes), "meta": pickle.dumps(names)}


def expect_checksums(monkeypatch: pytest.MonkeyPatch, kind: str, files: dict[str, bytes]) -> None:
    """Let torchvision take these files for the real ones."""
    dataset = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(dataset, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(dataset, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "filename": "meta", "md5": sums["meta"]})


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_is_read_by_torchvision_and_only_with_its_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    files = cifar_files(kind)
    folder = tmp_path / ("cifar-10-batches-py" if kind == "cifar10" else "cifar-100-python")
    store(folder, files)
    with pytest.raises(DataError, match="fail their checksums"):
        load_splits(named(kind, tmp_path))
    expect_checksums(monkeypatch, kind, files)
    splits = load_splits(named(kind, tmp_path, holdout=0.0))
    classes = 10 if kind == "cifar10" else 100
    assert splits.train.spec == ImageSpec(3, 32, 32, classes)
    assert splits.train.class_names[1] == "thing 1"
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [2 * classes, 0, classes]
    data = pickle.loads(files["test"])["data"]
    assert np.array_equal(splits.test.images.numpy(), data.reshape(-1, 3, 32, 32))


def test_a_cifar_download_unpacks_into_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cifar_files("cifar10")
    expect_checksums(monkeypatch, "cifar10", files)

    def fetch(_: str, download_root: str, **__: object) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        buffer.seek(0)
        with tarfile.open(fileobj=buffer) as archive:
            archive.extractall(download_root, filter="data")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", fetch)
    assert len(load_splits(named("cifar10", tmp_path, download=True)).test) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def binary_files(count: int) -> dict[str, bytes]:
    """CIFAR-10's binary version with so many images in each of its six files."""
    rng = np.random.default_rng(1)
    files = {}
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        files[name] = records.tobytes()
    return files


def test_cifar10_is_read_from_its_binary_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_module, "_BINARY_IMAGES", 20)
    files = binary_files(20)
    store(tmp_path / "cifar-10-batches-bin", files)
    splits = load_splits(named("cifar10", tmp_path, holdout=0.0))
    assert splits.train.spec == ImageSpec(3, 32, 32, 10)
    assert list(splits.train.class_names) == [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [100, 0, 20]
    records = np.frombuffer(files["test_batch.bin"], np.uint8).reshape(20, 3073)
    assert np.array_equal(splits.test.images.numpy(), records[:, 1:].reshape(20, 3, 32, 32))
    assert splits.test.labels.tolist() == records[:, 0].tolist()


@pytest.mark.parametrize("content", [None, b"", b"\x00" * (20 * 3073 - 1), b"\x0a" * (20 * 3073)])
def test_a_broken_binary_batch_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr(named_module, "_BINARY_IMAGES", 20)
    folder = tmp_path / "cifar-10-batches-bin"
    store(folder, binary_files(20))
    path = folder / "data_batch_3.bin"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"put the six batches there again$") as caught:
        load_splits(named("cifar10", tmp_path))
    assert str(caught.value).startswith(f"{path}: ")
