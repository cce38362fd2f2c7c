"""The HTML pages: their templates, and the filters that write numbers and texts in them.

A template lists what its page shows, by the macros of `parts.html.jinja`: numbers in large letters, tables, pictures,
curves. The filters take any value; those of numbers write "not measured" for one that is no finite number.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FunctionLoader
from markupsafe import Markup, escape

from synthkd.privacy.verdict import rounded_up

UNKNOWN = "not measured"
SPACE = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"

_ACTIVE = re.compile(
    r"<(?!/?(?:svg|g|defs|clipPath|path|use|line|rect|circle|text|tspan)\b)|\b(?:on\w+|style)\s*="
    r"|href\s*=(?!\s*[\"']#)|\b(?:url|src|image|image-set)\((?!#)|&(?!(?:amp|lt|gt|quot);)|\\",
    re.IGNORECASE,
)
"""What a drawing from a file must not hold: other elements than shapes and text, event handlers, styles, outside
addresses, and other escapes than those of text, which could hide these."""


def render(file: str, /, **values: object) -> bytes:
    """A page as UTF-8, from a template with the filters of this module.

    Characters that UTF-8 does not have, e.g. of a file name, are written as escapes.

    Args:
        file: name of the template.
        values: what it shows, by name.
    """
    return _environment().get_template(file).render(values).encode("utf-8", errors="backslashreplace")


def draw(macro: str, *values: object) -> Markup:
    """A figure as SVG, by a macro of `figures.html.jinja`."""
    return Markup(getattr(_environment().get_template("figures.html.jinja").module, macro)(*values))


@cache
def _environment() -> Environment:
    templates = files("synthkd.reports") / "templates"
    environment = Environment(
        loader=FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.do"],
    )
    environment.filters.update({one.__name__: one for one in FILTERS})
    return environment


def drawing(svg: object) -> str:
    """An SVG drawing as part of the page, if it holds shapes and text only; else its source as text."""
    return escape(svg) if _ACTIVE.search(str(svg)) else Markup(svg)


def picture(path: Path) -> str:
    """A PNG file as a data URL, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def fixed(value: object, form: str) -> str:
    """0.9 in the form ".3f" -> 0.900."""
    amount = number(value)
    return UNKNOWN if amount is None else format(amount, form)


def percent(value: object) -> str:
    """0.9861 -> 98.6 %."""
    amount = number(value)
    return UNKNOWN if amount is None else f"{amount * 100:.1f}{SPACE}%"


def interval(value: object) -> str:
    """[0.971, 0.994] -> 97.1–99.4 %."""
    ends = [number(end) for end in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return UNKNOWN
    return f"{ends[0] * 100:.1f}{DASH}{percent(ends[1])}"


def certainty(value: object, n: object) -> str:
    """An interval, and the number of images that it rests on."""
    return f"{interval(value)}, n{SPACE}={SPACE}{count(n)}"


def count(value: object) -> str:
    """78218 -> 78,218."""
    return fixed(value, ",.0f")


def size(value: object) -> str:
    """313400 -> 313 kB."""
    amount = number(value)
    if amount is None:
        return UNKNOWN
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= one:
            return f"{amount / one:{'.3g' if amount / one < 1000 else ',.0f'}}{SPACE}{unit}"
    return f"{amount:.0f}{SPACE}bytes"


def duration(value: object) -> str:
    """83.2 -> 1 min 23 s."""
    amount = number(value)
    if amount is None:
        return UNKNOWN
    if amount < 60:
        return f"{amount:.1f}{SPACE}s"
    whole = round(amount)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}{SPACE}h {minutes}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest}{SPACE}s"


def milliseconds(value: object) -> str:
    """0.4213 -> 0.421 ms."""
    return UNKNOWN if number(value) is None else f"{fixed(value, '.3g')}{SPACE}ms"


def times(value: object) -> str:
    """0.2533 -> 0.253 ×; nothing for what is no number."""
    return "" if number(value) is None else f"{fixed(value, '.3g')} ×"


def known(value: object) -> object:
    """The value itself, or "not measured" for one that is absent."""
    return UNKNOWN if value is None or value == "" or isinstance(value, ChainableUndefined) else value


def words(value: object) -> str:
    """class_imbalance -> Class imbalance."""
    text = str(value).replace("_", " ")
    return text[:1].upper() + text[1:]


def under(text: object, *notes: object) -> Markup:
    """A text with notes below it, each in a line of smaller letters; notes that are empty are left out."""
    return escape(text) + Markup("").join(Markup("<small>{}</small>").format(note) for note in notes if note)


def bold(text: object) -> Markup:
    """A text in bold letters."""
    return Markup("<b>{}</b>").format(text)


def key(text: object, colour: str) -> Markup:
    """A text behind a dot in a colour of the page."""
    return Markup('<span class="key" style="--who:var(--{})"></span>{}').format(colour, text)


def each(items: Iterable[object], show: Callable[[object], str]) -> list[str]:
    """What a macro or filter shows of each item."""
    return [show(item) for item in items]


FILTERS = (
    bold, certainty, count, drawing, duration, each, fixed, interval, key, known, milliseconds, percent, rounded_up,
    size, times, under, words,
)  # fmt: skip
"""What templates call by name."""
