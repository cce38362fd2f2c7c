"""Terms of published methods; `distill.terms` names one as `synthkd.distillation.terms.published:NAME`."""

from __future__ import annotations

from torch import Tensor

from synthkd.distillation.terms.objective import StudentView
from synthkd.errors import ConfigError
from synthkd.losses import inversion


def logit_gap(view: StudentView) -> Tensor:
    """Mean absolute difference of the logits of teacher and student, a scalar (DFAD, Fang et al. 2019).

    Raises:
        ConfigError: there is no teacher.
    """
    if view.teacher is None:
        raise ConfigError("logit_gap compares with a teacher, and there is none: set teacher, or leave the term out")
    return inversion.logit_gap(view.teacher, view.student)
