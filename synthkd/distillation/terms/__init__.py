"""Terms of the student's loss, and the auxiliary layers that some of them train beside the student."""

from synthkd.distillation.terms.adapter import ArchitectureAdapter
from synthkd.distillation.terms.auxiliary import AuxiliaryLayers, auxiliary_layers
from synthkd.distillation.terms.contrast import Contrast, ExtraImages
from synthkd.distillation.terms.exits import Exits
from synthkd.distillation.terms.features import Pair, Transfer
from synthkd.distillation.terms.objective import Regulator, StudentView, Term, Terms, terms_of

__all__ = [
    "ArchitectureAdapter",
    "AuxiliaryLayers",
    "Contrast",
    "Exits",
    "ExtraImages",
    "Pair",
    "Regulator",
    "StudentView",
    "Term",
    "Terms",
    "Transfer",
    "auxiliary_layers",
    "terms_of",
]
