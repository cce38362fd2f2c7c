"""Finished models on disk: config.json says what rebuilds the model, model.safetensors holds what it learned."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import allowing
from synthkd.models.classifier import Classifier, parameters
from synthkd.models.factories import construct
from synthkd.models.weights import WEIGHTS, load_strictly, read_weights, serialised
from synthkd.settings import Count, ModelSettings, Settings
from synthkd.system.files import sha256, write_atomically
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec

CONFIG = "config.json"
INSIDE_A_RUN = ("student", "teacher")


class _Spec(Settings):
    channels: Count
    height: Count
    width: Count
    classes: Count


class _Saved(Settings):
    """The contents of config.json."""

    format: Literal[1] = 1
    recipe: ModelSettings
    spec: _Spec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    parameters: int
    sha256: str
    """Of model.safetensors; tells a torn or damaged pair of files from a whole one."""
    extra: dict[str, Any] = Field(default_factory=dict)


def save(model: Classifier, directory: Path | str, extra: Mapping[str, Any] | None = None) -> None:
    """Save a classifier; each file is replaced atomically, other files in the directory are left alone.

    Args:
        model: on any device, in any mode; unchanged.
        directory: created if need be.
        extra: JSON-able notes for people, kept in config.json.

    Raises:
        ModelError: the model has no recipe to rebuild it from, or extra or its options are not JSON.
        TrainingError: a tensor of the model is not finite; files in the directory are left as they are.
    """
    directory = Path(directory)
    if not model.recipe:
        raise ModelError("this model has no recipe to rebuild it from (a folded copy?); save the model it came from")
    weights = serialised(model, str(directory))
    try:
        config = sealed(
            {
                "format": 1,
                "recipe": model.recipe,
                "spec": vars(model.spec),
                "mean": model.normalize.mean.flatten().tolist(),
                "std": model.normalize.std.flatten().tolist(),
                "class_names": model.class_names,
                "parameters": parameters(model),
                "sha256": hashlib.sha256(weights).hexdigest(),
                "extra": dict(extra or {}),
            }
        )
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json of {directory} can hold plain JSON only: {error}") from error
    write_atomically(directory / WEIGHTS, weights)
    write_atomically(directory / CONFIG, config)


def load(path: Path | str, *, trust: bool = False) -> Classifier:
    """The classifier saved in a directory, or in the `student/` or else `teacher/` of a run directory, in eval mode.

    The global random state is left as it was.

    Args:
        path: the directory.
        trust: also rebuild models that a `package.module:function` made, which imports and calls what config.json
            names. Without it nothing in the directory can make code run that the recipe at hand does not have too.

    Raises:
        ModelError: missing, corrupt or truncated files, weights that do not fit, or a function that is not trusted.
    """
    directory = _find(Path(path))
    saved = _read_config(directory / CONFIG)
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{directory} has no {WEIGHTS}; save the model again or copy the whole directory")
    if sha256(weights) != saved.sha256:
        raise ModelError(
            f"{weights} does not have the checksum in {CONFIG}: truncated, damaged or replaced; copy both files again"
        )
    spec = ImageSpec(**saved.spec.model_dump())
    source = directory / CONFIG
    with torch.random.fork_rng(devices=[]), allowing(folders=[directory] if trust else ()):
        try:
            model = construct(saved.recipe, spec, saved.mean, saved.std, saved.class_names, source)
        except ConfigError as error:
            raise ModelError(f"{source} does not rebuild the model: {error}") from error
    load_strictly(model, read_weights(weights), str(weights))
    return model.eval()


def is_model_directory(path: Path | str) -> bool:
    """Whether a path is a directory that `save` wrote, or a run directory that holds one."""
    return any((p / CONFIG).is_file() for p in _candidates(Path(path)))


def _candidates(path: Path) -> list[Path]:
    return [path, *(path / name for name in INSIDE_A_RUN)]


def _find(path: Path) -> Path:
    for candidate in _candidates(path):
        if (candidate / CONFIG).is_file():
            return candidate
    if not path.is_dir():
        raise ModelError(f"no such directory: {path}; give a saved model or a run directory")
    raise ModelError(f"{path} has no {CONFIG}, nor student/ or teacher/ with one; give a saved model or a run")


def _read_config(path: Path) -> _Saved:
    try:
        return _Saved.model_validate(unsealed(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(f"{path} is damaged or of another version: {where}: {first['msg']}; copy it again") from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}; copy it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}; copy it again") from error
