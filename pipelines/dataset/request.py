"""What a job of `synthkd generate` is asked for, made whole and checked before anything expensive."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from synthkd.data.read.real import Splits, load_splits
from synthkd.data.written.writers import Layout, check_format
from synthkd.errors import ConfigError
from synthkd.generators.files import INSIDE_A_RUN, read_saved, real_images_seen
from synthkd.generators.settings import (
    FROM_REAL,
    GeneratorSettings,
    InversionSettings,
    PipelineSettings,
    PixelSettings,
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
class Order:
    """What is asked for, checked before anything expensive.

    Attributes:
        teacher: settings of what labels the images.
        generator: settings of what makes them.
        real: real images, or None.
        source: the file that the teacher was read from; None where the configuration names it.
    """

    teacher: TeacherSettings
    generator: GeneratorSettings
    real: Splits | None
    source: Path | None = None


def read_order(config: GenerateConfig) -> Order:
    """Settings made whole, and the real data read."""
    generator = config.generator if config.run is None else SavedSettings(kind="saved", path=config.run)
    learns = isinstance(generator, (InversionSettings, *FROM_REAL))
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
    return Order(teacher, generator, real, source)


def _teacher_settings(config: GenerateConfig) -> tuple[TeacherSettings, Path | None]:
    """The teacher that the configuration names, else that of the run it names, and the file that says so."""
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
    """The names of the teacher's classes, or their numbers where it has no names."""
    return teacher.class_names or tuple(map(str, range(teacher.spec.classes)))


def plan_layout(config: GenerateConfig, order: Order, teacher: Classifier) -> tuple[list[int], Layout]:
    """How many images of each class, and how they are written.

    Raises:
        ConfigError: classes that there are not, a format that cannot hold them, real images of another shape.
        MissingExtraError: the format's package is not installed.
    """
    names = class_names(teacher)
    counts = class_counts(config.per_class, names)
    layout = Layout(config.format, names, config.difficulty, config.shard_size, sum(counts))
    check_format(layout, teacher.spec, counts)
    if order.real is not None and order.real.train.spec != teacher.spec:
        real = order.real.train
        raise ConfigError(f"data: {real.name} has {real.spec}, the teacher takes {teacher.spec}; they must be the same")
    return counts, layout


def class_counts(per_class: int | Mapping[str, int], names: Sequence[str]) -> list[int]:
    """Images of each class; classes that a mapping leaves out get none.

    Raises:
        ConfigError: a class that there is not, or that is named twice.
    """
    if isinstance(per_class, int):
        return [per_class] * len(names)
    counts: dict[int, int] = {}
    for key, count in per_class.items():
        number = names.index(key) if key in names else int(key) if key.isdecimal() else -1
        if not 0 <= number < len(names):
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {_some(names)}, or 0 to {len(names) - 1}"
            raise ConfigError(f"per_class: no class {key!r}; {hint}")
        if number in counts:
            raise ConfigError(
                f"per_class: class {names[number]!r} is there twice, by name and by number; leave one out"
            )
        counts[number] = count
    return [counts.get(number, 0) for number in range(len(names))]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def real_images_used(order: Order) -> int | None:
    """Real images that the generator was trained on; None where nobody can say."""
    return real_images_seen(order.generator, 0 if order.real is None else len(order.real.train))


def trained_as(order: Order) -> GeneratorSettings:
    """The settings with which the generator was trained, those of a saved one included."""
    if isinstance(order.generator, SavedSettings):
        return read_saved(order.generator.path)[0].settings
    return order.generator
