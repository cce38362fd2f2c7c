"""The table of scores on a terminal: readable at any width, whatever the sets are called."""

from synthkd.metrics.score import Score
from synthkd.pipelines.scores.table import score_lines
from synthkd.reports.results import GeneratedSet


def a_set(name: str, value: float = 0.5) -> GeneratedSet:
    scores = (
        Score("FD-efflite0", 123.456, "lower", (9, 9), uncertainty=170.9),
        Score("precision-efflite0", value, "higher", (9, 9), interval=(0.4123, 0.5877)),
        Score("density-efflite0", 1.1, "higher", (9, 9), uncertainty=0.0312),
        Score("CAS", None, "higher", (9,)),
    )
    return GeneratedSet(name, 9, scores)


def test_what_fits_has_the_names_above_the_columns() -> None:
    assert score_lines([a_set("mine"), a_set("a longer name", 0.25)], 80) == [
        "                      mine                  a longer name",
        "FD-efflite0 ↓         123.5 ± 171           123.5 ± 171",
        "precision-efflite0 ↑  0.500 [0.412, 0.588]  0.250 [0.412, 0.588]",
        "density-efflite0 ↑    1.1 ± 0.031           1.1 ± 0.031",
        "CAS ↑                 -                     -",
    ]


def test_long_names_stand_above_and_columns_are_numbered() -> None:
    names = [f"images-of-the-generator-after-{steps}-steps.npz" for steps in (1000, 2000, 3000)]
    lines = score_lines([a_set(name) for name in names], 100)
    assert lines[:4] == [*(f"[{number}] {name}" for number, name in enumerate(names, 1)), ""]
    assert lines[4].split() == ["[1]", "[2]", "[3]"]
    assert len(lines) == 9
    assert max(map(len, lines)) <= 100


def test_columns_without_room_go_below() -> None:
    lines = score_lines([a_set(name) for name in "abcde"], 70)
    assert [line.split() for line in lines if line.startswith("   ")] == [["a", "b"], ["c", "d"], ["e"]]
    assert sum(line.startswith("FD-efflite0") for line in lines) == 3
    assert max(map(len, lines)) <= 70
    assert score_lines([a_set("alone")], 10), "one set has a table on the narrowest terminal"


def test_sets_of_one_name_are_told_apart() -> None:
    lines = score_lines([a_set("samples"), a_set("samples")], 100)
    assert lines[:4] == ["[1] samples", "[2] samples", "", "                      [1]                   [2]"]
