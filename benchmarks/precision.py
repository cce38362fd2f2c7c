"""What mixed precision and clipping cost or save in a step of distillation.

    python -m benchmarks.precision [--rounds 40] [--seconds 180]

Steps of all arms take turns in one process on one thread: batches of 128 images of 1x28x28, labelled by the teacher at
each step, and the convnet and ResNet pairs of fashion_mnist.py, freshly initialised. A ratio is that of the
neighbouring steps in one round, over float32 without clipping; the results go to benchmarks/results/precision.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import torch

from benchmarks import common, pairs
from benchmarks.common import Row
from benchmarks.step import BATCH, SPEC, WARM_UP, Labelled
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import build_student
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.models.zoo import build
from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.settings import DistillSettings, ZooModel
from synthkd.settings.load import load_config

Precision = Literal["no", "bf16"]
PLAIN: tuple[Precision, bool] = ("no", False)
ARMS: tuple[tuple[Precision, bool], ...] = (PLAIN, ("no", True), ("bf16", False), ("bf16", True))
"""`precision` of a run ("no" is float32), and whether the gradient is clipped to a norm of 1."""
PAIRS = ("convnet", "resnet")
COLUMNS = "pair | precision | clip | ms a step, median | over fp32 without clip, median [quartiles]"


def step_of(pair: pairs.Pair, precision: Precision, clips: bool, rounds: int) -> DistillStep:
    """A step of fresh networks."""
    # It resets accelerate where the precision changes; a network that was prepared before keeps its own.
    accelerator = make_accelerator(TrainingConfig(precision=precision, device="cpu"))
    torch.manual_seed(0)
    teacher = build(load_config(ZooModel, pair.teacher["model"], []), SPEC)
    student = build(load_config(ZooModel, pair.student, []), SPEC)
    settings = load_config(DistillSettings, {"optimizer": {"clip": 1.0 if clips else None}}, [])
    frozen = FrozenTeacher(teacher, accelerator, ())
    built = build_student("student", student, settings, settings.optimizer, rounds, accelerator, None, teacher=frozen)
    return DistillStep([built], Labelled(frozen), accelerator)


def costs(name: str, rounds: int, until: float) -> list[Row]:
    """Median step of each arm, and its ratio to float32 without clipping; no round begins after `until`."""
    steps = {arm: step_of(pairs.PAIRS[name], *arm, rounds) for arm in ARMS}
    times: dict[tuple[Precision, bool], list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        if time.perf_counter() > until and number > WARM_UP + 2:
            break
        for arm, step in steps.items():
            started = time.perf_counter()
            step(number)
            times[arm].append(time.perf_counter() - started)
    plain = times[PLAIN][WARM_UP:]
    rows = []
    for (precision, clips), seconds in times.items():
        rows.append(
            {
                "pair": name,
                "precision": "fp32" if precision == "no" else precision,
                "clip": clips,
                "steps": len(plain),
                **common.relative_times(seconds[WARM_UP:], plain),
            }
        )
    return rows


def tables(content: Row) -> str:
    """A row for each arm."""
    rows = [
        [
            row["pair"],
            row["precision"],
            "yes" if row["clip"] else "no",
            f"{row['ms']:.1f}",
            common.between(row["ratio"], *row["quartiles"]),
        ]
        for row in content["rows"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the table."""
    parser = common.options("precision", __doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=180.0, help="about how long to measure at most")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    started = time.perf_counter()
    rows = []
    for number, name in enumerate(PAIRS, start=1):
        rows += costs(name, arguments.rounds, started + arguments.seconds * number / len(PAIRS))
    content: Row = {
        **common.environment("torch", "accelerate"),
        "threads": torch.get_num_threads(),
        "batch_size": BATCH,
        "most_seconds": arguments.seconds,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    common.save("precision", content)
    print(tables(content))


if __name__ == "__main__":
    main()
