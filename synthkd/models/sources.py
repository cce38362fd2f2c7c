"""A classifier from its settings: someone's trained model as a teacher, or a fresh network as a student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from synthkd.errors import ConfigError
from synthkd.models import files
from synthkd.models.classifier import Classifier
from synthkd.models.factories import construct, is_library, require_name
from synthkd.models.weights import load_strictly, read_weights
from synthkd.settings import LoadedModel, ZooModel
from synthkd.types import ImageSpec


def load_model(settings: LoadedModel, source: Path | None = None) -> Classifier:
    """A trained classifier in eval mode: a saved directory, or a factory and its weights.

    The global random state stays as it was.

    Args:
        settings: which.
        source: the file that the settings were read from; None for what somebody typed (see `synthkd.imports`).

    Raises:
        ConfigError: size, classes or weights are missing, contradict the directory, or the name is unknown.
        ModelError: the files cannot be loaded or do not fit, or name code that is not trusted.
        MissingExtraError: a `timm:` model without timm.
    """
    if files.is_model_directory(settings.model):
        return _load_directory(settings)
    if settings.weights is None and is_library(settings.model):
        raise ConfigError(f"{settings.model} without weights knows nothing; set `weights` to a local file")
    with torch.random.fork_rng(devices=[]):
        spec = _own_spec(settings)
        model = construct(settings, spec, settings.mean, settings.std, settings.class_names or (), source)
    _read_into(model, settings)
    return model.eval()


def build_model(
    settings: ZooModel | LoadedModel,
    spec: ImageSpec | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
) -> Classifier:
    """A classifier to train, in training mode; fresh unless the settings name a directory or weights to start from.

    Args:
        settings: what to build.
        spec: what the job at hand needs; None: `settings` must say it.
        mean, std: normalisation for fresh networks whose settings have none.
        class_names: for models whose settings have none.

    Raises:
        ConfigError: as `load_model`, or the settings contradict `spec`.
        ModelError, MissingExtraError: as `load_model`.
    """
    if isinstance(settings, ZooModel):
        if spec is None:
            raise ConfigError(f"arch {settings.arch} needs to know its images; give data or a teacher")
        return construct(settings, spec, mean, std, class_names).train()
    if files.is_model_directory(settings.model):
        model = _load_directory(settings)
        if spec is not None and model.spec != spec:
            raise ConfigError(f"{settings.model} takes {model.spec}, but this job has {spec}; take another model")
        return model.train()
    own = settings if spec is None else _completed(settings, spec)
    # With weights the network's own normalisation counts (None: inside it); a fresh one takes the data's.
    fresh = settings.weights is None and settings.mean is None
    model = construct(
        own,
        _own_spec(own),
        mean if fresh else settings.mean,
        std if fresh else settings.std,
        settings.class_names or class_names,
    )
    _read_into(model, settings)
    return model.train()


def is_fresh(settings: ZooModel | LoadedModel) -> bool:
    """Whether `build_model` gives random weights; a factory of the user's own may bring some, so it counts as not."""
    return isinstance(settings, ZooModel) or (settings.weights is None and is_library(settings.model))


def _load_directory(settings: LoadedModel) -> Classifier:
    if settings.weights is not None:
        raise ConfigError(f"{settings.model} has its own weights; leave `weights` out, got {settings.weights}")
    if settings.options:
        got, trust = ", ".join(settings.options), f"write trust={settings.model} beside the sections instead"
        remedy = trust if "trust" in settings.options else "leave them out"
        raise ConfigError(f"options: {settings.model} was saved with its own, got {got}; {remedy}")
    model = files.load(settings.model)
    if (wanted := _spec_where_set(settings, model.spec)) != model.spec:
        raise ConfigError(f"{settings.model} takes {model.spec}, but the config says {wanted}; leave those keys out")
    fixed = [name for name in ("mean", "std", "class_names") if getattr(settings, name) is not None]
    if fixed:
        raise ConfigError(f"{settings.model} has its own {', '.join(fixed)}; leave those keys out")
    return model


def _completed(settings: LoadedModel, spec: ImageSpec) -> LoadedModel:
    """Fill what the settings leave open from `spec`; what they do say must agree with it."""
    if (wanted := _spec_where_set(settings, spec)) != spec:
        raise ConfigError(f"{settings.model} is set to {wanted}, but this job has {spec}; leave those keys out")
    size = (spec.height, spec.width)
    return settings.model_copy(update={"channels": spec.channels, "size": size, "classes": spec.classes})


def _own_spec(settings: LoadedModel) -> ImageSpec:
    require_name(settings.model)
    if settings.size is None or settings.classes is None:
        raise ConfigError(
            f"model '{settings.model}' is no directory that synthkd saved and so needs `size` and `classes`, "
            f"got size={settings.size}, classes={settings.classes}"
        )
    height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    return ImageSpec(settings.channels or 3, height, width, settings.classes)


def _spec_where_set(settings: LoadedModel, other: ImageSpec) -> ImageSpec:
    """What the settings say, with `other` where they are silent."""
    height, width = other.height, other.width
    if settings.size is not None:
        height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    return ImageSpec(settings.channels or other.channels, height, width, settings.classes or other.classes)


def _read_into(model: Classifier, settings: LoadedModel) -> None:
    if settings.weights is not None:
        load_strictly(model.body, read_weights(Path(settings.weights)), settings.weights)
