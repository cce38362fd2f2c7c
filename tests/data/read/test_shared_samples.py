"""Sets for a score that processes read together: each decodes its share, and all know what one would know.

Threads stand for the processes here.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from synthkd.data.read import decode as decoding
from synthkd.data.read import decoding as decoding_of_listings
from synthkd.data.read import sample_set
from synthkd.data.read.samples import Samples, open_samples
from synthkd.errors import DataError
from synthkd.settings import FolderData
from synthkd.system.shares import Shares, together
from tests.data.read.test_listing import folder, png, tarred, zipped
from tests.data.read.test_on_disk import file_of, picture
from tests.metrics.test_shares import Threads
from tests.metrics.test_shares import together as of_processes

WORLD = 3


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_set, "BLOCK", 4)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Name of a thread -> how many files it has decoded; of those that decode for it, too."""
    counts: Counter[str] = Counter()
    in_threads = decoding.in_threads

    def counting(one: Callable[..., object], items: range) -> object:
        counts[threading.current_thread().name] += len(items)
        return in_threads(one, items)

    for module in (decoding_of_listings, sample_set):
        monkeypatch.setattr(module, "in_threads", counting)
    return counts


def files(count: int = 22) -> dict[str, bytes]:
    """Images of two classes; some have another shape, one is in colour among them."""
    return {
        f"{'ab'[row % 2]}/{row:02}.png": file_of(
            picture(row, 6, 7 if 5 < row < 11 else 8).convert("L" if row % 5 else "RGB"), "PNG"
        )
        for row in range(count)
    }


def of_each(open_set: Callable[[], Samples]) -> list[Samples | Exception]:
    def work(shares: Shares) -> Samples:
        with together(shares):
            return open_set()

    return of_processes(work, WORLD)


