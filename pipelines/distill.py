"""Distill a student from a teacher, without its data or with some of it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from synthkd.data.bank_sample import save_bank_sample
from synthkd.data.read.real import reading_once
from synthkd.data.read.splits import RealData, Splits
from synthkd.distillation import phases
from synthkd.errors import ConfigError
from synthkd.generators.files import INSIDE_A_RUN, save_generator
from synthkd.models import Classifier, load, save
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.budget import recorded
from synthkd.pipelines.run.device import make_accelerator, process_state
from synthkd.pipelines.run.directory import saved_config
from synthkd.pipelines.run.extension import earlier_queries, with_extensions
from synthkd.pipelines.run.job import Job, open_job
from synthkd.pipelines.run.live import LivePage
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.several import require_shareable
from synthkd.pipelines.run.shared_work import shares
from synthkd.pipelines.run.tested import own_data, read_test, training_data
from synthkd.pipelines.run.timing import planned_time
from synthkd.pipelines.run.trust import trusted_by, trusting
from synthkd.pipelines.student.asking import ask_ahead
from synthkd.pipelines.student.assembly import Assembly, assemble
from synthkd.pipelines.student.budget import fill, needs_plan, require_measurable, require_time, with_plan
from synthkd.pipelines.student.given import Given, GivenNetworks, from_memory
from synthkd.pipelines.student.memory import planned_lines
from synthkd.pipelines.student.networks import finished
from synthkd.pipelines.student.results import measured
from synthkd.pipelines.student.seeds import DistilledSeeds, distill_seeds, require_seeds
from synthkd.pipelines.student.summary import plan, summary
from synthkd.pipelines.student.teacher_warnings import logged, noted
from synthkd.pipelines.student.teachers import ReadyTeacher, is_taught, ready_teacher, untrained_teacher
from synthkd.pipelines.student.timing import distill_time, teaching_time
from synthkd.pipelines.student.watch import PEERS, STUDENT, RunWatch, saved_notes
from synthkd.reports.results import DistillResult
from synthkd.settings import DataSettings, GivenModel, TrainedTeacher, UnlabelledData
from synthkd.system.environment import float32_by_default
from synthkd.system.shares import together
from synthkd.training.loop import Action, Progress, Values
from synthkd.training.measuring import Allowance
from synthkd.types import ImageSpec


@dataclass(frozen=True, kw_only=True)
class Distilled(Result[DistillResult]):
    """The outcome of a distillation.

    Attributes:
        finished_student: returns the student, from memory or from the run directory.
    """

    finished_student: Callable[[], Classifier]

    @functools.cached_property
    def student(self) -> Classifier:
        """The finished student on the CPU in eval mode; its `body` is a network of the class that was given.

        Raises:
            ModelError: the run was finished before, and its files have changed since.
        """
        return self.finished_student()


@float32_by_default()
def distill(
    config: DistillConfig | None = None,
    *,
    teacher: Given = None,
    student: Given = None,
    spec: ImageSpec | None = None,
    dry_run: bool = False,
    **recipe: object,
) -> Distilled | DistilledSeeds | Plan:
    """Distill a student and save it to `<run>/student`, and its generator to `<run>/generator`.

    A teacher of `kind: train` is trained first, in `<run>/teach`. Afterwards no real image is opened, except those of
    `transfer_set`, and those of `test`, which are used for evaluation only and select nothing.

    Either a configuration says everything, or the keys of a recipe do: `distill(teacher=network, student=network,
    spec=ImageSpec(1, 28, 28, 10), out="runs/mine")`. Networks are copied and stay as they are. The same call, with
    networks of the same weights, resumes a run that was interrupted.

    Args:
        config: teacher, student, transfer set and phases.
        teacher: a network in memory, or the section of a recipe.
        student: likewise; a network starts from the weights that it has.
        spec: images and classes of networks that are no `Classifier`; None: those of the teacher.
        dry_run: build everything, check the teacher's contract, write nothing, and return the plan.
        recipe: the other keys of a recipe, e.g. `phases=[{"kind": "joint", "steps": 100, "every": 5}]`.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    if config is None:
        config, networks = from_memory(teacher, student, spec, recipe)
    elif teacher is not None or student is not None or spec is not None or recipe:
        raise ConfigError("distill takes a configuration, or networks and keys of a recipe, not both")
    else:
        networks = GivenNetworks()
    networks.require(config)
    require_measurable(config)
    require_shareable(config, process_state(config).num_processes)
    if config.seeds is not None:
        require_seeds(config)
    if config.seeds is None or dry_run:
        return _distill(config, networks=networks, dry_run=dry_run)

    def run(one_seed: DistillConfig) -> Distilled:
        result = _distill(one_seed, networks=networks, dry_run=False)
        assert isinstance(result, Distilled)
        return result

    return distill_seeds(config, run)


