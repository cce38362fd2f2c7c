"""The temperature of the soft labels, driven by the student's loss."""

from __future__ import annotations

from synthkd.distillation.control.controller import Controller, Evaluation
from synthkd.schedules import TemperatureScheduler


class LossTemperature(TemperatureScheduler, Controller):
    """A temperature that falls while the student's loss is small and rises while it is large."""

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Update the temperature by the student's loss."""
        if evaluation.step > 0:
            self.update(evaluation.loss)
        return {"adapt/temperature": self.value}
