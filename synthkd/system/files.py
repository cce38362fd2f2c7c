"""Writing a file so that a reader, or a kill, sees the old content or the new, never half of either."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthkd.system.resources import causes, number

SUMS = "SHA256SUMS"
_TEMPORARY = re.compile(r"\.(.+\.\d+\.tmp|partial_\d+_\d+)", re.DOTALL)


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` through a synced temporary file beside it; missing folders are made.

    `mode` has the most that others than the owner may do with the file, as in `os.open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with naming(path), open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, a refusal of the system without a file's name gets this one: a write that fails does not say where."""
    try:
        yield
    except Exception as error:
        for cause in causes(error):
            if number(cause) is not None and getattr(cause, "filename", None) is None:
                cause.filename = str(path)  # type: ignore[attr-defined]
        raise


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that `write_atomically` or a checkpoint goes through."""
    return _TEMPORARY.fullmatch(name) is not None


def file_names(directory: Path) -> list[str]:
    """Paths of all files below a directory, relative to it and in order; a directory that is not there has none."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not is_temporary(path.name))


def inside(directory: Path, name: str) -> Path:
    """The path of a file in a directory, by its name in a list that came with it.

    Raises:
        ValueError: the name leads out of the directory.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name} leads out of its folder")
    return directory / name


def write_sums(directory: Path) -> None:
    """Write `SHA256SUMS` for all other files below a directory, as `sha256sum -c` reads it."""
    lines = [f"{sha256(directory / name)}  {name}\n" for name in file_names(directory) if name != SUMS]
    write_atomically(directory / SUMS, "".join(lines).encode())


def read_sums(directory: Path) -> dict[str, str]:
    """What `write_sums` wrote: sha256 of each file, by its path."""
    lines = (directory / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
