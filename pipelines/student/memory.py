"""The memory that a distillation needs, told from trials on a few images before it starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch

from synthkd.data.bank import bank_bytes
from synthkd.distillation import phases
from synthkd.generators.build import build_generator
from synthkd.generators.settings import GeneratorSettings
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.memory import NOTHING, Memory, memory_lines, memory_of, round_need, taken_bytes
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.image_alarms import IMAGES, images_within
from synthkd.pipelines.student.transfer_set_builder import is_private, rounds_at_once
from synthkd.pipelines.student.trial import Trial
from synthkd.training.memory import TRIED, Need, need_of
from synthkd.types import earlier_bytes


def planned_lines(assembly: Assembly) -> tuple[str, ...]:
    """The lines of a plan about the memory of a run, of the parts of a dry run."""
    teacher = None if assembly.team is None else assembly.team.model
    return memory_lines(lambda: planned_memory(assembly.trial, assembly.batch.of_process, teacher))


def planned_memory(trial: Trial, batch_size: int, teacher: Classifier | None) -> Memory:
    """The memory that the run will need: what is taken now or by images that a generator stores, and what its parts
    need beside it.

    Steps of the students and a round of the generator are tried on 2 and on 4 images. They change students and bank, so
    this is for a dry run alone.

    Args:
        trial: of the run's parts, which are those of a dry run.
        batch_size: images of a batch in one process.
        teacher: the first, or None.

    Raises:
        TrainingError: a round fails. In a dry run a teacher may be untrained, so it says nothing about the run.
    """
    config, device = trial.config, trial.accelerator.device
    taken = taken_bytes(device)
    if device.type == "cpu":  # else they are not in the device's memory
        taken += earlier_bytes(trial.generator)
    with torch.random.fork_rng(devices=[]):
        student = need_of(_steps(trial), batch_size, device)
        generator, images_of_round = _round(trial, teacher)
    images, closing = _images(trial, images_of_round)
    generated, of_round = config.generated, "the rounds of the generator"
    key = config.key_of(generated or config.sources[0])
    bank = f"{key}.bank.capacity"
    if generated is not None and _batch_size(config):
        of_round = generated.generator_key("batch_size", key)
    parts = [("distill.batch_size", student), (of_round, generator), (bank, Need(0, closing))]
    return memory_of(device, taken, parts, {bank: images})


def _batch_size(config: DistillConfig) -> int:
    """Images of a round of the generator as its settings tell it, else 0."""
    return 0 if config.generated is None else getattr(config.generated.named, "batch_size", 0)


def _steps(trial: Trial) -> Callable[[int], Callable[[], None]]:
    """Prepares steps of the students on so many images, from the state in which they are now."""
    states = [copy.deepcopy(student.state_dict()) for student in trial.students]
    trial.learn(min(TRIED))  # an optimizer's first step of all has operations of its own

    def prepare(count: int) -> Callable[[], None]:
        for student, state in zip(trial.students, states, strict=True):
            student.load_state_dict(copy.deepcopy(state))
        return lambda: trial.learn(count)

    return prepare


def _round(trial: Trial, teacher: Classifier | None) -> tuple[Need, int]:
    """What a round needs and the number of its images, told from rounds of generators of the same kind with small
    batches. If the settings do not tell the number, a round of the generator itself is taken."""
    config = trial.config
    settings = None if config.generated is None else config.generated.named
    wanted = _batch_size(config)
    if settings is None or teacher is None or is_private(config):
        return NOTHING, wanted
    counts = []

    def round_of(few: GeneratorSettings) -> Callable[[], object]:
        own = few is settings
        of_one, at_once = (few, teacher, config.seed, trial.accelerator, trial.splits), _at_once(trial)
        generator = trial.generator if own else build_generator(*of_one, rounds_at_once=at_once)
        return lambda: counts.append(trial.generate(0, generator))

    need = round_need(settings, round_of, trial.accelerator.device)
    return need, wanted or counts[0]


def _at_once(trial: Trial) -> int:
    return rounds_at_once(trial.config, trial.accelerator.num_processes)


def _images(trial: Trial, images_of_round: int) -> tuple[int, int]:
    """Bytes of the images that the memory bank will hold, and of those that the alarms look at in the end."""
    spec, bank, generated = trial.spec, trial.bank, trial.config.generated
    if bank is None:
        return 0, 0
    settings, values = bank.settings if generated is None else generated.bank, math.prod(spec.shape)
    generated_images = phases.generator_rounds(trial.config.phases_and_extensions) * images_of_round
    new = min(generated_images, settings.capacity - len(bank))
    held = 0 if settings.storage == "disk" else new * (bank_bytes(spec, settings) // settings.capacity)
    ahead = _at_once(trial)
    held += 2 * ahead * images_of_round * 4 * values if ahead > 1 else 0  # rounds made ahead, and their exchange
    return held, 2 * 4 * values * images_within(min(IMAGES, len(bank) + new), values)
