"""Features as files, and their cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.feature_cache import SavedSet, cached_extract, load_set, save_set
from synthkd.metrics.features import Features, build_extractor, extract
from synthkd.models import Classifier
from synthkd.settings import TeacherExtractor

CPU = torch.device("cpu")
TEACHER = TeacherExtractor(kind="teacher")
pytestmark = pytest.mark.usefixtures("seeded")


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def some_features(logits: bool = True) -> Features:
    return Features(torch.rand(5, 3), torch.rand(5, 2) if logits else None, "teacher", "d" * 64, "antialias 12x12")


def equal(a: Features, b: Features) -> bool:
    same_logits = a.logits is b.logits if None in (a.logits, b.logits) else torch.equal(a.logits, b.logits)
    return (
        same_logits
        and torch.equal(a.values, b.values)
        and (a.extractor, a.digest, a.resize) == (b.extractor, b.digest, b.resize)
    )


@pytest.mark.parametrize("logits", [True, False])
def test_features_round_trip(tmp_path: Path, logits: bool) -> None:
    features = some_features(logits)
    save_set(SavedSet(features), tmp_path / "deep" / "f.safetensors")
    assert equal(load_set(tmp_path / "deep" / "f.safetensors").features, features)


def test_a_set_round_trips_with_its_labels_and_the_teachers_features(tmp_path: Path) -> None:
    labels, teacher = torch.tensor([1, 0, 1, 1, 0]), Features(torch.rand(5, 4), torch.rand(5, 2), "t", "e" * 64, "none")
    path = tmp_path / "f.safetensors"
    features = some_features()
    save_set(SavedSet(features, "digest", "mine", labels, ("cat", "dog"), teacher), path)
    found = load_set(path)
    assert equal(found.features, features)
    assert found.teacher is not None
    assert equal(found.teacher, teacher)
    assert found.labels is not None
    assert torch.equal(found.labels, labels)
    assert (found.content, found.name, found.class_names) == ("digest", "mine", ("cat", "dog"))
    flip_last_byte(path)
    with pytest.raises(DataError, match="own checksum"):
        load_set(path)
    save_set(SavedSet(some_features()), path)
    assert (load_set(path).labels, load_set(path).class_names, load_set(path).teacher) == (None, (), None)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rename_extractor(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"teacher"', b'"Teacher"'))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def other_tensors(path: Path) -> None:
    save_file({"weights": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_last_byte, "own checksum"),
        (rename_extractor, "own checksum"),
        (cut, "not a readable features file"),
        (other_tensors, "holds no features"),
        (Path.unlink, "features file not found"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "f.safetensors"
    save_set(SavedSet(some_features()), path)
    damage(path)
    with pytest.raises(DataError, match=message):
        load_set(path)


def test_the_cache_takes_features_once(teacher: Classifier, tmp_path: Path) -> None:
    images, calls = random_images(6, 1, 12, 12), []

    def batches() -> list[Tensor]:
        calls.append(1)
        return [images]

    plain = build_extractor(TEACHER, CPU, teacher)
    first = cached_extract("content", batches, plain, tmp_path / "cache")
    assert equal(first, extract([images], plain))
    assert equal(cached_extract("content", batches, plain, tmp_path / "cache"), first)
    assert len(calls) == 1
    cached_extract("other content", batches, plain, tmp_path / "cache")
    resizing = build_extractor(TeacherExtractor(kind="teacher", resize="pil"), CPU, teacher)
    assert cached_extract("content", batches, resizing, tmp_path / "cache").resize == "pil 12x12"
    assert len(calls) == 3
    with torch.no_grad():
        teacher.body.head.bias.add_(1)
    cached_extract("content", batches, build_extractor(TEACHER, CPU, teacher), tmp_path / "cache")
    assert len(calls) == len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("damage", [flip_last_byte, cut, other_tensors])
def test_a_damaged_cache_entry_is_made_anew(
    teacher: Classifier, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    extractor = build_extractor(TEACHER, CPU, teacher)
    images = random_images(6, 1, 12, 12)
    first = cached_extract("content", lambda: [images], extractor, tmp_path)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    assert equal(cached_extract("content", lambda: [images], extractor, tmp_path), first)
    assert equal(load_set(entry).features, first)


def test_an_entry_under_another_images_name_is_made_anew(teacher: Classifier, tmp_path: Path) -> None:
    extractor = build_extractor(TEACHER, CPU, teacher)
    ours, theirs = random_images(3, 1, 12, 12), random_images(3, 1, 12, 12, seed=1)
    mine = cached_extract("ours", lambda: [ours], extractor, tmp_path)
    (entry,) = tmp_path.iterdir()
    cached_extract("theirs", lambda: [theirs], extractor, tmp_path)
    (other,) = set(tmp_path.iterdir()) - {entry}
    entry.write_bytes(other.read_bytes())
    assert equal(cached_extract("ours", lambda: [ours], extractor, tmp_path), mine)


def test_a_cache_that_cannot_be_written_is_found_out_first(teacher: Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cache .* cannot be written; choose another folder"):
        cached_extract(
            "content", lambda: pytest.fail("too late"), build_extractor(TEACHER, CPU, teacher), tmp_path / "file"
        )
