"""Measurements after the last step of a run: their progress, and how much time they may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from synthkd.passes import Tick, go_on
from synthkd.training.display import Display

SHARE = 0.05
"""Of the time of a run that measurements may take whose number of images is free."""
FREE_SECONDS = 10.0
"""What they may take in any case, so that short runs measure on as many images as long ones."""


class Allowance:
    """The time that the measurements of a run may take: a share of its time so far, at least `FREE_SECONDS`.

    Nothing that a student learns from may depend on it, since it depends on the speed of the machine.

    Args:
        clock: returns seconds and never goes back; the run starts now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started, self._spent = clock, clock(), 0.0

    def tick(self, least: int) -> Tick:
        """The tick of one measurement, which ends it when the time is used up.

        Args:
            least: number of images that are measured in any case.
        """
        done, last = 0, self._clock()

        def on_chunk(images: int) -> bool:
            nonlocal done, last
            now = self._clock()
            done, last, self._spent = done + images, now, self._spent + now - last
            return done < least or self._spent < max(FREE_SECONDS, SHARE * (now - self._started))

        return on_chunk


class Watch(Protocol):
    """Gives each measurement its tick."""

    def __call__(self, name: str, images: int, least: int | None = None) -> Tick:
        """The tick of a measurement that begins now.

        Args:
            name: what is measured, in a few words.
            images: on how many.
            least: how many are enough if the time is used up; None: all of them are needed.
        """


def unwatched(*_: object, **__: object) -> Tick:
    """The watch of measurements without display and limit."""
    return go_on


class Measuring:
    """Shows the measurements after the last step, and limits those that may be smaller; a context manager and `Watch`.

    Args:
        parts: number of measurements.
        title: of the display.
        allowance: of the run.
        enabled: whether this process shows anything.
    """

    def __init__(self, parts: int, title: str, allowance: Allowance, enabled: bool = True) -> None:
        self._display = Display(parts, title, enabled, every_phase=False)
        self._allowance = allowance
        self._begun = 0

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)

    def __call__(self, name: str, images: int, least: int | None = None) -> Tick:
        """See `Watch`."""
        limit = go_on if least is None else self._allowance.tick(least)
        before, done = self._begun, 0
        self._begun += 1
        self._display.update(before, name, {})

        def on_chunk(count: int) -> bool:
            nonlocal done
            done += count
            self._display.update(before, name, {"images": done, "of": images})
            return limit(count)

        return on_chunk