@trusting
def _distill(config: DistillConfig, *, networks: GivenNetworks, dry_run: bool) -> Distilled | Plan:
    config = with_extensions(config, dry_run=dry_run)
    if dry_run:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return _plan(config, networks)
    with open_job("distill", config) as job:
        config = recorded(config, saved_config(job.directory, config))
        if isinstance(job.finished, DistillResult):
            lines = summary(job, job.finished, already=True)
            saved = functools.partial(_saved_student, config, job, networks)
            return Distilled(job.directory, job.finished, lines, finished_student=saved)
        with reading_once() as read, together(shares()):
            test = read_test(config)  # before anything expensive
            _keep(read, training_data(config))
            ready = _teachers(config, job, networks, test)
            _keep(read, own_data(config))
            models = [teacher.model for teacher in ready]
            config = with_plan(config, models, test, networks.student, job.directory)
            began = time.perf_counter()
            assembly = assemble(config, models, job.accelerator, job.directory, networks.student)
        test = assembly.fitted_test(test)
        ask_ahead(assembly, job.directory)
        allowance = Allowance()
        training = time.perf_counter()
        progress = _train(job, assembly, test, allowance)
        trained = time.perf_counter()
        student = _finished_student(job, assembly)
        _keep_images(job, assembly)
        taught = sum(teacher.seconds for teacher in ready)
        beside = training - began + time.perf_counter() - trained
        content = job.finish(measured(job, assembly, student, test, taught, progress, allowance, beside))
        return Distilled(job.directory, content, summary(job, content), finished_student=student.cpu)


def _plan(config: DistillConfig, networks: GivenNetworks) -> Plan:
    """What the run would do, and the time and memory that it needs by a few steps of parts that nobody keeps."""
    accelerator = make_accelerator(config)
    with reading_once():
        models, test = _untrained(config, networks), read_test(config)
        budgeted = None
        if needs_plan(config):
            taught = not any(isinstance(one, TrainedTeacher) for one in config.every_teacher)
            budgeted = fill(config, models, test, networks.student, taught)
            config = budgeted.config
        assembly = assemble(config, models, accelerator, None, networks.student)
        test = assembly.fitted_test(test)
        used = 0 if config.out is None else earlier_queries(config, Path(config.out))
        lines = plan(assembly, test, used)
        if budgeted is not None:
            needed = budgeted.time(teaching_time(config, accelerator))
        else:
            needed = planned_time(lambda: distill_time(assembly, test, accelerator))
    return Plan((*lines, needed.line, *planned_lines(assembly)), needed)


def _keep(read: dict[DataSettings, Splits], wanted: Sequence[DataSettings | UnlabelledData]) -> None:
    """Forget the datasets that were read and are not wanted again."""
    for settings in [*read]:
        if settings not in wanted:
            del read[settings]


def _saved_student(config: DistillConfig, job: Job, networks: GivenNetworks) -> Classifier:
    with trusted_by(config):
        return load(job.directory / STUDENT, network=networks.student)


