"""Checks a teacher once, with a batch of noise, before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.models.classifier import Classifier, parameters
from synthkd.taps import evaluating, has_statistics
from synthkd.types import ImageSpec

PROBES = 8
"""Images of noise in the check."""


@dataclass(frozen=True)
class TeacherContract:
    """The properties of a teacher that passed every check.

    Attributes:
        spec: shape of its images and number of its classes.
        parameters: number of its parameters.
        batch_norm_layers: BatchNorm layers with running statistics, which inversion matches.
    """

    spec: ImageSpec
    parameters: int
    batch_norm_layers: int


def finite_logits(logits: Tensor, who: str = "the teacher") -> Tensor:
    """The logits, unchanged, if they are finite.

    Args:
        logits: `[N, K]`.
        who: name of the model in the error.

    Raises:
        ModelError: logits that are not finite; the error counts the images.
    """
    if bool(torch.isfinite(logits).all()):
        return logits
    bad = int((~torch.isfinite(logits)).any(dim=1).sum())
    raise ModelError(
        f"{who} gives logits that are not finite for {bad} of {len(logits)} images; check its weights and, where "
        "precision is set, try precision=no"
    )


@torch.no_grad()
def probe(teacher: Classifier, who: str = "the teacher") -> TeacherContract:
    """Run a teacher on noise in eval mode and check that its logits are as its spec says.

    Args:
        teacher: any classifier; unchanged.
        who: name of the model in errors.

    Raises:
        ModelError: the teacher fails on such images; its output is not finite float logits `[N, K]`, or is
            probabilities; or its logits of an image depend on the rest of the batch or on chance.
    """
    weight = next(teacher.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((PROBES, *teacher.spec.shape), generator=generator).to(weight.device)
    with evaluating(teacher):
        logits = _forward(teacher, images, who)
        half = _forward(teacher, images[: PROBES // 2], who)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{who} gives logits that are not finite on noise; check its weights")
    # Logits do not lie in [0, 1] and sum to 1 in each of 8 rows by chance.
    sums = logits.sum(dim=1)
    if bool((logits >= 0).all()) and bool((logits <= 1).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        raise ModelError(
            f"{who} gives probabilities, not logits (rows in [0, 1] that sum to 1); take the softmax off its end"
        )
    # The same images in another batch: other logits mean that they depend on the batch (BatchNorm without running
    # statistics) or on chance (dropout), so that stored logits would not be the teacher's.
    difference = float((logits[: PROBES // 2] - half).abs().max())
    if difference > 1e-3 * max(1.0, float(logits.abs().max())):
        raise ModelError(
            f"{who}'s logits of an image change by {difference:.3g} with the rest of the batch or by chance, "
            "even in eval mode; give its BatchNorm layers running statistics and keep its dropout to training"
        )
    norms = sum(has_statistics(m) for m in teacher.modules())
    return TeacherContract(teacher.spec, parameters(teacher), norms)


def _forward(teacher: Classifier, images: Tensor, who: str) -> Tensor:
    spec = teacher.spec
    try:
        logits: object = teacher(images)
    except ModelError:  # it says already what is wrong
        raise
    except Exception as error:  # other people's code may fail in any way
        message = (str(error).splitlines() or [repr(error)])[0]
        raise ModelError(f"{who} cannot take {spec}: {message}; check its size and channels") from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"{who} must give a float tensor of logits, got {kind}; wrap it so that it does")
    if tuple(logits.shape) != (len(images), spec.classes):
        raise ModelError(
            f"{who} must give logits [N, {spec.classes}] for {spec}, got {list(logits.shape)} for "
            f"N={len(images)}; set `classes` to what it was trained for"
        )
    return logits
