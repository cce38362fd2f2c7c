"""The teacher of a job: loaded, or trained in a run of its own inside the run of the job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from synthkd.data.read.real import load_splits
from synthkd.errors import ConfigError
from synthkd.models import Classifier, load_model
from synthkd.models.black_box import ANSWERS, black_box_model
from synthkd.pipelines.config import TeachConfig, TrainingConfig
from synthkd.pipelines.run.job import Job
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.run.timing import Work
from synthkd.pipelines.teach import load_taught, teach
from synthkd.pipelines.teacher.learning import untrained, works
from synthkd.reports.results import RESULT
from synthkd.settings import LabelsTeacher, LoadedModel, TeacherOrGiven, TrainedTeacher

FOLDER = "teach"
"""Folder of the first teacher's run, inside the run that needs it."""

TEACHER_STEPS = "steps of the teacher"
"""Name of the steps of a teacher's training in the time of a plan."""

_SHARED = ("seed", "device", "sync", "precision", "threads", "log_every", "checkpoint_every", "adapt_batch_size")
"""Settings of a job that hold for the training of its teachers too."""


@dataclass(frozen=True)
class ReadyTeacher:
    """A trained teacher.

    Attributes:
        model: the teacher, in eval mode.
        seconds: wall time of its training; 0 for a loaded one.
    """

    model: Classifier
    seconds: float


def is_taught(settings: TeacherOrGiven, directory: Path, number: int = 0) -> bool:
    """Whether a teacher needs no training: it is loaded or given, or its run inside the run `directory` is finished."""
    return not isinstance(settings, TrainedTeacher) or (directory / folder(number) / RESULT).exists()


def folder(number: int) -> str:
    """Folder of a teacher's run inside the run that needs it: `teach`, `teach-2`, `teach-3`, ..."""
    return f"{FOLDER}-{number + 1}" if number else FOLDER


def ready_teacher(
    settings: TrainedTeacher | LoadedModel | LabelsTeacher,
    config: TrainingConfig,
    job: Job,
    number: int = 0,
    source: Path | None = None,
) -> ReadyTeacher:
    """The teacher of a job, trained in `<run>/teach` where the settings say so.

    A black box has its answers in `<run>/answers.bin`.

    Args:
        settings: of the teacher.
        config: the job's configuration; the teacher has its seed, device and intervals.
        job: the open run.
        number: index of the teacher among several.
        source: the file from which the settings were read; None: they are of the job's own configuration.

    Raises:
        SynthkdError: what `teach` and `load_model` raise.
    """
    if isinstance(settings, LoadedModel):
        return ReadyTeacher(load_model(settings, source), 0.0)
    if isinstance(settings, LabelsTeacher):
        if job.accelerator.num_processes > 1:
            raise ConfigError("teacher.kind: a black box is asked in one process only; leave torchrun out")
        return ReadyTeacher(black_box_model(settings, job.directory / ANSWERS), 0.0)
    result = teach(teach_config(settings, config, str(job.directory / folder(number))))
    assert isinstance(result, Result)  # a Plan comes of a dry run only
    return ReadyTeacher(load_taught(result), result.content.seconds or 0.0)


def untrained_teacher(
    settings: TrainedTeacher | LoadedModel | LabelsTeacher, config: TrainingConfig, source: Path | None = None
) -> Classifier:
    """The teacher for a dry run: loaded, or only initialised. For `source` see `ready_teacher`."""
    if isinstance(settings, LoadedModel):
        return load_model(settings, source)
    if isinstance(settings, LabelsTeacher):
        return black_box_model(settings)
    teaching = teach_config(settings, config, None)
    return untrained(teaching, load_splits(teaching.data)).eval()


def teaching_works(settings: TrainedTeacher, config: TrainingConfig, accelerator: Accelerator) -> list[Work]:
    """What the training of a teacher does, for the time that a dry run tells."""
    teaching = teach_config(settings, config, None)
    splits = load_splits(teaching.data)
    return works(teaching, splits, untrained(teaching, splits), accelerator, TEACHER_STEPS)


def teach_config(settings: TrainedTeacher, config: TrainingConfig, out: str | None) -> TeachConfig:
    """The configuration of a teacher's training, with the seed, device and intervals of the job that needs it."""
    return TeachConfig(
        name=f"{config.name}-teacher",
        out=out,
        data=settings.data,
        model=settings.model,
        training=settings.training,
        **{key: getattr(config, key) for key in _SHARED},
    )
