"""The images that a job tests on: whole datasets, except what the job or its teacher trains on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from synthkd.data.read.real import load_test
from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError, DataError
from synthkd.pipelines.config import CompressConfig, DistillConfig, PicturesSet, TeachConfig
from synthkd.pipelines.run.directory import CONFIG
from synthkd.settings import DataSettings, LoadedModel, StreamData, TeacherOrGiven, TrainedTeacher, UnlabelledData
from synthkd.settings.load import load_config


def read_test(config: DistillConfig | CompressConfig) -> RealData | None:
    """The images of `test`; None without it. See `load_test`.

    Raises:
        DataError: as `load_test`; the training leaves no image to test on.
    """
    if config.test is None:
        return None
    test = load_test(config.test, training_data(config))
    if not len(test):
        raise DataError(f"test: the training leaves no image of {test.name} to test on; name other images")
    return test


def training_data(config: DistillConfig | CompressConfig) -> list[DataSettings | UnlabelledData]:
    """The datasets that the teachers, the student or the generator of a job train on."""
    if isinstance(config, CompressConfig):
        return [*_of_compression(config, set())]
    return [*taught_on(config.every_teacher), *own_data(config)]


def own_data(config: DistillConfig) -> list[DataSettings | UnlabelledData]:
    """The datasets that the student or the generator of a distillation learns from."""
    sources = [source.data for source in (config.real, config.generated) if source is not None]
    roots = [source.root for source in config.sources if isinstance(source, PicturesSet) and source.root is not None]
    return [
        *(data for data in sources if data is not None and not isinstance(data, StreamData)),
        *(UnlabelledData(kind="unlabelled", path=root) for root in roots),
    ]


def taught_on(teachers: Sequence[TeacherOrGiven]) -> Iterator[DataSettings | UnlabelledData]:
    """The datasets of teachers that are trained here, and of those that are networks of a run.

    Such a run is one of `synthkd teach`, or one whose student is the teacher here: then the datasets of that student,
    of its generator and of its own teachers count, and so on.
    """
    yield from _taught_on(teachers, set())


def _taught_on(teachers: Sequence[TeacherOrGiven], visited: set[Path]) -> Iterator[DataSettings | UnlabelledData]:
    for teacher in teachers:
        if isinstance(teacher, TrainedTeacher):
            yield teacher.data
        elif isinstance(teacher, LoadedModel):
            path = Path(teacher.model).expanduser().resolve()
            for run in (path, path.parent):
                if run not in visited and (run / CONFIG).is_file():
                    visited.add(run)  # a damaged configuration may name its own run
                    yield from _of_run(run / CONFIG, visited)


def _of_compression(config: CompressConfig, visited: set[Path]) -> Iterator[DataSettings | UnlabelledData]:
    if config.finished is not None:
        yield from _of_run(Path(config.finished) / CONFIG, visited)
    if config.teacher is not None:
        yield from _taught_on([config.teacher], visited)


def _of_run(recorded: Path, visited: set[Path]) -> Iterator[DataSettings | UnlabelledData]:
    """The datasets of the run with this configuration; none of a run of another job, or another version."""
    for job in (TeachConfig, DistillConfig, CompressConfig):
        try:
            config = load_config(job, recorded, [], in_place=True)
        except ConfigError:
            continue
        if isinstance(config, TeachConfig):
            yield config.data
        elif isinstance(config, CompressConfig):
            yield from _of_compression(config, visited)
        elif isinstance(config, DistillConfig):
            yield from _taught_on(config.every_teacher, visited)
            yield from own_data(config)
        return
