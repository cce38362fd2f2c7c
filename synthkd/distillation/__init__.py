"""Distillation: the student and its steps, frozen teachers, the generator's rounds, evaluation and alarms.

`phases` has the order of a run, `terms` the losses, and `control` the parts that adapt to the student.
"""

from synthkd.distillation.alarms import Alarm
from synthkd.distillation.control.controller import Controller, Evaluation, Outcome
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.evaluation import HeldOut, PeriodicEvaluation
from synthkd.distillation.step import DistillStep, TransferBatches
from synthkd.distillation.student import Student, build_student
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.teachers import FrozenTeacher, TeacherTeam, certainty_weights
from synthkd.distillation.terms.auxiliary import AuxiliaryLayers, auxiliary_layers
from synthkd.distillation.terms.objective import Regulator, StudentView, Terms, terms_of

__all__ = [
    "Alarm",
    "AuxiliaryLayers",
    "Controller",
    "Controllers",
    "DistillStep",
    "Evaluation",
    "FrozenTeacher",
    "HeldOut",
    "Outcome",
    "PeriodicEvaluation",
    "Regulator",
    "Roles",
    "Student",
    "StudentView",
    "Synthesis",
    "TeacherSelection",
    "TeacherTeam",
    "Terms",
    "TransferBatches",
    "auxiliary_layers",
    "build_student",
    "certainty_weights",
    "terms_of",
]
