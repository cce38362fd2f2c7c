"""Sets of images from every kind of source: what comes back, what it is recognised by, and what is refused."""

import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.bank_sample import save_bank_sample
from synthkd.data.read import decode, entries, sample_set
from synthkd.data.read import npz as npz_files
from synthkd.data.read.named import read_digits
from synthkd.data.read.real import load_splits
from synthkd.data.read.sample_set import Samples
from synthkd.data.read.samples import open_samples
from synthkd.errors import CheckpointError, DataError
from synthkd.rng import Rows
from synthkd.settings import BankSettings, DigitsData, FolderData
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import ImageSpec, to_uint8

COLOUR = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 10), dtype=np.uint8))
LABELS = [0, 0, 0, 1, 1, 1]
NAMES = ["cat/0.png", "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png", "dog/5.png"]


def encoded(image: Tensor | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    if isinstance(image, Tensor):
        array = image.numpy()
        image = Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def files(images: Tensor = COLOUR) -> dict[str, bytes]:
    return {name: encoded(image) for name, image in zip(NAMES, images, strict=True)}


def folder(root: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, contents: Mapping[str, bytes], year: int = 2020) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), content)
    return path


def tarred(path: Path, contents: Mapping[str, bytes], seconds: int = 0) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), seconds
            archive.addfile(member, io.BytesIO(content))
    return path


def web(images: Tensor = COLOUR, labels: list[int] | None = LABELS) -> dict[str, bytes]:
    contents = {}
    for row, image in enumerate(images):
        contents[f"{row:04}.png"] = encoded(image)
        if labels is not None:
            contents[f"{row:04}.cls"] = str(labels[row]).encode()
    return contents


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def together(found: Samples, size: int = 4) -> Tensor:
    return torch.cat(list(found.batches(size)))


def holds(found: Samples, images: Tensor, labels: list[int] | None) -> None:
    """Everything that a caller may ask of a set says the same."""
    assert found.count == len(images)
    assert torch.equal(together(found), images)
    assert torch.equal(together(found, 100), images)
    assert all(torch.equal(a, b) for a, b in zip(found.images([2, 0]), images[[2, 0]], strict=True))
    if labels is None:
        assert found.labels is None
        assert found.class_names == ()
    else:
        assert found.labels is not None
        assert found.labels.dtype == torch.int64
        assert found.labels.tolist() == labels


# --- every source gives back its pixels and labels -------------------------------------------------------------------


def test_folders_and_zips_give_pixels_labels_and_class_names(tmp_path: Path) -> None:
    for source in (folder(tmp_path / "set", files()), zipped(tmp_path / "set.zip", files())):
        found = open_samples(source)
        holds(found, COLOUR, LABELS)
        assert found.class_names == ("cat", "dog")
        assert (found.name, found.notes, found.bad) == (source.name, (), ())
    assert open_samples(str(tmp_path / "set"), name="ours").name == "ours"


def test_flat_folders_and_zips_are_unlabelled(tmp_path: Path) -> None:
    flat = {name[4:]: content for name, content in files().items()}
    holds(open_samples(folder(tmp_path / "set", flat)), COLOUR, None)
    holds(open_samples(zipped(tmp_path / "flat.zip", flat)), COLOUR, None)


def test_a_directory_around_all_of_a_zip_is_no_class(tmp_path: Path) -> None:
    around = {f"home/set/{name}": content for name, content in files().items()} | {"__MACOSX/._set": b"x"}
    holds(open_samples(zipped(tmp_path / "labelled.zip", around)), COLOUR, LABELS)
    flat = {f"set/{name[4:]}": content for name, content in files().items()}
    holds(open_samples(zipped(tmp_path / "flat.zip", flat)), COLOUR, None)
    one = folder(tmp_path / "one", {"cat/0.png": encoded(COLOUR[0])})
    assert open_samples(one).class_names == ("cat",)


def test_the_order_is_that_of_the_sorted_names_and_not_of_the_archive(tmp_path: Path) -> None:
    backwards = dict(reversed(files().items()))
    holds(open_samples(zipped(tmp_path / "set.zip", backwards)), COLOUR, LABELS)
    holds(open_samples(tarred(tmp_path / "set.tar", dict(reversed(web().items())))), COLOUR, LABELS)


