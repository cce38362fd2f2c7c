"""Text from elsewhere as it may be shown: file names, class names and messages are written by anybody."""

from __future__ import annotations

import re
import sys

# Control characters but for tab and line feed, marks that turn the direction of reading, Unicode's own line breaks,
# and what stands for the bytes of a file name that is not UTF-8.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text, with an escape in the place of each character that moves a cursor, changes colours or hides others."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(name: str) -> str:
    """A name, with escapes for line breaks and tabs as well, so that it can forge no line or column."""
    return printable(name).replace("\n", "\\n").replace("\t", "\\t")


def print_anything() -> None:
    """Let stdout and stderr take characters that their encoding lacks, as `?`, where that would be an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
