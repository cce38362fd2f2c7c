"""The role swap of online distillation: one of several networks teaches the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.distillation.control.controller import Controller, Evaluation, Outcome
from synthkd.settings import SwapSettings


class Roles(Controller):
    """The role swap: the best learner teaches once its accuracy exceeds a share of the teaching network's.

    The share `above` is below 1, so two equal networks would swap at every evaluation. A swap therefore disarms the
    rule until the best learner's accuracy falls below `again_below` times that of the teaching network. While the rule
    is disarmed, a learner that is clearly ahead still takes over: the teaching network's accuracy must be below
    `again_below` times the learner's. A swap back needs the same gap in the other direction, so roles cannot alternate.

    Args:
        settings: the two shares.
        teaching: number of the network that teaches at first.

    Attributes:
        settings: as given.
        teaching: number of the network that teaches at present.
        armed: whether an accuracy above the share `above` is enough for a swap.
    """

    def __init__(self, settings: SwapSettings, teaching: int) -> None:
        self.settings = settings
        self.teaching = teaching
        self.armed = True

    def update(self, accuracies: Sequence[float]) -> bool:
        """Return whether the roles changed.

        Args:
            accuracies: of all networks by number, in [0, 1]; at least two.
        """
        s = self.settings
        # accuracy[teaching] < again_below * accuracy[best], as a bound on the learner like the other one.
        share = s.above if self.armed else max(s.above, 1.0 / s.again_below)
        learners = [number for number in range(len(accuracies)) if number != self.teaching]
        best = max(learners, key=lambda number: accuracies[number])
        if accuracies[best] > share * accuracies[self.teaching]:
            self.teaching, self.armed = best, False
            return True
        self.armed |= accuracies[best] < s.again_below * accuracies[self.teaching]
        return False

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Swap the roles if the accuracies say so."""
        if evaluation.step > 0:
            self.update(evaluation.accuracies)
        return {"adapt/teaching": float(self.teaching)}

    def outcome(self, names: Sequence[str]) -> Outcome:
        """The name of the network that teaches at the end."""
        return {"teaching": names[self.teaching]}

    def state_dict(self) -> dict[str, Any]:
        """`teaching` and `armed`."""
        return {"teaching": self.teaching, "armed": self.armed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.teaching, self.armed = int(state["teaching"]), bool(state["armed"])
