"""From a generator's configuration to the generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from synthkd.data.read.splits import Splits
from synthkd.errors import ConfigError
from synthkd.generators.cgan import CGAN
from synthkd.generators.files import CONFIG, read_saved
from synthkd.generators.inversion import Inversion
from synthkd.generators.merf import Merf
from synthkd.generators.pixels import Pixels
from synthkd.generators.rounds import Fixed
from synthkd.generators.settings import (
    FROM_REAL,
    CGANSettings,
    DiffusionSettings,
    GeneratorSettings,
    InversionSettings,
    MerfSettings,
    PipelineSettings,
    PixelSettings,
    PythonGenerator,
    SavedSettings,
)
from synthkd.imports import resolve
from synthkd.models import Classifier
from synthkd.types import TrainableGenerator

SAMPLED = 64
"""Images of a round of a saved generator whose settings name no number."""


def build_generator(
    settings: GeneratorSettings,
    teacher: Classifier,
    seed: int,
    accelerator: Accelerator,
    real: Splits | None = None,
    run: Path | None = None,
) -> TrainableGenerator:
    """The generator of the settings for one frozen teacher.

    Args:
        settings: which one.
        teacher: judges what it makes; never trained.
        seed: the run's seed.
        accelerator: device and precision.
        real: real images, of which the generators that learn from some take the training and holdout parts.
        run: directory of the run, where a private generator keeps what a kill must not make it pay for twice.

    Raises:
        ConfigError: when there are no real images for one that learns from them, or a generator of the user's own
            cannot be imported or lacks a method.
        ModelError: when the teacher lacks what the generator needs, or a saved generator does not fit it or names code
            that is not trusted.
    """
    if isinstance(settings, FROM_REAL) and real is None:
        raise ConfigError(
            f"generator.kind: {settings.kind} learns from real images: set data, or take one that was trained before "
            "(generator.kind=saved), or a data-free one (generator.kind=inversion)"
        )
    if isinstance(settings, SavedSettings):
        saved, directory = read_saved(settings.path)
        if saved.image_spec != teacher.spec:
            raise ConfigError(
                f"generator.path: {settings.path} makes {saved.image_spec}, the teacher takes {teacher.spec}; they "
                "must be the same"
            )
        generator = _build(saved.settings, teacher, saved.seed, accelerator, source=directory / CONFIG)
        generator.restore(directory)
        batch = getattr(saved.settings, "batch_size", SAMPLED)
        return Fixed(generator, batch, teacher, seed, accelerator)
    generator = _build(settings, teacher, seed, accelerator, real, run)
    needed = ("round", "sample", "state_dict", "load_state_dict")
    if missing := [name for name in needed if not callable(getattr(generator, name, None))]:
        target = getattr(settings, "target", settings.kind)
        raise ConfigError(f"generator.target: what {target} made has no {', '.join(missing)}")
    made: TrainableGenerator = generator
    return made


def _build(
    settings: GeneratorSettings,
    teacher: Classifier,
    seed: int,
    accelerator: Accelerator,
    real: Splits | None = None,
    run: Path | None = None,
    source: Path | None = None,
) -> Any:
    parts = (None, None) if real is None else (real.train, real.holdout)
    match settings:
        case InversionSettings():
            return Inversion(settings, teacher, seed, accelerator)
        case PixelSettings():
            return Pixels(settings, teacher, seed, accelerator)
        case CGANSettings():
            return CGAN(settings, teacher, seed, accelerator, *parts)
        case DiffusionSettings():
            from synthkd.generators.diffusion import Diffusion  # diffusers takes half a second to import

            return Diffusion(settings, teacher, seed, accelerator, *parts)
        case MerfSettings():
            return Merf(settings, teacher, seed, accelerator, parts[0], run=run)
        case PipelineSettings():
            from synthkd.generators.pipeline import Pipeline

            return Fixed(Pipeline(settings, teacher.spec, accelerator), settings.batch_size, teacher, seed, accelerator)
        case PythonGenerator():
            make = resolve(settings.target, "generator.target", source, settings.options)
            return make(teacher=teacher, seed=seed, **settings.options)
        case _:
            raise ConfigError(f"generator.kind: {settings.kind} makes no images of its own here")
