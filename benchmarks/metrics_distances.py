"""What the Frechet and kernel distances cost beside the ways of other packages. One thread, methods in turn.

    python -m benchmarks.metrics_distances

Frechet distance in 2,048 dimensions: at full rank from ready covariances (8,192 samples, spectrum 1 / k), and from
1,000 samples with their moments in the clock. The second side is an optimal transport image of the first, so the
distance is known exactly. Beside ours: `scipy.linalg.sqrtm` of the product as pytorch-fid calls it, and
`torch.linalg.eigvals` of the product as torchmetrics does.

Kernel distance: 100 subsets of 1,000 from 5,000 x 2,048 float32 features, beside torch-fidelity where it is installed
(`pip install --no-deps --target DIRECTORY torch-fidelity tqdm` and DIRECTORY in PYTHONPATH is enough). The draws
differ, so the means agree up to their error.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import common
from benchmarks.common import Row
from synthkd.metrics.frechet import frechet_distance, frechet_distance_from_features
from synthkd.metrics.kernel import kernel_distance, kernel_distance_subsets

WIDTH = 2048
SUBSETS, SUBSET_SIZE = 100, 1000
PACKAGES = ("numpy", "scipy", "torch", "torch-fidelity")
Floats = NDArray[np.float64]
Moments = tuple[Floats, Floats]


def transported(n: int) -> tuple[Floats, Floats, float]:
    """Features with spectrum 1 / k, their image under a symmetric positive definite map, and the exact distance."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((n, WIDTH)) / np.arange(1, WIDTH + 1) ** 0.5
    noise = rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    move = 0.1 * a @ (noise + noise.T)
    gap = move.mean(0)
    return a, a + move, float(gap @ gap + ((move - gap) ** 2).sum() / (n - 1))


def moments(features: Floats) -> Moments:
    """Mean `[D]` and covariance `[D, D]` of features `[N, D]`."""
    return features.mean(0), np.cov(features, rowvar=False)


def by_trace(a: Moments, b: Moments, trace_of_root: Callable[[Floats], float]) -> float:
    """Frechet distance from the trace of a root of the product of the covariances."""
    gap = a[0] - b[0]
    return float(gap @ gap + np.trace(a[1]) + np.trace(b[1]) - 2 * trace_of_root(a[1] @ b[1]))


def sqrtm(product: Floats) -> float:
    """Trace of the root of a matrix, as pytorch-fid has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            root, _ = scipy.linalg.sqrtm(product, disp=False)
        except TypeError:  # scipy 1.18 took the argument away
            root = scipy.linalg.sqrtm(product)
    return float(np.trace(root).real)


def eigvals(product: Floats) -> float:
    """Trace of the root of a matrix, as torchmetrics has it."""
    return float(torch.linalg.eigvals(torch.from_numpy(product)).sqrt().real.sum())


def in_turn(methods: dict[str, Callable[[], float]], repeats: int) -> Row:
    """Seconds of each repeat, medians, how much slower than ours, and the value each method gave."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    values: dict[str, float] = {}
    for _ in range(repeats):
        for name, run in methods.items():
            started = time.perf_counter()
            values[name] = run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "seconds": medians[name],
            "over_ours": medians[name] / medians["synthkd"],
            "value": values[name],
            "all_seconds": seconds[name],
        }
        for name in methods
    }


def frechet_costs(repeats: int) -> Row:
    """Seconds and values of the Frechet distance, at full rank and from few samples."""
    a, b, exact = transported(8192)
    one, other = moments(a), moments(b)
    full: dict[str, Callable[[], float]] = {
        "synthkd": lambda: frechet_distance(*one, *other),
        "scipy sqrtm (pytorch-fid)": lambda: by_trace(one, other, sqrtm),
        "torch eigvals (torchmetrics)": lambda: by_trace(one, other, eigvals),
    }
    c, d, exact_few = transported(1000)
    few: dict[str, Callable[[], float]] = {
        "synthkd": lambda: frechet_distance_from_features(c, d),
        "scipy sqrtm (pytorch-fid)": lambda: by_trace(moments(c), moments(d), sqrtm),
        "torch eigvals (torchmetrics)": lambda: by_trace(moments(c), moments(d), eigvals),
    }
    return {
        "full rank, from covariances": {"exact": exact, "methods": in_turn(full, repeats)},
        "1,000 samples, from features": {"exact": exact_few, "methods": in_turn(few, repeats)},
    }


def kernel_costs(repeats: int) -> Row:
    """Seconds and values of the kernel distance."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.standard_normal((5000, WIDTH))).float()
    b = torch.from_numpy(rng.standard_normal((5000, WIDTH)) + 0.1).float()
    methods: dict[str, Callable[[], float]] = {
        "synthkd": lambda: kernel_distance_subsets(a, b, SUBSETS, SUBSET_SIZE).mean,
        "synthkd, exact, all samples": lambda: kernel_distance(a, b),
    }
    try:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    except ImportError as error:
        print(f"torch-fidelity cannot be imported ({error}); its row is left out\n")
    else:

        def theirs() -> float:
            options = {"kid_subsets": SUBSETS, "kid_subset_size": SUBSET_SIZE, "verbose": False}
            return float(kid_features_to_metric(a, b, **options)[KEY_METRIC_KID_MEAN])

        methods["torch-fidelity"] = theirs
    return in_turn(methods, repeats)


def tables(content: Row) -> str:
    """The Frechet distances with their errors, then the kernel distances."""
    frechet = [
        [
            name,
            method,
            f"{row['seconds']:.2f}",
            f"{row['over_ours']:.1f}",
            f"{abs(row['value'] / case['exact'] - 1):.0e}",
        ]
        for name, case in content["frechet"].items()
        for method, row in case["methods"].items()
    ]
    kernel = [
        [method, f"{row['seconds']:.2f}", f"{row['over_ours']:.2f}", f"{row['value']:.6f}"]
        for method, row in content["kernel"].items()
    ]
    first = common.table("Frechet distance | method | s | over ours | relative error", frechet)
    second = common.table("kernel distance, 100 x 1,000 of 5,000 | s | over ours | value", kernel)
    return f"{first}\n\n{second}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the tables."""
    parser = common.options("metrics_distances", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="of each method; medians are shown (default 5)")
    repeats = parser.parse_args(argv).repeats
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # 1,000 samples in 2,048 dimensions: too few, and meant to be
    content = common.environment(*PACKAGES)
    with threadpool_limits(1):
        content |= {"frechet": frechet_costs(repeats), "kernel": kernel_costs(repeats)}
    common.save("metrics_distances", content, f"--repeats {repeats}")
    print(tables(content))


if __name__ == "__main__":
    main()
