"""The result of a distillation: accuracy, agreement, size and speed, cost, alarms."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from synthkd.compression.capacity import TeacherQuality, compare_teachers
from synthkd.data.read.real import RealData
from synthkd.distillation import alarms
from synthkd.distillation.teachers import TeacherTeam
from synthkd.errors import ModelError
from synthkd.metrics.untested import Calibration, Range
from synthkd.metrics.utility import Predictor, Proportion, accuracy, predict
from synthkd.models import Classifier, parameters
from synthkd.models.black_box import black_box_of
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.extension import earlier_results
from synthkd.pipelines.run.job import Job, describe_model
from synthkd.pipelines.student import held_out
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.baseline import Drawn, baseline_steps, of_drawn_pictures
from synthkd.pipelines.student.networks import finished
from synthkd.pipelines.student.teacher_warnings import WARNING
from synthkd.pipelines.student.untested import advice_of, estimate_result
from synthkd.reports.results import (
    Agreement,
    Baseline,
    BudgetResult,
    DataDescription,
    DistillResult,
    Evaluations,
    ModelDescription,
    ModelResult,
    QualityResult,
    Queries,
    RaisedAlarm,
    Ratio,
    RunCost,
    StudentResult,
    TeamTeacher,
    from_json,
)
from synthkd.settings import TrainedTeacher
from synthkd.taps import evaluating
from synthkd.training.loop import Progress
from synthkd.training.measuring import Allowance, Measuring, Watch
from synthkd.types import InBlocks, to_uint8

QUALITY_IMAGES = 200
STUDENT, START, DRAWN = "the student", "the student as it starts", "a student of drawn pictures"


def measured(
    job: Job,
    assembly: Assembly,
    student: Classifier,
    test: RealData | None,
    teacher_seconds: float,
    progress: Progress,
    allowance: Allowance,
    beside: float,
) -> DistillResult:
    """Measure what a finished distillation comes to: accuracy, agreement, size and speed, cost, alarms.

    Args:
        job: the open run.
        assembly: what was run.
        student: as it was saved.
        test: real test data, or None.
        teacher_seconds: how long the teacher's training took.
        progress: of the loop.
        allowance: of the run, for the measurements whose number of images is free.
        beside: seconds in which this process built the parts and saved the networks.
    """
    networks = {STUDENT: student}
    networks |= {f"peer {number}": finished(peer) for number, peer in enumerate(assembly.students[1:], start=1)}
    is_main = job.accelerator.is_main_process
    with Measuring(_parts(assembly, test), f"measure {assembly.config.name}", allowance, is_main) as watch:
        closing = _Closing(job, assembly, networks, test, watch)
        started = time.perf_counter()
        tested, baselines = closing.tested(), closing.baselines()
        seconds = {
            "teacher": teacher_seconds,
            "distill": progress.seconds,
            "evaluate": progress.evaluation_seconds + time.perf_counter() - started,
        }
        ended = time.perf_counter()
        # Latencies come after the clock of the evaluation has stopped: they are no part of it.
        result = closing.result(tested, baselines, {stage: round(value, 3) for stage, value in seconds.items()})
        student_seconds = beside + seconds["distill"] + seconds["evaluate"] + time.perf_counter() - ended
        return replace(result, budget=_budget(assembly.config, student_seconds))


def _budget(config: DistillConfig, seconds: float) -> BudgetResult | None:
    plan = None if config.extended else config.planned
    if plan is None:
        return None
    return BudgetResult(plan.budget, plan.seconds, round(plan.measuring + seconds, 3))


def _parts(assembly: Assembly, test: RealData | None) -> int:
    """Number of measurements that are shown: answers and latencies of all networks, alarms, and one of agreement."""
    students, teachers = len(assembly.students), 0 if assembly.team is None else len(assembly.team.models)
    banks = sum(source.bank is not None for source in assembly.transfer_set.sources)
    together = test is None and assembly.transfer_set.generated is not None  # all networks answer the same samples
    starts, drawn = assembly.start.network is not None, baseline_steps(assembly.config) > 0
    return 2 * students + banks + 1 + (starts + drawn) * (2 - together) + (2 * teachers if teachers > 1 else teachers)


@dataclass(frozen=True)
class _Tested:
    """What the answers of finished networks come to: scores if there is test data, agreement, alarms."""

    students: Sequence[Proportion | None]
    teacher: Proportion | None
    agreement: Agreement
    alarms: Sequence[alarms.Alarm]
    estimate: tuple[Range, Calibration] | None = None


@dataclass(frozen=True)
class _Closing:
    """The measurements of a finished run; `networks` are the student and its peers by name."""

    job: Job
    assembly: Assembly
    networks: Mapping[str, Classifier]
    test: RealData | None
    watch: Watch

    def tested(self) -> _Tested:
        """Let the networks answer test images, or else those that there are, and raise the alarms."""
        assembly, test, team = self.assembly, self.test, self.assembly.team
        if test is not None:
            images, labels, on = test.images, test.labels, "test images"
        else:
            images, labels, on = assembly.transfer_set.sample(assembly.learner.steps - 1)
        answers = {who: self._answers(who, network, images, on) for who, network in self.networks.items()}
        raised = [*_one_class(assembly, answers, labels.cpu(), on), *self._alarms()]
        if test is None:
            agreed = next(iter(self._agreements), None)
            estimate = assembly.transfer_set.estimate(self.networks[STUDENT], agreed, assembly.learner.steps)
            return _Tested([None for _ in answers], None, _described_agreement(agreed), raised, estimate)
        scores = [accuracy(one, labels) for one in answers.values()]
        if team is None:
            return _Tested(scores, None, self._agreement(), raised)
        box = assembly.black_box
        if box is not None and not box.covers(images):
            return _Tested(scores, None, self._agreement(), raised)
        by_teacher = self._answers("the teacher", team.consensus, images, on)
        teacher_score = accuracy(by_teacher, labels)
        raised += _near_chance(assembly.config, team, teacher_score)
        return _Tested(scores, teacher_score, Agreement.on(accuracy(answers[STUDENT], by_teacher), "test"), raised)

    def baselines(self) -> Mapping[str, Baseline]:
        """What those know that the student is compared with, by name: on test images, or agreement on fresh ones."""
        test, steps = self.test, {DRAWN: baseline_steps(self.assembly.config)}
        if test is None:
            agreed = zip(self._compared, self._agreements[1:], strict=False)  # none, or one of each
            return {
                name: Baseline.measured(None, Agreement.on(one.rate, one.on), steps.get(name)) for name, one in agreed
            }
        scores = {
            name: accuracy(self._answers(name, network, test.images, "test images"), test.labels)
            for name, network in self._compared.items()
        }
        return {name: Baseline.measured(score, None, steps.get(name)) for name, score in scores.items()}

    @cached_property
    def _compared(self) -> Mapping[str, Classifier]:
        """The networks that the student is compared with: as it starts, unless at random, and of drawn pictures."""
        assembly, compared = self.assembly, {}
        if assembly.start.network is not None:
            images, _, _ = assembly.transfer_set.sample(assembly.learner.steps - 1)
            compared[START] = assembly.start.reset(images.to(self.job.device), assembly.batch.of_process, self.watch)
        if self._drawn.network is not None:
            compared[DRAWN] = self._drawn.network
        return compared

    @cached_property
    def _drawn(self) -> Drawn:
        return of_drawn_pictures(self.assembly, self.watch)

    @cached_property
    def _agreements(self) -> Sequence[held_out.Agreement]:
        """Without test data: of the student, then of those it is compared with, on the same images; or none."""
        networks = [self.networks[STUDENT], *self._compared.values()]
        return self.assembly.transfer_set.agreements(networks, self.watch)

    def result(self, tested: _Tested, baselines: Mapping[str, Baseline], seconds: Mapping[str, float]) -> DistillResult:
        """The result, with the latency of every network.

        Args:
            tested: of this run.
            baselines: of this run, by name.
            seconds: stage -> seconds that it took.
        """
        assembly, team = self.assembly, self.assembly.team
        transfer_set, rows = assembly.transfer_set, self.job.monitor.rows()
        score, box = tested.students[0], assembly.black_box
        student = self.networks[STUDENT]
        described = self._described(STUDENT, student)
        names, failure = [one.name for one in assembly.students], self._drawn.failure
        before = earlier_results(assembly.config, self.job.directory)
        of_peers = zip(self.networks, tested.students, strict=True)
        return DistillResult(
            seconds=round(sum(seconds.values()), 3),
            real_images_used=transfer_set.real_images_used,
            teacher=None if team is None else self._model("the teacher", team.model, tested.teacher),
            student=StudentResult.of_student(
                score,
                tested.agreement,
                described,
                assembly.start.inherited.parameters,
                baselines.get(START),
                before[0].student.drawn if before else baselines.get(DRAWN),
            ),
            data=DataDescription(assembly.subject.class_names, str(assembly.subject.spec)),
            cost=RunCost(
                seconds, assembly.learner.steps, transfer_set.images_generated, batch_size=assembly.batch.images
            ),
            alarms=(
                *(RaisedAlarm(**vars(alarm)) for alarm in tested.alarms),
                *(RaisedAlarm(WARNING, warning) for warning in assembly.warnings),
                *([RaisedAlarm("no baseline", f"{DRAWN} failed: {failure}")] if failure else []),
            ),
            evaluations=from_json(Evaluations, assembly.evaluation.outcome(names, rows, assembly.config.phases)),
            teachers=None if team is None or len(team.models) < 2 else self._team(team),
            peers=tuple(self._model(who, self.networks[who], one) for who, one in of_peers if who != STUDENT) or None,
            ratio=None if team is None else _ratio(student, team.model, score, tested.teacher),
            scores=None if assembly.scores is None else assembly.scores.result(rows),
            before=before,
            queries=None if box is None else Queries(box.used, box.settings.queries, box.settings.answers),
            unrelated_pictures=transfer_set.unrelated_pictures or None,
            estimate=estimate_result(tested.estimate, assembly.config.teacher_accuracy),
            advice=advice_of(assembly.config, self.job.monitor) or None,
        )

    def _answers(self, who: str, network: Predictor, images: InBlocks, on: str) -> Tensor:
        """The classes that a network predicts, int64 `[N]` on the CPU."""
        tick = self.watch(f"{who} on {on.removeprefix('of ')}", len(images))
        with evaluating(*([network] if isinstance(network, nn.Module) else [])):
            return predict(network, images, self.job.device, self.assembly.batch.of_process, who, tick)

    def _agreement(self) -> Agreement:
        """With the teacher, on the images that the transfer set has for it."""
        agreed = self.assembly.transfer_set.agreements([self.networks[STUDENT]], self.watch)
        return _described_agreement(next(iter(agreed), None))

    def _alarms(self) -> list[alarms.Alarm]:
        """The tests that need no data, on the newest images and on the whole run's log."""
        raised = self.assembly.transfer_set.alarms(self.watch)
        if self.job.accelerator.is_main_process:
            monitor = self.job.monitor
            stale = alarms.stale_student(monitor.series("fresh/agreement")[1], monitor.series("student/loss")[1])
            raised += [] if stale is None else [stale]
        return raised

    def _described(self, who: str, model: Classifier) -> ModelDescription:
        if black_box_of(model) is not None:  # neither its size nor its speed is known
            return ModelDescription(arch=str(model.recipe["model"]))
        self.watch(f"latency of {who}", 1)
        return describe_model(model, self.job.device)

    def _model(self, who: str, model: Classifier, score: Proportion | None) -> ModelResult:
        return ModelResult.tested(score, self._described(who, model))

    def _team(self, team: TeacherTeam) -> tuple[TeamTeacher, ...]:
        """Each of several teachers, with its quality among them on held-out images."""
        assembly, test = self.assembly, self.test
        models = {f"teacher {number}": model for number, model in enumerate(team.models, start=1)}
        held_out = assembly.transfer_set.held_out()
        quality: Sequence[TeacherQuality | None] = [None] * len(models)
        if held_out is not None:
            images = to_uint8(held_out.images[:QUALITY_IMAGES]).cpu()
            with suppress(ModelError):  # of a network without a last layer that is found
                quality = compare_teachers(models, images, assembly.config.seed, assembly.batch.of_process)
        counts: Sequence[int | None] = assembly.evaluation.controllers.selected or [None] * len(models)
        teachers = []
        for (name, model), rank, count in zip(models.items(), quality, counts, strict=True):
            score = None
            if test is not None:
                score = accuracy(self._answers(name, model, test.images, "test images"), test.labels)
            ranked = None if rank is None else _quality(rank)
            teachers.append(TeamTeacher.of_team(name, self._model(name, model, score), ranked, count))
        return tuple(teachers)


