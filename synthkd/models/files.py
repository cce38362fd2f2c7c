"""Finished models on disk: config.json has the recipe that rebuilds a model, model.safetensors its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, ValidationError
from torch import nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import allowing
from synthkd.models.classifier import Classifier, in_float32, parameters
from synthkd.models.factories import construct
from synthkd.models.fitting import load_strictly
from synthkd.models.folders import is_foreign
from synthkd.models.weights import WEIGHTS, read_weights, serialised
from synthkd.settings import Count, GivenModel, ModelOrGiven, Settings
from synthkd.system.environment import float32_by_default
from synthkd.system.files import sha256, write_atomically
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec

CONFIG = "config.json"
INSIDE_A_RUN = ("student", "teacher")
"""Folders of a run's directory that may hold a model; the first that does is taken."""

Contents = TypeVar("Contents", bound=Settings)


class SavedSpec(Settings):
    """An `ImageSpec` as it stands in JSON files."""

    channels: Count
    height: Count
    width: Count
    classes: Count

    @property
    def image_spec(self) -> ImageSpec:
        """The `ImageSpec` with these values."""
        return ImageSpec(**self.model_dump())


class _Saved(Settings):
    """The contents of config.json."""

    format: Literal[1] = 1
    recipe: ModelOrGiven
    spec: SavedSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    parameters: int
    sha256: str
    """Checksum of model.safetensors; it shows that both files are whole and belong together."""
    extra: dict[str, Any] = Field(default_factory=dict)


def save(model: Classifier, directory: Path | str, extra: Mapping[str, object] | None = None) -> None:
    """Save a classifier. Each file is replaced atomically; other files in the directory stay.

    Args:
        model: on any device, in any mode; unchanged.
        directory: created if it does not exist.
        extra: notes for people in plain JSON values, stored in config.json.

    Raises:
        ModelError: the model has no recipe to rebuild it from, or `extra` or its options are not JSON.
        TrainingError: a tensor of the model is not finite; the files in the directory stay as they are.
    """
    directory = Path(directory)
    if not model.recipe:
        raise ModelError("this model has no recipe to rebuild it from (a folded copy?); save the model it came from")
    # Both files are complete in memory before the first is written: an error leaves the directory as it was.
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
    # If the process is killed between the two, the old config stays, and its checksum refuses the new weights.
    write_atomically(directory / WEIGHTS, weights)
    write_atomically(directory / CONFIG, config)


@float32_by_default()
def load(path: Path | str, *, trust: bool = False, network: nn.Module | None = None) -> Classifier:
    """The classifier saved in a directory, on the CPU, in eval mode.

    The global random state stays as it was.

    Args:
        path: the directory, or a run directory with `student/` or else `teacher/` in it.
        trust: also rebuild models of a `package.module:function`, which imports and calls what config.json names.
            Without it a directory can run no code but that of the zoo, of torchvision and timm, and what the present
            configuration names itself.
        network: gets the weights, in place of a network that is built by config.json. A model that was given to a job
            in memory needs one of the same class.

    Raises:
        ModelError: missing, damaged or truncated files, weights that do not fit, a function that is not trusted, or a
            model that needs a network.
    """
    path = Path(path)
    directory = _find(path)
    if directory is None:
        raise ModelError(
            f"{path} has no {CONFIG}, nor student/ or teacher/ with one; give a saved model or a run"
            if path.is_dir()
            else f"no such directory: {path}; give a saved model or a run directory"
        )
    saved = read_config(directory / CONFIG, _Saved)
    weights = directory / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{directory} has no {WEIGHTS}; save the model again or copy the whole directory")
    # The checksum comes before anything is built, since damaged content could fail in any way.
    if sha256(weights) != saved.sha256:
        raise ModelError(
            f"{weights} does not have the checksum in {CONFIG}: truncated, damaged or replaced; copy both files again"
        )
    # The network draws initial weights, which are then replaced; the random state must not move with them.
    with torch.random.fork_rng(devices=[]), allowing(folders=[directory] if trust else ()):
        model = _built(saved, directory / CONFIG) if network is None else _around(network, saved)
    load_strictly(model, read_weights(weights), str(weights))
    return model.eval()


def is_model_directory(path: Path | str) -> bool:
    """Whether a path is a directory that `save` wrote, or a run directory with one in it."""
    return _find(Path(path)) is not None


def _find(path: Path) -> Path | None:
    """The directory with a model: the path itself, or one of `INSIDE_A_RUN`; None without one."""
    candidates = (path, *(path / name for name in INSIDE_A_RUN))
    return next((one for one in candidates if (one / CONFIG).is_file() and not is_foreign(one)), None)


def _built(saved: _Saved, source: Path) -> Classifier:
    """The untrained model that a config.json describes."""
    if isinstance(saved.recipe, GivenModel):
        raise ModelError(
            f"{source.parent} has the weights of a network that was given in memory ({saved.recipe.model}): build it, "
            "and call synthkd.load(path, network=...)"
        )
    try:
        return construct(saved.recipe, saved.spec.image_spec, saved.mean, saved.std, saved.class_names, source)
    except ConfigError as error:
        raise ModelError(f"{source} does not rebuild the model: {error}") from error


def _around(network: nn.Module, saved: _Saved) -> Classifier:
    body = network.body if isinstance(network, Classifier) else network
    recipe = saved.recipe.model_dump(mode="json")
    return in_float32(Classifier(body.cpu(), saved.spec.image_spec, saved.mean, saved.std, recipe, saved.class_names))


def read_config(path: Path, contents: type[Contents]) -> Contents:
    """The validated content of a sealed JSON file.

    Args:
        path: the file.
        contents: class of its content.

    Raises:
        ModelError: the file is missing, damaged or of another version.
    """
    try:
        return contents.model_validate(unsealed(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(f"{path} is damaged or of another version: {where}: {first['msg']}; copy it again") from error
    except ValueError as error:
        raise ModelError(f"{path} is damaged: {error}; copy it again") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}; copy it again") from error
