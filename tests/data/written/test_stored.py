"""A written dataset comes back whole, or one line says which file is wrong."""

import json
import tarfile
from pathlib import Path

import pytest
import torch

from synthkd.data.written.stored import ABOUT, FORMAT, Content, _read_folder, read_stored
from synthkd.data.written.unfinished import Part, PartStore
from synthkd.data.written.writers import Layout, Records, write_records
from synthkd.errors import CheckpointError, DataError
from synthkd.types import ImageSpec

COUNT = 12
NAMES = ("cat", "dog", "bird")


def records(channels: int) -> Records:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, channels, 6, 4), generator=rng, dtype=torch.uint8)
    return Records(torch.arange(COUNT) * 2, images, torch.arange(COUNT) % 3, torch.randn(COUNT, 3, generator=rng))


def stored(top: Path, form: str, channels: int = 1) -> Records:
    block = records(channels)
    layout = Layout(form, NAMES, 0.3, 5, COUNT)  # type: ignore[arg-type]
    write_records([block], top, layout, lambda _: None)
    content = Content()
    content.add(block.cut(0, 7))
    content.add(block.cut(7))
    about = {
        "version": FORMAT,
        "format": form,
        "files": ["train/metadata.jsonl"] if form == "folder" else [layout.shard(n) for n in range(layout.shards)],
        "count": COUNT,
        "content": content.hexdigest(),
        "spec": {"channels": channels, "height": 6, "width": 4, "classes": 3},
        "class_names": NAMES,
        "mean": [0.5] * channels,
        "std": [0.25] * channels,
    }
    (top / ABOUT).write_text(json.dumps(about))
    return block


def test_the_logits_of_each_row_are_float32(tmp_path: Path) -> None:
    block = stored(tmp_path, "folder")
    rows = [*_read_folder([tmp_path / "train" / "metadata.jsonl"], ImageSpec(1, 6, 4, 3))]
    assert torch.equal(torch.stack([row.logits for row in rows]), block.logits)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_every_format_comes_back_equal(tmp_path: Path, form: str, channels: int) -> None:
    pytest.importorskip("pyarrow")
    block = stored(tmp_path / "dataset", form, channels)
    for path in (tmp_path, tmp_path / "dataset"):
        found = read_stored(path)
        assert torch.equal(found.images, block.images)
        assert torch.equal(found.labels, block.labels)
        assert torch.equal(found.logits, block.logits)
        assert (found.class_names, found.mean, found.std) == (NAMES, (0.5,) * channels, (0.25,) * channels)
        assert found.spec.shape == (channels, 6, 4)
        assert len(found) == COUNT
    assert found.about["format"] == form


def refused(top: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_stored(top)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, "folder")
    image = tmp_path / "train" / "0001_dog" / "00000002.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "00000002.png is no readable image")
    image.write_bytes((tmp_path / "train" / "0000_cat" / "00000000.png").read_bytes())
    refused(tmp_path, "are not those that were written")
    image.unlink()
    refused(tmp_path, "00000002.png is missing, though metadata.jsonl lists it")
    metadata = tmp_path / "train" / "metadata.jsonl"
    image.write_bytes(whole)
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join(lines[:-1]))
    refused(tmp_path, "holds 11 images, but 12 were written")
    metadata.write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    refused(tmp_path, "line 12 is not JSON")
    metadata.write_text("\n".join([*lines[:-1], lines[-1].replace('"label": 2', '"label": 1')]))
    refused(tmp_path, "are not those that were written")
    metadata.unlink()
    refused(tmp_path, "metadata.jsonl cannot be read")


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, "webdataset")
    shard = tmp_path / "train-000001.tar"
    shard.write_bytes(b"\xff" * 3000)
    refused(tmp_path, "train-000001.tar cannot be read")
    with tarfile.open(shard, "w") as tar:
        tar.addfile(tarfile.TarInfo("00000010.png"))
    refused(tmp_path, "00000010.json is not JSON")
    shard.unlink()
    refused(tmp_path, "train-000001.tar cannot be read")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    stored(tmp_path, "parquet")
    (tmp_path / "data" / "train-00001-of-00003.parquet").write_bytes(b"PAR1 but no more")
    refused(tmp_path, "train-00001-of-00003.parquet cannot be read")
    parquet = pytest.importorskip("pyarrow.parquet")
    first = tmp_path / "data" / "train-00000-of-00003.parquet"
    parquet.write_table(parquet.read_table(first).drop_columns("image"), first)
    refused(tmp_path, "train-00000-of-00003.parquet has no images in a column `image`")


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is no dataset of synthkd generate")
    (tmp_path / ABOUT).write_text("{")
    refused(tmp_path, "cannot be read")
    (tmp_path / ABOUT).write_text('{"version": 99}')
    refused(tmp_path, "has version 99, this synthkd reads 1")
    (tmp_path / ABOUT).write_text('{"version": 1, "format": "folder"}')
    refused(tmp_path, "is damaged")


def test_parts_are_read_in_order_and_must_follow_each_other(tmp_path: Path) -> None:
    store = PartStore(tmp_path)
    whole = records(1)
    for first, stop in ((8, 12), (0, 4), (4, 8)):
        cut = whole.cut(first, stop)
        store.write(Part(first, cut.images, cut.labels, cut.logits, torch.zeros(4) if first == 4 else None))
    found = list(store.read(0, 12))
    assert torch.equal(torch.cat([part.images for part in found]), whole.images)
    assert [part.real_distance is None for part in found] == [True, False, True]
    assert [part.first for part in store.read(4, 8)] == [4]
    (tmp_path / "000000004-000000008.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"000000004-000000008\.safetensors is damaged; delete it"):
        list(store.read(0, 12))
    (tmp_path / "000000004-000000008.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks images 4 to 12"):
        list(store.read(0, 12))
