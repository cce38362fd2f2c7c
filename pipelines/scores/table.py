"""Scores as a table for a terminal: a line for each score, a column for each generated set, folded to its width."""

from __future__ import annotations

from collections.abc import Sequence

from synthkd.metrics.score import Score
from synthkd.reports.evaluation import direction
from synthkd.reports.results import GeneratedSet

GAP = "  "
NARROWEST = 60  # below this, lines wrap anyway


def score_lines(sets: Sequence[GeneratedSet], width: int) -> list[str]:
    """The table in lines of at most `width` characters, where one column of numbers fits beside the scores' names.

    Where the names of the sets make it too wide, or two have the same name, columns are numbered and the names stand
    above; what is still too wide becomes several tables, one below the other.

    Args:
        sets: the generated sets with their scores, the same for each.
        width: characters that a line of the terminal holds.
    """
    titles = [one.name for one in sets]
    heads = [f"{score.name} {direction(score)}".rstrip() for score in sets[0].scores]
    columns = [[cell(score) for score in one.scores] for one in sets]
    alike = len(set(titles)) < len(titles)
    widen = any(len(title) > max(map(len, column)) for title, column in zip(titles, columns, strict=True))
    legend: list[str] = []
    if len(sets) > 1 and (alike or (widen and _wide(heads, columns, titles) > width)):
        legend = [f"[{number}] {title}" for number, title in enumerate(titles, 1)]
        titles = [f"[{number}]" for number in range(1, len(sets) + 1)]
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
        form = ".3f" if -1.0 <= low <= high <= 1.0 else ".4g"  # shares stand under each other
        return f"{value:{form}} [{low:{form}}, {high:{form}}]"
    if uncertainty is None:
        return f"{value:.4g}"
    return f"{value:.4g} \N{PLUS-MINUS SIGN} {uncertainty:{'.0f' if uncertainty >= 100.0 else '.2g'}}"


def _widths(heads: Sequence[str], columns: Sequence[Sequence[str]], titles: Sequence[str]) -> list[int]:
    shown = ([title, *column] for title, column in zip(titles, columns, strict=True))
    return [max(map(len, column)) for column in (heads, *shown)]


def _wide(heads: Sequence[str], columns: Sequence[Sequence[str]], titles: Sequence[str]) -> int:
    widths = _widths(heads, columns, titles)
    return sum(widths) + len(GAP) * (len(widths) - 1)
