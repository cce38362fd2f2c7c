"""The images that a job tests on: whole datasets, except what the job or its teacher trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from synthkd.data.read.real import load_test
from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError
from synthkd.pipelines.config import CompressConfig, DistillConfig, TeachConfig
from synthkd.pipelines.run.directory import CONFIG
from synthkd.settings import DataSettings, LoadedModel, StreamData, TeacherOrGiven, TrainedTeacher, UnlabelledData
from synthkd.settings.load import load_config


def read_test(config: DistillConfig | CompressConfig) -> RealData | None:
    """The images of `test`; None without it. See `load_test`.

    Raises:
        DataError: as `load_test`.
    """
    return None if config.test is None else load_test(config.test, training_data(config))


def training_data(config: DistillConfig | CompressConfig) -> list[DataSettings | UnlabelledData]:
    """The datasets that the teachers, the student or the generator of a job train on."""
    if isinstance(config, CompressConfig):
        return [*taught_on([config.teacher])]
    sources = [source.data for source in (config.real, config.generated) if source is not None]
    own = [data for data in sources if data is not None and not isinstance(data, StreamData)]
    return [*taught_on(config.every_teacher), *own]


def taught_on(teachers: Sequence[TeacherOrGiven]) -> Iterator[DataSettings]:
    """The datasets of teachers that are trained here, and of those that a run of `synthkd teach` has saved."""
    for teacher in teachers:
        if isinstance(teacher, TrainedTeacher):
            yield teacher.data
        elif isinstance(teacher, LoadedModel):
            path = Path(teacher.model).expanduser()
            for run in (path, path.parent):
                if (run / CONFIG).is_file():
                    try:
                        yield load_config(TeachConfig, run / CONFIG, [], in_place=True).data
                    except ConfigError:  # of another job, or another version
                        continue
