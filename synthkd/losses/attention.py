"""Attention transfer: a loss on the spatial attention of two networks with any numbers of channels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from synthkd.errors import ConfigError, ModelError
from synthkd.losses.features import sum_of_squares
from synthkd.losses.logits import weighted_mean
from synthkd.losses.relations import full_precision, unit


def attention_transfer(
    teacher: Tensor,
    student: Tensor,
    power: float = 2.0,
    form: Literal["paper", "authors"] = "paper",
    weights: Tensor | None = None,
) -> Tensor:
    """Activation-based attention transfer (Zagoruyko and Komodakis 2017, equation 2, one layer), a scalar.

    With `q = vec(Q) / ||vec(Q)||_2` of each image's attention map `Q = sum_c |A_c|^p`:

    - `paper`: `mean_i ||q_S - q_T||_2`, the batch mean of the equation's norm without its factor beta / 2. The length
      of its gradient stays the same as the maps come near to each other.
    - `authors`: `mean_i,h,w (q_S - q_T)^2`, as in the authors' code: the squared norm over the number of positions.

    Maps of unlike size are averaged down to the smaller height and the smaller width. A common factor on an image's
    activations changes nothing.

    Args:
        teacher: activations `[N, C, H, W]`.
        student: activations of the same images, `[N, C', H', W']`.
        power: p >= 1; a larger p gives the strongest positions more weight.
        form: one of the two above.
        weights: importance weights `[N]` of the images, or None for ones.

    Returns:
        0 where both maps are constant. An image without any activation has q = 0 and gets no gradient.

    Raises:
        ConfigError: an unknown form, or a power below 1.
        ModelError: features that are not maps.
    """
    if form not in ("paper", "authors"):
        raise ConfigError(f"attention transfer has the forms 'paper' and 'authors', got '{form}'; name one of them")
    ours, theirs = attention_map(student, power), attention_map(teacher, power)
    # Attention maps are averaged and not activations, in which neighbours of opposite sign would cancel.
    size = min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2])
    ours, theirs = (unit(F.adaptive_avg_pool2d(maps, size).flatten(1)) for maps in (ours, theirs))
    gap = ours - theirs
    return weighted_mean(gap.square().mean(dim=1) if form == "authors" else gap.norm(dim=1), weights)


def attention_map(activations: Tensor, power: float = 2.0) -> Tensor:
    """Spatial attention `Q = sum_c |A_c|^p` (section 3.1) over its maximum in each image, `[N, H, W]`.

    The division cancels where the map is normalised afterwards.

    Args:
        activations: `[N, C, H, W]`.
        power: p >= 1.

    Returns:
        float32 or float64, in [0, 1].

    Raises:
        ConfigError: a power below 1, for which the gradient at activations of 0 is infinite.
        ModelError: features that are not maps.
    """
    if not power >= 1.0:
        raise ConfigError(f"attention maps need a power >= 1, got {power}; 2 is the usual one")
    if activations.ndim != 4:
        raise ModelError(
            f"attention maps need activations [N, C, H, W], got {list(activations.shape)}; tap a layer that gives maps"
        )
    values = full_precision(activations)
    attention = sum_of_squares(values, dim=1) if power == 2.0 else values.abs().pow(power).sum(dim=1)
    # Squared once more in a norm, high powers would leave the range of float32. Detached: the maximum is only a unit.
    largest = attention.detach().amax(dim=(1, 2), keepdim=True)
    return attention / largest.masked_fill(largest == 0.0, 1.0)
