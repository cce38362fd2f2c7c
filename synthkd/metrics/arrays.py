"""What every score of features takes: rows of numbers, checked at the door, in float64 on the CPU."""

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
    """The rows as float64 `[N, D]` on the CPU, without gradient.

    Args:
        values: `[N, D]`, any real dtype.
        name: what they are, for messages ("generated").
        least: fewest rows that make sense.

    Raises:
        DataError: not two dimensions, too few rows, no columns, or a value that is not finite.
    """
    given = torch.as_tensor(np.asarray(values) if not isinstance(values, Tensor) else values.detach())
    if given.dim() != 2 or given.shape[1] == 0:
        raise DataError(f"{name}: features must be [N, D], one row a sample, got {list(given.shape)}")
    if len(given) < least:
        raise DataError(f"{name}: at least {least} samples are needed, got {len(given)}")
    if given.is_complex():
        raise DataError(f"{name}: features must be real numbers, got {given.dtype}")
    result = given.to("cpu", torch.float64)
    # the sum is finite unless a value is not (or they overflow), and ten times cheaper to ask
    if not math.isfinite(float(result.sum())) and not bool(torch.isfinite(result).all()):
        bad = int((~torch.isfinite(result)).any(dim=1).sum())
        raise DataError(f"{name}: {bad} of {len(result)} rows hold NaN or infinity; look for what made them")
    return result


def same_width(first: Tensor, second: Tensor, names: str) -> None:
    """Raise `DataError` unless both have as many columns: features of one extractor."""
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"{names}: features of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared; take both "
            "from one extractor"
        )


def thinned(values: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` of the rows, without replacement, in their order; all of them, as they are, where `count` is all.

    Args:
        values: `[N, ...]`.
        count: 0 to N.
        rng: on the CPU; it advances by the same draw whatever `count` is, unless that is N.
    """
    if count == len(values):
        return values
    chosen = torch.randperm(len(values), generator=rng)[:count]
    return values[chosen.sort().values]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch, numpy and scipy for a dense factorisation: with more, busy machines spend the time spinning.

    What it found is given back.
    """
    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
