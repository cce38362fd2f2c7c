"""Diversity of a generated set (Vendi score, missed modes), and agreement of its classes with the real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, one_thread, pair, rows, same_width, tensor
from synthkd.metrics.neighbours import nearest
from synthkd.rng import derive
from synthkd.system.shares import ALONE, Shares


@dataclass(frozen=True)
class VendiScore:
    """The Vendi score with its standard error.

    Attributes:
        value: as from `vendi_score`.
        standard_error: of `value` over draws of as many samples, to first order: how far sets of equal n differ by
            chance. It does not include the bias: the score grows with n.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class SemanticCosine:
    """Agreement of the directions of generated and real samples, class by class.

    Attributes:
        value: mean over the shared classes of the cosine between the two class means, in [-1, 1]; higher is better.
        per_class: class -> cosine.
        across: mean cosine between the real mean of one class and the generated mean of another, the value that wrong
            labels would have. Features after a ReLU lie in one orthant, so it is often high, and only the excess of
            `value` over it is meaningful. None with a single shared class.
        standard_error: of `value` over draws of both sides with fixed class sizes, to first order (delta method); None
            if a shared class has a single sample on a side. It does not include the bias: noise in the means lowers
            every cosine, and close to a cosine of 1 by as much as this error.
        missing_generated: classes of the real set that were not generated.
        missing_real: generated classes that are not in the real set.
    """

    value: float
    per_class: Mapping[int, float]
    across: float | None
    standard_error: float | None
    missing_generated: tuple[int, ...]
    missing_real: tuple[int, ...]


@dataclass(frozen=True)
class Modes:
    """Mode of each sample.

    Attributes:
        holdout: int64 `[H]`.
        generated: int64 `[M]`.
    """

    holdout: Tensor
    generated: Tensor


@dataclass(frozen=True)
class ModeCollapse:
    """Modes of real data that the generated set misses.

    Attributes:
        rate: number of missed modes over number of judged modes, in [0, 1]; lower is better. None if none was judged.
        missed: the missed modes.
        judged: the modes with enough holdout samples to decide.
        too_rare: the other modes: so rare that even zero generated samples could be chance.
        shares: mode -> (share of the holdout set, share of the generated set).
    """

    rate: float | None
    missed: tuple[int, ...]
    judged: tuple[int, ...]
    too_rare: tuple[int, ...]
    shares: Mapping[int, tuple[float, float]]


def vendi_score(features: Array, shares: Shares = ALONE) -> float:
    """Effective number of different samples (Friedman and Dieng 2023), with the cosine as similarity.

    The exponential of the entropy of the eigenvalues of `K / n`, where `K` holds the cosines of all pairs. It is 1 if
    all samples have one direction and n if all are orthogonal. Higher means more varied, not better, since noise is
    varied too; compare it with the score of as many real samples.

    Args:
        features: `[N, D]`, any real dtype.
        shares: the processes, all of which have all features.

    Returns:
        A number in [1, min(N, D)].

    Raises:
        DataError: features that `arrays.rows` refuses, or a row of zeros.
    """
    directions = _directions(rows(features, "features"), "features", "row")
    with one_thread():
        # rounding makes some eigenvalues of 0 negative, which have no entropy
        values = torch.linalg.eigvalsh(_gram(directions, shares)).clamp_(min=0.0)
    return math.exp(float(torch.special.entr(values).sum()))


def vendi_with_error(features: Array, shares: Shares = ALONE) -> VendiScore:
    """`vendi_score` with its standard error, from one eigendecomposition.

    Args:
        features: `[N, D]`, any real dtype, at least 2 rows.
        shares: the processes, all of which have all features.

    Raises:
        DataError: features that `arrays.rows` refuses, or a row of zeros.
    """
    directions = _directions(rows(features, "features", 2), "features", "row")
    count, width = directions.shape
    with one_thread():
        values, vectors = torch.linalg.eigh(_gram(directions, shares))
    values.clamp_(min=0.0)
    # The score is V = exp(H(C)) of the second moment C = mean u u^T of the directions u, so the influence of a sample
    # on it is V (-u^T log(C) u - H). The error is the standard deviation of the influences over sqrt(n).
    # `squares` are the squared coordinates of the directions along the eigenvectors of C. With fewer samples than
    # dimensions the Gram matrix holds cosines, whose eigenvectors, squared, are those up to the factor n * value.
    logs, mine = values.log().where(values > 0, 0.0), shares.span(count)
    squares = vectors[mine].square() * (count * values) if count <= width else (directions[mine] @ vectors).square_()
    surprise = shares.rows(-(squares @ logs))  # -u^T log(C) u, whose mean is the entropy
    value = math.exp(float(torch.special.entr(values).sum()))
    return VendiScore(value, value * float(surprise.std()) / math.sqrt(count))


