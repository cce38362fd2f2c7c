"""The generator that suits a teacher, where the configuration leaves the choice to it."""

from __future__ import annotations

from synthkd.generators.settings import (
    ChosenByTeacher,
    GeneratorSettings,
    InversionSettings,
    PixelSettings,
    ProceduralSettings,
)
from synthkd.models import Classifier
from synthkd.models.black_box import black_box_of
from synthkd.pipelines.config import DistillConfig, GeneratedSet
from synthkd.taps import has_statistics


def with_generator(config: DistillConfig, teacher: Classifier | None) -> tuple[DistillConfig, str]:
    """The configuration with the generator that suits the teacher in place of kind auto, and why, in words.

    Args:
        config: of a distillation.
        teacher: the first teacher, trained or not; None without one.

    Returns:
        The configuration itself and no words where it names its generator, or generates nothing.
    """
    generated = config.generated
    if teacher is None or generated is None or not isinstance(generated.generator, ChosenByTeacher):
        return config, ""
    generator, why = _suiting(teacher)
    source = generated.model_copy(update={"generator": generator})
    transfer_set = config.transfer_set
    if isinstance(transfer_set, GeneratedSet):
        return config.model_copy(update={"transfer_set": source}), why
    assert isinstance(transfer_set, tuple)
    sources = tuple(source if one is generated else one for one in transfer_set)
    return config.model_copy(update={"transfer_set": sources}), why


def _suiting(teacher: Classifier) -> tuple[GeneratorSettings, str]:
    if black_box_of(teacher) is not None:
        return ProceduralSettings(kind="procedural"), "procedural, since a black box gives its answers alone"
    if layers := sum(has_statistics(module) for module in teacher.modules()):
        words = "a BatchNorm layer" if layers == 1 else f"{layers} BatchNorm layers"
        return InversionSettings(), f"inversion, since the teacher has {words} with statistics"
    return PixelSettings(kind="pixels"), "pixels, since the teacher has no BatchNorm statistics"
