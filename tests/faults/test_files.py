"""Files out of proportion or of no known kind: whoever reads one says so in a line, and is done in seconds.

They are read in a process of their own, which has little memory and is ended when it hangs.
"""

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.data.read.decode import decode
from synthkd.data.read.samples import open_samples
from synthkd.errors import CheckpointError
from synthkd.models import build, save
from synthkd.pipelines.cli import main
from synthkd.pipelines.run.result import read_result
from synthkd.reports.privacy import write_privacy_page
from synthkd.reports.results import TeachResult
from synthkd.settings import ZooModel
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import ImageSpec

READ = """
import resource, sys, warnings
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
warnings.simplefilter("ignore")
import torch
from synthkd.data.read.folder import read_folder
from synthkd.data.read.named import read_idx
from synthkd.data.read.npz import read_npz
from synthkd.data.read.samples import open_samples
from synthkd.data.written.stored import read_stored
from synthkd.errors import SynthkdError
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import read_weights

def read_into_a_layer(path):
    load_strictly(torch.nn.Linear(2, 2), read_weights(path), str(path))

from pathlib import Path
for line in sys.stdin.read().splitlines():
    name, reader, path = line.split("\\t")
    try:
        told = globals()[reader](Path(path)) and "read"
    except SynthkdError as error:
        told = f"{type(error).__name__}: {error}"
    except BaseException as error:
        told = f"NOT OURS {error!r}"
    print(name, " / ".join(str(told).splitlines()), sep="\\t", flush=True)
"""


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def array(shape: tuple[int, ...], content: bytes, descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_header(size: int, kind: bytes) -> bytes:
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157], header[148:156] = tarfile.itn(size, 12, tarfile.GNU_FORMAT), kind, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def idx(shape: tuple[int, ...]) -> bytes:
    return b"\0\0\x08" + bytes([len(shape)]) + b"".join(struct.pack(">I", side) for side in shape)


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def stored(folder: Path, lines: str | None = None, **changed: object) -> Path:
    folder.mkdir()
    spec = {"channels": 1, "height": 8, "width": 8, "classes": 2}
    about = {"version": 1, "spec": spec, "class_names": ["a", "b"], "mean": [0.0], "std": [1.0], "count": 2}
    about |= {"content": "", "format": "folder", "files": ["metadata.jsonl"], **changed}
    (folder / "dataset.json").write_text(json.dumps(about))
    (folder / "a.png").write_bytes(png())
    line = json.dumps({"file_name": "a.png", "number": 0, "label": 0, "logits": [0, 1]}) + "\n"
    (folder / "metadata.jsonl").write_text(line if lines is None else lines)
    return folder


def linked(folder: Path) -> Path:
    """Ten classes, each with a link to every other: ten million ways through them."""
    for name in range(10):
        (folder / f"{name}").mkdir(parents=True)
        (folder / f"{name}" / "a.png").write_bytes(png())
    for one in range(10):
        for other in range(10):
            (folder / f"{one}" / f"to{other}").symlink_to(folder / f"{other}")
    return folder


def deep(folder: Path) -> Path:
    (folder / "/".join("d" * 300)).mkdir(parents=True)
    (folder / "/".join("d" * 300) / "a.png").write_bytes(png())
    return folder


