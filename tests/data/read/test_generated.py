"""What `synthkd generate` writes is read for scores and for training as the images that were written."""

import json
from pathlib import Path

import pytest
import torch

from synthkd.data.read.folder import read_folder
from synthkd.data.read.samples import open_samples
from synthkd.data.written.writers import Layout, Records, write_records
from synthkd.errors import DataError
from synthkd.system.sealed import sealed

NAMES = ("T-shirt/top", "ant", "Ankle boot")
COUNT = 12
LABELS = [2, 0, 1] * 4


def written(run: Path, form: str) -> Records:
    """A run of `synthkd generate` with its dataset."""
    images = torch.randint(0, 256, (COUNT, 1, 6, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    records = Records(torch.arange(COUNT), images, torch.tensor(LABELS), torch.zeros(COUNT, 3))
    layout = Layout(form, NAMES, 0.3, 5, COUNT)  # type: ignore[arg-type]
    write_records([records], run / "dataset", layout, lambda _: None)
    files = ["train/metadata.jsonl"] if form == "folder" else [layout.shard(n) for n in range(layout.shards)]
    about = {"version": 1, "format": form, "files": files, "class_names": NAMES}
    (run / "dataset" / "dataset.json").write_bytes(sealed(about))
    for name in ("SHA256SUMS", "README.md"):
        (run / "dataset" / name).write_text("x")
    for name in ("config.yaml", "result.json"):
        (run / name).write_text("{}")
    return records


def rows(images: torch.Tensor, labels: torch.Tensor) -> set[tuple[bytes, int]]:
    return {(image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist(), strict=True)}


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_the_run_and_its_dataset_are_the_images_with_labels_and_names(tmp_path: Path, form: str) -> None:
    pytest.importorskip("pyarrow")
    records = written(tmp_path, form)
    expected = rows(records.images, records.labels)
    paths = [tmp_path, tmp_path / "dataset", *([tmp_path / "dataset" / "train"] if form == "folder" else [])]
    for path in paths:
        scored, source = open_samples(path), read_folder(path, channels=1)
        assert scored.labels is not None
        assert rows(torch.cat([*scored.batches(5)]), scored.labels) == expected
        assert rows(source.images, source.labels) == expected
        assert scored.class_names == source.class_names == NAMES
        assert scored.notes == source.notes == ()
    assert open_samples(tmp_path / "dataset", split="train").count == COUNT
    with pytest.raises(DataError, match="has no parts; leave out split=test"):
        open_samples(tmp_path / "dataset", split="test")


def test_parquet_files_have_the_names_of_their_schema(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    records = written(tmp_path, "parquet")
    found = open_samples(tmp_path / "dataset" / "data" / "train-*.parquet")
    assert found.class_names == NAMES
    assert torch.equal(torch.cat([*found.batches(5)]), records.images)
    one = read_folder(tmp_path / "dataset" / "data" / "train-00001-of-00003.parquet", channels=1)
    assert one.labels.tolist() == LABELS[5:10]


def test_a_parquet_file_of_something_else_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "set.parquet"
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"text": ["a"]}), path)
    for read in (open_samples, read_folder):
        with pytest.raises(DataError, match=r"set.parquet has no column image, only text; rename"):
            read(path)
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"set.parquet is not a readable parquet file \("):
        open_samples(path)
    with pytest.raises(DataError, match=r"gone.parquet does not exist"):
        open_samples(tmp_path / "gone.parquet")


def test_a_damaged_dataset_is_refused_in_a_line(tmp_path: Path) -> None:
    written(tmp_path, "webdataset")
    about = tmp_path / "dataset" / "dataset.json"
    (tmp_path / "dataset" / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001.tar is missing, though dataset.json lists it"):
        open_samples(tmp_path)
    content = json.loads(about.read_text())
    about.write_text(json.dumps(content | {"class_names": ["a", "b", "c"]}))
    with pytest.raises(DataError, match=r"dataset.json is damaged \(it does not have its own checksum"):
        read_folder(tmp_path)
