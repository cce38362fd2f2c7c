"""Text from anywhere (JSON files, file names, class names): parse it and print it safely."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any

# Control characters except tab and line feed, marks that turn the direction of reading, Unicode's own line breaks, and
# the surrogates that stand for bytes of a file name that is not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def parse_json(text: str | bytes, parse_constant: Callable[[str], object] | None = None) -> Any:
    """Value of a JSON text, as `json.loads` returns it.

    Args:
        text: JSON, as str or as UTF-8 bytes.
        parse_constant: called with "NaN", "Infinity" or "-Infinity"; its result takes their place.

    Raises:
        ValueError: the text is no JSON, or is nested more deeply than Python reads.
    """
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError:  # a few thousand opening brackets are enough
        raise ValueError("it is nested too deeply") from None


def printable(text: str) -> str:
    """The text with escapes for characters that move the cursor, change colours or hide other characters."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(name: str) -> str:
    """The name as `printable`, also with line breaks and tabs escaped, so that it cannot fake a line or a column."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, safe to print; the error itself if it says nothing."""
    return one_line((str(error).strip().splitlines() or [repr(error)])[0])


def print_anything() -> None:
    """Make stdout and stderr write `?` for characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
