"""What a file is, by its first bytes: files of weights, programs, networks of other frameworks, and what is neither."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

HEAD = 512
"""Bytes that are read to tell what a file is."""
STATE_DICT = "save the state dict alone: torch.save(model.state_dict(), path), or as safetensors"


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name: with its article, for messages.
        reader: of its weights; None for a file that has no weights to read.
        remedy: what to do with a file without a reader.
    """

    name: str
    reader: Literal["safetensors", "pickle"] | None = None
    remedy: str = STATE_DICT


SAFETENSORS = FileKind("a safetensors file", "safetensors")
PICKLE = FileKind("a pickle", "pickle")
TORCHSCRIPT = FileKind("a TorchScript program")
EXPORTED = FileKind("a program of torch.export")
ONNX = FileKind("an ONNX network")
_DOWNLOAD = "download the file itself"
_STARTS = {
    b"<": FileKind("a page of HTML or XML", remedy=_DOWNLOAD),
    b"version https://git-lfs": FileKind("a pointer of Git LFS", remedy=f"{_DOWNLOAD}: git lfs pull"),
    b"\x89HDF": FileKind("an HDF5 file (Keras)", remedy="convert its weights to PyTorch names and layouts"),
    b"\x08": ONNX,
    b"\x1f\x8b": FileKind("a gzip archive", remedy="unpack it and name the file inside"),
    b"\xfd7zXZ": FileKind("an xz archive", remedy="unpack it and name the file inside"),
}


def kind_of(path: Path) -> FileKind:
    """The kind of a file, by its content.

    Args:
        path: an existing file.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return FileKind("an empty file", remedy="copy it again")
    # safetensors: the length of the header in 8 bytes, then the header, which is JSON.
    if head[8:9] == b"{" or head[8:10] == b" {":
        return SAFETENSORS
    if head[4:8] == b"TFL3":
        return FileKind("a TensorFlow Lite network", remedy="export the PyTorch network that it came from")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    start = next((start for start in _STARTS if head.lstrip().startswith(start)), None)
    if start is not None:
        return _STARTS[start]
    # A pickle has no sure start. What is left is damaged or a pickle, and its reader says what is wrong.
    return SAFETENSORS if path.suffix == ".safetensors" else PICKLE


def _kind_of_zip(path: Path) -> FileKind:
    """Which of torch's zip archives it is; a damaged one is left to torch's own error."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return PICKLE
    if "constants.pkl" in names:
        return TORCHSCRIPT
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        return EXPORTED
    return PICKLE if "data.pkl" in names else FileKind("a zip archive", remedy="unpack it and name the file inside")
