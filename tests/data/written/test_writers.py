"""Three formats, each opened unchanged by the library that people open it with."""

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from synthkd.data.written import writers
from synthkd.data.written.card import card
from synthkd.data.written.unfinished import Part
from synthkd.data.written.writers import Layout, Records, check_format, estimate, write_records
from synthkd.errors import ConfigError, MissingExtraError
from synthkd.types import ImageSpec

NAMES = ("Ankle boot", "coat/jacket", "\N{LATIN SMALL LETTER E WITH ACUTE}")
COUNT = 21


def records(channels: int = 1) -> Records:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, channels, 8, 8), generator=rng, dtype=torch.uint8)
    return Records(torch.arange(COUNT) + 100, images, torch.arange(COUNT) % 3, torch.randn(COUNT, 3, generator=rng))


def layout(form: str, count: int = COUNT) -> Layout:
    return Layout(form, NAMES, 0.3, 8, count)  # type: ignore[arg-type]


def write(form: str, where: Path, block: Records | None = None) -> Records:
    """Write in blocks of 5, with the front matter that Hugging Face datasets reads."""
    block = records() if block is None else block
    seen: list[int] = []
    write_records((block.cut(first, first + 5) for first in range(0, COUNT, 5)), where, layout(form), seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == COUNT
    front = card({"format": form, "class_names": NAMES, **ABOUT}, "seed: 0\n")
    (where / "README.md").write_text(front, encoding="utf-8")
    return block


ABOUT = {
    "name": "boots",
    "count": COUNT,
    "synthkd": "0",
    "seed": 0,
    "counts": [7, 7, 7],
    "real_images_used": 12,
    "generator": {"kind": "cgan"},
    "real_images_compared": None,
    "filters": {"confidence": None, "copies": None},
    "teacher": {"arch": "mlp", "parameters": 3, "trained_on": None, "sha256": "0"},
    "scores": {
        "agreement": 0.5,
        "agreement_interval": [0.4, 0.6],
        "agreement_per_class": [0.5, 0.5, 0.5],
        "confidence": 0.5,
        "vendi": None,
        "vendi_n": 0,
        "exact_duplicates": 0,
        "rejected": {},
        "tried": COUNT,
    },
}


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_reads_the_folder(tmp_path: Path, channels: int) -> None:
    from torchvision.datasets import ImageFolder

    block = write("folder", tmp_path, records(channels))
    found = ImageFolder(str(tmp_path / "train"))
    assert found.classes == ["0000_ankle-boot", "0001_coat-jacket", "0002_class"]
    assert len(found) == COUNT
    by_name = {Path(path).stem: (found.loader(path), label) for path, label in found.samples}
    for row in range(COUNT):
        image, label = by_name[f"{100 + row:08d}"]
        assert label == row % 3
        expected = block.images[row].expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(image), expected)


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_hugging_face_reads_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    block = write(form, tmp_path / "set")
    found = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == COUNT
    for row, sample in enumerate(found):
        about = sample["json"] if form == "webdataset" else sample
        image, label = (sample["png"], sample["cls"]) if form == "webdataset" else (sample["image"], sample["label"])
        assert np.array_equal(np.asarray(image), block.images[row, 0].numpy())
        assert label == row % 3
        assert about["number"] == 100 + row
        assert about["synthetic"] is True
        assert torch.equal(torch.tensor(about["logits"], dtype=torch.float32), block.logits[row])
        assert torch.tensor(about["soft_labels"]).allclose(block.logits[row].softmax(0))
        assert form == "parquet" or about["class_name"] == NAMES[label]
    if form != "webdataset":
        assert found.features["label"].names == list(NAMES)


