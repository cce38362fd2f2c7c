"""All controllers of a run, as one: what they do to the temperature, to the weights and to who teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.distillation.control.capacity import AdaptiveWeights, StrengthController
from synthkd.distillation.control.controller import Controller, Evaluation
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.control.temperature import LossTemperature
from synthkd.distillation.terms.objective import Origin
from synthkd.settings import AdaptSettings


class Controllers:
    """The controllers that the settings ask for, in the order in which they follow an evaluation.

    Args:
        settings: which of temperature, weights and strength adapt; None: none of them.
        roles: the role swap of online distillation, or None.
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
        """The configuration keys that brought a controller, for errors."""
        keys = {"roles": "online.swap", "selection": "team.selection"}
        return [keys.get(name, f"distill.adapt.{name}") for name in self._controllers]

    @property
    def temperature(self) -> float | None:
        """The temperature at present; None where no controller moves it."""
        return None if self._temperature is None else self._temperature.value

    @property
    def teaching(self) -> int | None:
        """Number of the network whose logits are the soft labels; None: the frozen teacher."""
        return None if self.roles is None else self.roles.teaching

    @property
    def selected(self) -> list[int] | None:
        """How often each teacher was selected; None where none is."""
        return None if self.selection is None else list(self.selection.counts)

    def factor(self, origin: Origin) -> float:
        """The factor of the weight of a term at present."""
        return math.prod(one.factor(origin) for one in self._controllers.values())

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Let every controller follow an evaluation; returns what is logged."""
        logged: dict[str, float] = {}
        for one in self._controllers.values():
            logged |= one.follow(evaluation)
        return logged

    def outcome(self, names: Sequence[str]) -> dict[str, Any]:
        """What the controllers came to, JSON-able; `names` are those of the students by number."""
        outcome: dict[str, Any] = {}
        for one in self._controllers.values():
            outcome |= one.outcome(names)
        return outcome

    def state_dict(self) -> dict[str, Any]:
        """The state of each controller by name."""
        return {name: one.state_dict() for name, one in self._controllers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, one in self._controllers.items():
            one.load_state_dict(state[name])
