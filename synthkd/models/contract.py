"""Checks a teacher once, with a few images of noise, before anything expensive starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.models.classifier import Classifier, logits_in, parameters
from synthkd.passes import in_chunks
from synthkd.system.text import first_line
from synthkd.taps import evaluating, frozen, has_statistics
from synthkd.types import ImageSpec

PROBES = 8
"""Images of noise in the check, at most."""
SCALES = (10.0, 1000.0)
"""Factors on noise around 0 that leave no true logits in [0, 1], while a sigmoid stays there."""
LEAST_RANGE = 0.5
"""Smallest range of outputs in [0, 1] for them to count as those of a sigmoid: logits near 0 are none."""


@dataclass(frozen=True)
class TeacherContract:
    """The properties of a teacher that passed every check.

    Attributes:
        spec: shape of its images and number of its classes.
        parameters: number of its parameters.
        batch_norm_layers: BatchNorm layers with running statistics, which inversion matches.
        logits_from: where in the network's output the logits lie, in words; empty if the output is a tensor.
        warnings: what is odd about it and yet may be meant, a line each.
    """

    spec: ImageSpec
    parameters: int
    batch_norm_layers: int
    logits_from: str = ""
    warnings: tuple[str, ...] = ()


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
def probe(
    teacher: Classifier, who: str = "the teacher", gradients: bool = False, batch_size: int = PROBES
) -> TeacherContract:
    """Run a teacher on noise in eval mode and check that its logits are as its spec says.

    Args:
        teacher: any classifier; unchanged.
        who: name of the model in errors.
        gradients: whether gradients of its logits to its images are needed.
        batch_size: largest number of images of a pass; one image is seen beside another in any case.

    Raises:
        ModelError: the teacher fails on such images or on one alone; it gives no finite float logits `[N, K]`, but
            probabilities of a softmax or a sigmoid; its logits of an image depend on the rest of the batch or on
            chance; or they have no gradient where it is needed.
    """
    if teacher.spec.classes < 2:
        raise ModelError(
            f"{who} has one output, of which nothing can be learned: for two classes wrap it so that it gives "
            "torch.cat([torch.zeros_like(z), z], 1) of its output z, and set `classes` to 2"
        )
    weight = next(teacher.parameters(), torch.empty(0))
    # A generator of its own, so that the check does not move the random state of a run.
    generator = torch.Generator().manual_seed(0)
    most = max(2, min(PROBES, batch_size))
    images = torch.rand((most, *teacher.spec.shape), generator=generator).to(weight.device)
    with evaluating(teacher):
        logits = _forward(teacher, images, who)
        if not bool(torch.isfinite(logits).all()):
            raise ModelError(f"{who} gives logits that are not finite on noise; check its weights")
        wide = torch.cat([logits, _with_contrast(teacher, images)])
        _require_logits(logits, wide, who)
        for count in (most // 2, 1):
            _require_same(logits[:count], _forward(teacher, images[:count], who), who)
        if gradients:
            _require_gradients(teacher, images, who)
        place = logits_in(teacher.body(teacher.normalize(images[:2])))[1]
    norms = sum(has_statistics(m) for m in teacher.modules())
    return TeacherContract(teacher.spec, parameters(teacher), norms, place, _warnings(wide, most, who))


def _forward(teacher: Classifier, images: Tensor, who: str) -> Tensor:
    spec, count = teacher.spec, len(images)
    try:
        logits: Tensor = teacher(images)
    except ModelError as error:  # it says already what is wrong
        raise ModelError(f"{who}: {error}") from error
    except Exception as error:  # other people's code may fail in any way
        raise ModelError(f"{who} cannot take {spec}: {first_line(error)}; check its size and channels") from error
    if not logits.is_floating_point():
        raise ModelError(f"{who} must give a float tensor of logits, got {logits.dtype}; wrap it so that it does")
    if count == 1 and tuple(logits.shape) == (spec.classes,):
        raise ModelError(
            f"{who} gives logits [{spec.classes}] for one image, not [1, {spec.classes}]: its forward drops the batch "
            "dimension, as squeeze() does; flatten(1) keeps it"
        )
    if tuple(logits.shape) != (count, spec.classes):
        output = teacher.body(teacher.normalize(images))
        shapes = [list(part.shape) for part in output if isinstance(part, Tensor)] if isinstance(output, tuple) else []
        remedy = "set `classes` to what it was trained for"
        if [count, spec.classes] in shapes:
            remedy = f"it gives tensors {', '.join(map(str, shapes))}: wrap it so that the logits come first"
        raise ModelError(
            f"{who} must give logits [N, {spec.classes}] for {spec}, got {list(logits.shape)} for N={count}; {remedy}"
        )
    return logits


def _with_contrast(teacher: Classifier, noise: Tensor) -> Tensor:
    """Finite logits `[M, K]` of black, white and black-and-white images, and of noise far outside of [0, 1]."""
    most, noise = len(noise), noise[: len(noise) // 2]
    images = [torch.zeros_like(noise[:1]), torch.ones_like(noise[:1]), (noise > 0.5).float()]
    images += [scale * (noise - 0.5) for scale in SCALES]
    try:
        logits = in_chunks(teacher, most, torch.cat(images))
    except Exception:  # other people's code may refuse such images
        return noise.new_empty(0, teacher.spec.classes)
    return logits[torch.isfinite(logits).all(dim=1)]


def _require_same(logits: Tensor, again: Tensor, who: str) -> None:
    """Refuse other logits of the same images in another batch.

    They depend on the batch (BatchNorm without running statistics) or on chance (dropout), so that stored logits would
    not be the teacher's.
    """
    difference = float((logits - again).abs().max())
    if difference > 1e-3 * max(1.0, float(logits.abs().max())):
        raise ModelError(
            f"{who}'s logits of an image change by {difference:.3g} with the rest of the batch or by chance, "
            "even in eval mode; give its BatchNorm layers running statistics and keep its dropout to training"
        )


def _require_gradients(teacher: Classifier, images: Tensor, who: str) -> None:
    with frozen(teacher), torch.enable_grad():
        inputs = images[:2].clone().requires_grad_()
        try:
            logits = teacher(inputs)
            is_cut = not logits.requires_grad
            if not is_cut:
                torch.autograd.grad(logits.sum(), inputs)
        except Exception as error:  # other people's code, and errors of autograd about it
            raise ModelError(
                f"{who} has no gradient to its images, which the generator needs: {first_line(error)}; change its "
                "forward, or take a generator that needs logits alone"
            ) from error
    if is_cut:
        raise ModelError(
            f"{who}'s forward cuts the gradient to its images, which the generator needs; take torch.no_grad and "
            "detach out of it, or take a generator that needs logits alone"
        )


def _require_logits(logits: Tensor, wide: Tensor, who: str) -> None:
    """Refuse probabilities.

    Args:
        logits: of noise, `[N, K]`.
        wide: the same and those of images of much contrast, `[M, K]`.
        who: name of the model in errors.
    """
    if not bool(((logits >= 0) & (logits <= 1)).all()):
        return
    # Logits do not lie in [0, 1] and sum to 1 in each row by chance.
    if bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ModelError(
            f"{who} gives probabilities, not logits (rows in [0, 1] that sum to 1); take the softmax off its end"
        )
    # Nor do they stay there when the contrast of the images grows a thousandfold.
    if len(wide) > len(logits) and _least(wide) >= 0 and float(wide.max()) <= 1 and _range(wide) > LEAST_RANGE:
        raise ModelError(
            f"{who} gives values in [0, 1] that do not sum to 1, whatever the images, as a sigmoid does; take it off "
            "its end"
        )


def _warnings(wide: Tensor, noise: int, who: str) -> tuple[str, ...]:
    # A linear layer may happen to give positive logits alone, as those of two classes, but it gives no exact zeros.
    if len(wide) <= noise or _least(wide) != 0 or _range(wide) <= LEAST_RANGE:
        return ()
    return (f"{who}'s logits are never negative: is there an activation (ReLU) at its end? Take it off",)


def _least(values: Tensor) -> float:
    return float(values.min())


def _range(values: Tensor) -> float:
    return float(values.max() - values.min())
