"""Images that arrive while a student learns: what batches draw from, what is held out, and what a resumed run sees."""

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthkd.data.hybrid import REST, HybridDataset
from synthkd.data.number_set import NumberSet
from synthkd.data.sources import RealImages, RealSource
from synthkd.data.stream import ImageStream
from synthkd.errors import ConfigError, DataError
from synthkd.settings import DataOrStream, DataSettings, MixSettings, Settings, StreamData
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec, Outputs

SPEC = ImageSpec(1, 1, 2, 5)


@pytest.fixture(autouse=True, scope="module")
def listed_at_each_step() -> Iterator[None]:
    """Almost no time between two listings of the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthkd.data.stream.POLL", 1e-9)
        yield


def put(folder: Path, name: str, numbers: range, labelled: bool = True) -> None:
    """A file of images that carry their number in two pixels, label the number modulo 5."""
    rows = np.array(numbers)
    images = np.stack([rows // 256, rows % 256], axis=1).astype(np.uint8).reshape(-1, 1, 1, 2)
    save(folder, name, images=images, **({"labels": rows % 5} if labelled else {}))


def save(folder: Path, name: str, **arrays: Any) -> None:
    with (folder / name).open("wb") as file:
        np.savez(file, **arrays)


def numbers(found: RealImages) -> list[int]:
    return [int(high) * 256 + int(low) for high, low in found.images.flatten(1)]


def open_stream(folder: Path, **changes: Any) -> ImageStream:
    options = {"patience": 0.0, "holdout": 0.0, **changes}
    return ImageStream(StreamData(kind="stream", path=str(folder), **options), SPEC)


def resumed(stream: ImageStream, folder: Path, **changes: Any) -> ImageStream:
    """Another stream, given the state as a checkpoint holds it: plain data."""
    again = open_stream(folder, **changes)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    return again


# --- what batches draw from -----------------------------------------------------------------------------------------


def test_files_are_taken_in_the_order_of_their_names_and_after_those_taken_before(tmp_path: Path) -> None:
    for name, start in (("b.npz", 3), ("10.npz", 20), ("9.npz", 0)):
        put(tmp_path, name, range(start, start + 3))
    stream = open_stream(tmp_path)
    assert numbers(stream.at(0)) == [20, 21, 22, 0, 1, 2, 3, 4, 5]
    put(tmp_path, "a.npz", range(40, 42))
    found = stream.at(7)
    assert numbers(found) == [20, 21, 22, 0, 1, 2, 3, 4, 5, 40, 41]
    assert found.labels.tolist() == [number % 5 for number in numbers(found)]
    assert [(a.step, a.name, a.images) for a in stream.arrivals] == [
        (0, "10.npz", 3), (0, "9.npz", 3), (0, "b.npz", 3), (7, "a.npz", 2)
    ]  # fmt: skip
    assert stream.arrived == 11


def test_the_oldest_images_leave_and_the_rest_keep_their_numbers(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(3))
    stream = open_stream(tmp_path, window=5)
    assert (numbers(stream.at(0)), stream.at(0).first) == ([0, 1, 2], 0)
    put(tmp_path, "1.npz", range(3, 7))
    assert (numbers(stream.at(1)), stream.at(1).first) == ([2, 3, 4, 5, 6], 2)
    put(tmp_path, "2.npz", range(7, 20))
    assert (numbers(stream.at(2)), stream.at(2).first) == ([15, 16, 17, 18, 19], 15)


@pytest.mark.parametrize(
    "name", [".1.npz", "1.npz.tmp", "1.npz.partial", "1.tmp.npz", "1.partial.npz", "1.txt", "1.NPY"]
)
def test_what_is_being_written_or_is_no_npz_file_is_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path, "0.npz", range(3))
    (tmp_path / name).write_bytes(b"PK half of a file")
    stream = open_stream(tmp_path)
    assert numbers(stream.at(0)) == [0, 1, 2]
    put(tmp_path, name, range(3, 5))
    (tmp_path / name).rename(tmp_path / "1.npz")
    assert numbers(stream.at(1)) == [0, 1, 2, 3, 4]


def test_the_folder_is_looked_at_no_more_often_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("synthkd.data.stream.time", SimpleNamespace(monotonic=lambda: now))
    put(tmp_path, "0.npz", range(3))
    monkeypatch.setattr("synthkd.data.stream.POLL", 2.0)
    stream = open_stream(tmp_path)
    assert numbers(stream.at(0)) == [0, 1, 2]
    put(tmp_path, "1.npz", range(3, 5))
    now = 101.5
    assert numbers(stream.at(1)) == [0, 1, 2]
    now = 102.0
    assert numbers(stream.at(2)) == [0, 1, 2, 3, 4]


def test_a_file_without_labels_leaves_its_images_unlabelled(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(2), labelled=False)
    put(tmp_path, "1.npz", range(2, 4))
    assert open_stream(tmp_path).at(0).labels.tolist() == [-1, -1, 2, 3]


def test_the_run_waits_for_its_first_image(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, patience=30.0)
    writer = threading.Timer(
        0.05, lambda: (put(tmp_path, ".0", range(3)), (tmp_path / ".0").rename(tmp_path / "0.npz"))
    )
    writer.start()
    assert numbers(stream.at(0)) == [0, 1, 2]
    writer.join()


def test_waiting_ends_with_one_line(tmp_path: Path) -> None:
    stream = open_stream(tmp_path, patience=0.05)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"no \.npz file with an image to learn from came within 0\.05 s; put one"):
        stream.at(0)
    assert time.monotonic() - began >= 0.05


def test_where_nothing_new_comes_the_run_goes_on_with_what_it_has(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(3))
    stream = open_stream(tmp_path)
    assert all(numbers(stream.at(step)) == [0, 1, 2] for step in range(5))


# --- what is held out -----------------------------------------------------------------------------------------------


def test_an_image_is_held_out_by_its_file_and_row_whatever_comes_with_it(tmp_path: Path) -> None:
    alone, late = tmp_path / "alone", tmp_path / "late"
    for folder in (alone, late):
        folder.mkdir()
    put(alone, "x.npz", range(1000))
    put(late, "a.npz", range(2000, 2100))
    held, other = open_stream(alone, holdout=0.1), open_stream(late, holdout=0.1)
    other.at(0)
    put(late, "x.npz", range(500))  # fewer rows of that name
    learned, found = numbers(held.at(0)), numbers(held.holdout)
    assert sorted(learned + found) == list(range(1000))
    assert 70 < len(found) < 130  # 100 expected, standard deviation 9.5
    other.at(1)
    assert [number for number in numbers(other.holdout) if number < 2000] == [n for n in found if n < 500]


def test_a_larger_holdout_takes_in_a_smaller_one_and_names_matter(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(200))
    sets = {}
    for share in (0.0, 0.2, 0.6):
        stream = open_stream(tmp_path, holdout=share)
        stream.at(0)
        sets[share] = set(numbers(stream.holdout))
    assert set() == sets[0.0] < sets[0.2] < sets[0.6]
    (tmp_path / "0.npz").rename(tmp_path / "1.npz")
    renamed = open_stream(tmp_path, holdout=0.2)
    renamed.at(0)
    assert set(numbers(renamed.holdout)) != sets[0.2]


def test_files_of_one_image_each_are_shared_out_too(tmp_path: Path) -> None:
    for number in range(60):
        put(tmp_path, f"{number:02d}.npz", range(number, number + 1))
    stream = open_stream(tmp_path, holdout=0.3)
    assert sorted(numbers(stream.at(0)) + numbers(stream.holdout)) == list(range(60))
    assert 8 <= len(stream.holdout) <= 28  # 18 expected, standard deviation 3.5


def test_only_the_newest_held_out_images_are_kept(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(400))
    whole, short = open_stream(tmp_path, holdout=0.5), open_stream(tmp_path, holdout=0.5, window=21)
    whole.at(0)
    short.at(0)
    assert numbers(short.holdout) == numbers(whole.holdout)[-11:]


# --- resuming -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    window=st.integers(1, 12),
    holdout=st.sampled_from([0.0, 0.4]),
)
def test_a_resumed_run_sees_what_the_first_one_saw(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], window: int, holdout: float
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    put(folder, "0.npz", range(900, 940))  # so that there is always an image to learn from
    options = {"window": window, "holdout": holdout}
    stream, everything = open_stream(folder, **options), open_stream(folder, holdout=holdout)
    begin = 0
    for step, size in enumerate(sizes):
        found, whole, held = stream.at(step), everything.at(step), numbers(everything.holdout)
        assert numbers(found) == numbers(whole)[-window:]
        assert numbers(stream.holdout) == held[max(0, len(held) - math.ceil(window * holdout)) :]
        assert found.first == len(whole) - len(found)
        again = resumed(stream, folder, **options)
        same = again.at(step)
        assert (numbers(same), same.labels.tolist(), same.first) == (numbers(found), found.labels.tolist(), found.first)
        assert numbers(again.holdout) == numbers(stream.holdout)
        assert again.state_dict() == stream.state_dict()
        put(folder, f"{step + 1}.npz", range(begin, begin + size))
        begin += size


def test_files_that_came_after_the_checkpoint_follow_those_before_it(tmp_path: Path) -> None:
    put(tmp_path, "5.npz", range(3))
    stream = open_stream(tmp_path)
    stream.at(0)
    put(tmp_path, "1.npz", range(10, 12))
    again = resumed(stream, tmp_path)
    assert numbers(again.at(4)) == [0, 1, 2, 10, 11]
    assert [(a.step, a.name) for a in again.arrivals] == [(0, "5.npz"), (4, "1.npz")]


def test_only_files_whose_images_have_all_left_may_be_deleted(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path, f"{number}.npz", range(3 * number, 3 * number + 3))
    stream = open_stream(tmp_path, window=5)
    before = stream.at(0)
    for name in ("0.npz", "1.npz"):
        (tmp_path / name).unlink()
    again = resumed(stream, tmp_path, window=5)
    assert (numbers(again.at(1)), again.at(1).first) == (numbers(before), 7)
    assert again.arrived == 12
    put(tmp_path, "0.npz", range(50, 53))  # a name that was taken does not come again
    assert numbers(again.at(2)) == numbers(before)
    (tmp_path / "2.npz").unlink()
    with pytest.raises(DataError, match=r"2\.npz was learned from and is gone; put it back"):
        resumed(stream, tmp_path, window=5)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(3))
    stream = open_stream(tmp_path)
    stream.at(0)
    put(tmp_path, "0.npz", range(4))
    with pytest.raises(DataError, match=r"0\.npz was learned from with 3 images and has 4 now"):
        resumed(stream, tmp_path)


def test_a_checkpoint_can_hold_the_state(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(3))
    stream = open_stream(tmp_path)
    stream.at(0)
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == stream.state_dict()


def test_batches_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path: Path) -> None:
    def source(stream: ImageStream) -> HybridDataset:
        real, mix = RealSource(stream, 0), MixSettings(mixup=0.0)
        return HybridDataset([real], [REST], mix, 8, 100, lambda x: Outputs(x[:, 0, 0]), lambda: 0.0, 0)

    put(tmp_path, "0.npz", range(9))
    stream = open_stream(tmp_path, window=10)
    unbroken = source(stream)
    first = unbroken.batch(0)
    put(tmp_path, "1.npz", range(20, 29))
    again = source(resumed(stream, tmp_path, window=10))
    again.load_state_dict(unbroken.state_dict())
    for step in (1, 2):
        one, other = unbroken.batch(step), again.batch(step)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert not torch.equal(one.images, first.images)
    drawn, drawn_again = (NumberSet(one.state_dict()["0"]["real_rows"]) for one in (unbroken, again))
    assert [*drawn_again] == [*drawn]
    assert max(drawn) > 8


# --- what is refused ------------------------------------------------------------------------------------------------

IMAGES = np.zeros((2, 1, 1, 2), dtype=np.uint8)


UNUSABLE = pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.arange(12, dtype=np.uint8).reshape(2, 3, 1, 2)},
            r"must be 1x1x2, .* got 3x1x2; set channels to 1",
        ),
        ({"images": IMAGES, "labels": np.array([0, 5])}, r"0\.npz: labels must be in 0\.\.4, got 0\.\.5"),
        ({"images": IMAGES, "labels": np.array([0, -1])}, r"labels must be integers from 0, got -1\.\.0"),
        ({"images": IMAGES, "labels": np.array([0])}, r"labels must be one per image, \[2\], got \[1\]"),
        ({"images": IMAGES.astype(np.float32) - 1.0}, r"images are float and must be in \[0, 1\], got -1\.\.-1"),
        ({"images": np.array([{}, {}])}, "not a readable .npz of plain arrays"),
        ({"labels": np.array([0, 1])}, "has no array images"),
    ],
)


@UNUSABLE
def test_a_file_that_cannot_be_used_is_named_at_once_where_there_is_no_other(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    stream = open_stream(tmp_path)
    for name in ("0.npz", "1.npz"):
        save(tmp_path, name, **arrays)
    with pytest.raises(DataError, match=message):
        stream.at(0)
    assert stream.arrivals == []
    with pytest.raises(DataError, match=message):  # before anything is trained
        open_stream(tmp_path)


@UNUSABLE
def test_beside_others_a_file_that_cannot_be_used_is_passed_over_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, arrays: dict[str, Any], message: str
) -> None:
    put(tmp_path, "1.npz", range(3))
    stream = open_stream(tmp_path)
    stream.at(0)
    save(tmp_path, "0.npz", **arrays)
    put(tmp_path, "2.npz", range(3, 5))
    for step in (1, 2):
        assert numbers(stream.at(step)) == [0, 1, 2, 3, 4]
    (said,) = caplog.messages
    assert re.search(message, said)
    assert said.endswith("; the file is skipped, put a usable one there under another name")
    assert sorted((a.step, a.name, a.images, a.held) for a in stream.arrivals) == [
        (0, "1.npz", 3, 0), (1, "0.npz", 0, 0), (1, "2.npz", 2, 0)
    ]  # fmt: skip
    put(tmp_path, "3.npz", range(5, 7))
    assert numbers(stream.at(3)) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"", b"half of a file", b"\x80\x04K\x01."])
def test_what_is_no_whole_npz_is_told_how_to_be_put_there(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.npz").write_bytes(content)
    with pytest.raises(
        DataError, match=r"0\.npz is no whole \.npz; write a file under a name that .* dot, and"
    ) as said:
        open_stream(tmp_path)
    assert "pickle" not in str(said.value)


def test_a_file_that_was_cut_short_is_no_whole_npz(tmp_path: Path) -> None:
    put(tmp_path, "0.npz", range(300))
    (tmp_path / "0.npz").write_bytes((tmp_path / "0.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"is no whole \.npz"):
        open_stream(tmp_path)


@pytest.mark.parametrize("then", ["as it was", "mended", "gone"])
def test_a_resumed_run_passes_over_what_the_first_one_passed_over(tmp_path: Path, then: str) -> None:
    put(tmp_path, "5.npz", range(3))
    stream = open_stream(tmp_path)
    stream.at(0)
    (tmp_path / "0.npz").write_bytes(b"junk")  # the first by name, which a new stream reads first
    put(tmp_path, "6.npz", range(3, 5))
    before = stream.at(1)
    if then == "mended":
        put(tmp_path, "0.npz", range(90, 99))
    elif then == "gone":
        (tmp_path / "0.npz").unlink()
    again = resumed(stream, tmp_path)
    found = again.at(2)
    assert (numbers(found), found.first) == (numbers(before), before.first)
    assert again.state_dict() == stream.state_dict()


def test_a_missing_folder_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder that can be listed"):
        open_stream(tmp_path / "nowhere", patience=60.0)


class _Fixed(Settings):
    data: DataSettings


class _Either(Settings):
    data: DataOrStream


def test_where_data_must_be_fixed_a_stream_is_refused_by_the_kinds_that_are_not() -> None:
    stream = {"data": {"kind": "stream", "path": "somewhere"}}
    with pytest.raises(ConfigError, match=r"^data\.kind: expected one of 'digits', .*'npz', got 'stream'$"):
        load_config(_Fixed, stream, [])
    assert load_config(_Either, stream, []).data == StreamData(kind="stream", path="somewhere")
    assert (
        load_config(_Either, {"data": {"kind": "digits"}}, []).data
        == load_config(_Fixed, {"data": {"kind": "digits"}}, []).data
    )
