"""The memory that a distillation needs, told from trials on a few images before it starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from synthkd.distillation import phases
from synthkd.errors import TrainingError
from synthkd.generators.build import build_generator
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.student.image_alarms import IMAGES, images_within
from synthkd.pipelines.student.transfer_set_builder import is_private
from synthkd.pipelines.student.trial import Trial
from synthkd.system.hardware import memory_bytes, resident_bytes
from synthkd.system.resources import size
from synthkd.training.memory import TRIED, Need, need_of, trim_heap

WORKSPACE = 1.4
"""Factor on the tensors of a pass: workspaces of convolutions, and what lies between freed blocks."""
NOTHING = Need(0, 0)
STEPS = 2
"""Steps of a generator's round in a trial; further ones need no more memory."""


@dataclass(frozen=True)
class Memory:
    """The planned memory of a run, in bytes.

    Attributes:
        total: at its peak.
        available: of the machine, or of the GPU.
        remedy: what makes it smaller.
    """

    total: int
    available: int
    remedy: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of a plan."""
        line = f"  memory: about {size(self.total)} at its peak; there are {size(self.available)}"
        if self.total <= self.available:
            return (line,)
        return (line, f"  warning: the run does not fit the memory; {self.remedy}")


def planned_memory(config: DistillConfig, trial: Trial, batch_size: int, teacher: Classifier | None) -> Memory:
    """The memory that the run will need: what is taken now, and what its parts need beside it.

    Steps of the students and a round of the generator are tried on 2 and on 4 images. They change students and bank, so
    this is for a dry run alone.

    Args:
        config: of the run.
        trial: of its parts, which are those of a dry run.
        batch_size: images of a batch in one process.
        teacher: the first, or None.
    """
    device = trial.accelerator.device
    images, closing = _images(config, trial)
    trim_heap()
    taken = int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else resident_bytes()
    with torch.random.fork_rng(devices=[]), suppress(TrainingError):
        student = need_of(_steps(trial), batch_size, device)
        generator = _round(config, trial, teacher)
    students_free, generators_free = student.peak - student.lasting, generator.peak - generator.lasting
    passes = max(students_free, generators_free, closing)
    total = taken + student.lasting + generator.lasting + images + int(WORKSPACE * passes)
    key = "transfer_set.generator.batch_size" if generators_free > students_free else "distill.batch_size"
    remedy = "make transfer_set.bank.capacity smaller" if images > passes else f"make {key} smaller"
    return Memory(total, memory_bytes(device), remedy)


def _steps(trial: Trial) -> Callable[[int], Callable[[], None]]:
    """Prepares steps of the students on so many images, from the state in which they are now."""
    states = [copy.deepcopy(student.state_dict()) for student in trial.students]
    trial.learn(min(TRIED))  # an optimizer's first step of all has operations of its own

    def prepare(count: int) -> Callable[[], None]:
        for student, state in zip(trial.students, states, strict=True):
            student.load_state_dict(copy.deepcopy(state))
        return lambda: trial.learn(count)

    return prepare


def _round(config: DistillConfig, trial: Trial, teacher: Classifier | None) -> Need:
    """What a round needs, told from rounds of generators of the same kind with small batches."""
    settings = None if config.generated is None else config.generated.named
    wanted = getattr(settings, "batch_size", None)
    if settings is None or teacher is None or wanted is None or is_private(config):
        return NOTHING

    def prepare(count: int) -> Callable[[], None]:
        few = {"batch_size": count}
        if hasattr(settings, "real_batch"):  # in proportion
            few["real_batch"] = max(2, round(count * settings.real_batch / wanted))
        if hasattr(settings, "steps"):
            few["steps"] = min(STEPS, settings.steps)
        small = settings.model_copy(update=few)
        generator = build_generator(small, teacher, config.seed, trial.accelerator, trial.splits)
        return lambda: trial.generate(0, generator)

    return need_of(prepare, wanted, trial.accelerator.device)


def _images(config: DistillConfig, trial: Trial) -> tuple[int, int]:
    """Bytes of the images that the memory bank will hold, and of those that the alarms look at in the end."""
    spec, bank = trial.spec, trial.bank
    if bank is None:
        return 0, 0
    values = math.prod(spec.shape)
    generated_images = 0
    if config.generated is not None:
        generated_images = phases.generator_rounds(config.phases)
        generated_images *= getattr(config.generated.generator, "batch_size", 0)
    new = min(generated_images, bank.settings.capacity - len(bank))
    held = 0 if bank.settings.storage == "disk" else new * (bank.nbytes // bank.settings.capacity)
    return held, 2 * 4 * values * images_within(min(IMAGES, len(bank) + new), values)
