"""Measurements after the last step are shown, and those whose number of images is free end in time."""

import io

import pytest
import torch
from rich.console import Console

from synthkd.passes import in_chunks
from synthkd.training import measuring
from synthkd.training.display import Display
from synthkd.training.measuring import FREE_SECONDS, SHARE, Allowance, Measuring, unwatched


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(allowance: Allowance, clock: Clock, seconds: float, least: int) -> int:
    """How many of 100 images are measured, one at a time."""

    def run(image: torch.Tensor) -> torch.Tensor:
        clock.now += seconds
        return image

    return len(in_chunks(run, 1, torch.zeros(100), tick=allowance.tick(least)))


def test_a_short_run_measures_all_images_if_they_are_fast_and_the_least_number_if_they_are_slow() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    assert measured(allowance, clock, 0.01, 5) == 100
    assert measured(allowance, clock, 1.0, 5) == FREE_SECONDS - 1.0, "1 s was spent before"
    assert measured(allowance, clock, 1.0, 5) == 5


def test_a_long_run_may_take_its_share() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    clock.now = 1000.0
    count = measured(allowance, clock, 1.0, 5)
    assert count == pytest.approx(SHARE * (1000.0 + count), abs=1)


def test_the_time_between_measurements_is_not_spent() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    for _ in range(3):
        clock.now += 100.0
        assert measured(allowance, clock, 0.01, 5) == 100


@pytest.mark.parametrize("seconds", [0.01, 1.0])
def test_a_measurement_is_shown_if_it_takes_long(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the first five seconds, so that short runs print no more than before; then at most a line in five."""
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, width=200)

    def display(parts: int, title: str, enabled: bool, every_phase: bool) -> Display:
        return Display(parts, title, enabled, console, clock, every_phase)

    monkeypatch.setattr(measuring, "Display", display)
    with Measuring(2, "measure x", Allowance(clock)) as watch:
        measured_here = 0
        for name in ("first", "second"):
            tick = watch(name, 12)
            for _ in range(12):
                clock.now += seconds
                measured_here += tick(1)
    lines = out.getvalue().splitlines()
    assert measured_here == 24, "measurements without a least number are whole"
    if seconds < 1:
        assert not lines
    else:
        assert len(lines) == 4
        assert lines[0].startswith("measure x: 0/2 · first · 0:00:05 elapsed")
        assert lines[0].endswith("images 5.000 · of 12")
        assert "1/2 · second" in lines[-1]


def test_nobody_watches() -> None:
    assert unwatched("name", 3, least=1)(2)