@pytest.mark.parametrize("make", ["folder", "zip"])
def test_parts_of_a_set_are_chosen_by_name(tmp_path: Path, make: str) -> None:
    contents = {f"{part}/{name}": content for part in ("train", "test") for name, content in files().items()}
    contents["test/dog/5.png"] = encoded(COLOUR[0])
    source = zipped(tmp_path / "set.zip", contents) if make == "zip" else folder(tmp_path / "set", contents)
    holds(open_samples(source, split="train"), COLOUR, LABELS)
    found = open_samples(source, split="test")
    holds(found, COLOUR[[0, 1, 2, 3, 4, 0]], LABELS)
    assert found.name == f"{source.name}:test"
    with pytest.raises(DataError, match=r"is divided into parts; choose one of them as its split: test or train"):
        open_samples(source)
    with pytest.raises(DataError, match=r"has no images in val/; its directories with images: test, train"):
        open_samples(source, split="val")


def test_flat_parts_are_parts_but_a_class_may_be_called_train(tmp_path: Path) -> None:
    parts = folder(tmp_path / "parts", {"train/0.png": encoded(COLOUR[0]), "test/1.png": encoded(COLOUR[1])})
    with pytest.raises(DataError, match="choose one of them"):
        open_samples(parts)
    found = open_samples(parts, split="test")
    assert found.labels is None
    assert torch.equal(together(found), COLOUR[1:2])
    (parts / "test").rename(parts / "plane")
    assert open_samples(parts).class_names == ("plane", "train")


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_webdatasets_give_pixels_and_labels(tmp_path: Path, suffix: str) -> None:
    contents = web(labels=None)
    for row, label in enumerate(LABELS):
        contents[f"{row:04}.{suffix}"] = json.dumps(label if suffix == "cls" else {"label": label, "x": 1}).encode()
    if suffix == "json":
        contents["0000.json"] = json.dumps({"label": float(LABELS[0])}).encode()
    contents["0001.txt"] = b"a caption"
    contents["notes.txt"] = b"of the whole"
    found = open_samples(tarred(tmp_path / "set.tar", contents))
    holds(found, COLOUR, LABELS)
    assert found.class_names == ("0", "1")
    assert found.notes == ("1 files ignored, no images: notes.txt",)


def test_webdatasets_without_labels_are_unlabelled(tmp_path: Path) -> None:
    contents = {f"./{name}": content for name, content in web(labels=None).items()}
    contents["./0000.json"] = b'{"caption": "no label"}'
    holds(open_samples(tarred(tmp_path / "set.tar", contents)), COLOUR, None)


def test_shards_are_read_in_order_by_a_pattern(tmp_path: Path) -> None:
    tarred(tmp_path / "s-1.tar", web(COLOUR[4:], LABELS[4:]))
    tarred(tmp_path / "s-0.tar", web(COLOUR[:4], LABELS[:4]))
    holds(open_samples(tmp_path / "s-*.tar"), COLOUR, LABELS)
    with pytest.raises(DataError, match=r"t-\*.tar does not exist"):
        open_samples(tmp_path / "t-*.tar")


def test_a_class_that_no_sample_has_keeps_its_number(tmp_path: Path) -> None:
    found = open_samples(tarred(tmp_path / "set.tar", web(labels=[0, 0, 3, 3, 3, 0])))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 3, 3, 3, 0]
    assert found.class_names == ("0", "1", "2", "3")


def test_npz_files_give_pixels_labels_and_parts(tmp_path: Path) -> None:
    last = COLOUR.permute(0, 2, 3, 1).numpy()
    holds(open_samples(npz(tmp_path / "a.npz", images=COLOUR)), COLOUR, None)
    holds(open_samples(npz(tmp_path / "b.npz", arr_0=last)), COLOUR, None)
    holds(open_samples(npz(tmp_path / "c.npz", arr_0=last, arr_1=LABELS)), COLOUR, LABELS)
    named = npz(tmp_path / "d.npz", images=last / 255.0, labels=LABELS, class_names=["cat", "dog", "eel"])
    assert open_samples(named).class_names == ("cat", "dog", "eel")
    parts = npz(tmp_path / "e.npz", images=COLOUR, labels=LABELS, test_images=COLOUR[:3], test_labels=[0, 1, 1])
    holds(open_samples(parts, split="train"), COLOUR, LABELS)
    holds(open_samples(parts, split="test"), COLOUR[:3], [0, 1, 1])
    with pytest.raises(DataError, match="as its split: train or test"):
        open_samples(parts)
    with pytest.raises(DataError, match="no parts; leave out split=test"):
        open_samples(named, split="test")


