"""Build networks by name: from the zoo, torchvision, timm, or a function of the user's. Nothing is ever downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import optional, resolve
from synthkd.models import zoo
from synthkd.models.classifier import Classifier
from synthkd.models.size import in_proportion
from synthkd.settings import LoadedModel, ZooModel
from synthkd.types import ImageSpec

TORCHVISION = "torchvision:"
TIMM = "timm:"
LARGEST = 10**10
"""Parameters of a network of theirs; the largest of timm has 6.7 thousand million."""


def construct(
    settings: ZooModel | LoadedModel,
    spec: ImageSpec,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    source: Path | None = None,
) -> Classifier:
    """An untrained classifier. Of a `LoadedModel` only `model` (not a directory) and `options` are read.

    `source` is the file that the settings were read from; None for what somebody typed (see `synthkd.imports`).

    Raises:
        ConfigError: an unknown name, or an option that the factory does not take or that would fetch weights.
        ModelError: the factory fails or gives no module, or the file must not name code in this call.
        MissingExtraError: a `timm:` model without timm.
    """
    if isinstance(settings, ZooModel):
        return zoo.build(settings, spec, mean, std, class_names)
    name, options = settings.model, settings.options
    if name.startswith(TORCHVISION):
        body = _torchvision(name, options, spec)
    elif name.startswith(TIMM):
        body = _timm(name, options, spec)
    else:
        require_name(name)
        body = _call(name, resolve(name, "model", source, options), options)
    return Classifier(body, spec, mean, std, {"kind": "load", "model": name, "options": dict(options)}, class_names)


def require_name(name: str) -> None:
    """Raise `ConfigError` where a model's name is that of nothing which could be called: a path, most likely."""
    if ":" not in name:
        there = "is not there" if not Path(name).exists() else "is none"
        raise ConfigError(
            f"model: '{name}' {there}: give a directory that synthkd saved, torchvision:NAME, timm:NAME or "
            "package.module:function"
        )


def is_library(name: str) -> bool:
    """Whether a model's name is that of a library (whose factories are known), not of a function of the user's."""
    return name.startswith((TORCHVISION, TIMM))


def _torchvision(name: str, options: Mapping[str, Any], spec: ImageSpec) -> nn.Module:
    import torchvision.models as library

    known = library.list_models(module=library)
    short = name.removeprefix(TORCHVISION)
    _check_name(name, short, known)
    if spec.channels != 3:
        raise ConfigError(
            f"{name} takes images of 3 channels, got {spec.channels}; take a timm: model or a package.module:function"
        )
    _check_options(name, options, ("weights", "num_classes"))
    fixed = {"weights": None, "num_classes": spec.classes}
    return _in_proportion(name, library.get_model_builder(short), {**options, **fixed})


def _timm(name: str, options: Mapping[str, Any], spec: ImageSpec) -> nn.Module:
    timm = optional("timm", "timm", f"the model {name}")
    short = name.removeprefix(TIMM)
    # A tag after the dot names pretrained weights; the architecture is what stands before it.
    _check_name(name, short.partition(".")[0], timm.list_models())
    _check_options(name, options, ("num_classes", "in_chans", "checkpoint_path"))
    fixed = {"pretrained": False, "num_classes": spec.classes, "in_chans": spec.channels}
    return _in_proportion(name, timm.create_model, {**options, "model_name": short, **fixed})


def _in_proportion(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    """A network of a library: its options may come from a folder that somebody sent."""
    return in_proportion(lambda: _call(name, factory, options), name, LARGEST)


def _call(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> nn.Module:
    try:
        body = factory(**options)
    except Exception as error:  # other people's code may fail in any way; the line must say where
        raise ModelError(f"building '{name}' failed: {error!r}; check its options") from error
    if not isinstance(body, nn.Module):
        raise ModelError(f"'{name}' must return a torch.nn.Module, got {type(body).__name__}")
    return body


def _check_name(name: str, short: str, known: Iterable[str]) -> None:
    names = list(known)
    if short not in names:
        library = name.partition(":")[0]
        raise ConfigError(f"{library} has no model '{short}'{_did_you_mean(short, names)}")


def _check_options(name: str, options: Mapping[str, Any], reserved: Sequence[str]) -> None:
    refused = [k for k in options if k in reserved or k.startswith("pretrained")]
    if refused:
        raise ConfigError(
            f"options of {name} must not set {', '.join(refused)}: nothing is downloaded; "
            "use `weights` for a local file, `classes` and `channels` for the shape"
        )


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
