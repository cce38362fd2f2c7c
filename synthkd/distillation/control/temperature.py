"""The temperature of the soft labels follows the student's loss."""

from __future__ import annotations

from synthkd.distillation.control.controller import Controller, Look
from synthkd.schedules import TemperatureScheduler


class LossTemperature(TemperatureScheduler, Controller):
    """The temperature follows the student's loss."""

    def follow(self, look: Look) -> dict[str, float]:
        if look.step > 0:
            self.update(look.loss)
        return {"adapt/temperature": self.value}
