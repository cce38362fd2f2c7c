"""Squared 2-Wasserstein distances between two samples of features, compared as distributions.

The order of the rows does not matter, so networks that divide an image into different positions can be compared. The
gradient does not vanish where the distributions do not overlap. The unit is that of the features squared.

The caller projects both samples to the same number of dimensions. Only the student's projection may be trained: if the
teacher's were trained on the same loss, both could become 0 for every image, and so could the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.losses.relations import full_precision

Distance = Callable[[Tensor, Tensor], Tensor]
"""Samples `[N, D]` and `[M, D]` -> squared distance, a scalar."""


def positions(features: Tensor) -> Tensor:
    """Features as rows of positions, `[N, T, C]`.

    Args:
        features: a map `[N, C, H, W]` (T = H W, row by row), tokens `[N, T, C]` (returned as they are), or vectors
            `[N, C]` (T = 1).

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


def pooled(features: Tensor) -> Tensor:
    """The mean of features over their positions, `[N, D]` in float32 (float64 stays).

    Args:
        features: `[N, C, H, W]`, `[N, T, C]` or `[N, C]`, of any float dtype.
    """
    return positions(full_precision(features)).mean(dim=1)


def sliced_wasserstein(a: Tensor, b: Tensor, rng: torch.Generator, projections: int = 64) -> Tensor:
    """Sliced Wasserstein distance (Bonneel et al. 2015): D times the mean over directions of the exact W_2^2 on each.

    The directions are orthonormal in blocks of at most D, which has less variance than independent directions (Rowland
    et al. 2019). The factor D brings the value to the scale of W_2^2: it equals W_2^2 for samples that differ by a
    shift and one common scale, and is never larger in expectation. A pure shift is measured exactly by D directions.
    For D = 1 the value is W_2^2 itself.

    Args:
        a: `[N, D]`.
        b: `[M, D]`; N and M may differ.
        rng: CPU generator that draws the directions; `synthkd.rng.stream(seed, purpose, step)` makes the loss a
            function of the step.
        projections: number of directions.

    Returns:
        A scalar, float32 or float64: the squared difference for one row on each side, 0 for equal constant features.

    Raises:
        DataError: a sample without rows, or samples of unlike width.
    """
    a, b = _samples(a, b)
    width = a.shape[1]
    with torch.autocast(a.device.type, enabled=False):
        directions = _directions(width, projections if width > 1 else 1, rng).to(a)
        first, second = ((x @ directions).sort(dim=0).values for x in (a, b))
        return width * _sorted_distances(first, second).mean()


def sinkhorn_wasserstein(a: Tensor, b: Tensor, epsilon: float = 0.05, iterations: int = 50) -> Tensor:
    """Sinkhorn divergence `OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2` of the cost |x - y|^2 (Feydy et al. 2019).

    It is 0 for equal samples. It tends to W_2^2 as epsilon falls, and to the squared distance of the means as epsilon
    grows. The squared distance of the means is a part of it at any epsilon. Time and memory grow with N M.

    Two samples of one distribution have a distance above 0: with few rows in many dimensions each row is far from all
    others, at any small epsilon. Sliced distances show much less of this effect.

    Args:
        a: `[N, D]`.
        b: `[M, D]`; N and M may differ.
        epsilon: entropic regularisation, as a share of the median cost between a and b. The median has no gradient.
        iterations: updates of the potentials; a smaller epsilon needs more.

    Returns:
        A scalar, float32 or float64: the squared difference for one row on each side, 0 for equal constant features.
        Rounding, or too few iterations, may leave it slightly below 0.

    Raises:
        DataError: a sample without rows, or samples of unlike width.
    """
    a, b = _samples(a, b)
    with torch.autocast(a.device.type, enabled=False):
        # Far from the origin |x|^2 + |y|^2 - 2 x.y loses all digits, so both samples are moved there first.
        centre = torch.cat([a, b]).detach().mean(dim=0)
        a, b = a - centre, b - centre
        across = _costs(a, b)
        # The median is 0 where most rows are equal; a share of the mean then keeps epsilon in proportion.
        typical = torch.maximum(across.detach().median(), 0.01 * across.detach().mean())
        final = (epsilon * typical).clamp_min(1e-12)
        within = [_entropic_cost(_costs(x, x), final, iterations, symmetric=True) for x in (a, b)]
        return _entropic_cost(across, final, iterations) - 0.5 * (within[0] + within[1])


