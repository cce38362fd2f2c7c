"""Folders of timm and of Hugging Face transformers: config.json and the weights beside it, read as data.

What config.json says (architecture, classes, channels, size, mean, std, class names) completes the settings of a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthkd.errors import ConfigError, ModelError
from synthkd.settings import LoadedModel

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
FLIPS = ("do_flip_channel_order", "do_flip_channels")
"""Keys of a preprocessor that turns red, green and blue around."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LOCAL = "timm:local-dir:"
"""How timm names a folder."""
RESERVED = ("num_classes", "in_chans", "pretrained", "pretrained_cfg", "checkpoint_path")
"""Arguments of timm that follow from the images and classes."""
NOTES = ("id2label", "label2id", "model_type", "transformers_version", "num_labels", "num_channels")
"""Keys of transformers' configuration that are names and notes, or follow from the images and classes."""
FETCHING = ("auto_map", "attn_implementation", "quantization_config", "use_pretrained_backbone")
"""Keys by which transformers would import or download something."""


def is_foreign(path: Path | str) -> bool:
    """Whether a path is a folder with the config.json of timm or transformers, not one that synthkd saved."""
    config = _json(Path(path) / CONFIG)
    return "recipe" not in config and any(key in config for key in ("architecture", "model_type"))


def completed(settings: LoadedModel) -> tuple[LoadedModel, tuple[str, ...]]:
    """Settings with what a foreign folder says in place of the folder, and notes about it; other settings unchanged.

    What the settings say already about size, mean and std goes first, with a note.

    Raises:
        ConfigError: the settings have other classes or channels, or neither they nor the folder say mean and std.
        ModelError: the folder has no weights, its config.json lacks the architecture, or its images are blue, green and
            red.
    """
    folder = Path(settings.model.removeprefix(LOCAL))
    if settings.model.startswith(LOCAL) and not is_foreign(folder):
        raise ConfigError(f"{settings.model}: no folder with timm's {CONFIG}; give the folder of its files")
    if not is_foreign(folder):
        return settings, ()
    config = _json(folder / CONFIG)
    own_keys = _timm(config, folder) if "architecture" in config else _transformers(config, folder)
    is_silent = "architecture" not in config and not _json(folder / PREPROCESSOR)
    if is_silent and settings.mean is None and not settings.untrained:
        raise ConfigError(f"{folder} has no readable {PREPROCESSOR}; copy it, too, or set mean and std")
    own_keys["options"] = {**own_keys["options"], **settings.options}
    if settings.weights is None and not settings.untrained:
        own_keys["weights"] = _weights(folder)
    notes = [f"the folder of {own_keys['model']}"]
    for key in ("channels", "classes", "size", "mean", "std", "class_names"):
        stated, own = getattr(settings, key), own_keys.get(key)
        if stated is None or own is None or _alike(stated, own):
            continue
        if key in ("channels", "classes"):
            raise ConfigError(f"{key}: {folder} has {own}, but the config says {stated}; leave {key} out")
        if key != "class_names":
            notes.append(f"{key} {_written(stated)} of the recipe, where its files say {_written(own)}")
    stated = {key: value for key in own_keys if key not in ("model", "options") and (value := getattr(settings, key))}
    present = {key: value for key, value in own_keys.items() if value is not None}
    return settings.model_copy(update={**present, **stated}), tuple(notes)


def data_only(config: Mapping[str, object]) -> dict[str, object]:
    """A configuration of transformers without keys by which it would import or download something, at any depth."""
    harmless = {key: value for key, value in config.items() if key not in FETCHING and not str(key).startswith("_")}
    return {key: _data_only(value) for key, value in harmless.items()}


def _data_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return data_only(value)
    return [_data_only(item) for item in value] if isinstance(value, list | tuple) else value


