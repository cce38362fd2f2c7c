"""The time of a whole compression: its flow as a dry run measures it, times what search and audit repeat of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from synthkd.compression.proxy import ENERGY_SECONDS
from synthkd.compression.space import Range, space_of
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Student
from synthkd.metrics.utility import predict
from synthkd.models import Classifier, build_model, parameters
from synthkd.models.cost import cost
from synthkd.pipelines.config import CompressConfig, DistillConfig
from synthkd.pipelines.handover.attack import CONTROL
from synthkd.pipelines.handover.search import HELD_OUT, SHARE
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.timing import PlannedTime, Timed, Work, about, measured
from synthkd.pipelines.student.assembly import Assembly, assemble
from synthkd.pipelines.student.teachers import TEACHER_STEPS, untrained_teacher
from synthkd.pipelines.student.trial import noise_dataset
from synthkd.settings import SearchSettings, TrainedTeacher, ZooModel
from synthkd.training.learner import Learner


def whole_time(config: CompressConfig, inner: DistillConfig, flow: PlannedTime) -> PlannedTime:
    """The time of a compression with search and audit, with the line of a plan about it.

    Args:
        config: of the compression, with `search` or `audit`.
        inner: its distillation.
        flow: the measured time of one teacher and one student.

    Raises:
        SynthkdError: a candidate's step fails on noise.
    """
    started, settings, parts, words = time.perf_counter(), config.search, [*flow.timed], [f"flow {about(flow.seconds)}"]
    if settings is not None:
        assert config.teacher is not None
        searched = _search(inner, settings, untrained_teacher(config.teacher, config), flow.timed)
        parts += searched
        steps = f"{settings.candidates:,} candidates of {settings.steps:,} steps"
        words.append(f"search {about(_sum(searched))} for {steps}")
    if config.audit is not None:
        runs = config.audit.references + 1
        audited = [Timed("further runs of the flow", runs, flow.seconds), *_control(config, flow.timed)]
        parts += audited
        words.append(f"audit {about(_sum(audited))} for {runs} further runs of the flow and a control")
    line = f"  time: about {about(_sum(parts))} ({', '.join(words)}), without the exports"
    line += f", measured in {about(time.perf_counter() - started)} more" if settings is not None else ""
    return PlannedTime(tuple(parts), line)


def _sum(timed: Sequence[Timed]) -> float:
    return sum(one.count * one.seconds for one in timed)


def _control(config: CompressConfig, flow: Sequence[Timed]) -> list[Timed]:
    """The teacher that memorises its images, told from the measured steps of the teacher with their own batch."""
    assert isinstance(config.teacher, TrainedTeacher)
    images = CONTROL.batch_size / config.teacher.training.batch_size
    steps = [one for one in flow if one.name == TEACHER_STEPS]
    return [Timed("steps of the control", CONTROL.steps, images * one.seconds) for one in steps]


def _search(config: DistillConfig, settings: SearchSettings, teacher: Classifier, flow: Sequence[Timed]) -> list[Timed]:
    """The works of a search: rounds of the generator as in the flow, and candidates in the middle of each range."""
    assembly = assemble(config, [teacher], make_accelerator(config), None)
    rounds = [one for one in flow if one.name.startswith("rounds")][:1]
    generated = assembly.transfer_set.generated
    images = (None if generated is None else generated.rounds.images) or HELD_OUT
    needed = settings.rounds + math.ceil(HELD_OUT / images)
    images_first = [Timed("rounds of the search", needed, one.seconds) for one in rounds]
    return [*images_first, *measured(_candidates(assembly, settings, teacher))]


def _candidates(assembly: Assembly, settings: SearchSettings, teacher: Classifier) -> list[Work]:
    config, accelerator = assembly.config, assembly.trial.accelerator
    subject, batch = assembly.subject, assembly.batch.images
    space = space_of(settings, subject.spec, parameters(teacher) // SHARE)
    with torch.random.fork_rng(devices=[]):
        names = subject.class_names
        models = [build_model(_middle(one), subject.spec, subject.mean, subject.std, names) for one in space.ranges]
    source = noise_dataset(config, subject.spec, assembly.team, accelerator.device, batch)
    steps = []
    for model in models:
        learner = Learner("candidate", model, config.distill.optimizer, settings.steps, accelerator)
        steps.append(DistillStep([Student(learner, config.distill, accelerator)], source, accelerator))
    held_out = torch.rand(HELD_OUT, *subject.spec.shape)
    count = min(settings.candidates, len(space))

    def score(where: float) -> None:
        model = models[int(where * len(models))]
        cost(model, accelerator.device, threads=config.threads, energy_seconds=ENERGY_SECONDS)
        predict(model, held_out, accelerator.device)

    return [
        Work("scores of candidates", count, score, listed=False),
        Work("steps of candidates", count * settings.steps, lambda where: steps[int(where * len(steps))](0)),
    ]


def _middle(one: Range) -> ZooModel:
    """The student in the middle of a range, on the scale on which candidates are drawn."""
    return ZooModel(arch=one.arch, width=round(math.sqrt(one.low * one.high)), depth=one.depth)
