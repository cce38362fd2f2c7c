"""Progress of a run on stderr: a live bar on a terminal, plain lines in a pipe or a log file, or nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from synthkd.system.text import one_line, printable

WINDOW_SECONDS = 60.0
"""Span of time over which the pace is measured."""
LINE_SECONDS = 5.0
"""Shortest time between two plain lines of the same phase."""


class Pace:
    """The pace in steps per second over the last minute.

    It is measured from the first marked step on, so that a resumed run does not count the steps before the resume.

    Args:
        clock: returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, step: int) -> None:
        """Note that `step` steps are finished now. A smaller number than before starts the measurement anew."""
        now = self._clock()
        if self._marks and step < self._marks[-1][1]:
            self._marks.clear()
        # At most one mark a second, which bounds the memory; the first and the newest always stay.
        if len(self._marks) > 2 and self._marks[-1][0] - self._marks[-2][0] < 1.0:
            self._marks.pop()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_SECONDS:
            self._marks.popleft()

    def seconds_for(self, steps: int) -> float | None:
        """Seconds for `steps` more steps at this pace; None until a step was finished since the first mark."""
        if not self._marks:
            return None
        (begin, first), (end, last) = self._marks[0], self._marks[-1]
        return (end - begin) / (last - first) * steps if last > first else None


class Display:
    """Progress of one job, with the time left at the measured pace; a context manager.

    On a terminal it is a bar with the latest values. Elsewhere it is a line when a phase starts, at most one line every
    five seconds, and a line at the end. It goes to stderr, so that stdout holds results only.

    Args:
        total_steps: steps of the whole run, those before a resume included.
        title: name of the job, in a few words.
        enabled: False prints nothing, as in all processes but the main one.
        console: where to print instead of stderr.
        clock: returns seconds and never goes back.
        every_phase: whether each phase and the end have a plain line; else there is none in the first five seconds.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_phase: bool = True,
    ) -> None:
        self._total = total_steps
        self._title = one_line(title)
        self._enabled = enabled
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._pace = Pace(clock)
        self._started = clock()
        self._phase: str | None = None
        self._every_phase = every_phase
        self._last_line = -LINE_SECONDS if every_phase else self._started
        self._last_step: int | None = None
        self._live: Live | None = None
        self._values = Text(style="dim")
        self._progress = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            TextColumn("{task.fields[phase]}", style="cyan", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[left]}", style="cyan"),
            console=self._console,
            auto_refresh=False,  # `Live` refreshes it together with the values
            expand=True,
        )
        self._task = self._progress.add_task(self._title, total=total_steps, phase="", left="")

    def __enter__(self) -> Self:
        if self._enabled and self._console.is_terminal:
            self._live = Live(Group(self._progress, self._values), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Show that `step` steps of the run are finished, the present phase, and the latest values by name."""
        if not self._enabled:
            return
        self._pace.mark(step)
        phase = one_line(phase)
        numbers = " · ".join(f"{one_line(name)} {_short(value)}" for name, value in values.items())
        left = self._pace.seconds_for(self._total - step)
        time_left = "" if left is None else f"{_clock_time(left)} left"
        if self._live is not None:
            self._progress.update(self._task, completed=step, phase=phase, left=time_left)
            self._values.plain = f"  {numbers}" if numbers else ""
            return
        now = self._clock()
        # The end of a run is always printed, but only once, though `update` may be called with the last step twice.
        is_new = phase != self._phase or (step >= self._total and step != self._last_step)
        self._last_step = step
        if (is_new and self._every_phase) or now - self._last_line >= LINE_SECONDS:
            self._phase, self._last_line = phase, now
            parts = [f"{step}/{self._total}", phase, f"{_clock_time(now - self._started)} elapsed", time_left, numbers]
            self._print(f"{self._title}: " + " · ".join(part for part in parts if part))

    def busy(self, step: int, work: str) -> None:
        """Show what a step is at that takes longer than others; elsewhere than on a terminal after five seconds."""
        if self._live is not None:
            self._progress.update(self._task, phase=one_line(work))
        elif self._enabled and self._clock() - self._last_line >= LINE_SECONDS:
            self._last_line = self._clock()
            elapsed = _clock_time(self._last_line - self._started)
            self._print(f"{self._title}: {step}/{self._total} · {one_line(work)} · {elapsed} elapsed")

    def message(self, text: str) -> None:
        """Print one line, above the bar or between the plain lines."""
        if self._enabled:
            self._print(text)

    def _print(self, text: str) -> None:
        # Without wrapping, so that a line stays one line in a log file.
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 10 or value == 0 or abs(value) < 0.001 else f"{value:.3f}"


def _clock_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
