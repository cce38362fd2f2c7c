"""How long a run will take: a few of its real steps are taken, and their time is multiplied by their number.

Only a dry run measures, since what the steps change is lost with it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from torch import Tensor

from synthkd.data.read.on_disk import Pixels
from synthkd.errors import TrainingError
from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.shared_work import count
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import Stateful

LIMIT = 6.0
"""Seconds that all measurements of a plan take together, about: a call that has begun is finished."""
MOST_CALLS = 16
"""Calls of one kind of work: the first, which also sets things up, and 15 at even distances over the run."""
DECODED = 64
"""Images on disk that a measured call decodes."""
ENOUGH = 0.25
"""Seconds after which 3 or 7 calls beside the first are enough as well; each work may take as many."""


Per = Literal["run", "teacher", "step", "baseline", "round", "round alone", "round beside"]
"""What a work grows with: nothing, the teacher's training, steps of the student or of its baseline, or some rounds."""


@dataclass(frozen=True)
class Work:
    """One kind of work of a run.

    Attributes:
        name: in the plural, e.g. "rounds".
        count: how often the run does it.
        once: does it; gets the place in the run, from 0 to below 1, since schedules change the work.
        scale: the run's work over that of one call, where a call does a part of it, e.g. with fewer images.
        listed: whether the plan tells number and time of each; else their sum.
        per: what its count grows with.
        every: of how many steps or rounds of a phase one is done, also of fewer at its end.
    """

    name: str
    count: int
    once: Callable[[float], object]
    scale: float = 1.0
    listed: bool = True
    per: Per = "run"
    every: int = 1


@dataclass(frozen=True)
class Timed:
    """A kind of work with its time.

    Attributes:
        name, count, listed, per, every: as in `Work`.
        seconds: of each.
    """

    name: str
    count: int
    seconds: float
    listed: bool = True
    per: Per = "run"
    every: int = 1

    def __str__(self) -> str:
        if self.listed:
            return f"{self.count:,} {self.name} at {_each(self.seconds)}"
        return f"{self.name} {about(self.count * self.seconds)}"


def place(call: int) -> float:
    """The place of a call in the run, from 0 to below 1: 0, 1/2, 1/4, 3/4, 1/8, ... (van der Corput).

    After each power of 2 the places divide the run evenly.
    """
    digits = f"{call:b}"
    return int(digits[::-1], 2) / 2.0 ** len(digits)


def measured(works: Sequence[Work], limit: float = LIMIT) -> list[Timed]:
    """The works with the seconds of each; torch's random numbers stay as they were.

    Each gets an equal share of the time that is left, and a moment where long ones took it all: the first call of a
    step takes longer than the others. A work that takes longer is done once.

    Args:
        works: in the order in which they can be done.
        limit: seconds of all together, about.

    Raises:
        SynthkdError: what the works raise.
    """
    left, works = limit, [work for work in works if work.count]
    moment = min(ENOUGH, limit / max(1, len(works)))
    timed = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for number, work in enumerate(works):
            calls = _calls(work.once, max(moment, left / (len(works) - number)))
            left -= sum(calls)
            seconds = work.scale * _mean(calls)
            timed.append(Timed(work.name, work.count, seconds, work.listed, work.per, work.every))
    return timed


def decoding(images: Pixels, wanted: int) -> list[Work]:
    """The work of decoding `wanted` images, or all there are, where they are on disk; nothing for images in memory.

    The steps of a run find decoded images, since workers and cache are ahead of them. Measured steps are not in order,
    so they would wait for each image.
    """
    if isinstance(images, Tensor) or not len(images):
        return []
    count = min(DECODED, len(images))
    apart = len(images) // count

    def once(where: float) -> Tensor:
        return images[torch.arange(count) * apart + int(where * apart)]

    return [Work("decoding", 1, once, min(len(images), wanted) / count, listed=False)]


def saving(state: Mapping[str, Stateful], config: TrainingConfig, steps: int, per: Per = "run") -> Work:
    """The work of the checkpoints of a training: the present state, written into a temporary folder.

    Args:
        state: name -> part of the training.
        config: says how often it is saved.
        steps: of the training.
        per: what the steps grow with.
    """

    def once(_: float) -> None:
        parts = {name: part.state_dict() for name, part in state.items()}
        with tempfile.TemporaryDirectory() as folder:
            CheckpointStore(Path(folder)).save(0, {"parts": parts})

    every = config.checkpoint_every
    return Work("checkpoints", -(-steps // every), once, listed=False, per=per, every=every)


def seconds_of(once: Callable[[float], object], limit: float) -> float:
    """Mean seconds of a call within `limit` seconds, without the first one if there are more."""
    return _mean(_calls(once, limit))


def _calls(once: Callable[[float], object], limit: float) -> list[float]:
    """Seconds of each of some calls; every process makes as many, since a step of one waits for those of the others."""
    seconds: list[float] = []
    # The first call tells whether another one fits.
    while len(seconds) < MOST_CALLS and (not seconds or sum(seconds) + seconds[-1] < limit):
        if len(seconds) in (4, 8) and sum(seconds) > ENOUGH:
            break
        started = time.perf_counter()
        once(place(len(seconds)))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(_of_slowest(time.perf_counter() - started))
    return seconds


def _mean(calls: Sequence[float]) -> float:
    warm = calls[1:] or calls
    return sum(warm) / len(warm)


def _of_slowest(seconds: float) -> float:
    """The largest of these numbers over all processes."""
    if count() == 1:
        return seconds
    number = torch.tensor(seconds, device=PartialState().device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    return float(number)


@dataclass(frozen=True)
class PlannedTime:
    """The time that a run needs.

    Attributes:
        timed: its works; empty if they could not be measured.
        line: of a plan.
    """

    timed: tuple[Timed, ...]
    line: str

    @property
    def seconds(self) -> float:
        """Of all works."""
        return sum(one.count * one.seconds for one in self.timed)


def planned_time(measure: Callable[[], Sequence[Timed]]) -> PlannedTime:
    """The time that a run needs, with the line of a plan about it.

    Args:
        measure: takes the steps.

    Raises:
        SynthkdError: what `measure` raises, but a `TrainingError`: in a dry run a teacher may be untrained, and steps
            out of order say nothing about the run.
    """
    started = time.perf_counter()
    try:
        timed = tuple(measure())
    except TrainingError as error:
        return PlannedTime((), f"  time: not measured: {error}")
    return told(timed, time.perf_counter() - started)


def told(timed: Sequence[Timed], measuring: float) -> PlannedTime:
    """The time that a run needs by works that were measured in `measuring` seconds."""
    return PlannedTime(tuple(timed), f"{said(timed)}, measured in {about(measuring)}")


def said(timed: Sequence[Timed]) -> str:
    """The sum of the works and what it comes of, as a line of a plan."""
    total = sum(one.count * one.seconds for one in timed)
    others: dict[str, float] = {}
    for one in timed:
        if not one.listed:
            others[one.name] = others.get(one.name, 0.0) + one.count * one.seconds
    sums = [Timed(name, 1, seconds, listed=False) for name, seconds in others.items() if seconds >= 1]
    parts = ", ".join(str(one) for one in [*(one for one in timed if one.listed), *sums])
    return f"  time: about {about(total)} ({parts})" if parts else f"  time: about {about(total)}"


def about(seconds: float) -> str:
    """A duration in the unit that fits it, with two digits at most below 100."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return (
        f"{minutes:.0f} min"
        if minutes < 100
        else f"{minutes / 60:.2g} h"
        if minutes < 6000
        else f"{minutes / 60:,.0f} h"
    )


def _each(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"