def test_splits_of_real_data_come_by_their_settings(tmp_path: Path) -> None:
    settings = DigitsData(kind="digits", holdout=0.25)
    splits = load_splits(settings)
    for split, part in (("train", splits.train), ("holdout", splits.holdout), ("test", splits.test)):
        found = open_samples(settings, split=split)
        holds(found, part.images, part.labels.tolist())
        assert found.name == f"digits:{split}"
        assert found.class_names == part.class_names
    with pytest.raises(DataError, match="split=train, split=holdout or split=test"):
        open_samples(settings)
    with pytest.raises(DataError, match="digits:holdout is empty"):
        open_samples(DigitsData(kind="digits", holdout=0.0), split="holdout")
    grey = folder(tmp_path / "set", {name: encoded(COLOUR[row, :1]) for row, name in enumerate(NAMES)})
    real = FolderData(kind="folder", root=str(grey), holdout=0.0)
    assert "repeated from grey" in open_samples(real, split="test").notes[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["uint8", "float", "last", "numpy"])
def test_arrays_are_taken_as_they_are(kind: str) -> None:
    given: Any = {
        "uint8": COLOUR,
        "float": COLOUR.float() / 255,
        "last": COLOUR.permute(0, 2, 3, 1),
        "numpy": np.broadcast_to(COLOUR.numpy(), COLOUR.shape),  # cannot be written to
    }[kind]
    holds(open_samples(given), COLOUR, None)
    found = open_samples(given, labels=torch.tensor(LABELS), class_names=["cat", "dog"], name="ours")
    holds(found, COLOUR, LABELS)
    assert (found.name, found.class_names) == ("ours", ("cat", "dog"))
    grey = COLOUR[:, 0]
    holds(open_samples(grey), grey[:, None], None)


def test_iterables_of_batches_are_gathered() -> None:
    whole = COLOUR.float() / 255
    holds(open_samples(iter(whole.split(4))), COLOUR, None)
    holds(open_samples([*COLOUR.split(5)], labels=LABELS), COLOUR, LABELS)
    pairs = torch.utils.data.TensorDataset(whole, torch.tensor(LABELS))
    holds(open_samples(torch.utils.data.DataLoader(pairs, batch_size=4)), COLOUR, LABELS)


def test_batches_that_are_written_over_are_copied() -> None:
    def reusing() -> Iterator[Tensor]:
        memory = torch.empty(2, 3, 8, 10, dtype=torch.uint8)
        for part in COLOUR.split(2):
            yield memory.copy_(part)

    holds(open_samples(reusing()), COLOUR, None)


