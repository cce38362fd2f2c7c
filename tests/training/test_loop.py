"""The loop: what runs when, what is logged when, and that an interrupted run goes on as if nothing had happened."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from synthkd.errors import CheckpointError, TrainingError
from synthkd.training import loop
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.loop import Action, Loop, Signals, Stage
from synthkd.training.monitor import Monitor


class Tally:
    """A part whose state is the list of numbers it was given."""

    def __init__(self) -> None:
        self.numbers: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": list(self.numbers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.numbers = list(state["numbers"])


class Run:
    """One process' life of a run in a directory: a loop with one part."""

    def __init__(self, directory: Path, seed: int = 0, log_every: int = 100, checkpoint_every: int = 100) -> None:
        self.part = Tally()
        self.store = CheckpointStore(directory / "checkpoints")
        self.monitor = Monitor(directory)
        accelerator = Accelerator(cpu=True)
        self.loop = Loop(accelerator, {"part": self.part}, self.store, self.monitor, seed, log_every, checkpoint_every)

    def saved(self) -> tuple[int, list[float]]:
        """Step and content of the newest checkpoint."""
        checkpoint = self.store.latest()
        assert checkpoint is not None
        return checkpoint.step, checkpoint.state["parts"]["part"]["numbers"]

    def rows(self) -> list[dict[str, Any]]:
        """The logged numbers, without the times."""
        times = {"seconds", "watching"}
        return [{k: v for k, v in r.items() if k not in times} for r in self.monitor.rows() if "event" not in r]

    def events(self) -> list[tuple[int, str]]:
        return [(r["step"], r["event"]) for r in self.monitor.rows() if "event" in r]


def draw_into(run: Run, fail_at: int | None = None) -> Action:
    """Keeps one random number a step, and stops the run as a loss that is not finite does."""

    def draw(step: int) -> dict[str, float]:
        if step == fail_at:
            raise TrainingError(f"nan at {step}")
        number = float(torch.rand(()))
        run.part.numbers.append(number)
        return {"number": number}

    return Action("draw", draw)


def note_in(seen: list[int], every: int = 1) -> Action:
    """Keeps the steps it was called at."""

    def note(step: int) -> dict[str, float]:
        seen.append(step)
        return {}

    return Action("note", note, every)


def due(action: Action, steps: int) -> list[int]:
    return [step for step in range(steps) if action.due(step, steps)]


def test_an_action_is_due_first_or_after() -> None:
    def nothing(_: int) -> dict[str, float]:
        return {}

    assert due(Action("a", nothing), 4) == [0, 1, 2, 3]
    assert due(Action("a", nothing, every=3), 7) == [0, 3, 6]
    assert due(Action("a", nothing, every=3, after=True), 7) == [2, 5, 6], "and at the last step of the stage"
    assert due(Action("a", nothing, every=3, after=True), 6) == [2, 5], "which is not done twice"
    assert due(Action("a", nothing, every=10), 3) == [0]
    assert due(Action("a", nothing, every=10, after=True), 3) == [2]


def test_steps_are_those_of_the_run_and_intervals_those_of_the_stage(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[int], dict[str, float]]:
        def act(step: int) -> dict[str, float]:
            seen.append((name, step))
            return {}

        return act

    run = Run(tmp_path)
    stages = [
        Stage("first", 3, [Action("a", note("a"), every=2), Action("b", note("b"))]),
        Stage("empty", 0, [Action("never", note("never"))]),
        Stage("second", 4, [Action("c", note("c"), every=3, after=True), Action("a", note("a"), every=3)]),
    ]
    progress = run.loop.run(stages, "test")
    assert seen == [
        ("a", 0), ("b", 0), ("b", 1), ("a", 2), ("b", 2),
        ("a", 3), ("c", 5), ("c", 6), ("a", 6),
    ]  # fmt: skip
    assert (progress.steps, progress.resumed_from) == (7, None)
    assert run.events() == [(0, "first begins"), (3, "second begins")]


