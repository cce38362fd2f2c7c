"""The teacher of a job: loaded, or trained first in a run of its own inside the job's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synthkd.data.read.real import load_splits
from synthkd.models import Classifier, load_model
from synthkd.pipelines.config import TeachConfig, TrainingConfig
from synthkd.pipelines.run.directory import Result
from synthkd.pipelines.run.job import Job
from synthkd.pipelines.teach import load_taught, teach, untrained
from synthkd.reports.results import RESULT
from synthkd.settings import LoadedModel, TrainedTeacher

FOLDER = "teach"
"""The run of the teacher, inside the run that needs it."""

_SHARED = ("seed", "device", "precision", "threads", "log_every", "checkpoint_every", "adapt_batch_size")


@dataclass(frozen=True)
class ReadyTeacher:
    """A teacher that can be asked.

    Attributes:
        model: the teacher, in eval mode.
        seconds: how long its training took; 0 for a loaded one.
    """

    model: Classifier
    seconds: float


def is_taught(settings: TrainedTeacher | LoadedModel, directory: Path, number: int = 0) -> bool:
    """Whether nothing is left to train: the teacher is loaded, or its run inside `directory` is finished."""
    return isinstance(settings, LoadedModel) or (directory / folder(number) / RESULT).exists()


def folder(number: int) -> str:
    """The run of a teacher, inside the run that needs it: that of the first is `teach`."""
    return f"{FOLDER}-{number + 1}" if number else FOLDER


def ready_teacher(
    settings: TrainedTeacher | LoadedModel,
    config: TrainingConfig,
    job: Job,
    number: int = 0,
    source: Path | None = None,
) -> ReadyTeacher:
    """The teacher of a job, trained in `<run>/teach` where the settings say so.

    Args:
        settings: which teacher.
        config: the job's configuration; seed, device and the like are passed on.
        job: the open run.
        number: of the teacher, where there are several.
        source: the file that the settings were read from; None for the job's own configuration.

    Raises:
        SynthkdError: what `teach` and `load_model` raise.
    """
    if isinstance(settings, LoadedModel):
        return ReadyTeacher(load_model(settings, source), 0.0)
    result = teach(teach_config(settings, config, str(job.directory / folder(number))))
    assert isinstance(result, Result)
    return ReadyTeacher(load_taught(result), result.content.seconds or 0.0)


def untrained_teacher(
    settings: TrainedTeacher | LoadedModel, config: TrainingConfig, source: Path | None = None
) -> Classifier:
    """The teacher for a dry run: loaded, or built and left untrained; for `source` see `ready_teacher`."""
    if isinstance(settings, LoadedModel):
        return load_model(settings, source)
    teaching = teach_config(settings, config, None)
    return untrained(teaching, load_splits(teaching.data)).eval()


def teach_config(settings: TrainedTeacher, config: TrainingConfig, out: str | None) -> TeachConfig:
    return TeachConfig(
        name=f"{config.name}-teacher",
        out=out,
        data=settings.data,
        model=settings.model,
        training=settings.training,
        **{key: getattr(config, key) for key in _SHARED},
    )
