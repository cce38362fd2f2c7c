"""What a run chooses once its networks are there: the generator that suits the teacher, and whether hints are possible.

A budget's plan scales a part of the generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from synthkd.distillation.phases import generator_rounds
from synthkd.distillation.terms.features import Transfer
from synthkd.errors import ConfigError, SynthkdError
from synthkd.generators.method_settings import NoisyLabelSettings
from synthkd.generators.settings import (
    ChosenByTeacher,
    DiffusionSettings,
    GeneratorSettings,
    InversionSettings,
    PixelSettings,
    ProceduralSettings,
)
from synthkd.models import Classifier
from synthkd.models.black_box import black_box_of
from synthkd.pipelines.config import DistillConfig, GeneratedSet
from synthkd.pipelines.config.image_defaults import COLOURS, LARGEST
from synthkd.pipelines.run.budget import MOST
from synthkd.settings import Curve, HintTerm, MixSettings, PhaseSettings, Schedule
from synthkd.settings.load import load_config
from synthkd.taps import has_statistics

HINT = Curve(kind="cosine", start=50.0, end=0.0)
"""Weight of the hints of `hint: auto`. Features of a larger network lead a student fast and hold it back at the end: on
CIFAR-10 a weight that stays is worth nine points after five minutes, and one or none after twenty."""


def with_generator(config: DistillConfig, teacher: Classifier | None) -> tuple[DistillConfig, tuple[str, ...]]:
    """The configuration with the generator that suits the teacher in place of kind auto, and a line that says why.

    If the phases are those of a budget's plan, the `horizon` of a generator is scaled as its rounds were.

    Args:
        config: of a distillation.
        teacher: the first teacher, trained or not; None without one.

    Returns:
        The configuration itself and no line where it names its generator, or generates nothing.
    """
    generated = config.generated
    if teacher is None or generated is None:
        return config, ()
    why: tuple[str, ...] = ()
    generator = generated.generator
    if isinstance(generator, ChosenByTeacher):
        suiting, words = _suiting(teacher, config.mix)
        place = f"{config.key_of(generated)}.generator"
        source = generated.choose(_with_keys(suiting, generator.model_extra or {}, place))
        why = (f"generator: {words}",)
    elif isinstance(generator, DiffusionSettings) and config.planned is not None:
        changed = _in_plan(generator, config.phases, config.planned.phases)
        source = generated.model_copy(update={"generator": changed})
    else:
        return config, ()
    transfer_set = config.transfer_set
    if isinstance(transfer_set, GeneratedSet):
        return config.model_copy(update={"transfer_set": source}), why
    assert isinstance(transfer_set, tuple)
    sources = tuple(source if one is generated else one for one in transfer_set)
    return config.model_copy(update={"transfer_set": sources}), why


def with_hint(
    config: DistillConfig, teacher: Classifier | None, student: nn.Module
) -> tuple[DistillConfig, tuple[str, ...]]:
    """The configuration with a weight in place of `distill.hint: auto`, and a line that says why it is 0, if it is.

    It is 0 where features cannot be compared, or the configuration has other terms that compare them.

    Args:
        config: of a distillation.
        teacher: the first teacher; None without one.
        student: that learns.
    """
    if config.distill.hint != "auto":
        return config, ()
    against = _against_hints(config) or _not_comparable(teacher, student)
    weight: Schedule = 0.0 if against else HINT
    changed = config.model_copy(update={"distill": config.distill.model_copy(update={"hint": weight})})
    return changed, ((f"hints: none, since {against}",) if against else ())


def _against_hints(config: DistillConfig) -> str:
    """Why hints do not belong to a configuration; empty if they do."""
    if config.online is not None:
        return "networks that learn together would have to show features too"
    if config.teachers:
        return "features are those of the first teacher alone"
    if config.logits == "stored":
        return "stored answers have no features"
    compared = ", ".join(dict.fromkeys(term.kind for term in config.distill.features))
    return f"{compared} compares features" if compared else ""


def _not_comparable(teacher: Classifier | None, student: nn.Module) -> str:
    """Why hints cannot compare these networks; empty if they can."""
    if teacher is None or black_box_of(teacher) is not None:
        return "no teacher shows features"
    if not isinstance(student, Classifier):
        return "a student that changes its width shows no features"
    try:
        with torch.random.fork_rng(devices=[]):
            Transfer([HintTerm(kind="hint")], teacher, student)
    except SynthkdError as error:  # networks without a last layer that is found, or a CNN beside a transformer
        return str(error)
    return ""


def _in_plan(
    generator: DiffusionSettings, phases: Sequence[PhaseSettings], of_recipe: Sequence[PhaseSettings]
) -> DiffusionSettings:
    """The generator with a horizon that ends where it ended in the recipe, as a share of the rounds."""
    before, after = generator_rounds(of_recipe), generator_rounds(phases)
    horizon = round(generator.horizon * after / before) if before else generator.horizon
    return generator.model_copy(update={"horizon": min(MOST, max(1, horizon))})


def _with_keys(generator: GeneratorSettings, keys: Mapping[str, object], place: str) -> GeneratorSettings:
    """The generator with further keys of the recipe, in which it stands at `place`.

    Raises:
        ConfigError: it has no such key, or not with such a value.
    """
    chosen = type(generator)
    if unknown := [key for key in keys if key not in chosen.model_fields]:
        raise ConfigError(f"{place}.{unknown[0]}: this teacher chooses {generator.kind}, which has no such key")
    try:
        return load_config(chosen, generator.model_dump() | dict(keys), [])
    except ConfigError as error:
        raise ConfigError(f"{place}, {generator.kind}: {error}") from None


def _suiting(teacher: Classifier, mix: MixSettings) -> tuple[GeneratorSettings, str]:
    if black_box_of(teacher) is not None:
        return ProceduralSettings(kind="procedural"), "procedural, since a black box gives its answers alone"
    layers, spec = sum(has_statistics(module) for module in teacher.modules()), teacher.spec
    if not layers:
        return PixelSettings(kind="pixels"), "pixels, since the teacher has no BatchNorm statistics"
    words = f"the teacher has {'a BatchNorm layer' if layers == 1 else f'{layers} BatchNorm layers'} with statistics"
    if spec.channels == COLOURS and max(spec.height, spec.width) <= LARGEST:
        # The teacher is taken to have learned from images that were shifted and flipped as the student's are.
        generator = NoisyLabelSettings(kind="noisy_label", shift=mix.shift, flip=mix.flip)
        words = f"noisy_label, since {words} and small images in colour"
        if not (mix.shift or mix.flip):
            words += "; set mix.shift and mix.flip if it learned from shifted and flipped images"
        return generator, words
    return InversionSettings(shift=mix.shift, flip=mix.flip), f"inversion, since {words}"
