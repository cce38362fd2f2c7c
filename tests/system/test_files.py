"""Files are replaced as a whole, and checksum lists are those of sha256sum."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from synthkd.system.files import (
    SUMS,
    file_names,
    inside,
    is_temporary,
    naming,
    read_sums,
    sha256,
    write_atomically,
    write_sums,
)


def test_a_file_is_written_and_replaced_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for data in (b"first and long", b"2nd"):
        write_atomically(path, data, 0o600)
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert file_names(tmp_path) == ["file"]


def test_only_system_errors_without_a_name_are_given_one() -> None:
    with pytest.raises(FileNotFoundError) as caught, naming(Path("ours")):
        Path("/no such file").read_bytes()
    assert caught.value.filename == "/no such file"
    cause, error = OSError(28, "full"), RuntimeError("a library failed")
    error.__cause__ = cause
    with pytest.raises(RuntimeError), naming(Path("ours")):
        raise error
    assert cause.filename == "ours"
    assert not hasattr(error, "filename")


def test_names_leave_temporary_files_out(tmp_path: Path) -> None:
    temporary = [".result.json.123.tmp", ".partial_00000004_77"]
    for name in ("b", "a/z", "a/.hidden", ".tmp", *temporary):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert file_names(tmp_path) == [".tmp", "a/.hidden", "a/z", "b"]
    assert [is_temporary(name) for name in (*temporary, "a.1.tmp", ".tmp")] == [True, True, False, False]
    assert file_names(tmp_path / "absent") == []


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/etc/passwd"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="leads out of its folder"):
        inside(tmp_path, name)


def test_checksum_lists_are_read_by_sha256sum(tmp_path: Path) -> None:
    for name in ("a/z", "two  blanks"):
        write_atomically(tmp_path / name, name.encode())
    write_sums(tmp_path)
    write_sums(tmp_path)  # the list is not in the list
    assert read_sums(tmp_path) == {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a/z", "two  blanks")}
    assert sha256(tmp_path / "a/z") == hashlib.sha256(b"a/z").hexdigest()
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path, check=True)
