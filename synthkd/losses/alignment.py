"""How far two samples of features lie apart as distributions: which row belongs to which does not matter.

Squared 2-Wasserstein distances, in the unit of the features squared: for rows that are not paired (networks that cut an
image into unlike positions), and with a gradient where the distributions do not overlap. Features are brought to one
dimension before they come here, by maps of which only the student's may learn: were the teacher's trained on the same
loss, both would answer 0 to everything and the loss would be 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synthkd.errors import DataError

Distance = Callable[[Tensor, Tensor], Tensor]
"""Samples `[N, D]` and `[M, D]` -> squared distance, a scalar."""


def positions(features: Tensor) -> Tensor:
    """Features as `[N, T, C]`: the positions of a map `[N, C, H, W]` row by row, tokens as they are, a vector as one.

    Raises:
        DataError: features of another number of dimensions.
    """
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    if features.dim() == 3:
        return features
    if features.dim() == 2:
        return features.unsqueeze(1)
    raise DataError(
        f"features must be [N, D], [N, T, D] or [N, C, H, W], got {list(features.shape)}; tap a module that gives such"
    )


def sliced_wasserstein(a: Tensor, b: Tensor, rng: torch.Generator, projections: int = 64) -> Tensor:
    """D times the mean, over directions, of the exact squared distance of the projected samples, a scalar.

    Sliced Wasserstein (Bonneel et al. 2015), with directions orthonormal in blocks of at most D, which scatters less
    than independent ones (Rowland et al. 2019). The factor D puts it on the scale of W_2^2: equal to it for samples
    that differ by a shift and one scale for all dimensions, and in expectation never larger. A shift alone is found
    exactly with D directions. Where D = 1 it is W_2^2 itself.

    Args:
        a: `[N, D]`.
        b: `[M, D]`; N and M may differ, as may the order of the rows.
        rng: of the directions, on the CPU; `synthkd.rng.stream(seed, purpose, step)` makes the loss a function of the
            step.
        projections: number of directions.

    Returns:
        float32 or better; the squared difference for one row on each side, 0 for equal constant features.

    Raises:
        DataError: samples without rows, or of unlike width.
    """
    a, b = _samples(a, b)
    width = a.shape[1]
    with torch.autocast(a.device.type, enabled=False):
        directions = _directions(width, projections if width > 1 else 1, rng).to(a)
        first, second = ((x @ directions).sort(dim=0).values for x in (a, b))
        return width * _of_sorted(first, second).mean()


def sinkhorn_wasserstein(a: Tensor, b: Tensor, epsilon: float = 0.05, iterations: int = 50) -> Tensor:
    """Debiased entropic transport cost `OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2`, a scalar.

    The Sinkhorn divergence (Feydy et al. 2019) of the cost |x - y|^2. It is 0 for equal samples, tends to W_2^2 as
    epsilon falls and to the squared distance of the means as it grows; the means enter exactly at any epsilon. In the
    log domain, and epsilon is halved step by step from the largest cost down. The gradient is that of the cost under
    the plan that was found (the envelope theorem), so that iterations take no memory. Time and memory grow with N M.

    Two samples of one distribution are not at distance 0: with few rows in many dimensions each row is far from all
    others, at any epsilon that is small. The slices see much less of that.

    Args:
        a: `[N, D]`.
        b: `[M, D]`; N and M may differ, as may the order of the rows.
        epsilon: entropic regularisation, as a share of the median cost between a and b, which has no part in the
            gradient.
        iterations: of the potentials; the smaller epsilon, the more are needed.

    Returns:
        float32 or better; rounding, and iterations too few, may leave it slightly below 0. The squared difference for
        one row on each side, 0 for equal constant features.

    Raises:
        DataError: samples without rows, or of unlike width.
    """
    a, b = _samples(a, b)
    with torch.autocast(a.device.type, enabled=False):
        # |x|^2 + |y|^2 - 2 x.y loses every digit far from the origin
        centre = torch.cat([a, b]).detach().mean(dim=0)
        a, b = a - centre, b - centre
        across = _costs(a, b)
        typical = torch.maximum(across.detach().median(), 0.01 * across.detach().mean())
        least = (epsilon * typical).clamp_min(1e-12)
        within = [_entropic_cost(_costs(x, x), least, iterations, symmetric=True) for x in (a, b)]
        return _entropic_cost(across, least, iterations) - 0.5 * (within[0] + within[1])


def heterogeneous_alignment(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    distance: Distance,
    relative: bool = False,
    most: int = 512,
) -> Tensor:
    """`sum_l (1 / d_l) W_2^2(phi_l(f_T^l), psi_l(f_S^l))` over layers of dimension d_l, a scalar.

    Every position of every image is one row of a layer's sample, so that maps and tokens, and any two spatial sizes,
    can be compared.

    Args:
        teacher: projected features of each layer, `[N, D]`, `[N, T, D]` or `[N, D, H, W]`.
        student: of the same layers in this order; N, T, H and W may differ, D may not.
        distance: `sinkhorn_wasserstein`, or `sliced_wasserstein` with its generator bound.
        relative: divide each layer by the mean variance of the teacher's dimensions too, so that layers of any scale
            weigh alike: about 1 for a student that answers the teacher's mean.
        most: largest number of rows on a side; of more, so many evenly spaced ones are compared.

    Raises:
        DataError: no layers, unlike numbers of them, or features that do not fit together.
    """
    if not teacher or len(teacher) != len(student):
        raise DataError(
            f"alignment needs at least 1 layer and as many of the student as of the teacher, got {len(teacher)} of the "
            f"teacher and {len(student)} of the student; pair them"
        )
    total: list[Tensor] = []
    for theirs, ours in zip(teacher, student, strict=True):
        first, second = _samples(*(_thinned(positions(x).flatten(0, 1), most) for x in (theirs, ours)))
        scale = first.detach().var(dim=0, unbiased=False).mean().clamp_min(1e-8) if relative else 1.0
        total.append(distance(first, second) / (first.shape[1] * scale))
    return torch.stack(total).sum()


def _samples(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one precision, float32 at least: half precision has no digits left for squared differences."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise DataError(
            f"samples must be [N, D] and [M, D] with N, M and D > 0, got {list(a.shape)} and {list(b.shape)}; project "
            "both to one dimension first"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def _thinned(rows: Tensor, most: int) -> Tensor:
    # the last row is among them, so that the step is hardly ever a whole number of images
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).long()]


def _directions(width: int, count: int, rng: torch.Generator) -> Tensor:
    """Unit vectors `[D, count]`, float32, each uniform on the sphere; the columns of a block are orthogonal."""
    size = min(width, count)
    blocks: Tensor = torch.linalg.qr(torch.randn(-(-count // size), width, size, generator=rng)).Q
    return blocks.transpose(0, 1).flatten(1)[:, :count]


def _of_sorted(a: Tensor, b: Tensor) -> Tensor:
    """Exact squared distances `[P]` of the columns of `[N, P]` and `[M, P]`, each sorted.

    The quantile functions are steps, so that their squared difference is constant between two neighbouring levels
    among i / N and j / M.
    """
    n, m = len(a), len(b)
    if n == m:
        return (a - b).square().mean(dim=0)
    levels = torch.cat([torch.arange(n) * m, torch.arange(m + 1) * n]).unique()  # in units of 1 / (n m)
    mass = (levels.diff().double() / (n * m)).to(a)
    first, second = ((levels[:-1] // other).to(a.device) for other in (m, n))
    distances: Tensor = mass @ (a[first] - b[second]).square()
    return distances


def _costs(a: Tensor, b: Tensor) -> Tensor:
    """|x - y|^2 of all pairs, `[N, M]`."""
    costs: Tensor = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1) - 2.0 * a @ b.T
    return costs


def _entropic_cost(cost: Tensor, least: Tensor, iterations: int, symmetric: bool = False) -> Tensor:
    """Value of the dual problem after so many iterations at the regularisation `least`; never above its optimum."""
    fixed = cost.detach()
    g = fixed.new_zeros(fixed.shape[1])
    with torch.no_grad():
        largest = fixed.max()
        for i in range(iterations):
            epsilon = torch.maximum(least, largest * 0.5**i)
            f = _softmin(fixed, g, epsilon)
            # of a sample to itself both potentials are one, and their mean gets there in a few iterations
            g = 0.5 * (f + g) if symmetric else _softmin(fixed.T, f, epsilon)
    return _softmin(cost, g, least).mean() + g.mean()


def _softmin(cost: Tensor, potential: Tensor, epsilon: Tensor) -> Tensor:
    """Soft minimum over the columns of `cost - potential`, each with weight 1 / M: `[N]`."""
    return (math.log(cost.shape[1]) - torch.logsumexp((potential - cost) / epsilon, dim=1)) * epsilon
