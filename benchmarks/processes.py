"""Several processes beside one: distilling a student, filling a memory bank, sampling a dataset, scoring it.

    python -m benchmarks.processes --cifar10 FILE --teachers DIR [--work convnet cifar10 ...] [--root FOLDER]

Run it alone on the machine: each process computes in one thread. `convnet` is the recipe fashion_mnist with a finished
teacher and fewer steps, `cifar10` the recipe of that name with the generator inversion. `bank` is rounds of the
generator of `cifar10`, with one step of the student. Several processes run these with `sync` exact or fast. `wide` is
`convnet` with `sync: fast`, as many times the batch in as many times fewer steps, and with more rounds: as many times
more before the student, and half as many again beside it. `sample` draws a dataset from the generator that `convnet`
has left, and `score` scores it against the real training images, with features of the teacher. The seconds of the work
are those of its result.json: the training of the student, or the whole job. Those of the command begin with the start
of its first process. A cell is run anew each time.

FILE is a .npz with the images of CIFAR-10; DIR has resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10. FOLDER has
Fashion-MNIST. Cells go to benchmarks/results/processes.json after each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common, pairs
from benchmarks.common import Row

RUNS = common.RUNS / "processes"
WORKS = ("convnet", "cifar10", "bank", "sample", "score")
TRAINING = ("convnet", "cifar10", "bank")
INVERSION = (
    "transfer_set.generator={kind: inversion, adversarial: 10}",
    "mix.mixup=0.8",
    "phases=[{kind: pregenerate, rounds: 14, discard: 7}, {kind: joint, steps: 2000, every: 10}]",
)
"""The generator of the work `cifar10`, of which each process can make rounds of its own."""
STEPS = {"convnet": 2000, "cifar10": 400, "bank": 1}
"""Of the student."""
ROUNDS = 100
"""Of the generator, for the bank."""
COLUMNS = "work | processes | sync | seconds of the work | times as fast as one | seconds of the command | result"
WIDE = "wide"
WAYS = ("", "exact", "fast", WIDE)
BATCH, EVERY, BEFORE = 64, 24, 14
"""Of the recipe fashion_mnist: images of a step, steps between rounds, and rounds before the student."""
Key = tuple[str, int, str]
"""Work, number of processes, and sync or `WIDE`; empty where there is nothing to choose."""


def keys(works: Sequence[str]) -> list[Key]:
    """One process, then several in each way."""
    several = {
        "convnet": [(2, "exact"), (2, "fast"), (2, WIDE)],
        "cifar10": [(2, "exact"), (2, "fast"), (4, "fast")],
        "bank": [(2, "exact"), (2, "fast"), (4, "fast")],
        "sample": [(2, ""), (4, "")],
        "score": [(2, ""), (4, "")],
    }
    return [(work, *way) for work in works for way in ((1, ""), *several[work])]


def words(key: Key, out: Path, arguments: Any) -> list[str]:
    """The command line of a piece of work."""
    work, count, sync = key
    if work in TRAINING:
        phases = [f"phases.0.rounds={ROUNDS}"] if work == "bank" else []
        phases += [f"phases.1.steps={STEPS[work]}", f"out={out}", "evaluate_every=1000000"]
        phases += [f"sync={sync or 'exact'}"] if sync != WIDE else wide(count)
        if work == "convnet":
            teacher = f"teacher={{kind: load, model: {pairs.teacher_of('convnet')}}}"
            return ["distill", "fashion_mnist", teacher, f"test.root={arguments.root}", *phases]
        teacher = f"teacher.weights={arguments.teachers}/resnet20-12fca82f.th"
        return ["distill", "cifar10", teacher, f"test={{kind: npz, path: {arguments.cifar10}}}", *INVERSION, *phases]
    if work == "sample":
        return ["generate", f"run={place(('convnet', 1, ''))}", f"per_class={arguments.per_class}", f"out={out}"]
    real = f"real={{data: {{kind: fashion_mnist, root: {arguments.root}, holdout: 0.0}}, split: train}}"
    teacher = f"teacher={{kind: load, model: {pairs.teacher_of('convnet')}}}"
    return ["evaluate", str(place(("sample", 1, ""))), real, teacher, "features.kind=teacher", f"out={out}"]


def wide(count: int) -> list[str]:
    """What `convnet` changes in so many processes, of which each passes as many images in a step as one alone."""
    rounds = [f"phases.0.rounds={BEFORE * count}", f"phases.0.discard={BEFORE * count // 2}"]
    steps = [f"phases.1.steps={STEPS['convnet'] // count}", f"phases.1.every={EVERY * 2 // 3 // count}"]
    return ["sync=fast", f"distill.batch_size={BATCH * count}", *rounds, *steps]


def place(key: Key) -> Path:
    """Run directory of a cell."""
    return RUNS / "-".join(str(part) for part in key if part)


def cell(key: Key, arguments: Any) -> Row:
    """Run a command anew and time it."""
    work, processes, sync = key
    out = place(key)
    shutil.rmtree(out, ignore_errors=True)
    line = words(key, out, arguments)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(several if processes > 1 else []), "-m", "synthkd", *line]
    started = time.perf_counter()
    subprocess.run(start, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=common.ROOT)
    seconds, values = time.perf_counter() - started, common.result_of(out)
    return {
        "work": work,
        "processes": processes,
        "sync": sync,
        "seconds": values["cost"]["seconds"]["distill"] if work in TRAINING else values["seconds"],
        "command": round(seconds, 1),
        "result": outcome(work, values),
        **common.environment("torch"),
    }


def outcome(work: str, values: Row) -> str:
    """What the work gave, in a few words: the same for any number of processes, but for `fast`."""
    if work in ("convnet", "cifar10"):
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
    alone = {one["work"]: one["seconds"] for one in cells if one["processes"] == 1}
    rows = []
    for one in cells:
        ratio = f"{alone[one['work']] / one['seconds']:.2f}" if one["processes"] > 1 and one["work"] in alone else ""
        seconds = f"{one['seconds']:.1f}", ratio, f"{one['command']:.1f}"
        rows.append([one["work"], str(one["processes"]), one["sync"], *seconds, one["result"]])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cells, write them after each, and print the table."""
    parser = common.options("processes", __doc__)
    parser.add_argument("--work", nargs="*", default=list(WORKS), choices=WORKS)
    parser.add_argument("--per-class", type=int, default=5000, help="images of each class to sample")
    parser.add_argument("--cifar10", required=True, help="the .npz file of CIFAR-10")
    parser.add_argument("--teachers", required=True, help="folder of the public teachers")
    pairs.add_root(parser)
    arguments = parser.parse_args(argv)
    pairs.DATA["root"] = arguments.root
    cells = common.collect(
        "processes",
        keys(arguments.work),
        lambda key: cell(key, arguments),
        lambda one: (WORKS.index(one["work"]), one["processes"], WAYS.index(one["sync"])),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
