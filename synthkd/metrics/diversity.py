"""How varied the generated set is, and whether it means what the real set means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import hypergeom
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, one_thread, rows, same_width
from synthkd.metrics.neighbours import nearest
from synthkd.rng import derive


@dataclass(frozen=True)
class VendiScore:
    """The Vendi score and how sure it is.

    Attributes:
        value: as `vendi_score`.
        standard_error: of `value` over draws of as many samples, to first order. That the score grows with n is a bias
            and is not in it: it says how far two sets of equal n may differ by chance, not how far the limit is.
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class SemanticCosine:
    """Whether generated samples of a class lie in the direction of that class's real samples.

    Attributes:
        value: mean over the shared classes of the cosine between the two class means, in [-1, 1]; higher is better.
        per_class: class -> cosine.
        across: mean cosine between class means of different classes, real against generated: what `value` would be if
            the generated samples carried the wrong labels. Features behind a ReLU point into one orthant, so this is
            often high, and `value` says only as much as it exceeds this. None with a single shared class.
        standard_error: of `value` over draws of both sides with the classes' sizes held fixed, to first order (delta
            method); None where a shared class has a single sample on a side. Noise in the means also takes every cosine
            down, which is a bias and not in it; close to 1 it is of the error's size.
        missing_generated: classes of the real set that were not generated.
        missing_real: generated classes that the real set does not have.
    """

    value: float
    per_class: Mapping[int, float]
    across: float | None
    standard_error: float | None
    missing_generated: tuple[int, ...]
    missing_real: tuple[int, ...]


@dataclass(frozen=True)
class Modes:
    """Which mode each sample belongs to.

    Attributes:
        holdout: int64 `[H]`.
        generated: int64 `[M]`.
    """

    holdout: Tensor
    generated: Tensor


@dataclass(frozen=True)
class ModeCollapse:
    """Which modes of real data the generated set misses.

    Attributes:
        rate: missed over judged modes, in [0, 1]; lower is better. None when no mode could be judged.
        missed: the missed modes.
        judged: the modes with enough holdout samples to tell.
        too_rare: the others: even no generated sample at all could be chance there.
        shares: mode -> (share of the holdout set, share of the generated set).
    """

    rate: float | None
    missed: tuple[int, ...]
    judged: tuple[int, ...]
    too_rare: tuple[int, ...]
    shares: Mapping[int, tuple[float, float]]


def vendi_score(features: Array) -> float:
    """The effective number of different samples (Friedman and Dieng 2023), with the cosine as similarity.

    The exponential of the entropy of the eigenvalues of `K / n`, `K` the cosines of all pairs: 1 when all samples point
    one way, n when all are orthogonal, never more than D. Higher is more varied, not better: noise is varied too, so
    hold it against the score of as many real samples.

    Args:
        features: `[N, D]`, any real dtype.

    Returns:
        A number in [1, min(N, D)].

    Raises:
        DataError: features that `rows` refuses, or a row of zeros.
    """
    directions = _directions(rows(features, "features"), "features", "row")
    with one_thread():
        shares = torch.linalg.eigvalsh(_gram(directions)).clamp_(min=0.0)
    return math.exp(float(torch.special.entr(shares).sum()))


def vendi_with_error(features: Array) -> VendiScore:
    """`vendi_score` with its standard error, from one eigendecomposition.

    The score is `V = exp(H(C))` of the second moment `C = mean u u^T` of the directions `u`, so a sample's influence on
    it is `V (-u^T log(C) u - H)`; the error is the deviation of that over the samples, over `sqrt(n)`.

    Args:
        features: `[N, D]`, any real dtype, at least 2 rows.

    Raises:
        DataError: features that `rows` refuses, or a row of zeros.
    """
    directions = _directions(rows(features, "features", 2), "features", "row")
    count, width = directions.shape
    with one_thread():
        shares, vectors = torch.linalg.eigh(_gram(directions))
    shares.clamp_(min=0.0)
    # squared coordinates of the directions in the eigenvectors of C, which add up to n times the shares
    squares = vectors.square() * (count * shares) if count <= width else (directions @ vectors).square_()
    surprise = -(squares @ shares.log().where(shares > 0, 0.0))  # -u^T log(C) u, whose mean is the entropy
    value = math.exp(float(torch.special.entr(shares).sum()))
    return VendiScore(value, value * float(surprise.std()) / math.sqrt(count))


