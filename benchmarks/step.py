"""What a step of the student costs with further terms, over a step of plain KD.

    python -m benchmarks.step [--rounds 60]

Run it alone on the machine. Steps of all arms take turns in one process on one thread, each with a student, optimiser
and layers of its own: batches of 128 ready images of 1x28x28, the convnet teacher and student of fashion_mnist.py and
its ResNets, freshly initialised. Every arm's step labels its batch by the teacher, once. A ratio is that of the
neighbouring steps in one round; the results go to benchmarks/results/step.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import build_student
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.distillation.terms.auxiliary import auxiliary_layers
from synthkd.models.zoo import build
from synthkd.settings import DistillSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 28, 28, 10)
BATCH, WARM_UP = 128, 5
HINT, ATTENTION, RKD = {"kind": "hint"}, {"kind": "attention"}, {"kind": "rkd_distance"}
CRD = {"kind": "crd", "negatives": 0}
ARMS: dict[str, list[Row]] = {
    "plain KD": [],
    "hint": [HINT],
    "attention": [ATTENTION],
    "RKD, distances": [RKD],
    "hint, attention, RKD": [HINT, ATTENTION, RKD],
    "RKD, similarity, CRD": [RKD, {"kind": "similarity"}, CRD],
    "CRD": [CRD],
    "SSKD": [{"kind": "sskd"}],
}
COLUMNS = "pair | terms | ms a step, median | over plain KD, median [quartiles]"


class Labelled:
    """The same images at every step, labelled by the teacher as a run would."""

    def __init__(self, teacher: FrozenTeacher) -> None:
        generator = torch.Generator().manual_seed(0)
        self._images = torch.rand(BATCH, *SPEC.shape, generator=generator)
        self._labels = torch.arange(BATCH) % SPEC.classes
        self._teacher = teacher

    def draw(self, step: int) -> Batch:
        """The images, without logits."""
        return Batch(self._images, self._labels)

    def label(self, batch: Batch) -> Batch:
        """The images with the teacher's logits and features."""
        outputs = self._teacher(batch.images)
        return Batch(batch.images, batch.labels, outputs.logits, teacher_features=outputs.features)


def step_of(pair: pairs.Pair, terms: list[Row], rounds: int) -> DistillStep:
    """A step with the terms, of fresh networks."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    teacher = build(load_config(ZooModel, pair.teacher["model"], []), SPEC)
    student = build(load_config(ZooModel, pair.student, []), SPEC)
    settings = load_config(DistillSettings, {"transfer": terms}, [])
    layers = auxiliary_layers(settings, teacher, student, 0, "student")
    frozen = FrozenTeacher(teacher, accelerator, () if layers is None else layers.teacher_places)
    optimizer = settings.optimizer
    built = build_student("student", student, settings, optimizer, rounds, accelerator, layers, teacher=frozen)
    return DistillStep([built], Labelled(frozen), accelerator)


def costs(name: str, rounds: int) -> list[Row]:
    """Median step of each arm, and its ratio to plain KD."""
    steps = {arm: step_of(pairs.PAIRS[name], terms, rounds) for arm, terms in ARMS.items()}
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm, step in steps.items():
            started = time.perf_counter()
            step(number)
            times[arm].append(time.perf_counter() - started)
    plain = times["plain KD"][WARM_UP:]
    return [
        {"pair": name, "terms": arm, **common.relative_times(seconds[WARM_UP:], plain)}
        for arm, seconds in times.items()
    ]


def tables(content: Row) -> str:
    """A row for each arm."""
    rows = [
        [row["pair"], row["terms"], f"{row['ms']:.1f}", common.between(row["ratio"], *row["quartiles"])]
        for row in content["rows"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the table."""
    parser = common.options("step", __doc__)
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    rows = [row for name in ("convnet", "resnet") for row in costs(name, rounds)]
    content: Row = {"hardware": common.environment()["hardware"], "rows": rows}
    common.save("step", content)
    print(tables(content))


if __name__ == "__main__":
    main()