class Noise:
    """Image i is a function of row `rng.start + i` and its label."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        self.asked.append(len(labels))
        assert not torch.is_grad_enabled()
        noise = rng.uniform(len(labels), 12).view(-1, 3, 2, 2)
        return ((noise + labels.view(-1, 1, 1, 1)) * difficulty / 10).requires_grad_()


def test_a_generator_makes_image_i_from_the_seed_and_i() -> None:
    labels = torch.arange(600) % 10
    generator = Noise()
    found = open_samples(generator, labels=labels, seed=7, difficulty=0.5)
    with torch.no_grad():
        whole = to_uint8(Noise().sample(labels, 0.5, Rows(7, "samples")))
    assert max(generator.asked) < 600
    holds(found, whole, labels.tolist())
    assert found.name == "Noise"
    assert torch.equal(together(open_samples(Noise(), labels=labels[:9], seed=7, difficulty=0.5)), whole[:9])
    others = [{"seed": 8, "difficulty": 0.5}, {"seed": 7, "difficulty": 0.6}]
    assert all(open_samples(Noise(), labels=labels, **other).digest != found.digest for other in others)


def test_a_generator_that_gives_something_else_is_refused() -> None:
    class Short:
        def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
            return torch.zeros(len(labels) - 1, 1, 2, 2)

    with pytest.raises(DataError, match=r"Short: asked for 6 images .*gave \[5, 1, 2, 2\]"):
        open_samples(Short(), labels=LABELS)
    with pytest.raises(DataError, match="Noise: a generator needs labels"):
        open_samples(Noise())
    with pytest.raises(DataError, match=r"Noise: images are float and must be in \[0, 1\]"):
        open_samples(Noise(), labels=[1], difficulty=-1.0)


def run(root: Path, steps: list[int]) -> Path:
    """An unfinished run whose bank has gone around more than once, with a checkpoint at each step."""
    (root / "checkpoints").mkdir(parents=True)
    (root / "config.yaml").write_text("name: x\n")
    bank = MemoryBank(ImageSpec(3, 8, 10, 4), BankSettings(capacity=5), seed=0)
    for step in steps:
        bank.add(COLOUR[:3], torch.tensor(LABELS[:3]), torch.zeros(3, 4))
        bank.add(COLOUR[3:], torch.tensor(LABELS[3:]), torch.zeros(3, 4))
        CheckpointStore(root / "checkpoints").save(step, {"parts": {"bank": bank.state_dict()}})
    return root


def test_an_unfinished_run_gives_the_bank_of_its_newest_checkpoint_oldest_first(tmp_path: Path) -> None:
    found = open_samples(run(tmp_path / "run", [5, 10]))
    holds(found, COLOUR[1:], LABELS[1:])
    assert found.class_names == ("0", "1", "2", "3")
    assert found.notes == ("memory bank after step 10, oldest image first",)
    with pytest.raises(DataError, match="no parts; leave out split=train"):
        open_samples(tmp_path / "run", split="train")


def test_a_run_without_images_says_why(tmp_path: Path) -> None:
    root = run(tmp_path / "run", [])
    with pytest.raises(DataError, match="without a checkpoint yet"):
        open_samples(root)
    CheckpointStore(root / "checkpoints").save(3, {"parts": {"teacher": {}}})
    with pytest.raises(DataError, match="the checkpoint of step 3 holds no generated images"):
        open_samples(root)
    (root / "checkpoints" / "step_00000003" / "state.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no checkpoint verifies"):
        open_samples(root)
    (root / "result.json").write_text("{}")
    with pytest.raises(DataError, match=r"is a finished run without samples/bank.npz: .* archive of images"):
        open_samples(root)


def test_a_run_of_several_seeds_names_the_run_of_one(tmp_path: Path) -> None:
    root = run(tmp_path / "run", [])
    (root / "result.json").write_text("{}")
    for seed in (3, 4):
        (root / f"seed-{seed}" / "samples").mkdir(parents=True)
        (root / f"seed-{seed}" / "samples" / "bank.npz").touch()
    with pytest.raises(DataError, match=r"a run of several seeds; name that of one: .*run/seed-3$"):
        open_samples(root)


def test_a_finished_run_gives_the_images_that_it_kept(tmp_path: Path) -> None:
    root = run(tmp_path / "run", [5])
    (root / "result.json").write_text("{}")
    bank = MemoryBank(ImageSpec(3, 8, 10, 4), BankSettings(capacity=5), seed=0)
    bank.add(COLOUR[:3], torch.tensor(LABELS[:3]), torch.zeros(3, 4))
    bank.add(COLOUR[3:], torch.tensor(LABELS[3:]), torch.zeros(3, 4))
    assert save_bank_sample(bank.rows(), None, (), root) == len(bank)
    sample = open_samples(root)
    holds(sample, COLOUR[-len(bank) :], LABELS[-len(bank) :])
    assert sample.class_names == ("0", "1", "2", "3")
    assert save_bank_sample(bank.rows(), 2, list("abcd"), root) == 2
    ends = open_samples(root)  # evenly spaced: the oldest and the newest
    assert all(torch.equal(*pair) for pair in zip(ends.images([0, 1]), COLOUR[[-len(bank), -1]], strict=True))
    assert ends.class_names == tuple("abcd")


# --- what a set is recognised by -------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_and_not_of_the_container(tmp_path: Path) -> None:
    sources: list[Any] = [
        folder(tmp_path / "set", files()),
        zipped(tmp_path / "a.zip", files()),
        zipped(tmp_path / "b.zip", files(), year=1999),
        tarred(tmp_path / "a.tar", web()),
        tarred(tmp_path / "b.tar", web(), seconds=10**9),
        npz(tmp_path / "a.npz", images=COLOUR, labels=LABELS),
    ]
    digests = {open_samples(source).digest for source in sources}
    digests |= {open_samples(COLOUR, labels=LABELS).digest, open_samples(COLOUR.split(4), labels=LABELS).digest}
    (digest,) = digests
    assert len(bytes.fromhex(digest)) == 32
    for path in (tmp_path / "set").rglob("*.png"):
        os.utime(path, (0, time.time()))
    assert open_samples(tmp_path / "set").digest == digest


def test_the_digest_changes_with_a_pixel_a_label_the_order_and_the_shape(tmp_path: Path) -> None:
    pixel = COLOUR.clone()
    pixel[5, 2, 7, 9] ^= 1
    variants = [
        open_samples(COLOUR, labels=LABELS),
        open_samples(COLOUR),
        open_samples(pixel, labels=LABELS),
        open_samples(COLOUR, labels=[0, 0, 0, 1, 1, 0]),
        open_samples(COLOUR.flip(0), labels=LABELS),
        open_samples(COLOUR[:5], labels=LABELS[:5]),
        open_samples(COLOUR.reshape(6, 3, 10, 8), labels=LABELS),
        open_samples(folder(tmp_path / "pixel", files(pixel)), name="again the second"),
    ]
    digests = [found.digest for found in variants]
    assert len(set(digests)) == len(variants) - 1
    assert digests[-1] == digests[2]


# --- odd and bad files -----------------------------------------------------------------------------------------------


def odd() -> dict[str, bytes]:
    """One file of each odd kind, by a name that says what comes out of it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(COLOUR[0].permute(1, 2, 0).numpy())
    return {
        "cmyk.jpg": encoded(Image.new("CMYK", (10, 8), (0, 255, 255, 0)), "JPEG", quality=95),
        "deep.png": encoded(Image.fromarray(np.full((8, 10), 257 * 200, dtype=np.uint16))),
        "exif.jpg": encoded(Image.new("RGB", (8, 10), (255, 0, 0)), "JPEG", exif=exif, quality=95),
        "grey.png": encoded(picture.convert("L")),
        "palette.png": encoded(picture.quantize(16)),
        "rgba.webp": encoded(Image.new("RGBA", (10, 8), (0, 0, 0, 0)), "WEBP", lossless=True),
    }


