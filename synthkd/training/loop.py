"""The one loop: teacher, generator and student are all trained by it.

A run is a list of stages, a stage a number of steps and the actions due at them. The loop owns what every training
needs and none should write again: resuming, seeding, checkpoints, the log and the display.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.rng import derive
from synthkd.system.stopping import Stopped, asked, held
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.display import Display
from synthkd.training.monitor import Monitor
from synthkd.types import Stateful

Values = Mapping[str, Tensor | float]


@dataclass(frozen=True)
class Action:
    """A named sub-step of a stage.

    Attributes:
        name: for messages.
        run: takes the 0-based step of the whole run, returns what is worth logging.
        every: due at steps 0, every, 2 * every, ... of its stage; with `after`, at the last step of each such
            interval and at the stage's last step.
        after: see `every`.
        at_once: what it returns gets a row of the log at once, as that of an action with `after` does.
    """

    name: str
    run: Callable[[int], Values]
    every: int = 1
    after: bool = False
    at_once: bool = False

    def due(self, step: int, steps: int) -> bool:
        """Whether the action runs at this step of its stage of `steps`."""
        if self.after:
            return (step + 1) % self.every == 0 or step + 1 == steps
        return step % self.every == 0


@dataclass(frozen=True)
class Stage:
    """A phase of a run: so many steps, at each of which the due actions run in order."""

    name: str
    steps: int
    actions: Sequence[Action]


@dataclass(frozen=True)
class Progress:
    """How far a run came.

    Attributes:
        steps: steps done in all.
        resumed: whether it continued from a checkpoint, and from which step.
        seconds: wall time of the training, summed over all its processes' lives up to their last checkpoint.
        watching: wall time of the actions with `after` (evaluations, pictures), which `seconds` leaves out.
    """

    steps: int
    resumed: int | None
    seconds: float
    watching: float


class Loop:
    """Runs stages and checkpoints the parts.

    Randomness: before each step torch's global generator is seeded with a function of (seed, step), so that even a
    module that uses it (dropout) does the same in a resumed run.

    Args:
        accelerator: processes and trackers.
        parts: name -> whatever has state, all of which goes into checkpoints.
        store: where checkpoints go.
        monitor: the log.
        seed: the run's seed.
        log_every: steps between log rows; what an action with `after` returns gets a row at once, and with it
            `watching`, the seconds that such actions took so far.
        checkpoint_every: steps between checkpoints; one is also written at the end.
        shown: names of the logged values that the display shows.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        parts: Mapping[str, Stateful],
        store: CheckpointStore,
        monitor: Monitor,
        seed: int,
        log_every: int,
        checkpoint_every: int,
        shown: Iterable[str] = (),
    ) -> None:
        self._accelerator = accelerator
        self._parts = parts
        self._store = store
        self._monitor = monitor
        self._seed = seed
        self._log_every = log_every
        self._checkpoint_every = checkpoint_every
        self._shown = tuple(shown)

    def run(self, stages: Sequence[Stage], title: str) -> Progress:
        """Run the stages to their end, from the newest checkpoint where there is one.

        Raises:
            TrainingError: from an action whose loss is not finite, or a part whose state is not; checkpoints from
                before it stay.
            Stopped: a signal asked to; the step is finished, and there is a checkpoint of it.
        """
        with held():
            return self._run(stages, title)

    def _run(self, stages: Sequence[Stage], title: str) -> Progress:
        total = sum(stage.steps for stage in stages)
        done, before, watching, resumed = self._resume(total)
        self._accelerator.wait_for_everyone()  # nobody may write a checkpoint before everybody has looked for one
        started = time.perf_counter()

        def elapsed() -> float:
            return before + time.perf_counter() - started

        latest: dict[str, Tensor | float] = {}
        offset = 0
        with Display(total, title, enabled=self._accelerator.is_main_process) as display:
            if resumed is not None:
                display.message(f"resumed after step {resumed}")
            for stage in stages:
                for step in range(max(done, offset), offset + stage.steps):
                    if step == offset:
                        self._monitor.event(step, f"{stage.name} begins", kind="phase", phase=stage.name)
                    torch.manual_seed(derive(self._seed, "global", step))
                    local = step - offset
                    watched = at_once = False
                    for action in stage.actions:
                        if action.due(local, stage.steps):
                            began = time.perf_counter()
                            values = action.run(step)
                            latest.update(values)
                            at_once |= bool(values) and action.at_once
                            if action.after:
                                watching += time.perf_counter() - began
                                watched |= bool(values)
                    last = step + 1 == total
                    signum = self._signal()
                    saving = (step + 1) % self._checkpoint_every == 0 or last or signum != 0
                    # what was measured before a checkpoint is logged before it: a resumed run could not do it later
                    if (step + 1) % self._log_every == 0 or saving or watched or at_once:
                        row = {name: float(value) for name, value in latest.items()}
                        if watched:
                            row["watching"] = watching
                        latest.clear()
                        self._monitor.log(step + 1, row, stage.name)
                        display.update(step + 1, stage.name, {k: row[k] for k in self._shown if k in row})
                    if saving:
                        self._checkpoint(step + 1, elapsed(), watching)
                    if signum:
                        raise Stopped(signum, step + 1)
                offset += stage.steps
        return Progress(total, resumed, elapsed() - watching, watching)

    def _signal(self) -> int:
        """The signal that asks to stop, or 0; the same in every process, whichever of them got it."""
        if self._accelerator.num_processes == 1:
            return asked()
        everyone: Tensor = self._accelerator.gather(torch.tensor([asked()], device=self._accelerator.device))
        return int(everyone.max())

    def _resume(self, total: int) -> tuple[int, float, float, int | None]:
        checkpoint = self._store.latest()
        if checkpoint is None:
            self._monitor.rewind(0)
            return 0, 0.0, 0.0, None
        if checkpoint.step > total:
            raise CheckpointError(f"{self._store.directory}: checkpoint of step {checkpoint.step}, the run has {total}")
        for name, part in self._parts.items():
            part.load_state_dict(checkpoint.state["parts"][name])
        self._monitor.rewind(checkpoint.step)
        state = checkpoint.state
        return checkpoint.step, float(state["seconds"]), float(state["watching"]), checkpoint.step

    def _checkpoint(self, step: int, seconds: float, watching: float) -> None:
        if self._accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            self._store.save(step, {"parts": state, "seconds": seconds, "watching": watching})
        self._accelerator.wait_for_everyone()