def test_the_schema_names_types_that_old_and_new_datasets_know(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write("parquet", tmp_path)
    (first, *_) = sorted(tmp_path.rglob("*.parquet"))
    features = json.loads(parquet.read_schema(first).metadata[b"huggingface"])["info"]["features"]
    # datasets 3.6 knows these and more, but no "List"; 4 and 5 read a "Sequence" of values as "List".
    assert {feature["_type"] for feature in features.values()} == {"Image", "ClassLabel", "Value", "Sequence"}
    assert features["logits"] == {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}


def test_imagefolder_without_the_card_still_has_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    write("folder", tmp_path / "set")
    options = {"data_dir": str(tmp_path / "set"), "split": "train", "cache_dir": str(tmp_path / "cache")}
    found = datasets.load_dataset("imagefolder", **options)
    assert found["label"][:4] == [0, 1, 2, 0]


def test_webdataset_reads_its_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    block = write("webdataset", tmp_path)
    shards = sorted(str(path) for path in tmp_path.glob("*.tar"))
    assert [Path(shard).name for shard in shards] == [f"train-00000{number}.tar" for number in range(3)]
    found = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png", "cls", "json")
    for row, (image, label, about) in enumerate(found):
        assert np.array_equal(np.asarray(image)[..., 0], block.images[row, 0].numpy())
        assert label == about["label"] == row % 3
    assert row == COUNT - 1


def test_tar_members_carry_no_time_and_no_owner(tmp_path: Path) -> None:
    write("webdataset", tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["00000100.png", "00000100.cls", "00000100.json"]
    assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}


def test_row_groups_of_parquet_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def rows() -> list[int]:
        about = parquet.ParquetFile(io.BytesIO(writers.encoded(records(), layout("parquet")))).metadata
        return [about.row_group(number).num_rows for number in range(about.num_row_groups)]

    count = len(records())
    assert rows() == [count], "at most 100 rows"
    monkeypatch.setattr(writers, "GROUP_ROWS", count - 1)
    assert rows() == [count - 1, 1]
    monkeypatch.setattr(writers, "GROUP_PIXELS", 2 * records().images[0].numel() + 1)
    assert set(rows()[:-1]) == {2}
    monkeypatch.setattr(writers, "GROUP_PIXELS", 1)
    assert rows() == [1] * count


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_the_same_images_are_the_same_bytes_however_they_come(tmp_path: Path, form: str) -> None:
    write(form, tmp_path / "one")
    write_records([records()], tmp_path / "two", layout(form), lambda _: None)
    digests = [
        {str(path.relative_to(top)): hashlib.sha256(path.read_bytes()).hexdigest() for path in top.rglob("*.*")}
        for top in (tmp_path / "one", tmp_path / "two")
        if top.is_dir()
    ]
    digests[0].pop("README.md")
    assert digests[0] == digests[1]


def test_a_shard_that_is_there_may_be_damaged_and_is_written_again(tmp_path: Path) -> None:
    write("webdataset", tmp_path)
    shard = tmp_path / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"?")
    write("webdataset", tmp_path)
    assert shard.read_bytes() == content


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_the_estimate_is_enough(tmp_path: Path, form: str) -> None:
    write(form, tmp_path)
    (tmp_path / "README.md").unlink()
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    fixed = 20_000  # end marks and footers of three shards, which count little in a real one
    assert used <= estimate(layout(form), ImageSpec(1, 8, 8, 3)) + fixed


def test_numbers_of_float32_come_back_from_text(tmp_path: Path) -> None:
    block = write("folder", tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train" / "metadata.jsonl").read_text().splitlines()]
    assert torch.equal(torch.tensor([line["logits"] for line in lines], dtype=torch.float32), block.logits)
    assert max(len(str(value)) for line in lines for value in line["logits"]) < 16


def test_records_of_a_part_keep_their_numbers() -> None:
    part = Part(64, torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4), torch.zeros(4, 4))
    kept = Records.of(part, torch.tensor([True, False, False, True]))
    assert kept.numbers.tolist() == [64, 67]
    assert kept.labels.tolist() == [0, 3]


def test_what_a_format_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="class 'coat/jacket' gets no image"):
        check_format(layout("folder"), ImageSpec(1, 8, 8, 3), [4, 0, 4])
    check_format(layout("webdataset"), ImageSpec(1, 8, 8, 3), [4, 0, 4])
    with pytest.raises(ConfigError, match="1 or 3 channels, the teacher's images 4"):
        check_format(layout("webdataset"), ImageSpec(4, 8, 8, 3), [4, 4, 4])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[data\]'"):
        check_format(layout("parquet"), ImageSpec(1, 8, 8, 3), [4, 4, 4])


@pytest.mark.parametrize(
    ("seen", "kind", "said"),
    [
        (0, "inversion", "The generator saw no real image."),
        (None, "saved", "is not known here"),
        (1294, "cgan", "trained on 1,294 real images. Its images may repeat"),
        (1294, "merf", "learned from one noisy look at 1,294 real images"),
    ],
)
def test_the_card_says_what_the_generator_saw_and_never_promises_privacy(
    seen: int | None, kind: str, said: str
) -> None:
    about = {"format": "folder", "class_names": NAMES, **ABOUT, "real_images_used": seen, "generator": {"kind": kind}}
    text = card(about, "seed: 0\n")
    assert said in text
    assert "**There is no privacy guarantee**" in text