def heterogeneous_alignment(
    teacher: Sequence[Tensor], student: Sequence[Tensor], distance: Distance, relative: bool = False, most: int = 512
) -> Tensor:
    """`sum_l (1 / d_l) W_2^2(phi_l(f_T^l), psi_l(f_S^l))` over layers of dimension d_l, a scalar.

    Each position of each image is one row of a layer's sample, so maps can be compared with tokens, and maps of any two
    sizes with each other.

    Args:
        teacher: projected features of each layer, `[N, D]`, `[N, T, D]` or `[N, D, H, W]`.
        student: projected features of the layers to compare, in the same order; N, T, H and W may differ, D may not.
        distance: `sinkhorn_wasserstein`, or `sliced_wasserstein` with its generator bound.
        relative: also divide each layer by the mean variance of the teacher's dimensions, so that layers of any scale
            have the same weight: about 1 for a student that always gives the teacher's mean.
        most: largest number of rows of a sample; of more rows, `most` evenly spaced ones are compared.

    Raises:
        DataError: no layers, unlike numbers of layers, or features that do not fit together.
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
    """Both samples in one precision, at least float32."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise DataError(
            f"samples must be [N, D] and [M, D] with N, M and D > 0, got {list(a.shape)} and {list(b.shape)}; project "
            "both to one dimension first"
        )
    # Squared differences need more digits than half precision has.
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(dtype), b.to(dtype)


def _thinned(rows: Tensor, most: int) -> Tensor:
    # From the first to the last row: a step that divides the rows of an image would always take the same positions.
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most, device=rows.device).long()]


def _directions(width: int, count: int, rng: torch.Generator) -> Tensor:
    """Unit vectors `[D, count]`, float32, each uniform on the sphere; the columns of a block are orthogonal."""
    size = min(width, count)
    # The Q of a normal matrix is uniform among orthonormal bases up to signs, which do not matter to a direction.
    blocks: Tensor = torch.linalg.qr(torch.randn(-(-count // size), width, size, generator=rng)).Q
    return blocks.transpose(0, 1).flatten(1)[:, :count]


def _sorted_distances(a: Tensor, b: Tensor) -> Tensor:
    """Exact squared distances `[P]` between the columns of `[N, P]` and `[M, P]`, each column sorted."""
    n, m = len(a), len(b)
    if n == m:
        return (a - b).square().mean(dim=0)
    # W_2^2 is the integral of the squared difference of the quantile functions. Those are steps, so it is a sum over
    # neighbouring levels of i / n and j / m.
    levels = torch.cat([torch.arange(n) * m, torch.arange(m + 1) * n]).unique()  # in units of 1 / (n m)
    mass = (levels.diff().double() / (n * m)).to(a)
    first, second = ((levels[:-1] // other).to(a.device) for other in (m, n))
    distances: Tensor = mass @ (a[first] - b[second]).square()
    return distances


def _costs(a: Tensor, b: Tensor) -> Tensor:
    """|x - y|^2 of all pairs, `[N, M]`."""
    costs: Tensor = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1) - 2.0 * a @ b.T
    return costs


def _entropic_cost(cost: Tensor, final: Tensor, iterations: int, symmetric: bool = False) -> Tensor:
    """Value of the dual problem at the regularisation `final` after some iterations; never above its optimum."""
    constant = cost.detach()
    g = constant.new_zeros(constant.shape[1])
    with torch.no_grad():
        largest = constant.max()
        for i in range(iterations):
            # Halved from the largest cost down: at a small epsilon from the start, potentials would move slowly.
            epsilon = torch.maximum(final, largest * 0.5**i)
            f = _softmin(constant, g, epsilon)
            # The two potentials of a sample against itself are equal; their mean converges in a few iterations.
            g = 0.5 * (f + g) if symmetric else _softmin(constant.T, f, epsilon)
    # One more update outside of no_grad. At the optimum a change of the potentials changes nothing (envelope theorem),
    # so the gradient by the cost is the plan, and the iterations need no memory for it.
    return _softmin(cost, g, final).mean() + g.mean()


def _softmin(cost: Tensor, potential: Tensor, epsilon: Tensor) -> Tensor:
    """Soft minimum over the columns of `cost - potential`, each with weight 1 / M: `[N]`."""
    # In log space: exp(-cost / epsilon) rounds to 0 at a small epsilon.
    return (math.log(cost.shape[1]) - torch.logsumexp((potential - cost) / epsilon, dim=1)) * epsilon
