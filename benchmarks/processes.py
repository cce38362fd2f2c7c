"""Two processes beside one: distilling a student, filling a memory bank, sampling a dataset, scoring it.

    python -m benchmarks.processes [--work distill bank ...] [--processes 1 2] [--root FOLDER]

Run it alone on the machine: each process computes in one thread. The teacher is the convnet of Fashion-MNIST. `distill`
is the recipe fashion_mnist with fewer steps, with `sync` exact and fast. `bank` is rounds of its generator alone, with
one step of the student. `sample` draws a dataset from the finished generator of one process, and `score` scores it
against the real training images, with features of the teacher. The seconds of the work are those of its result.json:
the training of the student, or the whole job. Those of the command begin with the start of its first process. A cell is
run anew each time.

FOLDER has Fashion-MNIST. Cells go to benchmarks/results/processes.json after each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import common, pairs
from benchmarks.common import Row

RUNS = common.RUNS / "processes"
WORKS = ("distill", "distill, fast", "bank", "sample", "score")
TRAINING = ("distill", "distill, fast", "bank")
STEPS, ROUNDS, PER_CLASS = 3000, 300, 5000
COLUMNS = "work | processes | seconds of the work | times as fast as one | seconds of the command | result"


def words(work: str, out: Path, arguments: Any) -> list[str]:
    """The command line of a piece of work."""
    first = RUNS / "distill-1"
    if work in TRAINING:
        given = [f"teacher={{kind: load, model: {pairs.teacher_of('convnet')}}}", f"test.root={arguments.root}"]
        sync = "sync=fast" if work.endswith("fast") else "sync=exact"
        rounds = f"{{kind: pregenerate, rounds: {arguments.rounds}}}"
        phases = (
            f"phases=[{rounds}, {{kind: refine, steps: 1}}]" if work == "bank" else f"phases.1.steps={arguments.steps}"
        )
        return ["distill", "fashion_mnist", *given, phases, sync, f"out={out}"]
    if work == "sample":
        return ["generate", f"run={first}", f"per_class={arguments.per_class}", f"out={out}"]
    real = f"real={{data: {{kind: fashion_mnist, root: {arguments.root}, holdout: 0.0}}, split: train}}"
    teacher = f"teacher={{kind: load, model: {pairs.teacher_of('convnet')}}}"
    return ["evaluate", str(RUNS / "sample-1"), real, teacher, "features.kind=teacher", f"out={out}"]


def cell(work: str, processes: int, arguments: Any) -> Row:
    """Run a command anew and time it."""
    out = RUNS / f"{work.replace(', ', '-')}-{processes}"
    shutil.rmtree(out, ignore_errors=True)
    line = words(work, out, arguments)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(several if processes > 1 else []), "-m", "synthkd", *line]
    started = time.perf_counter()
    subprocess.run(start, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=common.ROOT)
    seconds, values = time.perf_counter() - started, common.result_of(out)
    return {
        "work": work,
        "processes": processes,
        "seconds": values["cost"]["seconds"]["distill"] if work in TRAINING else values["seconds"],
        "command": round(seconds, 1),
        "result": outcome(work, values),
        "hardware": common.environment(),
    }


def outcome(work: str, values: Row) -> str:
    """What the work gave, in a few words: the same for any number of processes, but for `fast`."""
    if work.startswith("distill"):
        return f"accuracy {100 * values['student']['accuracy']:.2f} %"
    if work == "bank":
        return f"{values['cost']['images_generated']:,} images"
    if work == "sample":
        return f"{values['dataset']['count']:,} images, digest {values['dataset']['content'][:8]}"
    scores = {one["name"]: one["value"] for one in values["generated"][0]["scores"]}
    return f"FD {scores['FD-teacher']:.6g}, precision {scores['precision-teacher']:.6g}"


def tables(content: Row) -> str:
    """Each work with its ratio to one process."""
    cells = content["cells"]
    alone = {one["work"].partition(",")[0]: one["seconds"] for one in cells if one["processes"] == 1}
    rows = []
    for one in cells:
        base = alone.get(one["work"].partition(",")[0])
        ratio = "" if base is None or one["processes"] == 1 else f"{base / one['seconds']:.2f}"
        seconds = f"{one['seconds']:.1f}", ratio, f"{one['command']:.1f}"
        rows.append([one["work"], str(one["processes"]), *seconds, one["result"]])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cells, write them after each, and print the table."""
    parser = common.options("processes", __doc__)
    parser.add_argument("--work", nargs="*", default=list(WORKS), choices=WORKS)
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the student")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the generator, for the bank")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="images of each class to sample")
    pairs.add_root(parser)
    arguments = parser.parse_args(argv)
    pairs.DATA["root"] = arguments.root
    keys = [key for key in product(arguments.work, arguments.processes) if key != ("distill, fast", 1)]
    cells = common.collect(
        "processes",
        keys,
        lambda key: cell(*key, arguments),
        lambda one: (WORKS.index(one["work"]), one["processes"]),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
