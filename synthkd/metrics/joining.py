"""Saved features of many machines, joined into the moments of all images and a uniform sample of them.

The moments are exact: those of parts are added by the pairwise formula of `FeatureStatistics`. The sample is exact too:
each row of a part has a random number that follows from the content of the part, and the rows with the smallest numbers
stay. So the order of the parts, and what was joined before, change nothing, and every set of rows is equally likely.
Memory holds the sample, a matrix `[D, D]` and one part at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch

from synthkd.errors import DataError
from synthkd.metrics.feature_cache import SavedSet
from synthkd.metrics.features import Features
from synthkd.metrics.statistics import FeatureStatistics, Whole
from synthkd.rng import stream
from synthkd.system.sealed import tensor_digest

KEEP = 10_000
"""Rows of a sample, if nothing else is said."""
_BLOCK = 8192  # rows that are in float64 at a time


def joined(parts: Iterable[SavedSet], keep: int = KEEP) -> SavedSet:
    """One set of all images of the parts, with `whole`.

    Args:
        parts: each is taken once, and may be let go then.
        keep: rows of the sample, 0 or more. It has fewer if a part is a sample of fewer rows itself.

    Returns:
        Its features, labels and teacher are those of the sample, in random order.

    Raises:
        DataError: no parts, parts of other networks, another resizing or other classes, or a part twice.
    """
    result: SavedSet | None = None
    # By `map`, no variable holds a part while the next one is read.
    for new in map(partial(_sampled, keep=keep), parts):
        result = new if result is None else _both(result, new, keep)
    if result is None:
        raise DataError("statistics: there is nothing to join; give files of features or statistics")
    return replace(result, name=_name(result))


def _sampled(part: SavedSet, keep: int) -> SavedSet:
    """The part with the moments of all its rows, and the rows that stay."""
    whole = part.whole
    if whole is None:
        content = part.content or tensor_digest("", {"values": part.features.values})
        keys = torch.randint(2**62, (part.features.n,), generator=stream(0, f"joined sample {content}"))
        moments = FeatureStatistics()
        for block in part.features.values.split(_BLOCK):
            moments.update(block)
        whole = Whole(moments, keys, (content,))
    return _smallest(part, whole, keep)


def _both(one: SavedSet, other: SavedSet, keep: int) -> SavedSet:
    ours, theirs = one.whole, other.whole
    assert ours is not None
    assert theirs is not None
    _require_joinable(one, other)
    moments = FeatureStatistics().add(ours.moments).add(theirs.moments)
    labels = None if one.labels is None or other.labels is None else torch.cat([one.labels, other.labels])
    teacher = None if one.teacher is None or other.teacher is None else _rows(one.teacher, other.teacher)
    whole = Whole(moments, torch.cat([ours.keys, theirs.keys]), (*ours.parts, *theirs.parts))
    features = _rows(one.features, other.features)
    rows = replace(one, features=features, labels=labels, teacher=teacher)
    return _smallest(rows, whole, min(keep, ours.limit, theirs.limit))


def _smallest(rows: SavedSet, whole: Whole, keep: int) -> SavedSet:
    """The rows with the smallest numbers, in their order."""
    order = whole.keys.argsort(stable=True)[:keep]
    keys = whole.keys[order]
    return replace(
        rows,
        features=_some(rows.features, order),
        labels=None if rows.labels is None else rows.labels[order],
        teacher=None if rows.teacher is None else _some(rows.teacher, order),
        whole=replace(whole, keys=keys),
        content=tensor_digest(" ".join(sorted(whole.parts)), {"keys": keys}),  # a larger sample has other scores
    )


def _some(features: Features, rows: torch.Tensor) -> Features:
    logits = None if features.logits is None else features.logits[rows]
    return replace(features, values=features.values[rows], logits=logits)


def _rows(one: Features, other: Features) -> Features:
    logits = None if one.logits is None or other.logits is None else torch.cat([one.logits, other.logits])
    return replace(one, values=torch.cat([one.values, other.values]), logits=logits)


def _require_joinable(one: SavedSet, other: SavedSet) -> None:
    """Raise `DataError` for sets that are no parts of one."""
    one.features.check_comparable(other.features)
    if (one.teacher is None) != (other.teacher is None):
        raise DataError("features of a teacher are in some of the files only; save all beside the same teacher")
    if one.teacher is not None and other.teacher is not None:
        one.teacher.check_comparable(other.teacher)
    if (one.labels is None) != (other.labels is None) or one.class_names != other.class_names:
        ours, theirs = (", ".join(side.class_names[:5]) or "none" for side in (one, other))
        raise DataError(f"the classes differ ({ours} and {theirs}); save all files with the same classes in one order")
    assert one.whole is not None
    assert other.whole is not None
    if twice := {*one.whole.parts} & {*other.whole.parts}:
        raise DataError(f"the same images are there twice (digest {min(twice)[:8]}); give each file once")


def _name(result: SavedSet) -> str:
    assert result.whole is not None
    others, first = len(result.whole.parts) - 1, re.sub(r" and \d+ more$", "", result.name)
    return f"{first} and {others} more" if others else first
