"""How much of the generated set looks real and how much of the real set is generated, with sets as unions of balls.

Each point stands for a ball that reaches to its k-th nearest neighbour in its own set. A point on the surface of a
ball is inside: so the ball of an image that is repeated k times or more, which has radius 0, still holds its copies,
and a set compared with itself gets precision, recall and coverage of 1 however many duplicates it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, same_width
from synthkd.metrics.neighbours import mutual_balls, nearest_others, points
from synthkd.metrics.utility import Proportion, proportion


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, density and coverage; higher is better for all four.

    Attributes:
        precision: share of generated samples inside the ball of some real sample, in [0, 1]. One outlier among the real
            samples has a big ball and lifts it; density counts balls and suffers less.
        recall: share of real samples inside the ball of some generated sample, in [0, 1]. Scattered generated samples
            have big balls and lift it; coverage does not use them.
        density: mean number of real balls that hold a generated sample, over k. About 1 for two samples of one
            distribution, more where the generated ones crowd where real ones are dense.
        coverage: share of real samples whose ball holds a generated one, in [0, 1]; see `expected_coverage`.
        density_error: standard error of the density over the generated samples, the real ones held fixed.
        k: which neighbour the balls reach to.
        n_real: number of real samples.
        n_generated: number of generated samples.
        dimension: of the features.
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
        """Mean coverage of a sample of the real distribution: the best to hope for (Naeem et al. 2020, Lemma 2).

        All orders of the distances from a real point to the others are equally likely then, and it is not covered when
        the first k are all real.
        """
        others = self.n_real - 1
        missed = ((others - i) / (others + self.n_generated - i) for i in range(self.k))
        return 1.0 - math.prod(missed)

    @property
    def intervals(self) -> dict[str, Proportion]:
        """Precision, recall and coverage with Wilson intervals over the samples counted, all balls held fixed.

        Drawing the balls anew would add to the spread, so these intervals are rather too narrow.
        """
        counted = {"precision": self.n_generated, "recall": self.n_real, "coverage": self.n_real}
        return {name: proportion(round(getattr(self, name) * n), n) for name, n in counted.items()}


def precision_recall_density_coverage(real: Array, generated: Array, k: int = 5) -> PrecisionRecall:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The k-th neighbour of a point is counted without the point itself, but with copies of it. Points at exactly the
    radius are inside ("<=", as Kynkäänniemi et al. write; the reference code of Naeem et al. has "<", which gives 0
    for repeated samples). All four depend on the numbers of samples: compare only at equal numbers.

    Args:
        real: `[N, D]` features, any real dtype.
        generated: `[M, D]` features of the same extractor.
        k: which neighbour a ball reaches to.

    Raises:
        DataError: features that `rows` refuses, different D, or k not below N and M.
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
    real_radii = nearest_others(real, k).squared[:, -1]
    generated_radii = nearest_others(generated, k).squared[:, -1]
    balls = mutual_balls(real, real_radii, generated, generated_radii)
    n, m = len(real), len(generated)
    holding = balls.first.balls_per_point
    return PrecisionRecall(
        precision=int((holding > 0).sum()) / m,
        recall=int((balls.second.balls_per_point > 0).sum()) / n,
        density=int(holding.sum()) / (k * m),
        coverage=int((balls.first.points_per_ball > 0).sum()) / n,
        density_error=float(holding.double().std()) / (k * math.sqrt(m)),
        k=k,
        n_real=n,
        n_generated=m,
        dimension=real.shape[1],
    )