def semantic_cosine(real: Array, generated: Array, real_labels: Array, generated_labels: Array) -> SemanticCosine:
    """Semantic cosine similarity (s-CS): cosine of the class-wise mean features, averaged over the shared classes.

    With teacher features `f`, `s-CS = mean_c cos(mean f(real of c), mean f(generated for c))`. Every class has equal
    weight whatever its size, and the features are not centred. Means hide spread: a class that collapsed onto its mean
    has cosine 1, so read it together with recall, coverage or the Vendi score.

    Args:
        real: `[N, D]` features.
        generated: `[M, D]` features of the same extractor.
        real_labels: integers `[N]`.
        generated_labels: integers `[M]`, the classes that the samples were generated for.

    Raises:
        DataError: features that `arrays.rows` refuses, different D, labels that do not fit, no shared class, or a class
            whose mean is zero.
    """
    real, generated = pair(real, generated, ("real", "generated"))
    real_modes = _modes(real_labels, len(real), "real labels")
    generated_modes = _modes(generated_labels, len(generated), "generated labels")
    real_classes, generated_classes = set(real_modes.tolist()), set(generated_modes.tolist())
    shared = sorted(real_classes & generated_classes)
    if not shared:
        raise DataError(
            f"real and generated labels share no class (real: {_few(real_classes)}; generated: "
            f"{_few(generated_classes)}); number the classes alike"
        )
    by_class = [generated[generated_modes == c] for c in shared]
    real_by_class = [real[real_modes == c] for c in shared]
    cosines = _class_directions(real_by_class, "real") @ _class_directions(by_class, "generated").T
    own = cosines.diagonal()
    pairs = len(shared) * (len(shared) - 1)
    return SemanticCosine(
        value=float(own.mean()),
        per_class=dict(zip(shared, own.tolist(), strict=True)),
        across=float((cosines.sum() - own.sum()) / pairs) if pairs else None,
        standard_error=_cosine_error(real_by_class, by_class),
        missing_generated=tuple(sorted(real_classes - generated_classes)),
        missing_real=tuple(sorted(generated_classes - real_classes)),
    )


def cluster_modes(
    real: Array, holdout: Array, generated: Array, clusters: int = 20, seed: int = 0, shares: Shares = ALONE
) -> Modes:
    """Modes without labels: the nearest of the k-means centres of the real set.

    Args:
        real: `[N, D]` features for k-means, without the holdout samples.
        holdout: `[H, D]` features.
        generated: `[M, D]` features.
        clusters: number of centres.
        seed: of the first centres (k-means++).
        shares: the processes, all of which have all features; the first one finds the centres.

    Raises:
        DataError: features that `arrays.rows` refuses, different D, or fewer real samples than clusters.
    """
    from sklearn.cluster import KMeans

    real, holdout = rows(real, "real", clusters), rows(holdout, "holdout")
    generated = rows(generated, "generated")
    same_width(real, holdout, "real and holdout")
    same_width(real, generated, "real and generated")
    means = KMeans(clusters, n_init=1, random_state=derive(seed, "mode clusters") % 2**32)
    # Several threads add up in an order, and so with a rounding, that changes from run to run.
    with threadpool_limits(1):
        centres = shares.first(lambda: torch.from_numpy(means.fit(real.numpy()).cluster_centers_))
    return Modes(nearest(holdout, centres, 1).indices[:, 0], nearest(generated, centres, 1).indices[:, 0])