def _teachers(config: DistillConfig, job: Job, networks: GivenNetworks, test: RealData | None) -> list[ReadyTeacher]:
    """The teachers, trained where the settings say so."""
    teachers = config.every_teacher
    if not all(is_taught(settings, job.directory, number) for number, settings in enumerate(teachers)):
        # What does not fit together should fail now, not after the training of the teachers.
        models = _untrained(config, networks)
        if needs_plan(config):
            require_time(config, models, test, networks.student)
        else:
            assemble(config, models, job.accelerator, None, networks.student).fitted_test(test)
    return [
        ReadyTeacher(networks.given_teacher, 0.0)
        if isinstance(settings, GivenModel)
        else ready_teacher(settings, config, job, number)
        for number, settings in enumerate(teachers)
    ]


def _untrained(config: DistillConfig, networks: GivenNetworks) -> list[Classifier]:
    """The teachers as a dry run has them: loaded or given, or only initialised."""
    return [
        networks.given_teacher if isinstance(settings, GivenModel) else untrained_teacher(settings, config)
        for settings in config.every_teacher
    ]


def _train(job: Job, assembly: Assembly, test: RealData | None, allowance: Allowance) -> Progress:
    """Run the phases: rounds of the generator, steps of the students, evaluations, grids and published students."""
    config, generated = assembly.config, assembly.transfer_set.generated
    watch = RunWatch(job, assembly, test, allowance)
    page = LivePage(job.directory, job.accelerator.is_main_process)
    actions = [Action("test", watch.test, config.evaluate_every, after=True), page.every(config.evaluate_every)]
    if config.publish_every is not None:
        actions.append(Action("publish", watch.publish, config.publish_every, after=True))
    stages = phases.build(
        config.phases_and_extensions,
        _no_round if generated is None else generated.rounds.alone,
        _no_round if generated is None else generated.rounds.beside_student,
        assembly.step,
        watch.evaluate,
        assembly.evaluation.every,
        actions,
        [*watch.after_rounds(), page.every(config.grid_every)],
    )
    for number, place in enumerate(range(len(config.phases), len(stages)), start=1):
        stages[place] = replace(stages[place], name=f"extension {number}")
    headline = ("student/loss", "fresh/agreement", "difficulty", "test/accuracy")
    stages = noted(_notes_of(assembly), stages, job.monitor)
    stages = logged(assembly.warnings, assembly.batch.logged(stages, job.monitor), job.monitor)
    return job.train(assembly.state, stages, f"distill {config.name}", headline)


def _notes_of(assembly: Assembly) -> list[str]:
    """What the log tells once: what the networks chose, and what a black box was asked before the start."""
    notes = [*assembly.chosen]
    black_box = assembly.black_box
    if black_box is not None:
        notes.append(f"{black_box.words}; asked {black_box.used:,} images before the first step")
    return notes


def _no_round(*_: object) -> Values:
    """Takes the place of a round of the generator if there is no generator."""
    raise AssertionError("there is no generator, and its configuration has no phase with rounds")


def _finished_student(job: Job, assembly: Assembly) -> Classifier:
    """Save the networks and the generator: always with the last weights (or their average), never a best checkpoint."""
    student = finished(assembly.students[0]).eval()
    if job.accelerator.is_main_process:
        notes = saved_notes(assembly)
        save(student, job.directory / STUDENT, notes)
        for number, peer in enumerate(assembly.students[1:], start=1):
            save(finished(peer).eval(), job.directory / PEERS / str(number), notes)
        config, generated, subject = assembly.config, assembly.transfer_set.generated, assembly.subject
        if generated is not None and config.generated is not None:
            save_generator(
                generated.generator,
                config.generated.named,
                job.directory / INSIDE_A_RUN,
                subject.spec,
                subject.class_names,
                config.seed,
                generated.real_images_used,
            )
    job.accelerator.wait_for_everyone()
    return student


def _keep_images(job: Job, assembly: Assembly) -> None:
    """Save images of the memory bank of the main process, which are dropped with the checkpoints otherwise."""
    generated, names = assembly.transfer_set.generated, assembly.subject.class_names
    wanted = assembly.config.keep_images
    if generated is not None and wanted != 0 and job.accelerator.is_main_process:
        count = None if wanted == "all" else wanted
        save_bank_sample(generated.bank.rows(), count, names, job.directory)
