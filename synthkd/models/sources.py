"""A classifier from its settings: a trained model, or a network with fresh weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from synthkd.errors import ConfigError
from synthkd.models import files
from synthkd.models.classifier import Classifier, in_float32
from synthkd.models.factories import construct, is_library, require_name
from synthkd.models.file_kinds import ONNX, kind_of
from synthkd.models.fitting import load_file
from synthkd.models.folders import LOCAL, completed
from synthkd.models.onnx_networks import read_onnx_network
from synthkd.models.onnx_session import OnnxNetwork
from synthkd.models.programs import PROGRAMS, Script, opened, read_program
from synthkd.models.public_names import public_names
from synthkd.models.weights import some
from synthkd.settings import GivenModel, LoadedModel, ZooModel
from synthkd.system.environment import float32_by_default
from synthkd.taps import has_statistics
from synthkd.types import ImageSpec


@float32_by_default()
def load_model(settings: LoadedModel, source: Path | None = None, layers: bool = True) -> Classifier:
    """A trained classifier in eval mode, on the CPU: a saved directory, a network file, or a factory and its weights.

    The global random state stays as it was.

    Args:
        settings: the model.
        source: the file that the settings were read from, or None if a user typed them (see `synthkd.imports`).
        layers: whether layers or gradients are needed; without them ONNX Runtime runs an ONNX file.

    Raises:
        ConfigError: size, classes or weights are missing, or contradict the directory; the name is unknown; or the
            network is untrained, and the settings do not say so.
        ModelError: the files cannot be loaded, do not fit, or name or are code that is not trusted.
        MissingExtraError: the package of a `timm:` model, of a folder of transformers or of an ONNX file is missing.
    """
    if files.is_model_directory(settings.model):
        return _load_directory(settings)
    if Path(settings.model).is_file():
        return _load_network_file(settings, source, layers)
    settings, notes = completed(settings)
    needs_weights = settings.weights is None and not settings.untrained
    if needs_weights and is_library(settings.model):
        raise ConfigError(
            f"{settings.model} without weights is untrained; set `weights` to a local file, or untrained=true if that "
            "is meant"
        )
    model = _constructed(settings, source, seed=0)
    if needs_weights:
        _require_own_weights(model, _constructed(settings, source, seed=1), settings.model)
    model.body = opened(model.body, model.spec.shape, settings.model)  # a function may return a program
    _read_into(model, settings)
    model.notes = (*notes, *model.notes)
    return model.eval()


def _constructed(settings: LoadedModel, source: Path | None, seed: int) -> Classifier:
    """The network as its factory gives it, with initial weights of a seed."""
    # The random state is restored, so that a run draws the same numbers with any teacher.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return construct(settings, _own_spec(settings), settings.mean, settings.std, settings.class_names or (), source)


def _require_own_weights(model: Classifier, other: Classifier, name: str) -> None:
    """Refuse a function of the user whose network has random weights, so that two calls give other ones."""
    others = dict(other.named_parameters())
    random = [
        path.removeprefix("body.")
        for path, value in model.named_parameters()
        if path not in others or not torch.equal(value, others[path])
    ]
    if random:
        raise ConfigError(
            f"{name} gives random weights, others at every call, in {len(random)} of {len(others)} parameters: "
            f"{some(random)}; set `weights` to a local file, load one in the function, or set untrained=true if "
            "that is meant"
        )


@float32_by_default()
def build_model(
    settings: ZooModel | LoadedModel,
    spec: ImageSpec | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
) -> Classifier:
    """A classifier in training mode, on the CPU: fresh unless the settings name a directory or weights to start from.

    Args:
        settings: the network.
        spec: images and classes of this job; None: those of `settings`.
        mean, std: normalisation for fresh networks whose settings have none.
        class_names: class names for models whose settings have none.

    Raises:
        ConfigError: as `load_model`, or the settings contradict `spec`, or a zoo network has no `spec`.
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
    if Path(settings.model).is_file():
        raise ConfigError(
            f"{settings.model} is {kind_of(Path(settings.model)).name}, which can be a teacher, but not a network to "
            "train; name a network of the zoo, torchvision or timm, or a function that builds one"
        )
    settings, _ = completed(settings)
    own = settings if spec is None else _completed(settings, spec)
    # Weights from a file need the normalisation they were trained with, which is that of the settings (None: the
    # network has its own). Fresh weights take the normalisation of the data.
    fresh = settings.weights is None and settings.mean is None
    mean, std = (mean, std) if fresh else (settings.mean, settings.std)
    model = construct(own, _own_spec(own), mean, std, settings.class_names or class_names)
    _read_into(model, settings)
    return model.train()