def test_rows_are_logged_at_intervals_at_the_end_and_when_somebody_watched(tmp_path: Path) -> None:
    run = Run(tmp_path, log_every=5)
    actions = [
        Action("learn", lambda step: {"loss": torch.tensor(float(step))}),
        Action("round", lambda step: {"round": float(step)}, every=6),
        Action("look", lambda step: {"seen": float(step)}, every=4, after=True),
        Action("silent", lambda _: {}, every=2, after=True),
    ]
    run.loop.run([Stage("work", 11, actions)], "test")
    assert run.rows() == [
        {"step": 4, "phase": "work", "loss": 3.0, "round": 0.0, "seen": 3.0},
        {"step": 5, "phase": "work", "loss": 4.0},
        {"step": 8, "phase": "work", "loss": 7.0, "round": 6.0, "seen": 7.0},
        {"step": 10, "phase": "work", "loss": 9.0},
        {"step": 11, "phase": "work", "loss": 10.0, "seen": 10.0},
    ]


def test_randomness_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    def numbers(name: str, seed: int, waste: int) -> list[float]:
        run = Run(tmp_path / name, seed)
        greedy = Action("waste", lambda _: {"wasted": float(torch.rand(waste).sum())}, every=2, after=True)
        torch.rand(waste)
        run.loop.run([Stage("draw", 4, [draw_into(run), greedy])], "test")
        return run.part.numbers

    plain = numbers("plain", 0, 0)
    assert numbers("greedy", 0, 7) == plain, "what was drawn before a step does not matter to it"
    assert len(set(plain)) == 4
    assert not set(numbers("other", 1, 0)) & set(plain)


def test_an_interrupted_run_goes_on_at_its_checkpoint_and_ends_the_same(tmp_path: Path) -> None:
    straight, first, second = (Run(tmp_path / n, log_every=1, checkpoint_every=3) for n in ("straight", "run", "run"))

    def stages(run: Run, fail_at: int | None = None) -> list[Stage]:
        return [Stage("first", 4, [draw_into(run, fail_at)]), Stage("second", 6, [draw_into(run, fail_at)])]

    straight.loop.run(stages(straight), "test")
    with pytest.raises(TrainingError, match="nan at 8"):
        first.loop.run(stages(first, fail_at=8), "test")
    assert [row["step"] for row in first.rows()] == list(range(1, 9))
    assert first.saved() == (6, straight.part.numbers[:6]), "the last checkpoint before the failure"

    seen: list[int] = []
    resumed = [Stage(stage.name, stage.steps, [note_in(seen), *stage.actions]) for stage in stages(second)]
    progress = second.loop.run(resumed, "test")
    assert (progress.steps, progress.resumed_from) == (10, 6)
    assert seen == [6, 7, 8, 9]
    assert second.part.numbers == straight.part.numbers
    assert second.saved() == straight.saved() == (10, straight.part.numbers)
    assert second.rows() == straight.rows(), "rows after the checkpoint are dropped and written anew"
    assert second.events() == [(0, "first begins"), (4, "second begins"), (6, "resumed from step 6")]


def test_intervals_of_a_resumed_stage_count_from_its_beginning(tmp_path: Path) -> None:
    def stages(run: Run, seen: list[int], fail_at: int | None = None) -> list[Stage]:
        second = [note_in(seen, every=3), draw_into(run, fail_at)]
        return [Stage("first", 2, [draw_into(run)]), Stage("second", 9, second)]

    first, second = Run(tmp_path, checkpoint_every=4), Run(tmp_path, checkpoint_every=4)
    seen: list[int] = []
    with pytest.raises(TrainingError):
        first.loop.run(stages(first, seen, fail_at=4), "test")
    assert seen == [2]
    second.loop.run(stages(second, seen), "test")
    assert seen == [2, 5, 8]


def test_a_run_that_is_done_does_nothing_more(tmp_path: Path) -> None:
    first, second = Run(tmp_path), Run(tmp_path)
    first.loop.run([Stage("draw", 3, [draw_into(first)])], "test")
    assert first.saved()[0] == 3, "a checkpoint at the end, whatever the interval"
    progress = second.loop.run([Stage("draw", 3, [draw_into(second, fail_at=0)])], "test")
    assert (progress.steps, progress.resumed_from) == (3, 3)
    assert second.part.numbers == first.part.numbers


