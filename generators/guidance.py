"""Guidance of a diffusion model as a function of the difficulty; pure functions.

| difficulty | scale w of classifier-free guidance         | teacher guidance moves images towards      |
|------------|---------------------------------------------|--------------------------------------------|
| 0 (easy)   | `guidance`: typical images of the class     | a high probability of the label            |
| 1 (hard)   | `hard_guidance`: diverse, ambiguous images  | a large divergence of student from teacher |

In between, the scale and the weights of the two scores are linear in the difficulty.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from synthkd.losses.logits import kl_divergence

SOFTENING = 1e-2
"""Root mean square of a gradient: far below it `climb` moves an image in proportion, far above by a fixed length."""


def guidance_scale(difficulty: float, easy: float, hard: float) -> float:
    """Scale w of classifier-free guidance: `easy` at difficulty 0, `hard` at difficulty 1, linear in between."""
    return easy + (hard - easy) * difficulty


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance `u + w (c - u)` (Ho and Salimans 2022, equation 6, with their weight w - 1).

    Scale 1 is the conditional model, 0 the unconditional one. The formula is linear, so it applies to predictions of
    noise, velocity and image alike.

    Args:
        conditional: prediction for the labels, `[N, ...]`.
        unconditional: prediction for the null class, likewise.
        scale: w.

    Returns:
        The guided prediction, likewise.
    """
    return unconditional + scale * (conditional - unconditional)


def teacher_score(teacher: Tensor, student: Tensor | None, labels: Tensor, difficulty: float) -> Tensor:
    """Score that teacher guidance increases: `(1 - d) log p_T(y | x) + d KL(p_T || p_S)`.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`, or None, which omits the second term.
        labels: y, int64 `[N]`.
        difficulty: d in [0, 1].

    Returns:
        float32 `[N]`.
    """
    # The cross-entropy is -log p_T(y | x), hence the sign of the factor.
    score = (difficulty - 1.0) * F.cross_entropy(teacher, labels, reduction="none")
    return score if student is None else score + difficulty * kl_divergence(teacher, student)


def climb(images: Tensor, gradient: Tensor, length: float) -> Tensor:
    """Images moved along their gradients by at most `length` (root mean square over each image).

    Classifier guidance (Dhariwal and Nichol 2021) adds the gradient itself, whose size varies between networks and
    noise levels by orders of magnitude. Here the gradient g is divided by `rms(g) + SOFTENING`. Where the teacher is
    certain of the label already, g vanishes and the image stays.

    Args:
        images: `[N, C, H, W]`.
        gradient: of the sum of the images' scores, likewise.
        length: in units of the images' values.

    Returns:
        The moved images, `[N, C, H, W]`.
    """
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    return images + length * gradient / (size + SOFTENING)
