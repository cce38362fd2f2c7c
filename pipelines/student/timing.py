"""What a distillation does, as works whose time a dry run measures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator

from synthkd.data.read.on_disk import DiskImages, Pixels
from synthkd.data.read.splits import RealData
from synthkd.data.sources import RealSource
from synthkd.distillation import phases
from synthkd.distillation.step import DistillStep
from synthkd.generators.build import build_generator
from synthkd.generators.method_settings import BatchwiseSettings
from synthkd.generators.own_rounds import OwnRounds
from synthkd.generators.procedural import draw
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.answers import FEW, Answers
from synthkd.pipelines.run.device import rows_of_process
from synthkd.pipelines.run.fit import in_part
from synthkd.pipelines.run.timing import LIMIT, Per, Timed, Work, decoding, measured, saving
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.baseline import baseline_steps, has_baseline
from synthkd.pipelines.student.held_out import FRESH_IMAGES
from synthkd.pipelines.student.image_alarms import IMAGES
from synthkd.pipelines.student.teachers import teaching_works
from synthkd.pipelines.student.transfer_set_builder import is_private
from synthkd.reports.grids import chosen
from synthkd.rng import Rows, stream
from synthkd.settings import Joint, PhaseSettings, Pregenerate, StreamData, TrainedTeacher
from synthkd.taps import evaluating
from synthkd.types import balanced_labels

DIFFICULTY = 0.5
"""Of the measured rounds: at 0 the terms that compare with the student are left out."""
LATENCIES = 50
"""Single images with which the speed of a finished network is measured."""


def distill_time(
    assembly: Assembly,
    test: RealData | None,
    accelerator: Accelerator,
    taught: bool = False,
    limit: float = LIMIT,
) -> list[Timed]:
    """Take a few steps of each kind of work of a run, and return their times.

    The parts of the assembly are trained a little, so they are of no use to a run afterwards.

    Args:
        assembly: the parts of the run, as a dry run builds them.
        test: real test data, or None.
        accelerator: the device.
        taught: whether the teachers are trained already, so that no step of theirs is measured.
        limit: seconds of all measurements together, about.

    Raises:
        SynthkdError: what the steps raise.
    """
    teachers = [] if taught else _teaching(assembly.config, accelerator)
    timed = measured([*teachers, *_Works(assembly, test, accelerator).all()], limit)
    # A step of the baseline is one of the run on pictures that are drawn for it.
    step = next((one.seconds for one in timed if one.per == "step" and one.listed), 0.0)
    count = baseline_steps(assembly.config)
    return [replace(one, count=count, seconds=one.seconds + step) if one.per == "baseline" else one for one in timed]


def teaching_time(config: DistillConfig, accelerator: Accelerator) -> list[Timed]:
    """The times of the training of a run's teachers; see `distill_time`.

    Raises:
        SynthkdError: what the steps raise.
    """
    return measured(_teaching(config, accelerator))


def _teaching(config: DistillConfig, accelerator: Accelerator) -> list[Work]:
    # Those of a finished run are trained, and the answers of a black box cost queries.
    is_done = config.extended or config.black_box is not None
    taught = [one for one in config.every_teacher if isinstance(one, TrainedTeacher) and not is_done]
    return [replace(work, per="teacher") for one in taught for work in teaching_works(one, config, accelerator)]


@dataclass(frozen=True)
class _Works:
    """The works of a run, with the arguments of `distill_time`."""

    assembly: Assembly
    test: RealData | None
    accelerator: Accelerator

    @property
    def config(self) -> DistillConfig:
        """The configuration of the run."""
        return self.assembly.config

    @property
    def _phases(self) -> Sequence[PhaseSettings]:
        """What is still to do: the last extension, or else every phase."""
        every = self.config.phases_and_extensions
        return every[-1:] if self.config.extended else every

    def all(self) -> list[Work]:
        """In the order in which a run does them: the rounds fill the bank from which the steps draw."""
        box = self.assembly.black_box
        if box is not None and not box.used:  # a dry run asks nothing, as rounds and evaluations would
            return [*self._real(), self._steps(), self._saves(), *self._tests(), self._predictions()]
        works = [*self._real(), *self._rounds(), self._steps(), self._saves()]
        return [*works, *self._evaluations(), *self._tests(), *self._grids(), *self._closing(), *self._baseline()]

    @functools.cached_property
    def _answers(self) -> Answers:
        """The teachers' answers; nothing if none answers in a run's steps."""
        team, spec, gradients = self.assembly.team, self.assembly.subject.spec, self.config.needs_gradients
        if team is None or self.config.black_box is not None:
            return Answers(None, None, spec, self.accelerator.device, gradients, FEW)
        largest = self.assembly.batch.images
        if self.config.generated is not None:
            largest = max(largest, getattr(self.config.generated.named, "batch_size", FEW))
        return Answers(team.logits, team.model, spec, self.accelerator.device, gradients, largest)

    @property
    def _pass(self) -> int:
        return self._answers.images_of_pass

    @property
    def _reads(self) -> Sequence[Pixels]:
        """The real images that are there before the first step."""
        sources = [one.source for one in self.assembly.transfer_set.sources]
        return [one.fixed for one in sources if isinstance(one, RealSource) and one.fixed is not None]

    def _real(self) -> list[Work]:
        """What is done once with each real image: decoding it, and labelling it if logits are stored."""
        drawn = phases.student_steps(self._phases) * self.assembly.batch.images
        processes = int(self.accelerator.num_processes)  # each decodes a part of every batch
        works = [work for images in self._reads for work in decoding(images, min(drawn, len(images)) // processes)]
        if self.test is not None:
            works += decoding(self.test.images, len(self.test))
        if self._labels_once:
            labelled = sum(len(images) for images in self._reads) / self._pass
            works.append(Work("labels", 1, self._answer, labelled, listed=False))
        return works

    @property
    def _labels_once(self) -> bool:
        return self.config.logits == "stored" and self.assembly.team is not None and bool(self._reads)

    def _rounds(self) -> list[Work]:
        config, generated = self.config, self.assembly.transfer_set.generated
        # A round of a private generator would be charged to its budget.
        if config.generated is None or generated is None or is_private(config):
            return []
        settings, student, generator, scale = config.generated.named, self.assembly.learner, generated.generator, 1.0
        if isinstance(settings, BatchwiseSettings) and self.assembly.team is not None:
            settings, scale = in_part(settings)
            generator = build_generator(settings, self.assembly.team.model, config.seed, self.accelerator, None)
        images = getattr(settings, "batch_size", generated.rounds.images or FEW)
        # A round that is too long even so is told by the passes of the teacher alone.
        passes = images * (getattr(settings, "steps", 1) if config.needs_gradients else 1)
        too_long = not self._answers.fits(passes)
        part = self._answers.images_in_part
        scale *= passes / part if too_long else 1.0
        if isinstance(generated.rounds.generator, OwnRounds):
            scale /= self.accelerator.num_processes  # that make as many rounds in the time of one

        def once(beside: bool, where: float) -> None:
            if too_long:
                self._answers(part)
                return
            module = student.synchronise() if beside else None
            samples = generator.round(int(100 * where), DIFFICULTY, module)
            generated.bank.add(samples.images, samples.labels, samples.teacher_logits)

        works = []
        for beside, kind in ((False, Pregenerate), (True, Joint)):
            count = phases.generator_rounds([phase for phase in self._phases if isinstance(phase, kind)])
            name = "rounds" if beside else "rounds before the student"
            per: Per = "round beside" if beside else "round alone"
            works.append(Work(name, count, functools.partial(once, beside), scale, per=per))
        return works

    def _steps(self) -> Work:
        assembly, total, images = self.assembly, phases.student_steps(self._phases), self.assembly.batch.images
        fitting = images if not self._answers.per_image else min(images, int(LIMIT / self._answers.per_image))
        arrives = self.config.real is not None and isinstance(self.config.real.data, StreamData)
        on_disk = any(isinstance(read, DiskImages) for read in self._reads)
        # Real images that need a work of their own first (`_real`) are not drawn.
        on_noise = fitting < images or arrives or on_disk or self._labels_once or self.config.black_box is not None
        if on_noise:
            fitting = max(fitting, min(FEW, images))
        part = rows_of_process(assembly.learner.processes, self.accelerator)

        @functools.cache
        def step() -> DistillStep:
            # Asked for at the first step, when the rounds have filled the bank.
            is_empty = any(not len(bank) for bank in assembly.transfer_set.banks)
            return assembly.trial.step(max(1, fitting // part.every)) if on_noise or is_empty else assembly.step

        return Work("steps", total, lambda where: step()(int(total * where)), images / fitting, per="step")

    def _saves(self) -> Work:
        """The checkpoints, of the state after the measured steps and rounds."""
        alone = [phase for phase in self._phases if isinstance(phase, Pregenerate)]
        steps = phases.student_steps(self._phases) + phases.generator_rounds(alone)
        return saving(self.assembly.state, self.config, steps, per="step")

    def _evaluations(self) -> list[Work]:
        """The evaluations on held-out images."""
        if self.config.real is not None and isinstance(self.config.real.data, StreamData):
            return []
        every = self.assembly.evaluation.every
        return [Work("evaluations", self._times(every), self._evaluate, 1.0, False, "step", every)]

    def _tests(self) -> list[Work]:
        """The student on test images while it learns."""
        if self.test is None:
            return []
        every, share = self.config.evaluate_every, len(self.test) / self._pass
        return [Work("tests", self._times(every), lambda _: self._predict(self._pass), share, False, "step", every)]

    def _times(self, every: int) -> int:
        """How often the phases do what they do every so many steps, and at their end."""
        learning = [phase.steps for phase in self._phases if not isinstance(phase, Pregenerate) and phase.steps]
        return sum(-(-steps // every) for steps in learning)

    def _grids(self) -> list[Work]:
        if self.assembly.transfer_set.generated is None or not phases.generator_rounds(self._phases):
            return []
        rounds, every = [phases.generator_rounds([phase]) for phase in self._phases], self.config.grid_every
        grids = sum(-(-count // every) for count in rounds)
        spec = self.assembly.subject.spec
        columns, rows = chosen(range(spec.classes), spec.height, spec.width)
        return [Work("grids", grids, lambda _: self._sample(len(columns)), rows, False, "round", every)]

    def _evaluate(self, _: float) -> None:
        """Evaluate the students; controllers follow evaluations in order, which these are not, so they are put back."""
        evaluation = self.assembly.evaluation
        before = evaluation.state_dict()
        evaluation(0)
        evaluation.load_state_dict(before)

    def _closing(self) -> list[Work]:
        """The measurements at the end: on test images or fresh ones, for the alarms, and of the networks' speed."""
        generated, count, works = self.assembly.transfer_set.generated, self._closing_images, []
        if self.test is None and generated is not None:
            works.append(Work("closing samples", 1, lambda _: self._sample(FEW), FRESH_IMAGES / FEW, listed=False))
        if self.assembly.team is not None:
            count += min(IMAGES, sum(bank.settings.capacity for bank in self.assembly.transfer_set.banks))
            works.append(Work("closing", 1, self._answer, count / self._pass, listed=False))
        return [*works, self._predictions()]

    def _baseline(self) -> list[Work]:
        """The drawing of the pictures of one step, also where the recipe is too short: a budget may make it longer."""
        if not has_baseline(self.config):
            return []
        spec, images = self.assembly.subject.spec, self.assembly.batch.images

        def once(_: float) -> None:
            draw(FEW, spec, Rows(0, "timing"))

        return [Work("baseline", 1, once, images / FEW, listed=False, per="baseline")]

    @property
    def _closing_images(self) -> int:
        """Images that a finished network answers."""
        if self.test is not None:
            return LATENCIES + len(self.test)
        return LATENCIES + FRESH_IMAGES * (self.assembly.transfer_set.generated is not None)

    def _predictions(self) -> Work:
        """The answers of the finished student, and of those that it is compared with."""
        students = 1 + (self.assembly.start.network is not None) + has_baseline(self.config)
        images = students * self._closing_images
        return Work("closing", 1, lambda _: self._predict(self._pass), images / self._pass, listed=False)

    def _answer(self, _: float) -> None:
        """Let the teachers answer images of noise."""
        self._answers(self._pass, gradient=False)

    def _predict(self, count: int) -> None:
        """Let the student answer images of noise."""
        student, spec = self.assembly.learner.evaluated, self.assembly.subject.spec
        images = torch.rand(count, *spec.shape, generator=stream(0, "timing")).to(self.accelerator.device)
        with evaluating(student), torch.no_grad():
            student(images)

    def _sample(self, count: int) -> None:
        generated = self.assembly.transfer_set.generated
        assert generated is not None
        generated.grid(balanced_labels(count, 0, self.assembly.subject.spec.classes))
