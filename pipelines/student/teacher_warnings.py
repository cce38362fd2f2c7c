"""What is odd about teachers that somebody else trained: found before a run, shown in plan, log and report."""

from __future__ import annotations

from collections.abc import Sequence

from synthkd.models import Classifier, TeacherContract
from synthkd.pipelines.student.networks import teacher_name
from synthkd.pipelines.student.normalisation import better_normalisation
from synthkd.settings import LabelsTeacher, TeacherOrGiven, TrainedTeacher
from synthkd.training.loop import Stage, Values, at_first_steps
from synthkd.training.monitor import Monitor

WARNING = "odd teacher"
"""Name of the alarm with such a warning."""


def teacher_warnings(
    sources: Sequence[TeacherOrGiven],
    teachers: Sequence[Classifier],
    contracts: Sequence[TeacherContract],
    batch_size: int,
) -> tuple[str, ...]:
    """What is odd about the teachers of a run, a line each.

    Args:
        sources: the settings of each.
        teachers: each in any mode; unchanged.
        contracts: what `probe` found of each.
        batch_size: largest number of images of a pass.
    """
    warnings = [warning for contract in contracts for warning in contract.warnings]
    for number, (settings, teacher) in enumerate(zip(sources, teachers, strict=True)):
        # A teacher that is trained here has the normalisation of its images; a black box shows none.
        if not isinstance(settings, TrainedTeacher | LabelsTeacher):
            warning = better_normalisation(teacher, teacher_name(number), batch_size)
            warnings += [] if warning is None else [warning]
    return tuple(warnings)


def logged(warnings: Sequence[str], stages: Sequence[Stage], monitor: Monitor) -> list[Stage]:
    """The stages of a training, the first of which logs the warnings as alarms.

    Args:
        warnings: what to log.
        stages: of the training.
        monitor: the log.
    """

    return _once(warnings, stages, monitor, kind="alarm", name=WARNING)


def noted(notes: Sequence[str], stages: Sequence[Stage], monitor: Monitor) -> list[Stage]:
    """The stages of a training, the first of which logs notes, each as an event; arguments as in `logged`."""
    return _once(notes, stages, monitor, kind="note")


def _once(texts: Sequence[str], stages: Sequence[Stage], monitor: Monitor, **about: str) -> list[Stage]:
    def log(step: int) -> Values:
        events = {row.get("event") for row in monitor.rows()}
        for text in texts:
            if text not in events:
                monitor.event(step, text, **about)
        return {}

    return at_first_steps(about["kind"], log, stages) if texts else list(stages)
