"""Scores as a table for a terminal: a line for each score, a column for each generated set, folded to its width."""

from __future__ import annotations

from collections.abc import Sequence

from synthkd.metrics.score import Score
from synthkd.reports.evaluation import direction
from synthkd.reports.results import GeneratedSet

GAP = "  "
NARROWEST = 60  # the table is never folded to fewer characters


def score_lines(sets: Sequence[GeneratedSet], width: int) -> list[str]:
    """The table in lines of at most `width` characters, unless one column beside the scores' names is wider.

    Where the names of the sets make the table too wide, or two sets have the same name, the columns are numbered and
    the names stand above. A table that is still too wide becomes several tables, one below the other.

    Args:
        sets: the generated sets with their scores, the same for each.
        width: characters of a line of the terminal.
    """
    # A cell is never cut: a number without its interval would mislead, so the columns are folded instead.
    titles = [one.name for one in sets]
    heads = [f"{score.name} {direction(score)}".rstrip() for score in sets[0].scores]
    columns = [[cell(score) for score in one.scores] for one in sets]
    alike = len(set(titles)) < len(titles)
    widen = any(len(title) > max(map(len, column)) for title, column in zip(titles, columns, strict=True))
    legend: list[str] = []
    if len(sets) > 1 and (alike or (widen and _wide(heads, columns, titles) > width)):
        legend = [f"[{number}] {title}" for number, title in enumerate(titles, 1)]
        titles = [f"[{number}]" for number in range(1, len(sets) + 1)]
    # Column after column goes into the last table until it is as wide as the terminal.
    tables: list[list[int]] = [[]]
    for number in range(len(sets)):
        chosen = [*tables[-1], number]
        fits = _wide(heads, [columns[i] for i in chosen], [titles[i] for i in chosen]) <= max(width, NARROWEST)
        if fits or not tables[-1]:
            tables[-1].append(number)
        else:
            tables.append([number])
    lines = legend
    for chosen in tables:
        lines += [""] if lines else []
        rows = zip(["", *heads], *([titles[i], *columns[i]] for i in chosen), strict=True)
        widths = _widths(heads, [columns[i] for i in chosen], [titles[i] for i in chosen])
        lines += [GAP.join(text.ljust(room) for text, room in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines


def cell(score: Score) -> str:
    """A score's value with its interval or uncertainty; a dash where it was not measured."""
    value, uncertainty = score.value, score.uncertainty
    if value is None:
        return "-"
    if score.interval is not None:
        low, high = score.interval
        form = ".3f" if -1.0 <= low <= high <= 1.0 else ".4g"  # a fixed number of digits lines up the shares
        return f"{value:{form}} [{low:{form}}, {high:{form}}]"
    if uncertainty is None:
        return f"{value:.4g}"
    return f"{value:.4g} \N{PLUS-MINUS SIGN} {uncertainty:{'.0f' if uncertainty >= 100.0 else '.2g'}}"


def _widths(heads: Sequence[str], columns: Sequence[Sequence[str]], titles: Sequence[str]) -> list[int]:
    """Characters of each column of a table, that of the scores' names first."""
    titled = ([title, *column] for title, column in zip(titles, columns, strict=True))
    return [max(map(len, column)) for column in (heads, *titled)]


def _wide(heads: Sequence[str], columns: Sequence[Sequence[str]], titles: Sequence[str]) -> int:
    """Characters of a line of a table."""
    widths = _widths(heads, columns, titles)
    return sum(widths) + len(GAP) * (len(widths) - 1)