def check(path: Path | FolderData, decoded: Counter[str], **keys: object) -> Samples:
    """Open a set in one process and in several; they must agree on everything."""
    alone = open_samples(path, **keys)  # type: ignore[arg-type]
    decoded.clear()
    each = of_each(lambda: open_samples(path, **keys))  # type: ignore[arg-type]
    for one in each:
        assert isinstance(one, Samples), one
        assert (one.digest, one.count, one.shape) == (alone.digest, alone.count, alone.shape)
        assert (one.class_names, one.notes, one.bad) == (alone.class_names, alone.notes, alone.bad)
        assert (one.labels is None) == (alone.labels is None)
        assert one.labels is None or alone.labels is None or torch.equal(one.labels, alone.labels)
    assert [one.shape for one in each if isinstance(one, Samples)] == [alone.shape] * WORLD
    opened = Counter(decoded)
    for size in (1, 3, 4, 100):
        batches = [
            batch
            for rank, one in enumerate(each)
            if isinstance(one, Samples)
            for batch in one.batches(size, Shares(rank, WORLD))
        ]
        expected = [*alone.batches(size)]
        assert len(batches) == len(expected)
        assert all(torch.equal(*pair) for pair in zip(batches, expected, strict=True)), size
        assert all(
            torch.equal(*pair)
            for one in each
            if isinstance(one, Samples)
            for pair in zip(one.batches(size), expected, strict=True)
        )
    rows = [alone.count - 1, 0, alone.count // 2]
    for one in each:
        assert isinstance(one, Samples)
        assert all(torch.equal(*pair) for pair in zip(one.images(rows), alone.images(rows), strict=True))
    decoded.clear()
    decoded.update(opened)
    return alone


def test_each_decodes_its_blocks(tmp_path: Path, decoded: Counter[str]) -> None:
    path = folder(tmp_path / "set", files())
    for one in (path, zipped(tmp_path / "set.zip", files())):
        check(one, decoded)
        assert sorted(decoded.values()) == [6, 8, 8], "6 blocks of 22 files: two each"
    check(tarred(tmp_path / "set.tar", [0, 1, 0, 2, 1, 1]), decoded)
    assert sorted(decoded.values()) == [0, 2, 4], "2 blocks for three processes"


def test_files_of_parquet_and_arrays(tmp_path: Path, decoded: Counter[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": png(row % 8), "path": None} for row in range(11)]
    parquet.write_table(pyarrow.table({"image": rows, "label": [0, 1, 2] * 3 + [0, 1]}), tmp_path / "set.parquet")
    check(tmp_path / "set.parquet", decoded)
    assert sorted(decoded.values()) == [3, 4, 4]
    images = np.random.default_rng(0).integers(0, 256, (13, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(13) % 3)
    np.save(tmp_path / "images.npy", images)
    for name in ("set.npz", "images.npy"):
        check(tmp_path / name, decoded)


def test_images_beyond_those_that_are_kept_are_decoded_by_their_process_again(
    tmp_path: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "set", {f"a/{row:02}.png": png(row % 8) for row in range(22)})
    monkeypatch.setattr(sample_set, "KEPT", 3 * 60)  # three images of 5x4 pixels
    check(path, decoded)

    def passed(shares: Shares) -> int:
        with together(shares):
            samples = open_samples(path)
        decoded.clear()
        shares.values(None)
        sum(len(batch) for batch in samples.batches(4, shares))
        return shares.values(None).count(1)

    of_processes(passed, WORLD)
    assert sorted(decoded.values()) == [3, 5, 5], "all but three of 8, 8 and 6"


def test_bad_files_are_left_out_or_told_as_by_one_process(tmp_path: Path, decoded: Counter[str]) -> None:
    content = files() | {"a/02.png": b"", "b/03.png": b"no image", "b/21.png": b"no image"}
    path = folder(tmp_path / "set", content)
    alone = check(path, decoded, skip_bad=3)
    assert (alone.count, len(alone.bad)) == (19, 3)
    with pytest.raises(DataError) as error:
        open_samples(path, skip_bad=2)
    assert [str(one) for one in of_each(lambda: open_samples(path, skip_bad=2))] == [str(error.value)] * WORLD
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_samples(tmp_path / "nowhere")
    assert {str(one)[-40:] for one in of_each(lambda: open_samples(tmp_path / "nowhere"))} == {
        f"{tmp_path / 'nowhere'} does not exist; check the path"[-40:]
    }


def test_converted_files_are_counted_and_only_the_first_of_them_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Counter[str]
) -> None:
    path = folder(tmp_path / "set", files())
    sent: list[str] = []
    values = Threads.values

    def watched(shares: Threads, mine: object) -> list[object]:
        sent.append(repr(mine))
        return values(shares, mine)

    monkeypatch.setattr(Threads, "values", watched)
    few, many = (check(path, decoded, channels=channels).notes[0] for channels in (1, 3))
    assert few == "5 images turned from colour to grey: a/00.png, a/10.png, a/20.png and 2 more", "of two processes"
    assert many == "17 images repeated from grey to 3 channels: a/02.png, a/04.png, a/06.png and 14 more"
    assert max(one.count(".png") for one in sent) <= 3, "names of a kind that a process sends"


def test_a_dataset_on_disk_and_one_in_memory(tmp_path: Path, decoded: Counter[str]) -> None:
    path = folder(tmp_path / "set", {f"{'ab'[row % 2]}/{row:02}.png": png(row % 8) for row in range(40)})
    for memory in (0.0, 2.0):
        data = FolderData(kind="folder", root=str(path), memory=memory, cache=str(tmp_path / "cache"), workers=0)
        check(data, decoded, split="train")


def test_other_files_of_one_process_are_the_error_of_all(tmp_path: Path) -> None:
    for name in ("one", "other"):
        folder(tmp_path / name / "set", files(9 if name == "one" else 10))

    def work(shares: Shares) -> Samples:
        with together(shares):
            return open_samples(tmp_path / ("other" if shares.rank == 2 else "one") / "set")

    errors = [str(error) for error in of_processes(work, WORLD)]
    assert all("process 2 finds 10 images here, and process 0 finds 9 or others" in error for error in errors)


def test_other_pixels_under_the_same_names_are_noticed(tmp_path: Path) -> None:
    others = dict(zip(files(), reversed(files().values()), strict=True))
    paths = [folder(tmp_path / str(rank) / "set", others if rank == 1 else files()) for rank in range(WORLD)]

    def opened(shares: Shares) -> Samples:
        with together(shares):
            return open_samples(paths[shares.rank])

    for one in of_processes(opened, WORLD):
        assert isinstance(one, DataError)
        assert "has changed since it was checked or is another one on another machine" in str(one)
