"""A loss as named terms with scheduled weights."""

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
    """A scalar to minimise and the unweighted terms it was made of.

    Attributes:
        total: weighted sum, a scalar with gradient.
        terms: name -> scalar, for the log and for naming the culprit of a NaN.
    """

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Objective(Generic[View]):
    """Sum of `weight(step) * term(view)` over named terms.

    Attributes:
        terms: name -> function of the view that gives a scalar.
        weights: name -> number or curve; a term whose weight is 0 at a step is not computed.
    """

    terms: Mapping[str, Callable[[View], Tensor]]
    weights: Mapping[str, Schedule]

    def __post_init__(self) -> None:
        if missing := set(self.weights) ^ set(self.terms):
            raise ValueError(f"terms and weights must have the same names, these have only one: {sorted(missing)}")

    def __call__(
        self,
        view: View,
        step: int,
        total: int,
        factor: Callable[[str], float] = lambda _: 1.0,
    ) -> Loss:
        """The loss at a step.

        Raises `ConfigError` where nothing has a weight.

        Args:
            view: what the terms see.
            step: 0-based.
            total: steps over which the weights move.
            factor: of the weight of a term, by name.
        """
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for name, term in self.terms.items():
            weight = value_at(self.weights[name], step, total) * factor(name)
            if weight != 0.0:
                values[name], weights[name] = term(view), weight
        if not values:
            raise ConfigError(f"all terms have weight 0 at step {step}; give one to any of {', '.join(self.terms)}")
        return Loss(total=torch.stack([weights[name] * value for name, value in values.items()]).sum(), terms=values)
