"""Names of several files: those of a shell and of WebDataset."""

from pathlib import Path

import pytest

from synthkd.system import patterns
from synthkd.system.patterns import matching


def made(top: Path, *names: str) -> Path:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    return top


def names(top: Path, pattern: str) -> list[str]:
    return [str(one.relative_to(top)) for one in matching(top / pattern)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{11..08}.tar", ["a-11.tar", "a-10.tar", "a-09.tar", "a-08.tar"]),
        ("a-{9..10}.tar", ["a-9.tar", "a-10.tar"]),
        ("a-{0..0}.tar", ["a-0.tar"]),
        ("{b,a}-{08..09}.tar", ["b-08.tar", "b-09.tar", "a-08.tar", "a-09.tar"]),
        ("{a,a}-08.tar", ["a-08.tar"]),
        ("{a,sub/c}-*.tar", ["a-0.tar", "a-08.tar", "a-09.tar", "a-1.tar", "a-9.tar", "sub/c-1.tar"]),
        ("?-1*.tar", ["a-1.tar"]),
        ("[ab]-08.tar", ["a-08.tar", "b-08.tar"]),
        ("a-08.tar", ["a-08.tar"]),
        ("literal{1..2}.tar", ["literal{1..2}.tar"]),
        ("z-{08..09}.tar", []),
        ("z-*.tar", []),
        ("z.tar", []),
    ],
)
def test_patterns_name_files_in_their_order(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    tars = ["a-09", "a-08", "b-08", "a-1", "a-9", "sub/c-1", "a-0", "literal{1..2}", "literal1"]
    made(tmp_path, *(f"{name}.tar" for name in tars))
    assert names(tmp_path, pattern) == expected


def test_more_files_than_anybody_has_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "0.tar", "1.tar", "2.tar")
    monkeypatch.setattr(patterns, "MOST", 3)
    assert len(matching(tmp_path / "{0..2}.tar")) == 3
    assert matching(tmp_path / "{0..3}.tar") == []
    assert matching(tmp_path / "{0..999999999}.tar") == []
