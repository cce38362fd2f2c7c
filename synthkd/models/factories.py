"""Build networks by name: from the zoo, torchvision, timm, or a function of the user. Nothing is downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import optional, resolve
from synthkd.models import zoo
from synthkd.models.classifier import Classifier, in_float32
from synthkd.models.folders import data_only
from synthkd.models.size import in_proportion
from synthkd.settings import LoadedModel, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

ZOO = "zoo:"
TORCHVISION = "torchvision:"
TIMM = "timm:"
TRANSFORMERS = "transformers:"
LARGEST = 10**10
"""Largest number of parameters of a library's network; the largest of timm has 6.7 billion."""


def construct(
    settings: ZooModel | LoadedModel,
    spec: ImageSpec,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    source: Path | None = None,
) -> Classifier:
    """An untrained classifier in float32, in training mode, on the CPU.

    Args:
        settings: the network; of a `LoadedModel` only `model` (no directory) and `options` are read.
        spec: shape of its images and number of its classes.
        mean, std, class_names: see `Classifier`.
        source: the file that the settings were read from, or None if a user typed them (see `synthkd.imports`).

    Raises:
        ConfigError: an unknown name, an option that would download weights, or more than LARGEST parameters.
        ModelError: the factory fails or returns no module, or the file may not name code in this call.
        MissingExtraError: a `timm:` model without timm, a `transformers:` model without transformers.
    """
    if isinstance(settings, ZooModel):
        return zoo.build(settings, spec, mean, std, class_names)
    name, options = settings.model, settings.options
    if name.startswith(ZOO):
        return zoo.build(_zoo_settings(name, options), spec, mean, std, class_names)
    if name.startswith(TORCHVISION):
        body = _torchvision(name, options, spec)
    elif name.startswith(TIMM):
        body = _timm(name, options, spec)
    elif name.startswith(TRANSFORMERS):
        body = _transformers(name, options, spec)
    else:
        require_name(name)
        body = _call(name, resolve(name, "model", source, options), options)
    recipe = {"kind": "load", "model": name, "options": dict(options)}
    return in_float32(Classifier(body.cpu(), spec, mean, std, recipe, class_names))


def require_name(name: str) -> None:
    """Check that a model's name has the form of a factory's.

    Raises:
        ConfigError: it has not.
    """
    # Most likely a name without a colon is a path that is wrong, and the error says so.
    if ":" not in name:
        problem = "is no saved model" if Path(name).exists() else "does not exist"
        raise ConfigError(
            f"model: '{name}' {problem}: give a directory that synthkd saved, a folder of timm or transformers, a file "
            "of TorchScript, torch.export or ONNX, zoo:ARCH, torchvision:NAME, timm:NAME or package.module:function"
        )


def is_library(name: str) -> bool:
    """Whether a model's name is one of the zoo, torchvision, timm or transformers, not a function of the user."""
    return name.startswith((ZOO, TORCHVISION, TIMM, TRANSFORMERS))


def _zoo_settings(name: str, options: Mapping[str, Any]) -> ZooModel:
    arch = name.removeprefix(ZOO)
    _check_name(name, arch, list(zoo.ARCHITECTURES))
    try:
        return load_config(ZooModel, {**options, "arch": arch}, [])
    except ConfigError as error:
        raise ConfigError(f"options of {name}: {error}") from None


def _torchvision(name: str, options: Mapping[str, Any], spec: ImageSpec) -> nn.Module:
    import torchvision.models as library

    short = name.removeprefix(TORCHVISION)
    _check_name(name, short, library.list_models(module=library))
    if spec.channels != 3:
        raise ConfigError(
            f"{name} takes images of 3 channels, got {spec.channels}; take a timm: model or a package.module:function"
        )
    # torchvision would download weights by name, and the number of classes is that of the spec.
    _check_options(name, options, ("weights", "num_classes"))
    fixed = {"weights": None, "num_classes": spec.classes}
    return _in_proportion(name, library.get_model_builder(short), {**options, **fixed})


def _timm(name: str, options: Mapping[str, Any], spec: ImageSpec) -> nn.Module:
    timm = optional("timm", "timm", f"the model {name}")
    short = name.removeprefix(TIMM)
    # A tag after the dot names pretrained weights; the architecture stands before it.
    _check_name(name, short.partition(".")[0], timm.list_models())
    _check_options(name, options, ("num_classes", "in_chans", "checkpoint_path"))
    fixed = {"pretrained": False, "num_classes": spec.classes, "in_chans": spec.channels}
    return _in_proportion(name, timm.create_model, {**options, "model_name": short, **fixed})


def _transformers(name: str, options: Mapping[str, Any], spec: ImageSpec) -> nn.Module:
    """An image classifier of transformers, by the type of its configuration and the keys of it."""
    library = optional("transformers", "transformers", f"the model {name}")
    short = name.removeprefix(TRANSFORMERS)
    if short not in library.CONFIG_MAPPING:
        raise ConfigError(f"transformers {library.__version__} has no model type '{short}'")
    # The options may be from a saved model of unknown origin, and nothing is imported or downloaded for them.
    given = data_only(options)
    # Where a type has several classifiers, `architectures` chooses; the library needs a list of them.
    fixed = {"num_labels": spec.classes, "num_channels": spec.channels}
    given.setdefault("architectures", [])

    def make(**keys: Any) -> nn.Module:
        config = library.AutoConfig.for_model(short, **keys)
        network: nn.Module = library.AutoModelForImageClassification.from_config(config)
        return network

    return _in_proportion(name, make, {**given, **fixed})


def _in_proportion(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    """A network of a library with at most LARGEST parameters."""
    # The options may be from a saved model of unknown origin, and must not fill the memory.
    return in_proportion(lambda: _call(name, factory, options), name, LARGEST)


def _call(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    try:
        body = factory(**options)
    except Exception as error:  # other people's code may fail in any way
        raise ModelError(f"building '{name}' failed: {error!r}; check its options") from error
    if not isinstance(body, nn.Module):
        raise ModelError(f"'{name}' must return a torch.nn.Module, got {type(body).__name__}")
    return body


def _check_name(name: str, short: str, names: Sequence[str]) -> None:
    if short not in names:
        close = difflib.get_close_matches(short, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"{name.partition(':')[0]} has no model '{short}'{hint}")


def _check_options(name: str, options: Mapping[str, Any], reserved: Sequence[str]) -> None:
    forbidden = [k for k in options if k in reserved or k.startswith("pretrained")]
    if forbidden:
        raise ConfigError(
            f"options of {name} must not set {', '.join(forbidden)}: nothing is downloaded; "
            "use `weights` for a local file, `classes` and `channels` for the shape"
        )
