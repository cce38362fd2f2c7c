"""Who teaches among networks that learn together: one of them, until another has nearly come up to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.distillation.control.controller import Controller, Evaluation
from synthkd.settings import SwapSettings


class Roles(Controller):
    """The role swap: the best learner teaches once its accuracy exceeds a share of the teaching one's.

    That share is below 1, so that two equals would change places at every look. So a swap disarms the rule, and it is
    armed again when the best learner has fallen below `again_below` of the one who teaches. Disarmed, a learner takes
    over all the same once it is clearly ahead: when the one who teaches has itself fallen below `again_below` of it.
    The way back then needs the same gap the other way round, so that this cannot flap either.

    Args:
        settings: the two shares.
        teaching: number of the network that teaches at first.

    Attributes:
        teaching: number of the network that teaches.
        armed: whether `above` is enough for a swap.
    """

    def __init__(self, settings: SwapSettings, teaching: int) -> None:
        self.settings = settings
        self.teaching = teaching
        self.armed = True

    def update(self, accuracies: Sequence[float]) -> bool:
        """Take the accuracies of all networks, in [0, 1], and return whether the roles changed."""
        s = self.settings
        share = s.above if self.armed else max(s.above, 1.0 / s.again_below)
        learners = [number for number in range(len(accuracies)) if number != self.teaching]
        best = max(learners, key=lambda number: accuracies[number])
        if accuracies[best] > share * accuracies[self.teaching]:
            self.teaching, self.armed = best, False
            return True
        self.armed |= accuracies[best] < s.again_below * accuracies[self.teaching]
        return False

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        if evaluation.step > 0:
            self.update(evaluation.accuracies)
        return {"adapt/teaching": float(self.teaching)}

    def outcome(self, names: Sequence[str]) -> dict[str, Any]:
        return {"teaching": names[self.teaching]}

    def state_dict(self) -> dict[str, Any]:
        return {"teaching": self.teaching, "armed": self.armed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teaching, self.armed = int(state["teaching"]), bool(state["armed"])
