"""A compressed tar holds the same set as the tar inside it."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthkd.data.read import compressed
from synthkd.data.read.folder import read_folder
from synthkd.data.read.samples import open_samples
from synthkd.errors import DataError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def tar(mode: str = "class folders") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(6):
            file = io.BytesIO()
            Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(file, "PNG")
            name = f"set/{'ab'[number % 2]}/{number}.png" if mode == "class folders" else f"{number}.png"
            members = {name: file.getvalue()} | ({} if "/" in name else {f"{number}.cls": str(number % 2).encode()})
            for member_name, content in members.items():
                member = tarfile.TarInfo(member_name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["class folders", "webdataset"])
@pytest.mark.parametrize("ending", [*COMPRESS])
def test_the_same_set(tmp_path: Path, ending: str, mode: str) -> None:
    (tmp_path / "a.tar").write_bytes(tar(mode))
    (tmp_path / f"a.{ending}").write_bytes(COMPRESS[ending](tar(mode)))
    expected, found = (read_folder(tmp_path / name) for name in ("a.tar", f"a.{ending}"))
    assert found.images.tolist() == expected.images.tolist()
    assert (found.labels.tolist(), found.class_names) == (expected.labels.tolist(), expected.class_names)
    assert open_samples(tmp_path / f"a.{ending}").digest == open_samples(tmp_path / "a.tar").digest


def test_it_is_unpacked_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar()))
    one = compressed.plain_tar(path)
    assert one.read_bytes() == tar()
    assert compressed.plain_tar(path) == one
    path.write_bytes(gzip.compress(tar("webdataset")))
    assert compressed.plain_tar(path).read_bytes() == tar("webdataset")
    (tmp_path / "a.tar").write_bytes(tar())
    assert compressed.plain_tar(tmp_path / "a.tar") == tmp_path / "a.tar"


def test_a_damaged_file_or_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending, compress in COMPRESS.items():
        content = compress(tar())
        for number, damaged in enumerate([content[:-9], content[:40] + b"?????" + content[45:]]):
            path = tmp_path / f"{number}.{ending}"
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=r"is not a whole .tar \("):
                read_folder(path)
    monkeypatch.setattr(compressed, "FREELY_PACKED", 1000)
    monkeypatch.setattr(compressed, "MOST_PACKED", 2)
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(tar()))
    with pytest.raises(DataError, match="it unpacks to more than 0 MiB, as no images do"):
        read_folder(tmp_path / "bomb.tar.gz")
