"""Names that stand for several files: `shard-*.tar`, and `shard-{0000..0099}.tar` as WebDataset writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MOST = 1_000_000
"""Files at most that braces name; more are a mistake."""
_BRACES = re.compile(r"\{(?:([0-9]{1,9})\.\.([0-9]{1,9})|([^{}]*,[^{}]*))\}")


def matching(path: Path) -> list[Path]:
    """The files that a path names, each once; none if there are none.

    Args:
        path: a file, or a pattern. Braces name files in their order, as in a shell: `{0000..0099}` all numbers of that
            width, `{a,b}` both words. Such a file is in the result even if it does not exist, so that whoever reads it
            misses it; but none is if none exists. `*`, `?` and `[...]` in the last part of a path name the files that
            exist, sorted.
    """
    if path.exists():
        return [path]
    names = [*islice(_expanded(str(path)), MOST + 1)]
    if names == [str(path)]:
        return sorted(path.parent.glob(path.name)) if re.search(r"[*?\[]", path.name) else []
    if len(names) > MOST:
        return []
    files = dict.fromkeys(file for name in names for file in matching(Path(name)) or [Path(name)])
    return [*files] if any(file.exists() for file in files) else []


def _expanded(text: str) -> Iterator[str]:
    """The texts that braces stand for."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    for word in _words(match):
        for rest in _expanded(text[match.end() :]):
            yield text[: match.start()] + word + rest


def _words(match: re.Match[str]) -> Iterator[str]:
    first, last, words = match.groups()
    if words is not None:
        yield from words.split(",")
        return
    is_padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if is_padded else 1
    step = 1 if int(first) <= int(last) else -1
    yield from (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))