@pytest.mark.parametrize("make", ["folder", "zip", "tar"])
def test_odd_files_are_converted_and_named_and_keep_their_channels(tmp_path: Path, make: str) -> None:
    makers = {"folder": folder, "zip": zipped, "tar": tarred}
    found = open_samples(makers[make](tmp_path / f"set.{make}", odd()))
    cmyk, deep, exif, grey, palette, rgba = found.images(range(6))
    assert [len(image) for image in (cmyk, deep, exif, grey, palette, rgba)] == [3, 1, 3, 1, 3, 3]
    assert (cmyk.float() - torch.tensor([255.0, 0, 0]).view(3, 1, 1)).abs().max() <= 8
    assert deep.unique().tolist() == [200]
    assert exif.shape == (3, 8, 10)
    picture = Image.fromarray(COLOUR[0].permute(1, 2, 0).numpy())
    assert torch.equal(grey[0], torch.from_numpy(np.array(picture.convert("L"))))
    assert torch.equal(palette, torch.from_numpy(np.array(picture.quantize(16).convert("RGB"))).permute(2, 0, 1))
    assert rgba.unique().tolist() == [255]
    for kind in (
        "CMYK: cmyk.jpg",
        "16 to 8 bits: deep.png",
        "EXIF orientation: exif.jpg",
        "a palette: palette.png",
        "transparency put on white: rgba.webp",
        "2 different shapes, channels x height x width: 3x8x10 (4), 1x8x10 (2)",
    ):
        assert sum(kind in note for note in found.notes) == 1, kind