def test_a_checkpoint_beyond_the_end_is_refused(tmp_path: Path) -> None:
    first, second = Run(tmp_path), Run(tmp_path)
    first.loop.run([Stage("draw", 5, [draw_into(first)])], "test")
    with pytest.raises(
        CheckpointError, match="checkpoints: checkpoint of step 5, and the run has 4: another out= begins anew"
    ):
        second.loop.run([Stage("draw", 4, [draw_into(second)])], "test")
    assert second.part.numbers == []
    assert second.saved() == (5, first.part.numbers)
    assert [row["step"] for row in second.rows()] == [5], "the log is not rewound either"


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    first, second = Run(tmp_path), Run(tmp_path)
    first.loop.run([Stage("draw", 5, [draw_into(first)])], "test")
    later = replace(second.loop, state={**second.loop.state, "rounds": second.part})
    with pytest.raises(CheckpointError, match="the checkpoint of step 5 has no rounds"):
        later.run([Stage("draw", 9, [draw_into(second)])], "test")


def test_seconds_add_up_over_the_lives_of_a_run(tmp_path: Path) -> None:
    def stages(run: Run, steps: int) -> list[Stage]:
        return [Stage("draw", steps, [draw_into(run), Action("look", lambda _: {"seen": 1.0}, every=2, after=True)])]

    first, second = Run(tmp_path), Run(tmp_path)
    first.loop.run(stages(first, 2), "test")
    checkpoint = first.store.latest()
    assert checkpoint is not None
    first.store.save(2, {**checkpoint.state, "seconds": 1000.0, "watching": 300.0})  # as if it had taken so long

    progress = second.loop.run(stages(second, 4), "test")
    assert progress.evaluation_seconds >= 300.0
    assert progress.seconds >= 700.0, "without what was spent on watching"
    assert progress.seconds + progress.evaluation_seconds >= 1000.0
    checkpoint = second.store.latest()
    assert checkpoint is not None
    assert checkpoint.state["seconds"] >= 1000.0, "so that a third life knows it too"
    assert checkpoint.state["watching"] >= 300.0


def test_rows_of_a_watched_step_alone_tell_the_seconds_of_watching(tmp_path: Path) -> None:
    run = Run(tmp_path, log_every=1)
    look = Action("look", lambda _: {"seen": 1.0}, every=2, after=True)
    run.loop.run([Stage("draw", 4, [draw_into(run), look])], "test")
    steps, seconds = run.monitor.series("watching")
    assert steps == [2, 4]
    assert 0.0 <= seconds[0] <= seconds[1]


def test_processes_ask_for_signals_after_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, own = [0.0], [0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loop, "pending_signal", lambda: own[0])

    class Two:
        """Two processes, of which the other one takes twice as long for a step."""

        num_processes, device = 2, torch.device("cpu")
        other = 0

        def gather(self, value: torch.Tensor) -> torch.Tensor:
            asked.append(round(64 * clock[0]) - 1)
            return torch.cat([value, torch.tensor([[float(self.other), 2 * float(value[0, 1])]])])

    asked: list[int] = []
    processes: Any = Two()
    signals = Signals(processes)
    for _ in range(60):
        clock[0] += 1 / 64
        assert signals.pending() == 0
    assert asked[:5] == [0, 2, 6, 12, 18], "twice as many steps each time, up to 0.2 s of the slower process"
    processes.other = 15
    found = []
    for _ in range(7):
        clock[0] += 1 / 64
        found.append(signals.pending())
    assert set(found) == {0, 15}, "the signal of the other process, within the interval"
    for _ in range(100):
        clock[0] += 1 / 1024
        signals.pending()
    before = len(asked)
    for _ in range(Signals.MOST + 4):
        clock[0] += 100.0
        signals.pending()
    assert len(asked) - before > 4, "slow steps after quick ones are asked about soon, and then one by one"
    clock[0] += 1 / 64
    signals.pending()
    assert signals.pending(ask=True) == 15, "whoever must know asks at once"
    processes.num_processes, own[0] = 1, 2
    assert signals.pending() == 2, "one process asks nobody"