def torch_file(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def hostile(top: Path) -> dict[str, tuple[str, Path]]:
    """Name of a fault -> who reads it, and the file."""
    labels = array((3,), np.arange(3).tobytes(), "<i8")
    held: dict[str, object] = {}
    held["model"] = held
    nested: dict[str, dict[str, object]] = {"state_dict": {}}
    nested["state_dict"]["model"] = nested
    npz = zipped(top / "a.npz", {"images.npy": array((2**42, 4, 4), b""), "labels.npy": labels})
    empty = png(8000)
    terabyte = written(top / "a.tar", tar_header(1 << 40, b"L") + bytes(2048))
    names = written(top / "b.tar", (tar_header(5, b"L") + bytes(512)) * 3000 + bytes(2048))
    spaces = safetensors(b"{" + b" " * (1 << 25) + b"}")
    words = json.dumps({"file_name": "a.png", "number": 0, "label": 0, "logits": ["x", None]})
    found = {
        "npz that claims 64 TB": ("read_npz", npz),
        "npz of samples that claims 64 TB": ("open_samples", npz),
        "zip of empty images": ("open_samples", zipped(top / "a.zip", {f"{n}.png": empty for n in range(24)})),
        "zip of zeros": ("open_samples", zipped(top / "b.zip", {f"{n}.png": bytes(1 << 25) for n in range(8)})),
        "tar with a name of a terabyte": ("open_samples", terabyte),
        "tar with names of names": ("open_samples", names),
        "idx of two gigabytes packed": ("read_idx", written(top / "a.gz", gzip.compress(bytes(1 << 26)) * 32)),
        "idx that claims more than it has": ("read_idx", written(top / "b.idx", idx((2**31, 2**31)))),
        "folder 300 directories deep": ("open_samples", deep(top / "deep")),
        "folder of a class 300 directories deep": ("read_folder", top / "deep"),
        "state dict that holds itself": ("read_weights", torch_file(top / "a.pt", held)),
        "state dict that holds itself further down": ("read_weights", torch_file(top / "b.pt", nested)),
        "deep header": ("read_weights", written(top / "a.safetensors", safetensors(b"[" * 100_000))),
        "header of 32 MiB": ("read_weights", written(top / "b.safetensors", spaces)),
    }
    datasets = {
        "one file listed often": stored(top / "s1", files=["metadata.jsonl"] * 100_000),
        "more images than written": stored(top / "s2", count=0),
        "no images": stored(top / "s3", "", count=0),
        "infinitely many images": stored(top / "s4", count=float("inf")),
        "words for logits": stored(top / "s5", words, count=1),
        "a deep line": stored(top / "s6", "[" * 100_000),
        "a deep dataset.json": written(stored(top / "s7") / "dataset.json", b"[" * 100_000).parent,
        "a tar with a name of a terabyte": stored(top / "s8", format="webdataset", files=["../a.tar"]),
        "a tar with names of names": stored(top / "s9", format="webdataset", files=["../b.tar"]),
    }
    found |= {f"dataset, {name}": ("read_stored", path) for name, path in datasets.items()}
    odd = {
        "sparse": torch.eye(2).to_sparse(),
        "compressed": torch.eye(2).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.quint8),
        "without values": torch.empty(2, 2, device="meta"),
        "complex": torch.eye(2, dtype=torch.complex64),
    }
    for name, tensor in odd.items():
        path = torch_file(top / f"{name}.pt", {"weight": tensor, "bias": torch.zeros(2)})
        found[f"{name} weights"] = ("read_into_a_layer", path)
    pickles = {
        "that takes from nothing": b"}K\x01s.",
        "that lacks arguments": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01tR.",
        "of a string of a petabyte": b"\x8d" + struct.pack("<Q", 1 << 50) + b".",
        "that remembers nothing": b"h\x05.",
    }
    for name, content in pickles.items():
        path = written(top / f"{name}.pth", pickle.PROTO + b"\x02" + content)
        found[f"pickle {name}"] = ("read_weights", path)
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name of a fault -> what its reader said."""
    top = tmp_path_factory.mktemp("hostile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about tensors that are new or old to it
        found = hostile(top)
    found["folder of links to and fro"] = ("open_samples", linked(top / "links"))
    asked = "\n".join(f"{name}\t{reader}\t{path}" for name, (reader, path) in found.items())
    done = subprocess.run([sys.executable, "-c", READ], input=asked, capture_output=True, text=True, timeout=120)
    said = dict(line.split("\t") for line in done.stdout.splitlines())
    assert said.keys() == found.keys(), done.stderr[-2000:]
    return said


def test_every_hostile_file_ends_in_an_error_of_ours(told: dict[str, str]) -> None:
    links = told.pop("folder of links to and fro")
    assert links == "read"  # of each directory's images once for each class
    strange = {name: said for name, said in told.items() if "Error: " not in said or said.startswith("NOT OURS")}
    assert not strange
    assert len(told) > 30


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("npz that claims 64 TB", "images [4398046511104, 4, 4] needs 70,368,744,177,664 bytes, and the file has 0"),
        ("zip of empty images", "0.png (too large: 8000x8000 pixels in"),
        ("zip of zeros", "would unpack to 256 MiB, more than 200 times as much"),
        ("idx of two gigabytes packed", "more than 1 GiB unpacked"),
        ("folder of a class 300 directories deep", "more than 100 levels of directories"),
        ("state dict that holds itself", "holds no state dict"),
        ("header of 32 MiB", "a header of 33,554,434 bytes, at most 16,777,216 are allowed"),
        ("quantised weights", "weights must be dense real numbers, got weight (torch.quint8)"),
        ("without values weights", "weights must be dense real numbers, got weight (without values)"),
    ],
)
def test_the_line_says_what_is_wrong(told: dict[str, str], fault: str, words: str) -> None:
    assert words in told[fault]


def test_files_in_proportion_are_read_as_before(tmp_path: Path) -> None:
    flat = zipped(tmp_path / "flat.zip", {f"{n}.png": png(1000) for n in range(3)})
    assert open_samples(flat).count == 3
    bitmap = io.BytesIO()
    Image.new("L", (2000, 1000)).save(bitmap, "BMP")
    assert open_samples(zipped(tmp_path / "bitmaps.zip", {"a.bmp": bitmap.getvalue()})).count == 1


def test_a_scanned_page_is_no_attack(tmp_path: Path) -> None:
    page, rng = Image.new("1", (4960, 7016), 1), np.random.default_rng(0)  # A4 at 600 dots an inch
    for line in range(600, 6400, 160):
        for stroke in range(600, 4400, 40):
            across, down = rng.integers(4, 30, 2).tolist()
            page.paste(0, (stroke, line - down, stroke + across, line + 40))
    page.save(tmp_path / "a.png")
    page.save(tmp_path / "b.tif", compression="group4")
    page.resize((2480, 3508)).convert("L").save(tmp_path / "c.png")
    for path in tmp_path.iterdir():
        assert decode(path).pixels is not None, decode(path).reason


def test_json_nested_too_deeply_is_damage_wherever_it_is_read(tmp_path: Path) -> None:
    readers = {
        "result.json": lambda folder: read_result(folder, TeachResult),
        "privacy_report.json": write_privacy_page,
        "step_00000001/manifest.json": lambda folder: CheckpointStore(folder).latest(),
    }
    for name, read in readers.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(CheckpointError, match="nested too deeply"):
            read(tmp_path)


def test_a_constant_against_a_constant_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 3))
    save(teacher.eval(), tmp_path / "teacher", {})
    images = np.full((60, 8, 8), 77, np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3)
    sets = [str(tmp_path / "a.npz"), f"real={tmp_path / 'a.npz'}", f"out={tmp_path / 'out'}", "cache=null"]
    network = f"teacher={{kind: load, model: {tmp_path / 'teacher'}}}"
    assert main(["evaluate", *sets, network, "subsets=2", "subset_size=50", "splits=2", "device=cpu"]) == 0
    scores = json.loads((tmp_path / "out" / "result.json").read_text())["generated"][0]["scores"]
    assert next(one for one in scores if one["name"].startswith("FD_inf"))["uncertainty"] == 0.0
    assert "report.html" in capsys.readouterr().out
