"""Atomic writes, after which a file has its old or its new content whenever the process is killed; checksum lists."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthkd.system.resources import causes, errno_of

SUMS = "SHA256SUMS"
"""Name of the checksum list of a directory."""
_TEMPORARY = re.compile(r"\.(.+\.\d+\.tmp|partial_\d+_\d+)", re.DOTALL)


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write data to a file through a temporary file beside it; missing folders are created.

    Args:
        path: the file, replaced if it exists.
        data: its whole content.
        mode: permissions before the umask, as in `os.open`; 0o600 keeps the file from other users.

    Raises:
        OSError: the file cannot be written; its `filename` is `path` if the system names none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within one file system. With the process id, since several
    # processes may write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with naming(path), open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            # Without it a power failure after the rename may leave the new name with empty content.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Context manager that puts `path` into system errors that name no file, such as that of a failed write."""
    try:
        yield
    except Exception as error:
        # The causes too: libraries wrap the system's error in their own.
        for cause in causes(error):
            if errno_of(cause) is not None and getattr(cause, "filename", None) is None:
                cause.filename = str(path)  # type: ignore[attr-defined]
        raise


def is_temporary(name: str) -> bool:
    """Whether a file or folder has a name as `write_atomically` or an unfinished checkpoint gives it."""
    return _TEMPORARY.fullmatch(name) is not None


def file_names(directory: Path) -> list[str]:
    """Relative POSIX paths of all files below a directory, sorted, without temporary ones; [] if it does not exist."""
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if not is_temporary(path.name))


def inside(directory: Path, name: str) -> Path:
    """`directory / name`, for a name that was read from a file.

    Raises:
        ValueError: the name leads out of the directory.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name} leads out of its folder")
    return directory / name


def write_sums(directory: Path) -> None:
    """Write `SHA256SUMS`, which `sha256sum -c` reads, for all other files below a directory."""
    lines = [f"{sha256(directory / name)}  {name}\n" for name in file_names(directory) if name != SUMS]
    write_atomically(directory / SUMS, "".join(lines).encode())


def read_sums(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 in hexadecimal, from the `SHA256SUMS` of a directory."""
    lines = (directory / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def sha256(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