def semantic_cosine(real: Array, generated: Array, real_labels: Array, generated_labels: Array) -> SemanticCosine:
    """Semantic cosine similarity (s-CS): cosine of the class-wise mean features, averaged over the shared classes.

    With teacher features `f`, `s-CS = mean_c cos(mean f(real of c), mean f(generated for c))`. Every class counts the
    same, whatever its size; the features are not centred. Means hide spread: a class that collapsed onto its mean
    scores 1, so read it together with recall, coverage or the Vendi score.

    Args:
        real: `[N, D]` features.
        generated: `[M, D]` features of the same extractor.
        real_labels: integers `[N]`.
        generated_labels: integers `[M]`, the labels asked for.

    Raises:
        DataError: features that `rows` refuses, different D, labels that do not fit, no shared class, or a class whose
            mean is zero.
    """
    real, generated = rows(real, "real"), rows(generated, "generated")
    same_width(real, generated, "real and generated")
    real_modes = _modes(real_labels, len(real), "real labels")
    generated_modes = _modes(generated_labels, len(generated), "generated labels")
    known, made = set(real_modes.tolist()), set(generated_modes.tolist())
    shared = sorted(known & made)
    if not shared:
        raise DataError(
            f"real and generated labels share no class (real: {_few(known)}; generated: {_few(made)}); number the "
            "classes alike"
        )
    ours = [generated[generated_modes == c] for c in shared]
    theirs = [real[real_modes == c] for c in shared]
    cosines = _class_directions(theirs, "real") @ _class_directions(ours, "generated").T
    own = cosines.diagonal()
    pairs = len(shared) * (len(shared) - 1)
    return SemanticCosine(
        value=float(own.mean()),
        per_class=dict(zip(shared, own.tolist(), strict=True)),
        across=float((cosines.sum() - own.sum()) / pairs) if pairs else None,
        standard_error=_cosine_error(theirs, ours),
        missing_generated=tuple(sorted(known - made)),
        missing_real=tuple(sorted(made - known)),
    )


def cluster_modes(real: Array, holdout: Array, generated: Array, clusters: int = 20, seed: int = 0) -> Modes:
    """Modes where there are no labels: the nearest of the k-means centres of the real set.

    Args:
        real: `[N, D]` features that the centres are found on; no holdout sample among them.
        holdout: `[H, D]` features.
        generated: `[M, D]` features.
        clusters: number of centres.
        seed: of the first centres (k-means++).

    Raises:
        DataError: features that `rows` refuses, different D, or fewer real samples than clusters.
    """
    real, holdout = rows(real, "real", clusters), rows(holdout, "holdout")
    generated = rows(generated, "generated")
    same_width(real, holdout, "real and holdout")
    same_width(real, generated, "real and generated")
    means = KMeans(clusters, n_init=1, random_state=derive(seed, "mode clusters") % 2**32)
    with threadpool_limits(1):  # sums over threads come in no fixed order
        centres = torch.from_numpy(means.fit(real.numpy()).cluster_centers_)
    return Modes(nearest(holdout, centres, 1).indices[:, 0], nearest(generated, centres, 1).indices[:, 0])


