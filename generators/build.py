"""From a generator's configuration to the generator."""

from __future__ import annotations

from accelerate import Accelerator

from synthkd.errors import ConfigError
from synthkd.generators.inversion import Inversion
from synthkd.generators.pixels import Pixels
from synthkd.generators.settings import InversionSettings, PixelSettings, PythonGenerator
from synthkd.imports import resolve
from synthkd.models import Classifier
from synthkd.types import TrainableGenerator


def build_generator(
    settings: InversionSettings | PixelSettings | PythonGenerator,
    teacher: Classifier,
    seed: int,
    accelerator: Accelerator,
) -> TrainableGenerator:
    """The generator of the settings for one frozen teacher.

    Raises:
        ConfigError: when a generator of the user's own cannot be imported or lacks a method.
        ModelError: when the teacher lacks what the generator needs.
    """
    if isinstance(settings, InversionSettings):
        return Inversion(settings, teacher, seed, accelerator)
    if isinstance(settings, PixelSettings):
        return Pixels(settings, teacher, seed, accelerator)
    made = resolve(settings.target, "generator.target")(teacher=teacher, seed=seed, **settings.options)
    needed = ("round", "sample", "state_dict", "load_state_dict")
    if missing := [name for name in needed if not callable(getattr(made, name, None))]:
        raise ConfigError(f"generator.target: what {settings.target} made has no {', '.join(missing)}")
    generator: TrainableGenerator = made
    return generator
