"""Whether a teacher's mean and std agree with what its first BatchNorm layer stores of its training images.

Two kinds of pictures go through the layers before it: smooth noise with the spectrum and colours of photographs, and
the high-contrast pictures of `synthkd.generators.procedural`. Of each, the distance is the mean over channels of
`log(variance / stored variance)`. If mean and std are right, 0 lies between the two distances or near them.
The distances of the public ResNets of CIFAR-10 stand in docs/teachers.md with the program that prints them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.generators.procedural import draw
from synthkd.models import Classifier
from synthkd.passes import joined_statistics
from synthkd.rng import Rows
from synthkd.taps import evaluating, has_statistics, moments
from synthkd.types import BatchNormStatistics, ImageSpec

PICTURES = 32
"""Pictures of each kind."""
TOO_WEAK = -1.35
"""Pictures with at most e^-1.35 = 0.26 of the stored variance are a warning."""
TOO_STRONG = 5.0
"""Pictures with at least e^5 = 148 times the stored variance are a warning. So many, since a dataset may be dim."""
FITS = 0.8
"""Largest distance of another normalisation that is named as the one that fits."""
MNIST = "that of MNIST"
EPSILON = 1e-5
"""Added to variances, as BatchNorm does."""
COLOURS = ((0.237, 0.237, 0.237), (0.0707, 0.0, -0.0707), (0.0204, -0.0408, 0.0204))
"""Axes of colour in photographs with their deviations: light, blue to yellow, red to green."""
COLOUR_MEAN = (0.48, 0.46, 0.42)


class _Seen(Exception):
    """Ends a forward pass at the first BatchNorm layer."""


@dataclass(frozen=True)
class Normalisation:
    """A mean and a standard deviation per channel that networks are trained with.

    Attributes:
        name: of it, in words.
        mean, std: one number per channel of images in [0, 1], or one for all.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def written(self, channels: int) -> str:
        """As a recipe has it."""
        mean, std = (", ".join(f"{v:.4g}" for v in _each(values, channels)) for values in (self.mean, self.std))
        return f"mean: [{mean}], std: [{std}]"