def mode_collapse(holdout: Array, generated: Array, fraction: float = 0.1, level: float = 0.01) -> ModeCollapse:
    """Share of the real modes that the generated set misses, judged against a real holdout set.

    A mode is missed when both hold:
    - its share of the generated set is below `fraction` of its share of the holdout set;
    - so few generated samples are no accident of sampling: given the two sizes and the count of the mode in both sets
      together, fewer or as many have a chance below `level` over the number of modes, were both sets drawn from one
      distribution (Fisher's exact test, one-sided, with Bonferroni's correction).
    By the second, a generator without fault is charged with any missed mode with probability below `level`. A mode of
    which even no generated sample would pass as accident is too rare to be judged and does not count in the rate.

    Args:
        holdout: integers `[H]`, the mode of each real sample that was not trained on: its class, or from
            `cluster_modes`. A size near M judges most modes.
        generated: integers `[M]`, the mode each generated sample shows: the class the teacher sees in it, not the one
            asked for.
        fraction: of its due share, in (0, 1], below which a mode counts as missed.
        level: chance of any false charge, in (0, 1).

    Raises:
        DataError: labels that are not integers `[N]`, or none.
        ValueError: fraction or level out of bounds.
    """
    if not 0 < fraction <= 1 or not 0 < level < 1:
        raise ValueError(f"need 0 < fraction <= 1 and 0 < level < 1, got {fraction} and {level}")
    real_modes, made_modes = _modes(holdout, None, "holdout modes"), _modes(generated, None, "generated modes")
    modes, expected = real_modes.unique(return_counts=True)
    counts = (made_modes[:, None] == modes).sum(dim=0)
    n, m = len(real_modes), len(made_modes)
    real_share, made_share = expected.double() / n, counts.double() / m

    def chance(of: Tensor) -> Tensor:
        """Of so few generated ones among those of the mode."""
        return torch.from_numpy(np.asarray(hypergeom.cdf(of.numpy(), n + m, (of + expected).numpy(), m)))

    limit = level / len(modes)
    judged = chance(torch.zeros_like(expected)) < limit
    missed = judged & (made_share < fraction * real_share) & (chance(counts) < limit)
    pairs = zip(real_share.tolist(), made_share.tolist(), strict=True)
    return ModeCollapse(
        rate=int(missed.sum()) / int(judged.sum()) if judged.any() else None,
        missed=tuple(modes[missed].tolist()),
        judged=tuple(modes[judged].tolist()),
        too_rare=tuple(modes[~judged].tolist()),
        shares=dict(zip(modes.tolist(), pairs, strict=True)),
    )


def _directions(vectors: Tensor, name: str, unit: str) -> Tensor:
    """Rows divided by their lengths."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if zero := int((lengths == 0).sum()):
        raise DataError(
            f"{name}: {zero} of {len(vectors)} {unit}s are zero, which has no direction; take features that are not "
            "dead there, or leave those samples out"
        )
    return vectors / lengths


def _gram(directions: Tensor) -> Tensor:
    """The smaller Gram matrix over n: both have the same eigenvalues but for zeros, which add no entropy."""
    count, width = directions.shape
    return (directions @ directions.T if count <= width else directions.T @ directions) / count


def _class_directions(classes: list[Tensor], name: str) -> Tensor:
    """Directions `[C, D]` of the class means."""
    return _directions(torch.stack([members.mean(dim=0) for members in classes]), name, "class mean")


def _cosine_error(real: list[Tensor], generated: list[Tensor]) -> float | None:
    """Standard error of the mean over classes of the cosine between the means of two sets `[N_c, D]`, `[M_c, D]`."""
    if min(len(members) for members in (*real, *generated)) < 2:
        return None
    variance = 0.0
    for pair in zip(real, generated, strict=True):
        for members, others in (pair, pair[::-1]):
            mean, other = members.mean(dim=0), others.mean(dim=0)
            length, along = mean.norm(), other / other.norm()
            # the cosine changes with a mean by what of the other's direction is square to it, over its length
            gradient = (along - mean * (along @ mean) / length**2) / length
            variance += float((members @ gradient).var()) / len(members)
    return math.sqrt(variance) / len(real)


def _modes(labels: Array, count: int | None, name: str) -> Tensor:
    given = torch.as_tensor(np.asarray(labels) if not isinstance(labels, Tensor) else labels.detach()).cpu()
    if given.dim() != 1 or given.is_floating_point() or given.is_complex() or len(given) == 0:
        raise DataError(f"{name}: must be integers [N], one a sample, got {given.dtype} {list(given.shape)}")
    if count is not None and len(given) != count:
        raise DataError(f"{name}: {len(given)} labels for {count} samples; give one for each")
    return given.to(torch.int64)


def _few(classes: set[int]) -> str:
    """The first few class numbers, for a message."""
    return ", ".join(map(str, sorted(classes)[:5])) + (", ..." if len(classes) > 5 else "")
