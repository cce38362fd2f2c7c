"""What a distillation comes to: the numbers of its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from synthkd.compression.capacity import TeacherQuality, compare_teachers
from synthkd.data.read.real import RealData
from synthkd.distillation import alarms
from synthkd.distillation.teachers import TeacherTeam
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.job import Job, describe_model, scored
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.networks import finished
from synthkd.reports.run import ONE_CLASS
from synthkd.taps import evaluating
from synthkd.training.loop import Progress
from synthkd.types import to_uint8

ALARM_IMAGES = 1024
FRESH_IMAGES = 500
QUALITY_IMAGES = 200


def measured(
    config: DistillConfig,
    job: Job,
    assembly: Assembly,
    student: Classifier,
    test: RealData | None,
    teacher_seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """The content of result.json: accuracy, agreement, size and speed, cost, alarms.

    Args:
        config: of the run.
        job: the open run.
        assembly: what was run.
        student: as it was saved.
        test: real test data, or None.
        teacher_seconds: how long the teacher's training took.
        progress: of the loop.
    """
    started = time.perf_counter()
    teacher, spec, device = assembly.team, assembly.subject.spec, job.device
    teacher_score: Proportion | None = None
    student_score: Proportion | None = None
    peer_scores: list[Proportion | None] = [None for _ in assembly.students[1:]]
    agreed = assembly.transfer_set.agreement(student)
    compared = None if agreed is None else (agreed.rate, agreed.on)
    raised = [*_one_class(assembly, student, test, device), *_alarms(job, assembly)]
    if test is not None:
        learned = predict(student, test.images, device, who="the student")
        student_score = accuracy(learned, test.labels)
        for number, peer in enumerate(assembly.students[1:]):
            with evaluating(peer.learner.evaluated):
                peer_scores[number] = accuracy(predict(peer.learner.evaluated, test.images, device), test.labels)
        if teacher is not None:
            taught = predict(teacher.consensus, test.images, device)
            teacher_score = accuracy(taught, test.labels)
            compared = accuracy(learned, taught), "test"
    seconds = {
        "teacher": teacher_seconds,
        "distill": progress.seconds,
        "evaluate": progress.evaluation_seconds + time.perf_counter() - started,
    }
    values: dict[str, Any] = {
        "seconds": round(sum(seconds.values()), 3),
        "real_images_used": assembly.transfer_set.real_images_used,
        "teacher": None if teacher is None else {**scored(teacher_score), **describe_model(teacher.model, device)},
        "student": {
            **scored(student_score),
            **_compared(compared),
            **describe_model(student, device),
            "inherited_parameters": assembly.inherited,
        },
        "data": {"class_names": list(assembly.subject.class_names), "spec": str(spec)},
        "cost": {
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "steps": assembly.learner.total,
            "images_generated": assembly.transfer_set.images_generated,
        },
        "alarms": [asdict(alarm) for alarm in raised],
        "evaluations": assembly.evaluation.outcome([one.name for one in assembly.students], job.monitor.rows()),
    }
    if teacher is not None and len(teacher.models) > 1:
        values["teachers"] = _team(config, assembly, teacher, test, device)
    if peer_scores:
        values["peers"] = [
            {**scored(score), **describe_model(finished(peer), device)}
            for score, peer in zip(peer_scores, assembly.students[1:], strict=True)
        ]
    if teacher is None:
        return values
    ratio = {"parameters": values["student"]["parameters"] / values["teacher"]["parameters"]}
    if teacher_score is not None and student_score is not None and teacher_score.value > 0:
        ratio["accuracy"] = student_score.value / teacher_score.value
    return values | {"ratio": ratio}


def _team(
    config: DistillConfig, assembly: Assembly, team: TeacherTeam, test: RealData | None, device: torch.device
) -> list[dict[str, Any]]:
    """Each of several teachers: what it is, and its quality among them on the images looked at."""
    models = {f"teacher {number}": model for number, model in enumerate(team.models, start=1)}
    seen = assembly.transfer_set.held_out()
    quality: Sequence[TeacherQuality | None] = [None] * len(models)
    if seen is not None:
        quality = compare_teachers(models, to_uint8(seen.images[:QUALITY_IMAGES]).cpu(), config.seed)
    counts: Sequence[int | None] = assembly.evaluation.controllers.selected or [None] * len(models)
    return [
        {
            "name": name,
            **scored(None if test is None else accuracy(predict(model, test.images, device), test.labels)),
            **describe_model(model, device),
            "quality": None if found is None else _quality(found),
            "selected": count,
        }
        for (name, model), found, count in zip(models.items(), quality, counts, strict=True)
    ]


def _quality(found: TeacherQuality) -> dict[str, float]:
    return {
        "fisher_trace": found.report.fisher_trace,
        "feature_dimension": found.report.feature_dimension,
        "relative_trace": found.relative_trace,
        "relative_dimension": found.relative_dimension,
        "score": found.score,
    }


def _compared(found: tuple[Proportion, str] | None) -> dict[str, Any]:
    """The agreement as it stands in result.json; null where there is no teacher to agree with."""
    if found is None:
        return {"agreement": None}
    agreement, on = found
    return {
        "agreement": agreement.value,
        "agreement_interval": [agreement.low, agreement.high],
        "agreement_n": agreement.n,
        "agreement_on": on,
    }


def _one_class(
    assembly: Assembly, student: Classifier, test: RealData | None, device: torch.device
) -> list[alarms.Alarm]:
    """The alarms about students that give one answer: on test images, else on the newest that there are."""
    if test is not None:
        images, asked, on = test.images, test.labels, "test images"
    else:
        images, asked, on = assembly.transfer_set.sample(assembly.learner.total - 1)
    names, asked = assembly.subject.class_names, asked.cpu()
    students = {"the student": student}
    students |= {f"peer {number}": finished(peer) for number, peer in enumerate(assembly.students[1:], start=1)}
    raised = []
    for who, model in students.items():
        name = ONE_CLASS if model is student else f"{ONE_CLASS}, {who}"
        with evaluating(model):
            answers = predict(model, images, device, who=who)
        raised.append(alarms.one_class(answers, asked, who, on, names, name))
    return [alarm for alarm in raised if alarm is not None]


def _alarms(job: Job, assembly: Assembly) -> list[alarms.Alarm]:
    """The tests that need no data, on the newest images and on the whole run's log."""
    raised = assembly.transfer_set.alarms()
    if job.accelerator.is_main_process:
        stale = alarms.stale_student(job.monitor.series("fresh/agreement")[1])
        raised += [] if stale is None else [stale]
    return raised
