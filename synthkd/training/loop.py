"""The training loop shared by teachers, generators and students.

A run is a list of stages; a stage is a number of steps and the actions due at them. The loop resumes, seeds each step,
writes checkpoints and the log, and updates the display.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.rng import derive
from synthkd.system.stopping import Stopped, defer_signals, pending_signal
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.display import Display
from synthkd.training.monitor import Monitor
from synthkd.types import Stateful

Values = Mapping[str, Tensor | float]
"""Name -> number for the log; a tensor holds one element."""


@dataclass(frozen=True)
class Action:
    """A named part of the steps of a stage.

    Attributes:
        name: of the action, e.g. "learn".
        run: takes the 0-based step of the whole run and returns the numbers to log.
        every: the action is due at steps 0, every, 2 * every, ... of its stage.
        after: True for an evaluation: it is due at the last step of each interval of `every` steps and at the last step
            of the stage, and its seconds are counted apart.
        at_once: log the returned numbers at this step instead of at the end of the log interval; implied by `after`.
    """

    name: str
    run: Callable[[int], Values]
    every: int = 1
    after: bool = False
    at_once: bool = False

    def due(self, step: int, steps: int) -> bool:
        """Whether the action runs at the 0-based `step` of its stage of `steps`."""
        if self.after:
            return (step + 1) % self.every == 0 or step + 1 == steps
        return step % self.every == 0


@dataclass(frozen=True)
class Stage:
    """A phase of a run: `steps` steps, at each of which the due actions run in order."""

    name: str
    steps: int
    actions: Sequence[Action]


def at_first_steps(name: str, log: Callable[[int], Values], stages: Sequence[Stage]) -> list[Stage]:
    """The stages with one more action, before all others, at the first step of each.

    What a run has to log once belongs here: an event before the loop would make the loop take the run for a resumed
    one. A run that was killed before its first checkpoint begins again, so `log` must look for its event in the log.

    Args:
        name: of the action.
        log: the action; it gets the step.
        stages: of the training.
    """
    return [replace(stage, actions=[Action(name, log, max(1, stage.steps)), *stage.actions]) for stage in stages]


@dataclass(frozen=True)
class Progress:
    """Steps and seconds of a finished training.

    Attributes:
        steps: steps of the run, those before a resume included.
        resumed_from: step of the checkpoint that the run was resumed from, or None.
        seconds: wall time without evaluations, summed over all processes of the run up to their last checkpoint.
        evaluation_seconds: wall time of the actions with `after`, summed likewise.
    """

    steps: int
    resumed_from: int | None
    seconds: float
    evaluation_seconds: float


@dataclass
class _Clock:
    """Seconds of a run: `earlier` up to the checkpoint from which it resumes, and the seconds since `start`.

    `evaluation` is the part of both in evaluations.
    """

    earlier: float = 0.0
    evaluation: float = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def total(self) -> float:
        return self.earlier + time.perf_counter() - self._started


class Signals:
    """Tells whether a signal asks the run to stop: the same in every process, whichever of them received it.

    A process that stopped alone would leave the others waiting for it in their next exchange. Asking is an exchange
    too, which quick steps would feel, so several processes ask about every `BETWEEN` seconds, and after `MOST` steps at
    the latest, since a step may take longer than those before it.

    Args:
        accelerator: the processes.
    """

    BETWEEN = 0.2
    MOST = 16

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._every = self._left = 1
        self._asked = time.perf_counter()

    def pending(self, ask: bool = False) -> int:
        """The signal, or 0; called after every step.

        Args:
            ask: ask now in any case, as at a checkpoint and at the last step.
        """
        if self._accelerator.num_processes == 1:
            return pending_signal()
        self._left -= 1
        if self._left > 0 and not ask:
            return 0
        steps = self._every - self._left
        now = time.perf_counter()
        own = torch.tensor([[pending_signal(), now - self._asked]], device=self._accelerator.device)
        # By the slowest process, so that all of them ask again after the same step.
        signum, seconds = self._accelerator.gather(own).amax(0).tolist()
        # At most twice as many steps as before: the first ones may be slower than the rest, or quicker.
        fitting = int(steps * self.BETWEEN / max(seconds, 1e-6))
        self._every = self._left = max(1, min(2 * steps, fitting, self.MOST))
        self._asked = time.perf_counter()
        return int(signum)


@dataclass(frozen=True)
class Loop:
    """Runs stages, and resumes them from the newest checkpoint.

    Before each step torch's global generator is seeded with a function of (seed, step), so that a module that draws
    from it (dropout) behaves the same in a resumed run.

    Attributes:
        accelerator: device, processes and trackers.
        state: name -> object whose state goes into checkpoints.
        store: the checkpoints of the run.
        monitor: the log of the run.
        seed: the run's seed.
        log_every: steps between log rows.
        checkpoint_every: steps between checkpoints; one more is written at the end.
        headline: names of the logged numbers that the display shows.
    """

    accelerator: Accelerator
    state: Mapping[str, Stateful]
    store: CheckpointStore
    monitor: Monitor
    seed: int
    log_every: int
    checkpoint_every: int
    headline: Sequence[str] = ()

    @defer_signals()
    def run(self, stages: Sequence[Stage], title: str) -> Progress:
        """Run the stages to their end and return the time they took.

        Args:
            stages: the phases of the run, in order.
            title: name of the run in the display.

        Raises:
            CheckpointError: the newest checkpoint is of a later step than the last.
            TrainingError: a loss or a state that is not finite; earlier checkpoints stay.
            Stopped: on a signal; the current step is finished and has a checkpoint.
        """
        total = sum(stage.steps for stage in stages)
        clock = _Clock()
        resumed_from = self._resume(total, clock)
        # No process may write a checkpoint before every process has read the newest one.
        self.accelerator.wait_for_everyone()
        clock.start()
        # The newest value of each name since the last row of the log.
        latest: dict[str, Tensor | float] = {}
        begin = 0
        with Display(total, title, enabled=self.accelerator.is_main_process) as display:
            if resumed_from is not None:
                display.message(f"resumed after step {resumed_from}")
            for stage in stages:
                signals = Signals(self.accelerator)  # the steps of a stage take other times than those before
                # A stage that was finished before the resume has an empty range here.
                for step in range(max(resumed_from or 0, begin), begin + stage.steps):
                    if step == begin:  # not in a stage that a resume entered in its middle: its row is in the log
                        self.monitor.event(step, f"{stage.name} begins", kind="phase", phase=stage.name)
                    log = self._act(stage, step, begin, latest, clock, display)
                    save = (step + 1) % self.checkpoint_every == 0 or step + 1 == total
                    signum = signals.pending(ask=save)
                    save |= signum != 0
                    # The log comes before the checkpoint: a run resumed from it cannot measure these numbers again.
                    if log or save or (step + 1) % self.log_every == 0:
                        self._log(stage, step + 1, latest, display)
                    if save:
                        self._checkpoint(step + 1, clock)
                    if signum:
                        raise Stopped(signum, step + 1)
                begin += stage.steps
        return Progress(total, resumed_from, clock.total() - clock.evaluation, clock.evaluation)

    def _act(
        self,
        stage: Stage,
        step: int,
        begin: int,
        latest: dict[str, Tensor | float],
        clock: _Clock,
        display: Display,
    ) -> bool:
        """Run the due actions of a step and collect their numbers in `latest`; returns whether to log these at once."""
        torch.manual_seed(derive(self.seed, "global", step))
        log = evaluated = False
        for action in stage.actions:
            # Intervals count from the beginning of the stage, in a resumed run too.
            if not action.due(step - begin, stage.steps):
                continue
            if action.after:
                display.busy(step + 1, f"{stage.name}, {action.name}")
            started = time.perf_counter()
            values = action.run(step)
            latest.update(values)
            log |= bool(values) and (action.after or action.at_once)
            if action.after:
                # Apart, since the time of a training must not depend on how often it is evaluated.
                clock.evaluation += time.perf_counter() - started
                evaluated |= bool(values)
        if evaluated:
            latest["watching"] = clock.evaluation
        return log

    def _log(self, stage: Stage, step: int, latest: dict[str, Tensor | float], display: Display) -> None:
        """Write `latest` to log and display, and empty it."""
        row = {name: float(value) for name, value in latest.items()}
        latest.clear()
        self.monitor.log(step, row, stage.name)
        display.update(step, stage.name, {name: row[name] for name in self.headline if name in row})

    def _resume(self, total: int, clock: _Clock) -> int | None:
        """Restore the newest checkpoint and drop the log rows after it; returns its step, None without a checkpoint."""
        checkpoint = self.store.latest()
        if checkpoint is None:
            self.monitor.rewind(0)
            return None
        if checkpoint.step > total:
            raise CheckpointError(
                f"{self.store.directory}: checkpoint of step {checkpoint.step}, and the run has {total}: another out= "
                "begins anew"
            )
        for name, part in self.state.items():
            if name not in checkpoint.state["parts"]:
                raise CheckpointError(
                    f"{self.store.directory}: the checkpoint of step {checkpoint.step} has no {name}, so another "
                    "version of synthkd began this run: finish it with that version, or choose another out="
                )
            part.load_state_dict(checkpoint.state["parts"][name])
        clock.earlier, clock.evaluation = float(checkpoint.state["seconds"]), float(checkpoint.state["watching"])
        # Last, so that the log stays as it is if the state cannot be restored.
        self.monitor.rewind(checkpoint.step)
        return checkpoint.step

    def _checkpoint(self, step: int, clock: _Clock) -> None:
        # The main process alone writes; every process reads its files on a resume.
        if self.accelerator.is_main_process:
            parts = {name: part.state_dict() for name, part in self.state.items()}
            self.store.save(step, {"parts": parts, "seconds": clock.total(), "watching": clock.evaluation})
        self.accelerator.wait_for_everyone()
