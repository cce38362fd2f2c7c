"""The request of a `synthkd generate` job: settings resolved, real data read, all checked before anything expensive."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from synthkd.data.read.decode import some
from synthkd.data.read.real import load_splits
from synthkd.data.read.splits import Splits
from synthkd.data.written.writers import Layout, check_format
from synthkd.errors import ConfigError
from synthkd.generators.files import INSIDE_A_RUN, read_saved, real_images_seen
from synthkd.generators.method_settings import BatchwiseSettings, ContinuousSettings
from synthkd.generators.settings import (
    FROM_REAL,
    GeneratorSettings,
    InversionSettings,
    MerfSettings,
    PipelineSettings,
    PixelSettings,
    ProceduralSettings,
    SavedSettings,
)
from synthkd.models import Classifier
from synthkd.models.files import is_model_directory
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.run.directory import CONFIG
from synthkd.pipelines.student.teachers import FOLDER as TAUGHT
from synthkd.settings import LoadedModel, TeacherSettings
from synthkd.settings.yaml_text import read_yaml


@dataclass(frozen=True)
class Request:
    """The resolved settings of a dataset and its real data.

    Attributes:
        teacher: settings of the teacher that labels the images.
        generator: settings of the generator.
        real: real images that the generator or a filter uses, or None.
        source: the file that names the teacher; None where the configuration itself does.
    """

    teacher: TeacherSettings
    generator: GeneratorSettings
    real: Splits | None
    source: Path | None = None


def read_request(config: GenerateConfig) -> Request:
    """Resolve the generator and the teacher of a configuration, and read its real data.

    Raises:
        ConfigError: rounds or filters that do not fit the generator, data that nothing uses, or a run that names no
            teacher.
        DataError: real data that cannot be read.
        ModelError: a saved generator that cannot be read.
    """
    generator = config.generator if config.run is None else SavedSettings(kind="saved", path=config.run)
    made_by = read_saved(generator.path)[0].settings if isinstance(generator, SavedSettings) else generator
    if isinstance(made_by, ProceduralSettings | ContinuousSettings):
        raise ConfigError(
            f"generator.kind: {made_by.kind} images are made for no class, and per_class asks for classes; take pixels"
        )
    if config.filters.copies is not None and isinstance(made_by, MerfSettings):
        raise ConfigError("filters.copies compares with every private image without noise: leave it out")
    learns = isinstance(generator, (InversionSettings, BatchwiseSettings, *FROM_REAL))
    if learns and not config.rounds:
        raise ConfigError(
            f"rounds: 0 would leave the {generator.kind} generator untrained; set the rounds that it is trained, or a "
            "run that has one"
        )
    if config.rounds and isinstance(generator, SavedSettings | PipelineSettings | PixelSettings):
        raise ConfigError(f"rounds: nothing about the {generator.kind} generator is trained; leave rounds out")
    real = None if config.data is None else load_splits(config.data)
    if real is not None and not isinstance(generator, FROM_REAL) and config.filters.copies is None:
        raise ConfigError(
            f"data: neither the {generator.kind} generator nor a filter uses real images; leave data out, or set "
            "filters.copies"
        )
    teacher, source = _teacher_settings(config)
    return Request(teacher, generator, real, source)


def _teacher_settings(config: GenerateConfig) -> tuple[TeacherSettings, Path | None]:
    """The teacher in the configuration, else that of its run, and then the file that names it."""
    if config.teacher is not None:
        return config.teacher, None
    assert config.run is not None
    directory = Path(config.run).expanduser()
    directory = directory.parent if directory.name == INSIDE_A_RUN else directory
    source = directory / CONFIG
    if is_model_directory(directory / TAUGHT):
        return LoadedModel(kind="load", model=str(directory / TAUGHT)), source
    try:
        return LoadedModel(**read_yaml(source)["teacher"]), source
    except (ConfigError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"run: {config.run} does not say which teacher labels the images; set teacher") from error


def class_names(teacher: Classifier) -> tuple[str, ...]:
    """Names of the teacher's classes, or their numbers where it has no names."""
    return teacher.class_names or tuple(map(str, range(teacher.spec.classes)))


def plan_layout(config: GenerateConfig, request: Request, teacher: Classifier) -> tuple[list[int], Layout]:
    """The number of images of each class, and the layout of the files.

    Raises:
        ConfigError: unknown classes, a format that cannot hold them, or real images of another shape.
        MissingExtraError: the format's package is not installed.
    """
    names = class_names(teacher)
    counts = class_counts(config.per_class, names)
    layout = Layout(config.format, names, config.difficulty, config.shard_size, sum(counts))
    check_format(layout, teacher.spec, counts)
    if request.real is not None and request.real.train.spec != teacher.spec:
        real = request.real.train
        raise ConfigError(f"data: {real.name} has {real.spec}, the teacher takes {teacher.spec}; they must be the same")
    return counts, layout


def class_counts(per_class: int | Mapping[str, int], names: Sequence[str]) -> list[int]:
    """Images of each class; classes that a mapping leaves out get none.

    Raises:
        ConfigError: an unknown class, or one that is named twice.
    """
    if isinstance(per_class, int):
        return [per_class] * len(names)
    counts: dict[int, int] = {}
    for key, count in per_class.items():
        number = names.index(key) if key in names else int(key) if key.isdecimal() else -1
        if not 0 <= number < len(names):
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {some(names)}, or 0 to {len(names) - 1}"
            raise ConfigError(f"per_class: no class {key!r}; {hint}")
        if number in counts:
            raise ConfigError(
                f"per_class: class {names[number]!r} is there twice, by name and by number; leave one out"
            )
        counts[number] = count
    return [counts.get(number, 0) for number in range(len(names))]


def real_images_used(request: Request) -> int | None:
    """Number of real images that the generator was trained on; None where that is unknown."""
    return real_images_seen(request.generator, 0 if request.real is None else len(request.real.train))


def trained_as(request: Request) -> GeneratorSettings:
    """The settings with which the generator was trained, also of a saved one."""
    if isinstance(request.generator, SavedSettings):
        return read_saved(request.generator.path)[0].settings
    return request.generator
