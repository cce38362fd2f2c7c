"""A loss as a weighted sum of named terms, whose weights may change during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.schedules import value_at
from synthkd.settings import Schedule

View = TypeVar("View")


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, with its unweighted terms.

    Attributes:
        total: weighted sum, a scalar with gradient.
        terms: name -> scalar, for the log and for the error that names a term that is not finite.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective(Generic[View]):
    """Sum of `weight(step) * term(view)` over named terms.

    Attributes:
        terms: name -> function of the view that returns a scalar.
        weights: name -> number or curve; a term is not computed at a step where its weight is 0.

    Raises:
        ValueError: terms and weights with different names.
    """

    terms: Mapping[str, Callable[[View], Tensor]]
    weights: Mapping[str, Schedule]

    def __post_init__(self) -> None:
        if missing := set(self.weights) ^ set(self.terms):
            raise ValueError(f"terms and weights must have the same names, these have only one: {sorted(missing)}")

    def __call__(self, view: View, step: int, total: int, factor: Callable[[str], float] = lambda _: 1.0) -> Loss:
        """The loss at a step.

        Args:
            view: argument of the terms.
            step: 0-based.
            total: number of steps over which the weights change.
            factor: name -> factor on the weight of that term.

        Raises:
            ConfigError: every term has weight 0 at this step.
        """
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for name, term in self.terms.items():
            weight = value_at(self.weights[name], step, total) * factor(name)
            # Skipped, which saves its cost, and since 0 times an infinite value would be NaN.
            if weight != 0.0:
                values[name], weights[name] = term(view), weight
        if not values:
            raise ConfigError(f"all terms have weight 0 at step {step}; give one to any of {', '.join(self.terms)}")
        return Loss(total=torch.stack([weights[name] * value for name, value in values.items()]).sum(), terms=values)