def bad_files() -> dict[str, bytes]:
    whole = encoded(COLOUR[0])
    return {"cat/cut.png": whole[: len(whole) // 2], "dog/text.jpg": b"this is no image"}


@pytest.mark.parametrize("make", ["folder", "zip"])
def test_skip_bad_allows_at_most_so_many_and_records_them(tmp_path: Path, make: str) -> None:
    contents = files() | bad_files()
    source = zipped(tmp_path / "set.zip", contents) if make == "zip" else folder(tmp_path / "set", contents)
    for allowed, extra in ((0, ""), (1, ", more than skip_bad=1 allows")):
        with pytest.raises(DataError) as caught:
            open_samples(source, skip_bad=allowed)
        assert caught.value.exit_code == 3
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{source}: 2 of 8 files cannot be read as images{extra}: cat/cut.png (")
        assert "dog/text.jpg (not an image of a known format); delete them, or" in message
        assert message.endswith("(--skip-bad 2)")
    found = open_samples(source, skip_bad=2)
    holds(found, COLOUR, LABELS)
    assert [name for name, _ in found.bad] == ["cat/cut.png", "dog/text.jpg"]
    assert found.bad[1][1] == "not an image of a known format"
    assert found.notes[0].startswith("2 unreadable files left out: cat/cut.png (")
    assert found.digest == open_samples(COLOUR, labels=LABELS).digest


def test_only_ten_bad_files_are_named_and_a_set_of_them_alone_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "set", {f"{row:02}.png": b"" for row in range(12)})
    with pytest.raises(DataError, match=r"12 of 12 .*09.png \(empty file\) and 2 more; delete"):
        open_samples(source)
    with pytest.raises(DataError, match="none of the 12 files is a readable image"):
        open_samples(source, skip_bad=12)


def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path) -> None:
    contents = files() | {name: encoded(COLOUR[0]) for name in ("../up.png", "/abs.png", "cat/../../x.png", "c\\d.png")}
    with pytest.raises(DataError, match=r"4 of 10 files .*\.\./up.png \(unsafe name, it leads out of the archive\)"):
        open_samples(zipped(tmp_path / "set.zip", contents))
    with pytest.raises(DataError, match=r"1 of 7 files .*\.\./up.png \(unsafe name"):
        open_samples(tarred(tmp_path / "set.tar", web() | {"../up.png": encoded(COLOUR[0])}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.tar", "set.zip"]


def test_links_in_a_tar_and_names_that_occur_twice_are_refused(tmp_path: Path) -> None:
    path = tarred(tmp_path / "set.tar", web())
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("9999.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        twice = tarfile.TarInfo("0000.png")
        archive.addfile(twice, io.BytesIO())
    with pytest.raises(DataError, match=r"9999.png \(a link or device.*0000.png \(the archive holds this name twice"):
        open_samples(path)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as second:
        second.writestr("a.png", encoded(COLOUR[0]))
        with pytest.warns(UserWarning, match="Duplicate name"):
            second.writestr("a.png", encoded(COLOUR[1]))
    with pytest.raises(DataError, match=r"1 of 2 .*a.png \(the archive holds this name twice"):
        open_samples(tmp_path / "set.zip")


def test_huge_images_and_members_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = encoded(Image.new("1", (8001, 8000)))
    with pytest.raises(DataError, match=r"huge.png \(too large: 8001x8000 pixels, at most 64 million are allowed"):
        open_samples(zipped(tmp_path / "a.zip", {"huge.png": huge}))
    monkeypatch.setattr(entries, "LARGEST_FILE", 1 << 20)
    big = {"x.png": bytes(1 << 21)}
    for source in (zipped(tmp_path / "b.zip", big), tarred(tmp_path / "b.tar", big)):
        with pytest.raises(DataError, match=r"x.png \(too large: 2 MiB unpacked, at most 1 are allowed"):
            open_samples(source)
    monkeypatch.setattr(npz_files, "LARGEST", 1 << 10)
    with pytest.raises(DataError, match=r"too large: 0 GiB unpacked, at most 0 are allowed\); save it anew"):
        open_samples(npz(tmp_path / "c.npz", images=COLOUR))


def test_labels_that_are_missing_or_odd_are_bad_files(tmp_path: Path) -> None:
    contents = web()
    del contents["0001.cls"]
    contents["0002.cls"] = b"cat"
    contents["0003.json"] = contents.pop("0003.cls")
    contents["0004.cls"] = b"100000"
    contents["0005.jpg"] = encoded(COLOUR[5], "JPEG")
    source = tarred(tmp_path / "set.tar", contents)
    with pytest.raises(DataError, match=r"5 of 6 files") as caught:
        open_samples(source)
    for part in ("0001.png (no label, though others have one)", "0003.png (no label", "got 'cat'", "got '100000'",
                 "0005.png (one of several images"):  # fmt: skip
        assert part in str(caught.value)
    found = open_samples(source, skip_bad=5)
    assert found.labels is not None
    assert found.labels.tolist() == [0]


def test_archives_that_are_damaged_are_refused_whole(tmp_path: Path) -> None:
    tar, archive = tarred(tmp_path / "set.tar", web()), zipped(tmp_path / "set.zip", files())
    whole = tar.read_bytes()
    for content in (b"", b"no archive", whole[:2048], whole[: len(whole) // 2 + 100], b"\x1f\x8b" + whole):
        tar.write_bytes(content)
        with pytest.raises(DataError, match=r"set.tar is not a whole .tar \("):
            open_samples(tar)
    whole = archive.read_bytes()
    for content in (b"", b"no archive", whole[:-40]):
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"set.zip is not a readable .zip \("):
            open_samples(archive)
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF  # inside the first image
    archive.write_bytes(flipped)
    with pytest.raises(DataError, match=r"1 of 6 files .*cat/0.png \(Bad CRC-32"):
        open_samples(archive)


def test_npz_files_that_are_no_plain_arrays_of_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": np.array([None, {}])}, "not a readable .npz of plain arrays"),
        ({"pixels": COLOUR}, "has no array images or arr_0, only pixels"),
        ({"images": COLOUR.int()}, "images must be uint8"),
        ({"images": COLOUR, "labels": LABELS[:5]}, r"labels must be one per image, \[6\], got \[5\]"),
        ({"images": COLOUR, "labels": LABELS, "class_names": ["cat"]}, r"labels must be in 0..0, got 0..1"),
        ({"images": COLOUR, "labels": [10**6] * 6}, r"labels must be in 0..99999"),
    ]
    for arrays, message in cases:
        with pytest.raises(DataError, match=message):
            open_samples(npz(path, **arrays))
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"set\.npz is not a readable"):
        open_samples(path)


def test_images_beside_class_directories_are_not_silently_lost(tmp_path: Path) -> None:
    source = folder(tmp_path / "set", files() | {"grid.png": encoded(COLOUR[0]), "notes.txt": b"x"})
    with pytest.raises(DataError, match=r"1 images \(grid.png\) lie beside directories of images \(cat, dog\); move"):
        open_samples(source)
    (source / "grid.png").unlink()
    assert open_samples(source).notes == ("1 files ignored, no images: notes.txt",)


def test_links_are_followed_and_loops_of_links_end(tmp_path: Path) -> None:
    elsewhere = folder(tmp_path / "elsewhere", files())
    source = tmp_path / "set"
    (source / "cat").mkdir(parents=True)
    (source / "cat" / "all").symlink_to(elsewhere / "cat")
    (source / "cat" / "loop").symlink_to(source)
    (source / "dog").symlink_to(elsewhere / "dog")
    holds(open_samples(source), COLOUR, LABELS)


def test_paths_that_are_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "set.rar").touch()
    for name, message in (
        ("gone", "gone does not exist; check the path"),
        ("gone.zip", "gone.zip does not exist; check the path"),
        ("empty", "empty holds no images; check the path"),
        ("set.rar", "set.rar is no set of images; give an image folder"),
    ):
        with pytest.raises(DataError, match=message):
            open_samples(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (COLOUR, {"split": "test"}, "split=test is for files"),
        (COLOUR, {"labels": [0, 1]}, r"array: labels must be one per image, \[6\], got \[2\]"),
        (COLOUR, {"labels": [0.0] * 6}, "array: labels must be integers"),
        (COLOUR, {"labels": LABELS, "class_names": ["cat"]}, "array: labels must be in 0..0"),
        (COLOUR, {"class_names": ["cat"]}, "array: class_names need labels"),
        (COLOUR.float(), {}, r"array: images are float and must be in \[0, 1\]"),
        (COLOUR[:, :2], {}, "array: images must be NHW, or have 1 or 3 channels"),
        ([], {}, "batches: there are no images"),
        ([COLOUR[0]], {}, r"batches: each batch must be an array .*got \[3, 8, 10\]"),
        ([{"image": COLOUR}], {}, "each batch must be an array .*got dict"),
        ([(COLOUR, LABELS)], {"labels": LABELS}, "or be given as labels=, not both"),
        ([(COLOUR, LABELS), COLOUR], {}, "labels must come with every batch"),
        (17, {}, "int gives no images"),
        ("somewhere", {"labels": LABELS}, "files bring their own"),
    ],
)
def test_what_is_wrong_with_arrays_is_named(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_samples(source, **options)
    assert "\n" not in str(caught.value)


# --- batches ---------------------------------------------------------------------------------------------------------


def mixed() -> list[Tensor]:
    """Two sizes and two channel counts, each in a run of its own length."""
    shapes = [(3, 8, 10)] * 5 + [(3, 10, 8)] * 2 + [(1, 8, 10)] + [(3, 8, 10)] * 3
    return [torch.full(shape, 20 * row, dtype=torch.uint8) for row, shape in enumerate(shapes)]


@pytest.mark.parametrize("kept", [1 << 29, 700, 0])
def test_batches_never_mix_sizes_or_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(sample_set, "KEPT", kept)
    source = folder(tmp_path / "set", {f"{row:02}.png": encoded(image) for row, image in enumerate(mixed())})
    for found in (open_samples(source), open_samples([image[None] for image in mixed()])):
        assert [len(batch) for batch in found.batches(3)] == [3, 2, 2, 1, 3]
        flat = [image for batch in found.batches(3) for image in batch]
        assert all(torch.equal(image, expected) for image, expected in zip(flat, mixed(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(found.images([7, 1]), [mixed()[7], mixed()[1]], strict=True))
        assert found.notes == ("3 different shapes, channels x height x width: 3x8x10 (8), 3x10x8 (2), 1x8x10 (1)",)


def test_files_are_decoded_once_when_they_fit_and_in_windows_when_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Any] = []
    plain = decode.decode
    monkeypatch.setattr(decode, "decode", lambda source, *how: decoded.append(source) or plain(source, *how))
    source = folder(tmp_path / "set", {f"{row:03}.png": encoded(COLOUR[row % 6]) for row in range(200)})
    found = open_samples(source)
    together(found)
    assert len(decoded) == 200
    monkeypatch.setattr(sample_set, "KEPT", 50 * COLOUR[0].nbytes)
    found = open_samples(source)
    assert len(decoded) == 400
    batches = found.batches(10)
    assert torch.equal(torch.cat([next(batches) for _ in range(6)]), COLOUR.repeat(10, 1, 1, 1))
    assert len(decoded) < 400 + 100
    assert sum(map(len, batches)) == 140
    assert len(decoded) == 550


def test_a_file_that_changes_after_the_check_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_set, "KEPT", 0)
    source = folder(tmp_path / "set", files())
    found = open_samples(source)
    for content in (encoded(COLOUR[0]), b""):
        (source / NAMES[4]).write_bytes(content)
        with pytest.raises(DataError, match=r"set: dog/4.png has changed since it was checked"):
            together(found)
        with pytest.raises(DataError, match="has changed"):
            found.images([4])
    assert torch.equal(found.images([3])[0], COLOUR[3])


def test_rows_and_batch_sizes_are_checked() -> None:
    found = open_samples(COLOUR)
    assert found.images([]) == []
    assert torch.equal(found.images(torch.tensor([5]))[0], COLOUR[5])
    for rows in ([6], [-1]):
        with pytest.raises(DataError, match=r"rows must be in 0..5"):
            found.images(rows)
    with pytest.raises(DataError, match="a batch needs at least 1 image, got 0"):
        found.batches(0)


def test_real_digits_survive_a_trip_through_files(tmp_path: Path) -> None:
    digits = read_digits().images[:50]
    source = folder(tmp_path / "set", {f"{row:02}.png": encoded(image) for row, image in enumerate(digits)})
    assert torch.equal(together(open_samples(source), 7), digits)
