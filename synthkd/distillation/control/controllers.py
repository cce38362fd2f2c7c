"""All controllers of a run: they set the temperature, the weights of loss terms, and which network teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.distillation.control.capacity import AdaptiveWeights, StrengthController
from synthkd.distillation.control.controller import Controller, Evaluation, Outcome
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.terms.objective import Origin
from synthkd.schedules import TemperatureScheduler
from synthkd.settings import AdaptSettings


class LossTemperature(TemperatureScheduler, Controller):
    """A temperature that falls while the student's loss is small and rises while it is large."""

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Update the temperature by the student's loss."""
        if evaluation.step > 0:
            self.update(evaluation.loss)
        return {"adapt/temperature": self.value}


class Controllers:
    """The controllers of a run; each evaluation goes to one after another.

    Args:
        settings: which of temperature, weights and strength adapt; None: none of them.
        roles: swaps the roles of online distillation, or None.
        selection: selects one of several teachers, or None.

    Attributes:
        roles, selection: as given.
    """

    def __init__(
        self,
        settings: AdaptSettings | None = None,
        roles: Roles | None = None,
        selection: TeacherSelection | None = None,
    ) -> None:
        settings = AdaptSettings() if settings is None else settings
        # The names are the keys of the checkpoint, and of the configuration but for roles and selection.
        self._temperature = None if settings.temperature is None else LossTemperature(settings.temperature)
        self.roles, self.selection = roles, selection
        controllers: dict[str, Controller | None] = {
            "temperature": self._temperature,
            "weights": None if settings.weights is None else AdaptiveWeights(settings.weights),
            "strength": None if settings.strength is None else StrengthController(settings.strength),
            "roles": roles,
            "selection": selection,
        }
        self._controllers = {name: one for name, one in controllers.items() if one is not None}

    @property
    def keys(self) -> list[str]:
        """The configuration key of each controller, for errors."""
        keys = {"roles": "online.swap", "selection": "team.selection"}
        return [keys.get(name, f"distill.adapt.{name}") for name in self._controllers]

    @property
    def temperature(self) -> float | None:
        """The present temperature; None if no controller moves it."""
        return None if self._temperature is None else self._temperature.value

    @property
    def teaching(self) -> int | None:
        """Number of the student whose logits are the soft labels at present; None: the frozen teacher."""
        return None if self.roles is None else self.roles.teaching

    @property
    def selected(self) -> list[int] | None:
        """How often each teacher was selected; None without a selection."""
        return None if self.selection is None else list(self.selection.counts)

    def factor(self, origin: Origin) -> float:
        """The present factor on the weight of a term: the product over all controllers.

        Args:
            origin: where the term comes from.
        """
        return math.prod(one.factor(origin) for one in self._controllers.values())

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Let every controller adapt to an evaluation; returns what is logged, by name."""
        logged: dict[str, float] = {}
        for one in self._controllers.values():
            logged |= one.follow(evaluation)
        return logged

    def outcome(self, names: Sequence[str]) -> Outcome:
        """The controllers' part of the summary of all evaluations.

        Args:
            names: of the students, the student's first.
        """
        outcome: Outcome = {}
        for one in self._controllers.values():
            outcome |= one.outcome(names)
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """The state of each controller by name."""
        return {name: one.state_dict() for name, one in self._controllers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for name, one in self._controllers.items():
            one.load_state_dict(state[name])