def _described_agreement(agreed: held_out.Agreement | None) -> Agreement:
    return Agreement() if agreed is None else Agreement.on(agreed.rate, agreed.on)


def _ratio(student: Classifier, teacher: Classifier, ours: Proportion | None, theirs: Proportion | None) -> Ratio:
    """Student over teacher in parameters and, where both were tested and the teacher is ever right, in accuracy."""
    share = None
    if ours is not None and theirs is not None and theirs.value > 0:
        share = ours.value / theirs.value
    count = 0 if black_box_of(teacher) is not None else parameters(teacher)
    return Ratio(parameters(student) / count if count else None, share)  # a teacher may keep its weights elsewhere


def _quality(rank: TeacherQuality) -> QualityResult:
    report = rank.report
    return QualityResult(
        report.fisher_trace, report.feature_dimension, rank.relative_trace, rank.relative_dimension, rank.score
    )


def _one_class(assembly: Assembly, answers: Mapping[str, Tensor], labels: Tensor, on: str) -> list[alarms.Alarm]:
    """The alarms about students that give one answer."""
    raised = []
    for who, predicted in answers.items():
        name = alarms.ONE_CLASS if who == STUDENT else f"{alarms.ONE_CLASS}, {who}"
        raised.append(alarms.one_class(predicted, labels, who, on, assembly.subject.class_names, name))
    return [alarm for alarm in raised if alarm is not None]


def _near_chance(config: DistillConfig, team: TeacherTeam, score: Proportion) -> list[alarms.Alarm]:
    """The alarm about teachers that are broken, and what may have broken them."""
    trained = isinstance(config.teacher, TrainedTeacher)
    if config.black_box is not None:
        remedy = "check its size, channels and the order of its classes"
        alarm = alarms.near_chance(score, team.spec.classes, "the teacher is", remedy)
        return [] if alarm is None else [alarm]
    remedy = "train it longer, or check its data" if trained else "check its mean, std, size and weights"
    who = "the teacher is" if len(team.models) == 1 else "the teachers together are"
    alarm = alarms.near_chance(score, team.spec.classes, who, remedy)
    return [] if alarm is None else [alarm]
