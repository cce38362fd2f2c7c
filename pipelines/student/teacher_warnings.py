"""What is odd about teachers that somebody else trained: found before a run, shown in plan, log and report."""

from __future__ import annotations

from collections.abc import Sequence

from synthkd.models import Classifier, TeacherContract
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.student.networks import teacher_name
from synthkd.pipelines.student.normalisation import better_normalisation
from synthkd.settings import TrainedTeacher
from synthkd.training.loop import Stage, Values, at_first_steps
from synthkd.training.monitor import Monitor

WARNING = "odd teacher"
"""Name of the alarm with such a warning."""


def teacher_warnings(
    config: DistillConfig, teachers: Sequence[Classifier], contracts: Sequence[TeacherContract]
) -> tuple[str, ...]:
    """What is odd about the teachers of a run, a line each.

    Args:
        config: of the run.
        teachers: each in any mode; unchanged.
        contracts: what `probe` found of each.
    """
    warnings = [warning for contract in contracts for warning in contract.warnings]
    for number, (settings, teacher) in enumerate(zip(config.every_teacher, teachers, strict=True)):
        # A teacher that is trained here has the normalisation of its images.
        if not isinstance(settings, TrainedTeacher):
            warning = better_normalisation(teacher, teacher_name(number), config.distill.batch_size)
            warnings += [] if warning is None else [warning]
    return tuple(warnings)


def logged(warnings: Sequence[str], stages: Sequence[Stage], monitor: Monitor) -> list[Stage]:
    """The stages of a training, the first of which logs the warnings as alarms.

    Args:
        warnings: what to log.
        stages: of the training.
        monitor: the log.
    """

    def log(step: int) -> Values:
        events = {row.get("event") for row in monitor.rows()}
        for warning in warnings:
            if warning not in events:
                monitor.event(step, warning, kind="alarm", name=WARNING)
        return {}

    if not warnings:
        return list(stages)
    return at_first_steps(WARNING, log, stages)
