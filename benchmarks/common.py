"""What the benchmarks share: folders, options, cells that are kept, tables, figures and results."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from synthkd.pipelines.run.result import Result
from synthkd.reports.results import JobResult
from synthkd.settings.base import Settings
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "benchmarks" / "runs"
"""Run directories of the cells; what is finished there is not measured again."""
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"

Row = dict[str, Any]
"""A JSON object: a cell, a row of a table, or the content of a results file."""
Config = TypeVar("Config", bound=Settings)
Key = TypeVar("Key")


def scripts() -> list[str]:
    """Names of all benchmarks, sorted: the modules with a `main`."""
    modules = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return [path.stem for path in modules if "\ndef main(" in path.read_text(encoding="utf-8")]


# Options


def options(name: str, docstring: str | None) -> argparse.ArgumentParser:
    """The parser of a script, whose docstring is the help."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_seeds(parser: argparse.ArgumentParser, default: int = 3) -> None:
    """The option --seeds."""
    parser.add_argument("--seeds", type=int, default=default, help="seeds 0, 1, ... of each cell")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The option --threads."""
    parser.add_argument("--threads", type=int, default=2, help="of torch; fewer only for several at a time")


# Cells


def run(
    job: Callable[[Config], object],
    config: type[Config],
    source: Mapping[str, Any] | Path,
    out: Path,
    *overrides: str,
) -> Result[JobResult]:
    """Run a job in the run directory `out`, or resume it, or read its result where it is finished.

    Args:
        job: of `synthkd.pipelines`.
        config: the job's configuration class.
        source: the configuration, as data or as the path of a recipe.
        out: run directory.
        overrides: `key=value`, as on the command line.

    Raises:
        ConfigError: `out` has a run of another configuration.
    """
    result = job(load_config(config, source, [f"out={out}", *overrides]))
    assert isinstance(result, Result)
    return result


def is_finished(place: Path) -> bool:
    """Whether a run directory has its result."""
    return (place / "result.json").exists()


def result_of(place: Path) -> Row:
    """The result.json of a finished run, whatever its configuration needed."""
    content: Row = json.loads((place / "result.json").read_text(encoding="utf-8"))
    return content


def collect(
    name: str,
    keys: Iterable[Key],
    cell: Callable[[Key], Row],
    identity: Callable[[Row], Any],
    more: Callable[[list[Row]], Row] | None = None,
) -> list[Row]:
    """Run the cells one after the other; the results file has all cells so far after each.

    The cells of earlier calls in the results file stay, also those whose runs are on another machine.

    Args:
        name: of the benchmark.
        keys: of the cells to run.
        cell: runs a cell, or reads it where it is finished.
        identity: what tells cells apart, in their order.
        more: of all cells so far: what else the results file has.

    Returns:
        All cells, in order.
    """
    cells = _cells(name)
    for key in keys:
        new = cell(key)
        cells = _cells(name)  # again: another call may have written some meanwhile
        cells = sorted([one for one in cells if identity(one) != identity(new)] + [new], key=identity)
        save(name, {"cells": cells} | (more(cells) if more else {}))
    return cells


def _cells(name: str) -> list[Row]:
    return read(name)["cells"] if (RESULTS / f"{name}.json").exists() else []


def run_arms(
    argv: Sequence[str] | None,
    name: str,
    description: str | None,
    arms: Iterable[str],
    cell: Callable[[str, int, int], Row],
    tables: Callable[[Row], str],
    seeds: int = 3,
) -> None:
    """The command line of a benchmark whose cells are arms and seeds: run them, and print the tables.

    Args:
        argv: arguments; None: those of the command line.
        name: of the benchmark.
        description: docstring of its module.
        arms: all, in their order.
        cell: of an arm, a seed and a number of threads; the row has `arm` and `seed`.
        tables: of the content of the results file.
        seeds: default of --seeds.
    """
    order, parser = list(arms), options(name, description)
    parser.add_argument("--arms", nargs="*", default=order, choices=order)
    add_seeds(parser, seeds)
    add_threads(parser)
    arguments = parser.parse_args(argv)
    cells = collect(
        name,
        product(range(arguments.seeds), arguments.arms),
        lambda key: cell(key[1], key[0], arguments.threads),
        lambda one: (one["seed"], order.index(one["arm"])),
    )
    print(tables({"cells": cells}))


# Tables


def table(columns: str, rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; `columns` are the headings with ` | ` between them, every row has a text for each."""
    headings = columns.split(" | ")
    heading, *lines = ["|" + "".join(f" {text} |" if text else " |" for text in row) for row in (headings, *rows)]
    return "\n".join([heading, "|" + "---|" * len(headings), *lines])


def between(middle: float, low: float, high: float, *, digits: int = 2) -> str:
    """`middle [low, high]`."""
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def percent(share: float, ends: Sequence[float]) -> str:
    """A share and the two ends of its interval, in per cent."""
    return between(100 * share, 100 * ends[0], 100 * ends[1])


def spread(values: Sequence[float]) -> str:
    """Median [lowest, highest]."""
    return between(statistics.median(values), min(values), max(values))


def mean_interval(values: Sequence[float]) -> str:
    """Mean [95 % t-interval] of values over seeds; the mean alone of a single one."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def compared(scores: Mapping[int, float], *others: Mapping[int, float]) -> list[str]:
    """Mean (standard deviation) of scores by seed, then the mean of the paired differences to each of the others.

    The difference to itself, or to scores of other seeds, is an empty text.
    """
    deviation = f" ({statistics.stdev(scores.values()):.2f})" if len(scores) > 1 else ""
    texts = [f"{statistics.mean(scores.values()):.2f}{deviation}"]
    for other in others:
        paired = [] if scores == other else [score - other[seed] for seed, score in scores.items() if seed in other]
        texts.append(mean_interval(paired) if paired else "")
    return texts


def relative_times(seconds: Sequence[float], plain: Sequence[float]) -> Row:
    """Median milliseconds of an arm, and median and quartiles of its ratio to the plain arm, round by round."""
    ratios = [one / other for one, other in zip(seconds, plain, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ms": 1000 * statistics.median(seconds),
        "ratio": statistics.median(ratios),
        "quartiles": [quartiles[0], quartiles[2]],
    }


# Figures


@contextmanager
def figure(path: Path) -> Iterator[Axes]:
    """A context with the axes of a figure in the style of docs/, which is saved to `path` at its end."""
    drawing = Figure(figsize=(7, 4), dpi=120)
    axes = drawing.subplots()
    yield axes
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    drawing.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path)


# Results


def environment(*packages: str) -> Row:
    """`versions` of packages, null where one is not installed, and the `hardware` of this machine."""
    return {"versions": {name: _version(name) for name in packages}, "hardware": describe(torch.device("cpu"))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(path: Path, content: object) -> None:
    """Write JSON; a kill leaves the earlier file or this one."""
    write_atomically(path, json.dumps(content, indent=1).encode() + b"\n")


def save(name: str, content: Row, arguments: str = "", folder: Path | None = None) -> None:
    """Write the results file of a benchmark into `RESULTS`: the command with its arguments, and the content."""
    command = f"python -m benchmarks.{name} {arguments}".rstrip()
    write((folder or RESULTS) / f"{name}.json", {"command": command, **content})


def read(name: str) -> Row:
    """The results file of a benchmark."""
    content: Row = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content
