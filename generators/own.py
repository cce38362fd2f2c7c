"""Checks the rounds of a generator that a user wrote."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.types import ImageSpec, Round


def checked(rounds: Callable[..., object], target: str, spec: ImageSpec) -> Callable[..., Round]:
    """The method `round` of a generator, which raises `ConfigError` for anything but a `Round` for images of the spec.

    Args:
        rounds: the method.
        target: the generator, for the error.
        spec: of the teacher.
    """

    @functools.wraps(rounds)
    def one(*arguments: object, **options: object) -> Round:
        answer = rounds(*arguments, **options)
        if not isinstance(answer, Round):
            raise ConfigError(
                f"the generator's target: round of {target} returned a {type(answer).__name__}; return "
                "synthkd.types.Round(images, labels, teacher_logits, terms)"
            )
        if wrong := _wrong(answer, spec):
            raise ConfigError(f"the generator's target: round of {target} returned {wrong}")
        return answer

    return one


def _wrong(answer: Round, spec: ImageSpec) -> str:
    """What is wrong in a round and what should be there; empty if nothing is."""
    count = len(answer.images) if isinstance(answer.images, Tensor) and answer.images.dim() else 0
    expected = {
        "images": (torch.float32, (count, *spec.shape)),
        "labels": (torch.int64, (count,)),
        "teacher_logits": (torch.float32, (count, spec.classes)),
    }
    for name, (dtype, shape) in expected.items():
        value = getattr(answer, name)
        got = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else None
        if count == 0 or got != (dtype, shape):
            what = type(value).__name__ if got is None else f"{got[0]} {list(got[1])}"
            return f"{name} {what}; return {dtype} {['N', *shape[1:]]}".replace("'", "").replace("torch.", "")
    for name, most in (("images", 1), ("labels", spec.classes - 1)):
        low, high = (float(value) for value in getattr(answer, name).aminmax())
        if not 0 <= low <= high <= most:  # also not a number
            return f"{name} from {low:.4g} to {high:.4g}; they must be in 0 to {most}"
    return "" if isinstance(answer.terms, Mapping) else f"terms {answer.terms!r}; return a dict of numbers"
