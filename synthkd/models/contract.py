"""What a teacher must keep, checked once with a batch of noise before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.models.classifier import Classifier, parameters
from synthkd.taps import evaluating, has_statistics
from synthkd.types import ImageSpec

PROBES = 8


@dataclass(frozen=True)
class TeacherContract:
    """What the probe of a teacher found; that there is one means that every check passed.

    Attributes:
        spec: what the teacher takes and gives.
        parameters: their number.
        batch_norm_layers: BatchNorm layers with running statistics, which inversion matches.
    """

    spec: ImageSpec
    parameters: int
    batch_norm_layers: int


@torch.no_grad()
def probe(teacher: Classifier) -> TeacherContract:
    """Send noise through a teacher in eval mode and check that it gives logits as its spec says.

    Raises:
        ModelError: it cannot take such images; gives something else than finite float logits `[N, K]`; gives
            probabilities; or its answer for an image depends on the rest of the batch or on chance.
    """
    weight = next(teacher.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((PROBES, *teacher.spec.shape), generator=generator).to(weight.device)
    with evaluating(teacher):
        logits = _forward(teacher, images)
        part = _forward(teacher, images[: PROBES // 2])
    if not bool(torch.isfinite(logits).all()):
        raise ModelError("the teacher gives logits that are not finite on noise; check its weights")
    sums = logits.sum(dim=1)
    if bool((logits >= 0).all()) and bool((logits <= 1).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        raise ModelError(
            "the teacher gives probabilities, not logits (rows in [0, 1] that sum to 1); take the softmax off its end"
        )
    difference = float((logits[: PROBES // 2] - part).abs().max())
    if difference > 1e-3 * max(1.0, float(logits.abs().max())):
        raise ModelError(
            f"the teacher's logits of an image change by {difference:.3g} with the rest of the batch or by chance, "
            "even in eval mode; give its BatchNorm layers running statistics and keep its dropout to training"
        )
    norms = sum(has_statistics(m) for m in teacher.modules())
    return TeacherContract(teacher.spec, parameters(teacher), norms)


def _forward(teacher: Classifier, images: Tensor) -> Tensor:
    spec = teacher.spec
    try:
        logits: object = teacher(images)
    except ModelError:
        raise
    except Exception as error:  # other people's code may fail in any way; the line must say on what
        message = (str(error).splitlines() or [repr(error)])[0]
        raise ModelError(f"the teacher cannot take {spec}: {message}; check its size and channels") from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the teacher must give a float tensor of logits, got {kind}; wrap it in a function that does")
    if tuple(logits.shape) != (len(images), spec.classes):
        raise ModelError(
            f"the teacher must give logits [N, {spec.classes}] for {spec}, got {list(logits.shape)} for "
            f"N={len(images)}; set `classes` to what it was trained for"
        )
    return logits
