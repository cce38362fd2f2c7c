"""Controllers that follow evaluations of the student: temperature, weights, strength, roles, selection of a teacher."""

from synthkd.distillation.control.capacity import (
    AdaptiveWeights,
    StrengthController,
    balanced_weight,
    capacity_strength,
)
from synthkd.distillation.control.controller import Controller, Evaluation, Outcome
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.control.temperature import LossTemperature

__all__ = [
    "AdaptiveWeights",
    "Controller",
    "Controllers",
    "Evaluation",
    "LossTemperature",
    "Outcome",
    "Roles",
    "StrengthController",
    "TeacherSelection",
    "balanced_weight",
    "capacity_strength",
]
