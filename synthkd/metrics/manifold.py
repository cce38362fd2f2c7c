"""Precision, recall, density and coverage: overlap of the real and the generated set, each as a union of balls.

Every point is the centre of a ball that reaches to its k-th nearest neighbour in its own set. A point on the surface of
a ball counts as inside. So the ball of an image with k copies or more, whose radius is 0, holds these copies, and a set
compared with itself has precision, recall and coverage of 1 however many duplicates it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, same_width
from synthkd.metrics.neighbours import mutual_balls, nearest_others, points
from synthkd.metrics.utility import Proportion, proportion
from synthkd.system.shares import ALONE, Shares


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, density and coverage; higher is better for all four.

    Attributes:
        precision: share of generated samples inside the ball of some real sample, in [0, 1]. A single real outlier has
            a large ball and raises it; density, which counts balls, is affected less.
        recall: share of real samples inside the ball of some generated sample, in [0, 1]. Scattered generated samples
            have large balls and raise it; coverage does not use their balls.
        density: mean number of real balls that hold a generated sample, divided by k. About 1 for two samples of one
            distribution, more if generated samples crowd where real ones are dense.
        coverage: share of real samples whose ball holds a generated one, in [0, 1]; see `expected_coverage`.
        density_error: standard error of the density over the generated samples, for fixed real samples.
        k: the neighbour that the balls reach to.
        n_real: number of real samples.
        n_generated: number of generated samples.
        dimension: D, the number of features.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    density_error: float
    k: int
    n_real: int
    n_generated: int
    dimension: int

    @property
    def expected_coverage(self) -> float:
        """Expected coverage if the generated samples have the real distribution (Naeem et al. 2020, Lemma 2).

        It is the best value to aim for.
        """
        # All orders of the distances from a real point to the other points are equally likely then, and the point is
        # not covered if its k nearest are all real.
        others = self.n_real - 1
        missed = ((others - i) / (others + self.n_generated - i) for i in range(self.k))
        return 1.0 - math.prod(missed)

    @property
    def intervals(self) -> dict[str, Proportion]:
        """Precision, recall and coverage, by name, with Wilson intervals over the samples, for fixed balls.

        Other samples would have other balls, which adds to the spread, so the intervals are a little too narrow.
        """
        counts = {"precision": self.n_generated, "recall": self.n_real, "coverage": self.n_real}
        return {name: proportion(round(getattr(self, name) * n), n) for name, n in counts.items()}


def precision_recall_density_coverage(
    real: Array, generated: Array, k: int = 5, shares: Shares = ALONE
) -> PrecisionRecall:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Neighbours of a point include copies of it, but not the point itself. Points at exactly the radius are inside
    ("<=", as Kynkäänniemi et al. write; the reference code of Naeem et al. has "<", which gives 0 for repeated
    samples). All four values depend on the numbers of samples: compare them at equal numbers only.

    Args:
        real: `[N, D]` features, any real dtype.
        generated: `[M, D]` features of the same extractor.
        k: the neighbour that a ball reaches to; less than N and M.
        shares: the processes, all of which have all features.

    Raises:
        DataError: features that `arrays.rows` refuses, different D, or a k out of range.
    """
    if k < 1:
        raise DataError(f"k must be at least 1, got {k}; 3 and 5 are usual")
    real, generated = points(real, "real"), points(generated, "generated")
    same_width(real, generated, "real and generated")
    for name, values in (("real", real), ("generated", generated)):
        if len(values) <= k:
            raise DataError(
                f"{name}: the neighbour number k={k} of a sample needs at least {k + 1} samples, got {len(values)}; "
                "take more samples or a smaller k"
            )
    real_radii = nearest_others(real, k, shares=shares).squared[:, -1]
    generated_radii = nearest_others(generated, k, shares=shares).squared[:, -1]
    balls = mutual_balls(real, real_radii, generated, generated_radii, shares)
    n, m = len(real), len(generated)
    real_balls = balls.first.balls_per_point  # [M]: real balls around each generated sample
    # Kynkäänniemi et al. ask whether a sample is in any ball of the other set, Naeem et al. in how many real balls a
    # generated sample is (density), and whether a real ball holds any (coverage).
    return PrecisionRecall(
        precision=int((real_balls > 0).sum()) / m,
        recall=int((balls.second.balls_per_point > 0).sum()) / n,
        density=int(real_balls.sum()) / (k * m),
        coverage=int((balls.first.points_per_ball > 0).sum()) / n,
        density_error=float(real_balls.double().std()) / (k * math.sqrt(m)),
        k=k,
        n_real=n,
        n_generated=m,
        dimension=real.shape[1],
    )
