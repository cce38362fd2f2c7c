"""The form of every model in synthkd: a network that normalises its own input and knows its images and classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.types import ImageSpec

Network = TypeVar("Network", bound=nn.Module)


LEAST_DEVIATION = 0.02
"""Of the pixels of images in `[0, 1]` that show something."""


class Normalize(nn.Module):
    """`(images - mean) / std` per channel.

    Args:
        mean: one number per channel.
        std: one positive number per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Not in the state dict: they are part of the model's definition (config.json), which weights must not change.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images, float `[N, C, H, W]`."""
        return (images - self.mean) / self.std

    @property
    def is_of_images(self) -> bool:
        """Whether `mean` and `std` may be the mean and deviation of images, and do not only change their range.

        No image in `[0, 1]` has the deviation 1, one with 0.5 about 0.5 is black and white, and one with 1/255 is flat.
        """
        bound = (self.mean * (1.0 - self.mean)).clamp(min=0.0).sqrt()
        return bool(((self.std > LEAST_DEVIATION) & (self.std < bound)).all())


class Classifier(nn.Module):
    """An image classifier.

    Args:
        body: maps normalised images `[N, C, H, W]` to logits `[N, K]`, or to something that holds them (`logits_in`).
        spec: shape of its images and number of its classes.
        mean: per-channel mean subtracted from images in `[0, 1]`; None: zeros.
        std: per-channel divisor; None: ones.
        recipe: settings that rebuild an untrained `body`, in plain JSON values (a dump of `ZooModel` or `LoadedModel`);
            empty for a model that cannot be saved.
        class_names: one name per class, or empty.

    Attributes:
        normalize, body: the two modules.
        spec, recipe, class_names: as given.
        notes: how it was read, for people.

    Raises:
        ModelError: mean, std or class_names do not fit the spec.
    """

    def __init__(
        self,
        body: nn.Module,
        spec: ImageSpec,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        recipe: Mapping[str, Any] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        mean = tuple(mean) if mean is not None else (0.0,) * spec.channels
        std = tuple(std) if std is not None else (1.0,) * spec.channels
        if len(mean) != spec.channels or len(std) != spec.channels:
            raise ModelError(
                f"mean and std need one number per channel: the images have {spec.channels}, "
                f"got {len(mean)} and {len(std)}"
            )
        if not all(map(math.isfinite, mean)) or not all(math.isfinite(s) and s > 0 for s in std):
            raise ModelError(f"mean must be finite and std positive, got mean {mean} and std {std}")
        if class_names and len(class_names) != spec.classes:
            raise ModelError(f"class_names must name each of the {spec.classes} classes, got {len(class_names)} names")
        weight = next(body.parameters(), None)
        self.normalize = Normalize(mean, std).to(None if weight is None else weight.device)
        self.body = body
        self.spec = spec
        self.recipe: dict[str, Any] = dict(recipe or {})
        self.class_names = tuple(class_names)
        self.notes: tuple[str, ...] = ()
        self._shape = spec.shape  # a plain attribute, since every pass checks it

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of float images `[N, C, H, W]` in `[0, 1]`.

        Raises:
            ModelError: the images have another shape, or are not floating point; or the body gives no logits.
        """
        # Most networks would take uint8 images in 0..255 and give wrong logits without an error.
        require_images(images, self._shape)
        output = self.body(self.normalize(images))
        return output if isinstance(output, Tensor) else logits_in(output)[0]


def logits_in(output: object) -> tuple[Tensor, str]:
    """The logits in the output of a network, and where they lie in it, in words; empty for a tensor.

    Outputs may be a tensor, an object with an attribute `logits` (Hugging Face's, and torchvision's named tuples of
    GoogLeNet and Inception in training mode), a mapping with a key `logits`, or a tuple or list with a tensor in it.

    Raises:
        ModelError: another output.
    """
    if isinstance(output, Tensor):
        return output, ""
    kind, where = type(output).__name__, ", keys " + ", ".join(map(str, output)) if isinstance(output, Mapping) else ""
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits, f".logits of its {kind}"
    if isinstance(output, Mapping) and isinstance(logits := output.get("logits"), Tensor):
        return logits, f"key logits of its {kind}"
    for place, part in enumerate(output if isinstance(output, tuple | list) else ()):
        if isinstance(part, Tensor):
            return part, f"tensor {place + 1} of its {kind}"
    raise ModelError(
        f"the network must give a tensor of logits, or .logits, a key logits, or a tuple with a tensor; got a {kind}"
        f"{where}; wrap it so that it does"
    )


def in_float32(model: Classifier) -> Classifier:
    """The classifier itself, whose floating-point weights and buffers are turned into float32 and noted if they differ.

    Everything else here computes in float32, and networks in half precision cannot run on every device.
    """
    tensors = (*model.parameters(), *model.buffers())
    others = {t.dtype for t in tensors if t.is_floating_point() and t.dtype != torch.float32}
    if others:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in others))
        model.float()
        model.notes = (*model.notes, f"{names} turned into float32")
    return model


def copied(network: Network) -> Network:
    """A deep copy of a network, also of one whose hooks compute weights (pruning, the older weight and spectral norm).

    Raises:
        Exception: what the network's own code raises.
    """
    # Such a weight is a plain attribute with a graph behind it, which deepcopy refuses; the hook computes it again.
    computed = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(network, {id(value): value.detach().clone() for value in computed})


def as_classifier(network: nn.Module, spec: ImageSpec | None, who: str = "the teacher") -> Classifier:
    """A network as a classifier; its parameters stay shared, and a classifier is returned itself.

    Args:
        network: maps images `[N, C, H, W]` in [0, 1] to logits `[N, K]`, or to something that holds them.
        spec: of its images and classes; a classifier has its own, and may do without.
        who: name of the network in errors.

    Raises:
        ModelError: a network that is no classifier without a spec, or a classifier with another spec.
    """
    if isinstance(network, Classifier):
        if spec not in (None, network.spec):
            raise ModelError(f"{who} takes {network.spec}, but spec says {spec}; leave spec out")
        return network
    if spec is None:
        raise ModelError(
            f"{who} is a {type(network).__name__}, which does not tell its images: give "
            "spec=ImageSpec(channels, height, width, classes)"
        )
    classifier = Classifier(network, spec)
    classifier.training = network.training  # not `train`, which would change modules of the caller's
    return classifier


def require_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Check that images are floating point `[N, C, H, W]` with the given `(C, H, W)`.

    Raises:
        ModelError: they are not; the error has both shapes.
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != shape or not images.is_floating_point():
        raise ModelError(
            "images must be float32 [N, {}, {}, {}] in [0, 1], got {} {}; resize them, and turn uint8 into floats "
            "with synthkd.types.to_float".format(*shape, images.dtype, list(images.shape))
        )


def parameters(model: nn.Module) -> int:
    """Number of parameters, each counted once, however often it is shared."""
    return sum(p.numel() for p in model.parameters())


def state_bytes(model: nn.Module) -> int:
    """Bytes of a model's state dict, as it is saved."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())
