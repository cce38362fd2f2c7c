"""What difficulty means for a diffusion model: how strongly samples are pulled to their class, and by whom.

| difficulty | guidance scale w                        | teacher guidance                                          |
|------------|-----------------------------------------|-----------------------------------------------------------|
| 0 (easy)   | `guidance`: prototypes of the class     | towards the asked label                                   |
| 1 (hard)   | `hard_guidance`: diverse and ambiguous  | towards disagreement of teacher and student               |

In between both move linearly. Everything here is a pure function.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from synthkd.losses.logits import kl_divergence

SOFTENING = 1e-2
"""Gradients whose root mean square is far below this move an image in proportion; above it, by the same length."""


def guidance_scale(difficulty: float, easy: float, hard: float) -> float:
    """The scale w of classifier-free guidance: `easy` at difficulty 0, `hard` at 1, linear in between."""
    return easy + (hard - easy) * difficulty


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance `u + w (c - u)` (Ho and Salimans 2022, equation 6, with their weight w - 1).

    Scale 1 is the conditional model, 0 the unconditional one. Linear, so that it may be applied to noise, velocity or
    image predictions alike.

    Args:
        conditional: prediction for the asked labels, `[N, ...]`.
        unconditional: prediction for the null class, likewise.
        scale: w.
    """
    return unconditional + scale * (conditional - unconditional)


def teacher_score(teacher: Tensor, student: Tensor | None, labels: Tensor, difficulty: float) -> Tensor:
    """What teacher guidance climbs: `(1 - d) log p_T(y | x) + d KL(p_T || p_S)`, float32 `[N]`.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`, or None, which leaves the second part out.
        labels: int64 `[N]`, the labels asked for.
        difficulty: d in [0, 1].
    """
    score = (difficulty - 1.0) * F.cross_entropy(teacher, labels, reduction="none")
    return score if student is None else score + difficulty * kl_divergence(teacher, student)


def climb(images: Tensor, gradient: Tensor, length: float) -> Tensor:
    """Images moved along their gradients by at most `length` (root mean square over each image).

    Classifier guidance (Dhariwal and Nichol 2021) adds the gradient itself; its size varies between networks and noise
    levels by orders of magnitude, so here the gradient g is divided by `rms(g) + SOFTENING`: an image the teacher is
    already sure of, whose gradient vanishes, stays.

    Args:
        images: `[N, C, H, W]`.
        gradient: of a sum over images of their scores, likewise.
        length: in units of the images' values.
    """
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    return images + length * gradient / (size + SOFTENING)