USUAL = (
    Normalisation("none", (0.0,), (1.0,)),
    Normalisation("that of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Normalisation("that of CIFAR-10", (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    Normalisation("0.5 and 0.5", (0.5,), (0.5,)),
    Normalisation(MNIST, (0.1307,), (0.3081,)),
    Normalisation("none, of images in 0 to 255", (0.0,), (1 / 255,)),
    Normalisation("the mean of ImageNet, of images in 0 to 255", (0.485, 0.456, 0.406), (1 / 255,)),
)


def better_normalisation(teacher: Classifier, who: str = "the teacher", batch_size: int = PICTURES) -> str | None:
    """A warning that another mean and std fit a teacher far better than its own, or None.

    Args:
        teacher: in any mode, on any device; unchanged.
        who: name of the model in the warning.
        batch_size: largest number of images of a pass.
    """
    if not any(has_statistics(module) for module in teacher.modules()):
        return None
    channels = teacher.spec.channels
    mean, std = (tuple(v.flatten().tolist()) for v in (teacher.normalize.mean, teacher.normalize.std))
    kinds = pictures(teacher.spec)
    own = distances(teacher, kinds, Normalisation("its own", mean, std), batch_size)
    if own is None or TOO_WEAK < off(own) < TOO_STRONG:
        return None
    usual = [one for one in USUAL if len(one.mean) in (1, channels) and (channels == 1 or one.name != MNIST)]
    tried = {one: pair for one in usual if (pair := distances(teacher, kinds, one, batch_size)) is not None}
    # Where 0 lies between the kinds for several, the one that is nearest by photographs' noise.
    best = min(tried, key=lambda one: (abs(off(tried[one])), abs(tried[one][0])), default=None)
    if best is None or abs(off(tried[best])) > FITS:
        return None
    return (
        f"mean and std do not fit {who}: pictures have {math.exp(off(own)):.2g} times the variance that its first "
        f"BatchNorm layer stores; of the usual ones, {best.name} fits best: write {best.written(channels)} if the "
        "network was trained so"
    )


def off(distances: tuple[float, float]) -> float:
    """How far 0 lies outside of two distances, with their sign; 0 if it lies between them."""
    low, high = sorted(distances)
    return low if low > 0 else high if high < 0 else 0.0


def pictures(spec: ImageSpec) -> tuple[Tensor, Tensor]:
    """Smooth noise like photographs, and procedural pictures; each float32 `[PICTURES, C, H, W]` in [0, 1]."""
    return _noise(spec), draw(PICTURES, spec, Rows(0, "normalisation"))


@torch.no_grad()
def distances(
    teacher: Classifier, kinds: tuple[Tensor, Tensor], normalisation: Normalisation, batch_size: int = PICTURES
) -> tuple[float, float] | None:
    """Of each kind of pictures, the mean log ratio of variances at the first BatchNorm layer; None without it.

    Args:
        teacher: unchanged.
        kinds: see `pictures`.
        normalisation: in place of the teacher's own.
        batch_size: largest number of images of a pass.
    """
    device, channels = teacher.normalize.mean.device, teacher.spec.channels
    mean, std = (
        torch.tensor(_each(values, channels), device=device).view(-1, 1, 1)
        for values in (normalisation.mean, normalisation.std)
    )
    noise, procedural = (_distance(teacher, (images.to(device) - mean) / std, batch_size) for images in kinds)
    return None if noise is None or procedural is None else (noise, procedural)


def _distance(teacher: Classifier, inputs: Tensor, batch_size: int) -> float | None:
    parts = [_first_statistics(teacher, part) for part in inputs.split(batch_size)]
    moments_of_parts = [{"first": part} for part in parts if part is not None]
    if len(moments_of_parts) < len(parts) or _is_fresh(moments_of_parts[0]["first"]):
        return None
    first = joined_statistics(moments_of_parts, [len(part) for part in inputs.split(batch_size)])["first"]
    ratio = torch.log((first.var + EPSILON) / (first.running_var + EPSILON))
    # Channels that hardly vary say nothing.
    distance = float(ratio[first.running_var > 1e-3 * first.running_var.max()].mean())
    return distance if math.isfinite(distance) else None


def _first_statistics(teacher: Classifier, inputs: Tensor) -> BatchNormStatistics | None:
    """The moments at the first BatchNorm layer that a pass reaches, or None."""
    first: list[BatchNormStatistics] = []

    def stop(norm: nn.Module, args: tuple[Any, ...]) -> None:
        first.append(moments(norm, args[0]))
        raise _Seen

    hooks = [m.register_forward_pre_hook(stop) for m in teacher.body.modules() if has_statistics(m)]
    try:
        with evaluating(teacher):
            teacher.body(inputs)
    except Exception:  # `_Seen`, or other people's code, of which `probe` tells
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return first[0] if first else None


def _is_fresh(stored: BatchNormStatistics) -> bool:
    """Whether a layer has its initial moments, as before a training."""
    return bool((stored.running_mean == 0).all()) and bool((stored.running_var == 1).all())


def _noise(spec: ImageSpec) -> Tensor:
    """Noise whose amplitude falls with the frequency, with mean, deviation and correlated colours of photographs."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.fft.fftfreq(spec.height)[:, None], torch.fft.rfftfreq(spec.width)[None]
    frequency = (rows**2 + columns**2).sqrt()
    frequency[0, 0] = 1 / max(spec.height, spec.width)
    white = torch.randn((PICTURES, *spec.shape), generator=generator)
    noise: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(spec.height, spec.width))
    noise /= noise.std()
    if spec.channels != len(COLOURS):
        return (0.45 + 0.25 * noise).clamp(0, 1)
    mean = torch.tensor(COLOUR_MEAN).view(-1, 1, 1)
    return (mean + torch.einsum("nkhw,kc->nchw", noise, torch.tensor(COLOURS))).clamp(0, 1)


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