def is_fresh(settings: ZooModel | LoadedModel | GivenModel) -> bool:
    """Whether `build_model` gives random weights; False for a network or a factory of the user, which may load some."""
    if isinstance(settings, GivenModel):
        return False
    if isinstance(settings, ZooModel):
        return True
    return settings.weights is None and is_library(settings.model) and not settings.model.startswith(LOCAL)


def has_weights(settings: ZooModel | LoadedModel | GivenModel) -> bool:
    """Whether settings of a network name trained weights: in a file of their own, or in its folder."""
    if not isinstance(settings, LoadedModel):
        return False
    return files.is_model_directory(settings.model) or completed(settings)[0].weights is not None


def _load_network_file(settings: LoadedModel, source: Path | None, layers: bool) -> Classifier:
    """The classifier of a file that holds a whole network: TorchScript, `torch.export` or ONNX."""
    path = Path(settings.model)
    kind, spec = kind_of(path), _own_spec(settings)
    if kind not in (*PROGRAMS, ONNX):
        raise ConfigError(
            f"model: {path} is {kind.name}, not a network"
            + (
                "; name the network that fits it as `model` (zoo:ARCH, torchvision:NAME, timm:NAME, "
                "package.module:function) and the file as `weights`"
                if kind.reader
                else f"; {kind.remedy}"
            )
        )
    for name in ("weights", "options"):
        if getattr(settings, name):
            raise ConfigError(f"{name}: {path} is {kind.name}, which has its own; leave {name} out")
    if kind == ONNX:
        body = read_onnx_network(path, spec.shape) if layers else OnnxNetwork(path)
    else:
        body = read_program(path, spec.shape, source)
    recipe = {"kind": "load", "model": settings.model, "options": {}}
    model = in_float32(Classifier(body, spec, settings.mean, settings.std, recipe, settings.class_names or ()))
    has_norms = any(has_statistics(module) for module in body.modules())
    how = body.how if isinstance(body, Script) else "without BatchNorm statistics" if not has_norms else ""
    model.notes = (", ".join(filter(None, (kind.name, how))), *model.notes)
    return model.eval()


def _load_directory(settings: LoadedModel) -> Classifier:
    # A directory says everything about its model, so a key that could contradict it is refused.
    if settings.weights is not None:
        raise ConfigError(f"{settings.model} has its own weights; leave `weights` out, got {settings.weights}")
    if settings.options:
        is_trust = "trust" in settings.options
        remedy = f"write trust={settings.model} beside the sections instead" if is_trust else "leave them out"
        raise ConfigError(
            f"options: {settings.model} was saved with its own, got {', '.join(settings.options)}; {remedy}"
        )
    model = files.load(settings.model)
    if (spec := _spec_where_set(settings, model.spec)) != model.spec:
        raise ConfigError(f"{settings.model} takes {model.spec}, but the config says {spec}; leave those keys out")
    fixed = [name for name in ("mean", "std", "class_names") if getattr(settings, name) is not None]
    if fixed:
        raise ConfigError(f"{settings.model} has its own {', '.join(fixed)}; leave those keys out")
    return model


def _completed(settings: LoadedModel, spec: ImageSpec) -> LoadedModel:
    """The settings with channels, size and classes of `spec`; those that are set already must be the same."""
    if (own := _spec_where_set(settings, spec)) != spec:
        raise ConfigError(f"{settings.model} is set to {own}, but this job has {spec}; leave those keys out")
    size = (spec.height, spec.width)
    return settings.model_copy(update={"channels": spec.channels, "size": size, "classes": spec.classes})


def _own_spec(settings: LoadedModel) -> ImageSpec:
    if not Path(settings.model).is_file():
        require_name(settings.model)
    if settings.size is None or settings.classes is None:
        raise ConfigError(
            f"model '{settings.model}' is no directory that synthkd saved and so needs `size` and `classes`, "
            f"got size={settings.size}, classes={settings.classes}"
        )
    return _spec_where_set(settings, ImageSpec(3, 0, 0, settings.classes))


def _spec_where_set(settings: LoadedModel, other: ImageSpec) -> ImageSpec:
    """The spec in the settings, with values of `other` where they have none."""
    height, width = other.height, other.width
    if settings.size is not None:
        height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    return ImageSpec(settings.channels or other.channels, height, width, settings.classes or other.classes)


def _read_into(model: Classifier, settings: LoadedModel) -> None:
    if settings.weights is not None:
        rename = public_names(settings.model, model.body)
        notes = load_file(model.body, settings.weights, settings.weights_key, rename)
        model.notes = (*model.notes, *notes)
