"""What a dataset costs before it is made: its works, whose time a dry run measures, and its memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.written.filters import nearest_real
from synthkd.data.written.unfinished import Part
from synthkd.data.written.writers import Records, encoded
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.generators.build import build_generator
from synthkd.generators.settings import GeneratorSettings, MerfSettings, PythonGenerator, access_of
from synthkd.metrics.diversity import vendi_score
from synthkd.pipelines.dataset.plan import DatasetPlan
from synthkd.pipelines.dataset.request import trained_as
from synthkd.pipelines.dataset.sampling import CHUNK, ChunkSampler
from synthkd.pipelines.dataset.statistics import COMPARED, teacher_features
from synthkd.pipelines.run.answers import FEW, Answers
from synthkd.pipelines.run.fit import in_part, round_of
from synthkd.pipelines.run.memory import NOTHING, Memory, memory_of, round_need, taken_bytes, with_few_images
from synthkd.pipelines.run.timing import Work, decoding, saving
from synthkd.pipelines.scores.running import RunningScores
from synthkd.pipelines.student.teachers import teaching_works
from synthkd.rng import Rows, stream
from synthkd.settings import TrainedTeacher
from synthkd.training.memory import Need, TensorBytes, need_of
from synthkd.types import TrainableGenerator, balanced_labels, to_uint8

GRADIENT_PASSES = 12
"""Passes of the teacher for a sampled image, about, where the generator takes gradients."""


def dataset_works(plan: DatasetPlan, accelerator: Accelerator) -> list[Work]:
    """What a job of `synthkd generate` does, in its order; the parts of the plan are trained a little."""
    return _Works(plan, accelerator).all()


@dataclass(frozen=True)
class _Works:
    """The works, with the arguments of `dataset_works`."""

    plan: DatasetPlan
    accelerator: Accelerator

    def all(self) -> list[Work]:
        request, works = self.plan.request, list[Work]()
        if isinstance(request.teacher, TrainedTeacher):
            works += teaching_works(request.teacher, self.plan.config, self.accelerator)
        if request.real is not None:
            works += decoding(request.real.train.images, len(request.real.train))
        return [*works, *self._rounds(), *self._samples(), *self._writing()]

    @functools.cached_property
    def _frozen(self) -> FrozenTeacher:
        return FrozenTeacher(self.plan.teacher, self.accelerator)

    @functools.cached_property
    def _answers(self) -> Answers:
        settings = self.plan.request.generator
        own = isinstance(settings, PythonGenerator)  # it does not tell what it takes
        gradients = not own and "gradients" in access_of(trained_as(self.plan.request))
        model, largest = self._frozen.model, getattr(settings, "batch_size", FEW)
        return Answers(self._frozen.logits, model, model.spec, self.accelerator.device, gradients, largest)

    @functools.cached_property
    def _made(self) -> list[Part]:
        """The sampled images; the works of writing come after those of sampling."""
        return []

    def _rounds(self) -> list[Work]:
        """The training of the generator, and its scores."""
        plan, config, settings = self.plan, self.plan.config, self.plan.request.generator
        # A round of a private generator would be charged to its budget.
        if not config.rounds or isinstance(settings, MerfSettings):
            return []
        few, scale = in_part(settings)
        passes = getattr(few, "batch_size", FEW)
        passes *= getattr(few, "steps", 1) if self._answers.gradients else 1
        if self._answers.fits(passes):
            generator = plan.generator
            if few is not settings:
                generator = build_generator(few, plan.teacher, config.seed, self.accelerator, plan.request.real)
            train = round_of(generator, config.difficulty)
            works = [Work("rounds", config.rounds, lambda where: train(1 + int(config.rounds * where)), scale)]
        else:  # a round cannot be cut, so the passes of the teacher alone are measured
            part = self._answers.images_in_part
            works = [Work("rounds", config.rounds, lambda _: self._answers(part), scale * passes / part)]
        works.append(saving({"generator": plan.generator}, config, config.rounds))
        if plan.scores is not None:
            count, images = -(-config.rounds // plan.scores.settings.every), plan.scores.settings.images
            works.append(Work("scores", count, self._sample, images / self._sampled, listed=False))
            works.append(Work("scores", count, functools.partial(self._score, plan.scores), listed=False))
        return works

    def _score(self, scores: RunningScores, _: float) -> None:
        """The scores of as many images of noise."""
        labels = balanced_labels(scores.settings.images, 0, scores.model.spec.classes)
        scores(torch.rand(len(labels), *scores.model.spec.shape, generator=stream(0, "timing")), labels)

    @property
    def _sampled(self) -> int:
        """Images of a measured call of the generator."""
        fits = self._answers.fits(CHUNK * (GRADIENT_PASSES if self._answers.gradients else 1))
        return CHUNK if fits else FEW

    def _sample(self, where: float) -> Tensor:
        plan, config = self.plan, self.plan.config
        labels = balanced_labels(self._sampled, 0, plan.teacher.spec.classes)
        rng = Rows(config.seed, "timing", int(where * plan.layout.count))
        return plan.generator.sample(labels, config.difficulty, rng)

    def _samples(self) -> list[Work]:
        """The images of the dataset, each process its share of them."""
        plan, config = self.plan, self.plan.config
        count = plan.layout.count
        share = -(-count // CHUNK) / count / self.accelerator.num_processes
        real = plan.compared if isinstance(plan.compared, Tensor) else None
        size = getattr(plan.request.generator, "batch_size", CHUNK)
        sampler = ChunkSampler(plan.generator, self._frozen, config.difficulty, config.seed, plan.compared, size)

        def chunk(where: float) -> None:
            number = int(where * -(-count // CHUNK))
            labels = balanced_labels(CHUNK, number * CHUNK, plan.teacher.spec.classes)
            part = sampler.chunk(number, labels)
            self._made.append(part)
            if real is not None:
                nearest_real(part.images, real)

        def few(where: float) -> None:
            self._frozen.logits(self._sample(where))

        name = "images" if config.filters == type(config.filters)() else "images before filters"
        if self._sampled == CHUNK:
            return [Work(name, count, chunk, share)]
        return [Work(name, count, few, share * CHUNK / FEW)]

    def _writing(self) -> list[Work]:
        """The files, and the statistics of the description."""
        plan, count = self.plan, self.plan.layout.count
        compared = min(COMPARED, count)
        blank = torch.zeros(2, *plan.teacher.spec.shape, dtype=torch.uint8)
        of_blank = teacher_features(plan.teacher, self.accelerator.device, blank)

        def write(_: float) -> None:
            encoded(Records.of(self._part, torch.ones(CHUNK, dtype=torch.bool)), plan.layout)

        works = [Work("writing", 1, write, count / CHUNK, listed=False)]
        if of_blank is None:
            return works
        features = torch.rand(compared, of_blank.shape[1], generator=stream(0, "timing"))
        return [
            *works,
            Work("statistics", 1, lambda _: self._answers(FEW, gradient=False), compared / FEW, listed=False),
            Work("statistics", 1, lambda _: vendi_score(features), listed=False),
        ]

    @property
    def _part(self) -> Part:
        """Sampled images, or noise if none were."""
        if self._made:
            return self._made[-1]
        spec = self.plan.teacher.spec
        images = torch.rand(CHUNK, *spec.shape, generator=stream(0, "timing"))
        return Part(0, to_uint8(images), balanced_labels(CHUNK, 0, spec.classes), torch.zeros(CHUNK, spec.classes))


def dataset_memory(plan: DatasetPlan, accelerator: Accelerator) -> Memory:
    """The memory that a job of `synthkd generate` will need: that of a round or of a chunk of samples.

    Generators of the same kind are tried on few images; that of the plan stays as it is, but for one that does not tell
    the images of a round.

    Raises:
        TrainingError: a round fails. In a dry run a teacher may be untrained, so it says nothing about the run.
    """
    config, request, device = plan.config, plan.request, accelerator.device
    taken, settings = taken_bytes(device), request.generator
    key = "generator.batch_size" if getattr(settings, "batch_size", 0) else "the generator"

    def built(few: GeneratorSettings) -> TrainableGenerator:
        if few is settings:
            return plan.generator
        return build_generator(few, plan.teacher, config.seed, accelerator, request.real)

    def trained(few: GeneratorSettings) -> Callable[[], object]:
        return functools.partial(round_of(built(few), config.difficulty), 0)

    def sampled(count: int) -> Callable[[], object]:
        generator = built(with_few_images(settings, count))
        labels = balanced_labels(count, 0, plan.teacher.spec.classes)
        return lambda: generator.sample(labels, config.difficulty, Rows(config.seed, "trial", 0))

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        learns = config.rounds and not isinstance(settings, MerfSettings)
        rounds = round_need(settings, trained, device) if learns else NOTHING
        if isinstance(settings, PythonGenerator):  # it may rely on whole chunks
            once = sampled(CHUNK)
            with TensorBytes(device) as tensors:
                once()
            samples = Need(0, max(tensors.timeline))
        else:
            samples = need_of(sampled, min(CHUNK, getattr(settings, "batch_size", CHUNK)), device)
    spec = plan.teacher.spec
    image = 5 * math.prod(spec.shape) + 8 * spec.classes  # as uint8 and as float32, with logits and soft labels
    held = {"batch_size": config.batch_size * image}
    if config.format != "folder":
        held["shard_size"] = 2 * min(config.shard_size, plan.layout.count) * image
    return memory_of(device, taken, [(key, rounds), (key, Need(0, samples.peak))], held)