def _timm(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    pretrained = config.get("pretrained_cfg")
    own = pretrained if isinstance(pretrained, Mapping) else {}
    shape = own.get("input_size") or (None, None, None)
    arguments = config.get("model_args") or {}
    classes, names = config.get("num_classes", own.get("num_classes")), _names(config.get("label_names"))
    return {
        "model": f"timm:{config['architecture']}",
        "options": {key: value for key, value in arguments.items() if key not in RESERVED},
        "classes": classes,
        "channels": shape[0],
        "size": _size(*shape[1:]),
        "mean": _numbers(own.get("mean"), folder),
        "std": _numbers(own.get("std"), folder),
        "class_names": names if names and len(names) == classes else None,
    }


def _transformers(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    architectures = config.get("architectures") or []
    if not any("ImageClassification" in str(name) for name in architectures):
        raise ModelError(
            f"{folder} holds {', '.join(map(str, architectures)) or 'no named network'}, not an image classifier of "
            "transformers; give a folder of a ...ForImageClassification"
        )
    labels = config.get("id2label") or {}
    names = [labels[key] for key in sorted(labels, key=int)]
    classes = config.get("num_labels", len(labels) or 2)  # most types leave num_labels out; with it they go by it
    plain = all(str(name).startswith("LABEL_") for name in names)
    images = _json(folder / PREPROCESSOR)
    for key in FLIPS:
        if images.get(key):
            raise ModelError(
                f"{folder} takes images as blue, green and red ({PREPROCESSOR}: {key}); set `model` to a function "
                "whose network takes them as red, green and blue, and turns them around"
            )
    mean, std = _normalisation(images, config.get("num_channels", 3), folder)
    return {
        "model": f"transformers:{config['model_type']}",
        "options": {key: value for key, value in data_only(config).items() if key not in NOTES},
        "classes": classes,
        "channels": config.get("num_channels", 3),
        "size": _shown(images) or _shown({"size": config.get("image_size")}),
        "mean": mean,
        "std": std,
        "class_names": None if plain or len(names) != classes else _names(names),
    }


def _normalisation(
    images: Mapping[str, Any], channels: int, folder: Path
) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """Mean and std of images in [0, 1] that a preprocessor gives, of any of its versions; None if it leaves them so."""
    rescales = images.get("do_rescale", True)
    # Mean and std are of images times `scale`, less `offset`.
    scale = 255 * images.get("rescale_factor", 1 / 255) if rescales else 255.0
    offset = 1.0 if rescales and images.get("rescale_offset") else 0.0
    own_mean, own_std = (_numbers(images.get(key), folder) for key in ("image_mean", "image_std"))
    mean, std = (own_mean, own_std) if images.get("do_normalize", True) else (None, None)
    if images.get("include_top") and own_std:  # EfficientNet's, which divides by std once more
        std = tuple(value**2 for value in own_std) if std else own_std
    if mean is None and std is None and scale == 1 and not offset:
        return None, None
    mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    return tuple((value + offset) / scale for value in mean), tuple(value / scale for value in std)


def _shown(images: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that a preprocessor gives to images, of any of its versions."""
    crops = images.get("do_center_crop") and images.get("crop_size")
    size = images["crop_size"] if crops else images.get("size")
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        return _size(size.get("height", side), size.get("width", side))
    return _size(*size) if isinstance(size, list) and len(size) == 2 else _size(size, size)


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _numbers(values: Any, folder: Path) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{folder}: mean and std must be lists of numbers, got {values!r}; correct its files"
        ) from error


def _names(values: Any) -> tuple[str, ...] | None:
    """Class names if each is of one class; those of ImageNet have some twice."""
    names = tuple(map(str, values)) if isinstance(values, list) else ()
    return names if names and len(set(names)) == len(names) else None


def _weights(folder: Path) -> str:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return str(folder / name)
    raise ModelError(f"{folder} has no {' or '.join(WEIGHTS)}; copy the whole folder, or set `weights`")


def _alike(stated: Any, own: Any) -> bool:
    if isinstance(stated, int) and isinstance(own, tuple):
        stated = (stated, stated)
    if isinstance(own, tuple) and own and isinstance(own[0], float):
        return len(stated) == len(own) and all(abs(a - b) < 1e-3 for a, b in zip(stated, own, strict=True))
    return bool(stated == own)


def _written(values: Any) -> str:
    if isinstance(values, int):
        return str(values)
    return "x".join(map(str, values)) if isinstance(values[0], int) else f"[{', '.join(f'{v:.4g}' for v in values)}]"


def _json(path: Path) -> Mapping[str, Any]:
    """The mapping in a file; empty if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}
