"""The temperature of the soft labels follows the student's loss."""

from __future__ import annotations

from synthkd.distillation.control.controller import Controller, Evaluation
from synthkd.schedules import TemperatureScheduler


class LossTemperature(TemperatureScheduler, Controller):
    """The temperature follows the student's loss."""

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Follow an evaluation; returns what is logged."""
        if evaluation.step > 0:
            self.update(evaluation.loss)
        return {"adapt/temperature": self.value}
