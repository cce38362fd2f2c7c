"""Builds the generator that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from synthkd.data.read.splits import Splits
from synthkd.errors import ConfigError, SynthkdError
from synthkd.generators.cgan import CGAN
from synthkd.generators.continuous import Continuous
from synthkd.generators.contrastive import Contrastive
from synthkd.generators.drawn import Drawn
from synthkd.generators.files import CONFIG, MOVED_SAMPLES, SAMPLED, facts_of, read_saved
from synthkd.generators.inversion import Inversion
from synthkd.generators.merf import Merf
from synthkd.generators.method_settings import (
    ContinuousSettings,
    ContrastiveSettings,
    NoisyLabelSettings,
    PixelInversionSettings,
)
from synthkd.generators.noisy_label import NoisyLabel
from synthkd.generators.own import checked
from synthkd.generators.pixel_inversion import PixelInversion
from synthkd.generators.pixels import Pixels
from synthkd.generators.pool import PoolSamples
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
    ProceduralSettings,
    PythonGenerator,
    SavedSettings,
)
from synthkd.imports import resolve
from synthkd.models import Classifier
from synthkd.models.black_box import black_box_of
from synthkd.taps import has_statistics
from synthkd.types import TrainableGenerator

METHODS = ("round", "sample", "state_dict", "load_state_dict")
"""Methods that a generator of kind `python` must have."""


def build_generator(
    settings: GeneratorSettings,
    teacher: Classifier,
    seed: int,
    accelerator: Accelerator,
    real: Splits | None = None,
    run: Path | None = None,
    rounds_at_once: int = 1,
    rounds: int | None = None,
) -> TrainableGenerator:
    """Build the generator of the settings for a frozen teacher.

    Args:
        settings: settings of the generator.
        teacher: predicts the classes of generated images; never trained.
        seed: the run's seed.
        accelerator: device and precision.
        real: real images; generators that learn from real images use the training and the holdout part.
        run: directory of the run, in which a private generator writes its release.
        rounds_at_once: see `Inversion`; other generators than those that `averages` names pass over it.
        rounds: of the run, over which a learning rate follows its curve; None where no run follows.

    Raises:
        ConfigError: the generator learns from real images and there are none, a saved generator makes other images than
            the teacher takes, or a generator of kind `python` cannot be imported, fails or lacks a method.
        ModelError: the teacher lacks what the generator needs, or a saved generator has weights that do not fit its
            settings or names code that is not trusted.
    """
    if isinstance(settings, FROM_REAL) and real is None:
        raise ConfigError(
            f"the {settings.kind} generator learns from real images: set data, or take a generator that was trained "
            "before (kind saved), or a data-free one (kind inversion)"
        )
    generator: TrainableGenerator = _build(
        settings, teacher, seed, accelerator, real, run, rounds_at_once=rounds_at_once, rounds=rounds
    )
    return generator


def _build(
    settings: GeneratorSettings,
    teacher: Classifier,
    seed: int,
    accelerator: Accelerator,
    real: Splits | None = None,
    run: Path | None = None,
    source: Path | None = None,
    rounds_at_once: int = 1,
    rounds: int | None = None,
) -> Any:
    """The generator, untrained; `source` is the file that the settings were read from, None for a recipe."""
    # A saved generator has no real data here, so it can be sampled and not trained.
    train, holdout = (None, None) if real is None else (real.train, real.holdout)
    match settings:
        case InversionSettings():
            return Inversion(settings, teacher, seed, accelerator, rounds_at_once=rounds_at_once)
        case PixelSettings():
            return Pixels(settings, teacher, seed, accelerator)
        case ProceduralSettings():
            return Drawn(settings, teacher, seed, accelerator)
        case ContinuousSettings():
            return Continuous(settings, teacher, seed, accelerator, rounds_at_once=rounds_at_once, rounds=rounds)
        case ContrastiveSettings():
            return Contrastive(settings, teacher, seed, accelerator)
        case NoisyLabelSettings():
            return NoisyLabel(settings, teacher, seed, accelerator)
        case PixelInversionSettings():
            return PixelInversion(settings, teacher, seed, accelerator)
        case CGANSettings():
            return CGAN(settings, teacher, seed, accelerator, train, holdout)
        case DiffusionSettings():
            from synthkd.generators.diffusion import Diffusion  # diffusers takes half a second to import

            return Diffusion(settings, teacher, seed, accelerator, train, holdout)
        case MerfSettings():
            return Merf(settings, teacher, seed, accelerator, train, run=run)
        case PipelineSettings():
            from synthkd.generators.pipeline import Pipeline

            return Fixed(Pipeline(settings, teacher.spec, accelerator), settings.batch_size, teacher, seed, accelerator)
        case SavedSettings():
            return _saved(settings, teacher, seed, accelerator)
        case PythonGenerator():
            make = resolve(settings.target, "the generator's target", source, settings.options)
            try:
                generator: Any = make(teacher=teacher, seed=seed, **settings.options)
            except SynthkdError:
                raise
            except Exception as error:  # other people's code may fail in any way
                raise ConfigError(
                    f"the generator's target: {settings.target} failed: {error!r}; check the generator's options"
                ) from error
            if missing := [name for name in METHODS if not callable(getattr(generator, name, None))]:
                raise ConfigError(
                    f"the generator's target: {settings.target} returned a {type(generator).__name__}, which has no "
                    f"{', '.join(missing)}; add what is missing"
                )
            # On the object itself, which may have more than these methods (save, restore, for_labels, repeats).
            generator.round = checked(generator.round, settings.target, teacher.spec)
            return generator


def _saved(settings: SavedSettings, teacher: Classifier, seed: int, accelerator: Accelerator) -> Fixed:
    """Rounds of samples from a saved generator."""
    saved, directory = read_saved(settings.path)
    if saved.spec.image_spec != teacher.spec:
        raise ConfigError(
            f"the saved generator {settings.path} makes {saved.spec.image_spec}, the teacher takes {teacher.spec}; "
            "they must be the same"
        )
    made_by = saved.settings
    if isinstance(made_by, MOVED_SAMPLES) and black_box_of(teacher) is not None:
        raise ConfigError(
            f"the saved generator {settings.path} is of kind {made_by.kind}, whose samples are moved by gradients of "
            "the teacher, which a black box does not give: take a generator that learned from real images, or "
            "transfer_set.kind=procedural"
        )
    generator = _samples(made_by, teacher, saved.seed, accelerator, directory / CONFIG)
    generator.restore(directory)
    return Fixed(generator, facts_of(made_by).images_of_round or SAMPLED, teacher, seed, accelerator)


def _samples(made_by: GeneratorSettings, teacher: Classifier, seed: int, accelerator: Accelerator, source: Path) -> Any:
    """The generator that a saved one is restored into: for samples, where a round may need more of the teacher."""
    if isinstance(made_by, ContrastiveSettings | PixelInversionSettings):
        return PoolSamples(teacher.spec, accelerator.device)
    if getattr(made_by, "batch_norm", 0.0) and not any(has_statistics(layer) for layer in teacher.modules()):
        made_by = made_by.model_copy(update={"batch_norm": 0.0})  # rounds match statistics, samples do not
    # With its own seed, from which pixels fits the tone curve; the run's seed draws the images of a round.
    return _build(made_by, teacher, seed, accelerator, source=source)
