"""Input of the metrics, checked: features as float64 rows on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from synthkd.errors import DataError

Array = Tensor | NDArray[Any]
"""A tensor or a numpy array; rows are samples."""


def rows(values: Array, name: str, least: int = 1) -> Tensor:
    """Features as float64 `[N, D]` on the CPU, without gradient.

    Args:
        values: `[N, D]`, any real dtype.
        name: start of the message ("generated").
        least: smallest number of rows that is accepted.

    Raises:
        DataError: not two dimensions, no columns, too few rows, complex numbers, or a value that is not finite.
    """
    features = tensor(values)
    if features.dim() != 2 or features.shape[1] == 0:
        raise DataError(f"{name}: features must be [N, D], one row per sample, got {list(features.shape)}")
    if len(features) < least:
        raise DataError(f"{name}: at least {least} samples are needed, got {len(features)}")
    if features.is_complex():
        raise DataError(f"{name}: features must be real numbers, got {features.dtype}")
    # Distances are small differences of large sums, which float32 would lose to rounding; and numpy and scipy, which
    # compute the factorisations, read from the CPU.
    result = features.to("cpu", torch.float64)
    # A finite sum proves that all values are finite, in a tenth of the time of `isfinite`. A sum that is not finite
    # may be an overflow of finite values, so the values themselves decide.
    if not math.isfinite(float(result.sum())) and not bool(torch.isfinite(result).all()):
        bad = int((~torch.isfinite(result)).any(dim=1).sum())
        raise DataError(f"{name}: {bad} of {len(result)} rows hold NaN or infinity; check the network and the images")
    return result


def tensor(values: Array) -> Tensor:
    """The array as a tensor without gradient; memory is shared where it can be."""
    return values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


def same_width(first: Tensor, second: Tensor, names: str) -> None:
    """Check that two sets of features have the same number of columns.

    Args:
        first, second: features `[N, D]` and `[M, D]`.
        names: start of the message ("real and generated").

    Raises:
        DataError: the numbers of columns differ.
    """
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"{names}: features of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared; take both "
            "from one extractor"
        )


def pair(first: Array, second: Array, names: tuple[str, str] = ("a", "b"), least: int = 1) -> tuple[Tensor, Tensor]:
    """Features of two sets, `[N, D]` and `[M, D]`, as from `rows`, after the check of `same_width`.

    Args:
        first, second: the sets.
        names: of the sets, for messages.
        least: smallest number of rows in either.

    Raises:
        DataError: as from `rows` and `same_width`.
    """
    one, other = rows(first, names[0], least), rows(second, names[1], least)
    same_width(one, other, " and ".join(names))
    return one, other


def subsample(values: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Random rows without replacement, in their original order; the tensor itself if `count` is N.

    Args:
        values: `[N, ...]`.
        count: number of rows, 0 to N.
        rng: on the CPU; it is left alone if `count` is N, and advances by the same draw for any other `count`.

    Returns:
        `[count, ...]`.
    """
    if count == len(values):
        return values
    indices = torch.randperm(len(values), generator=rng)[:count]
    return values[indices.sort().values]


@contextmanager
def one_thread() -> Iterator[None]:
    """Context manager in which torch, numpy and scipy use one thread; afterwards the earlier numbers are restored."""
    # Dense factorisations gain little from more threads, and on a busy machine those threads mostly wait in spin loops.
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
