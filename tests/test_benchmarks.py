"""The benchmarks import, explain themselves, and make the tables of docs/benchmarks.md from their results."""

import argparse
import importlib
from pathlib import Path

import pytest

from benchmarks import __main__, budgets, common, estimate_fits, online_parts, pairs
from synthkd.metrics.untested import BY_FOUR, BY_LEARNED, LEAST_STEPS
from synthkd.pipelines.config import DistillConfig
from synthkd.settings.load import load_config

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = common.scripts()
SHORTENED = {"dataset", "evaluate"}
"""Their tables stand in the docs with fewer digits or columns."""


def rows(text: str) -> list[str]:
    """The lines of the tables in a text."""
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_module_imports_and_has_a_docstring(path: Path) -> None:
    assert importlib.import_module(f"benchmarks.{path.stem}".removesuffix(".__init__")).__doc__


@pytest.mark.parametrize("name", [*SCRIPTS, "__main__"])
def test_every_script_answers_help_with_its_docstring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit, match=r"^0$"):
        script.main(["--help"])
    usage = capsys.readouterr().out
    assert usage.startswith(f"usage: python -m benchmarks{'' if name == '__main__' else f'.{name}'} ")
    assert script.__doc__.split()[:5] == usage[usage.index(script.__doc__[:10]) :].split()[:5]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_tables_of_the_docs_are_those_of_the_results(name: str) -> None:
    tables = rows(importlib.import_module(f"benchmarks.{name}").tables(common.read(name)))
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert f"`python -m benchmarks.{name}" in page
    assert f"benchmarks/results/{name}.json" in page
    assert len(tables) > 2
    if name not in SHORTENED:
        assert [row for row in tables if row not in rows(page)] == []


def test_the_estimates_of_runs_are_calibrated_by_the_results() -> None:
    cells, shipped = common.read("estimate")["cells"], {"by_four": BY_FOUR, "by_learned": BY_LEARNED}
    found = estimate_fits.calibrations(cells)
    assert set(found) == set(shipped)
    for name, calibration in shipped.items():
        keys = ("deviation", "quantile", "runs", "covered", "covered_accuracy")
        assert [found[name][key] for key in keys] == [getattr(calibration, key) for key in keys]
    assert min(cell["steps"] for cell in cells) == LEAST_STEPS


def test_results_are_printed_without_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main([])
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == SCRIPTS
    __main__.main(["int8", "search"])
    assert capsys.readouterr().out.count("\n|---|") == 2
    with pytest.raises(SystemExit, match=r"^2$"):
        __main__.main(["nothing"])
    assert f"no benchmark nothing; there are {SCRIPTS[0]}, {SCRIPTS[1]}, " in capsys.readouterr().err


def test_cells_of_earlier_calls_stay_in_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    written = []

    def cell(key: str) -> common.Row:
        if written:
            assert common.read("letters")["cells"] == written, "each cell is written before the next begins"
        written.append({"key": key})
        return {"key": key}

    assert common.collect("letters", ["b", "c"], cell, lambda one: one["key"]) == [{"key": "b"}, {"key": "c"}]
    assert common.read("letters") == {"command": "python -m benchmarks.letters", "cells": written}

    earlier = {"key": "a", "of": "another machine"}
    common.save("letters", {"cells": [earlier, {"key": "c", "of": "before"}]})
    cells = common.collect(
        "letters", ["c", "b"], lambda key: {"key": key}, lambda one: one["key"], lambda cells: {"n": len(cells)}
    )
    assert common.read("letters")["n"] == 3
    assert cells == [earlier, {"key": "b"}, {"key": "c"}], "in order, each once, and earlier ones stay"


def test_a_table_keeps_empty_cells_and_intervals_their_digits() -> None:
    assert common.table("a | b", [("1", ""), ("", "2")]) == "| a | b |\n|---|---|\n| 1 | |\n| | 2 |"
    assert common.spread([3.0, 1.0, 2.0]) == "2.00 [1.00, 3.00]"
    assert common.percent(0.5, (0.25, 0.75)) == "50.00 [25.00, 75.00]"
    assert common.between(1, 0, 2, digits=0) == "1 [0, 2]"
    # Two differences of 1 and 3 have the mean 2 and the deviation sqrt(2); t of one degree of freedom is 12.706.
    assert common.mean_interval([1.0, 3.0]) == "+2.00 [-10.71, +14.71]"
    assert common.compared({0: 1.0, 1: 3.0}, {0: 0.0, 2: 9.0}, {0: 1.0, 1: 3.0}) == ["2.00 (1.41)", "+1.00", ""]


def test_effects_and_interactions_are_those_that_the_scores_were_made_of() -> None:
    def score(subset: tuple[str, ...]) -> float:
        both = "swap" in subset and "EMA" in subset
        return 80.0 - 2.0 * ("swap" in subset) - 1.0 * ("EMA" in subset) - 0.5 * both

    scores = {online_parts.name_of(subset): score(subset) for subset in online_parts.SUBSETS}
    assert len(scores) == 16
    assert (scores["online"], scores["all"]) == (80.0, 76.5)
    # An effect is the mean over the other parts, half of whose subsets have the other one of the pair.
    assert online_parts.effect(("swap",), scores) == pytest.approx(-2.25)
    assert online_parts.effect(("EMA",), scores) == pytest.approx(-1.25)
    # The swap is worth -2.5 with the averages and -2 without: half of that difference.
    assert online_parts.effect(("swap", "EMA"), scores) == pytest.approx(-0.25)
    for parts in (("weights",), ("replay",), ("weights", "swap"), ("replay", "EMA")):
        assert online_parts.effect(parts, scores) == pytest.approx(0.0)


@pytest.mark.parametrize(("name", "arm"), [(name, arm) for name, pair in budgets.PAIRS.items() for arm in pair.arms])
def test_the_cells_of_budgets_are_configurations(name: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "teacher_of", lambda _: "teacher")
    arguments = argparse.Namespace(cifar10="cifar10.npz", teachers="teachers")
    source = budgets.source_of(budgets.PAIRS[name], arm, arguments)
    load_config(DistillConfig, source, ["budget=20m"])


def test_budgets_run_the_arms_that_a_pair_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(common, "collect", lambda _, keys, *__: ran.extend(arm for _, arm in keys) or [])
    monkeypatch.setitem(pairs.DATA, "root", None)  # as it was afterwards
    command = ["--pair", "lenet, labels only", "--budget", "90s"]
    budgets.main(command)
    assert ran == ["ours", "procedural", "pictures", "real"]
    with pytest.raises(SystemExit, match=r"^2$"):
        budgets.main([*command, "--arms", "ours", "mixed"])
    assert capsys.readouterr().err.endswith("has no arm mixed; it has ours, procedural, pictures, real\n")