def mode_collapse(holdout: Array, generated: Array, fraction: float = 0.1, level: float = 0.01) -> ModeCollapse:
    """Share of the real modes that the generated set misses, judged against a real holdout set.

    A mode is missed if both are true:
    - its share of the generated set is below `fraction` of its share of the holdout set;
    - chance does not explain it: Fisher's exact test (one-sided, with Bonferroni's correction over the modes) rejects
      at `level` that both sets have one distribution.
    So the probability that any mode of a perfect generator counts as missed is below `level`. A mode that could not
    be missed even with zero generated samples is too rare to be judged and does not count in the rate.

    Args:
        holdout: integers `[H]`, mode of each real sample that was not trained on: its class, or from `cluster_modes`.
            More modes can be judged if H is near M.
        generated: integers `[M]`, mode of each generated sample: the class that the teacher predicts, not the class it
            was generated for.
        fraction: share of the expected number, in (0, 1], below which a mode counts as missed.
        level: probability that any mode is called missed by chance, in (0, 1).

    Raises:
        DataError: labels that are not integers `[N]`, or none.
        ValueError: fraction or level out of bounds.
    """
    if not 0 < fraction <= 1 or not 0 < level < 1:
        raise ValueError(f"need 0 < fraction <= 1 and 0 < level < 1, got {fraction} and {level}")
    real_modes, generated_modes = _modes(holdout, None, "holdout modes"), _modes(generated, None, "generated modes")
    modes, real_counts = real_modes.unique(return_counts=True)
    counts = (generated_modes[:, None] == modes).sum(dim=0)
    n, m = len(real_modes), len(generated_modes)
    real_share, share = real_counts.double() / n, counts.double() / m

    def p_value(counts: Tensor) -> Tensor:
        from scipy.stats import hypergeom

        # Fisher's exact test: of all n + m samples, m are generated; how likely are so few of this mode among them?
        return torch.from_numpy(np.asarray(hypergeom.cdf(counts.numpy(), n + m, (counts + real_counts).numpy(), m)))

    limit = level / len(modes)  # Bonferroni
    # Zero generated samples have the smallest p-value: if it does not reject, no count can.
    judged = p_value(torch.zeros_like(real_counts)) < limit
    missed = judged & (share < fraction * real_share) & (p_value(counts) < limit)
    pairs = zip(real_share.tolist(), share.tolist(), strict=True)
    return ModeCollapse(
        rate=int(missed.sum()) / int(judged.sum()) if judged.any() else None,
        missed=tuple(modes[missed].tolist()),
        judged=tuple(modes[judged].tolist()),
        too_rare=tuple(modes[~judged].tolist()),
        shares=dict(zip(modes.tolist(), pairs, strict=True)),
    )


def _directions(vectors: Tensor, name: str, unit: str) -> Tensor:
    """Rows `[N, D]` divided by their lengths."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if zero := int((lengths == 0).sum()):
        raise DataError(
            f"{name}: {zero} of {len(vectors)} {unit}s are zero, which has no direction; take features that are not "
            "dead there, or leave those samples out"
        )
    return vectors / lengths


def _gram(directions: Tensor, shares: Shares) -> Tensor:
    """The smaller of `X X^T / n` and `X^T X / n`."""
    # Their nonzero eigenvalues are equal, and zeros add no entropy.
    count, width = directions.shape
    if count <= width:
        return directions @ directions.T / count
    mine = directions[shares.span(count)]
    return shares.sum(mine.T @ mine) / count


def _class_directions(classes: list[Tensor], name: str) -> Tensor:
    """Directions `[C, D]` of the means of the classes, each `[N_c, D]`."""
    return _directions(torch.stack([members.mean(dim=0) for members in classes]), name, "class mean")


def _cosine_error(real: list[Tensor], generated: list[Tensor]) -> float | None:
    """Standard error of the mean cosine, from the classes `[N_c, D]` and `[M_c, D]` of both sides."""
    if min(len(members) for members in (*real, *generated)) < 2:
        return None
    variance = 0.0
    for sides in zip(real, generated, strict=True):
        for members, others in (sides, sides[::-1]):
            mean, other = members.mean(dim=0), others.mean(dim=0)
            length, along = mean.norm(), other / other.norm()
            # The gradient of the cosine with respect to this mean: the part of the other's direction that is
            # orthogonal to it, over its length. The delta method projects the samples on it.
            gradient = (along - mean * (along @ mean) / length**2) / length
            variance += float((members @ gradient).var()) / len(members)
    return math.sqrt(variance) / len(real)


def _modes(labels: Array, count: int | None, name: str) -> Tensor:
    """Labels or modes as int64 `[N]` on the CPU; `count` is the N that they must have, or None for any but 0."""
    modes = tensor(labels).cpu()
    if modes.dim() != 1 or modes.is_floating_point() or modes.is_complex() or len(modes) == 0:
        raise DataError(f"{name}: must be integers [N], one per sample, got {modes.dtype} {list(modes.shape)}")
    if count is not None and len(modes) != count:
        raise DataError(f"{name}: {len(modes)} labels for {count} samples; give one for each")
    return modes.to(torch.int64)


def _few(classes: set[int]) -> str:
    """The first five class numbers, for a message."""
    return ", ".join(map(str, sorted(classes)[:5])) + (", ..." if len(classes) > 5 else "")
