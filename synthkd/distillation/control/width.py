"""What a student of changing width is told after each step: its gradient, and its similarity to the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from synthkd.distillation.terms.features import Pair
from synthkd.distillation.terms.objective import StudentView
from synthkd.errors import ConfigError
from synthkd.losses.logits import agreement
from synthkd.losses.relations import linear_cka
from synthkd.models.classifier import Classifier
from synthkd.models.layout import head
from synthkd.models.slimmable import Slimmable
from synthkd.taps import INPUT


class WidthRegulator:
    """The penalty on the width of a student, and the signals of `Slimmable.update` from each step.

    Args:
        student: the network that changes its width.
        teacher: the network whose features the student's are compared with; None without a teacher.

    Attributes:
        pair: the penultimate features of both, if `width.measure` compares them, else None.

    Raises:
        ConfigError: features are to be compared, and there is no teacher.
        ModelError: a teacher without a linear layer has no penultimate features.
    """

    def __init__(self, student: Slimmable, teacher: Classifier | None) -> None:
        self._student = student
        self.pair: Pair | None = None
        if student.settings.measure == "features":
            if teacher is None:
                raise ConfigError(
                    "width.measure: a dataset has the teacher's logits, but not its features: set teacher, or measure "
                    "to agreement"
                )
            self.pair = Pair(head(teacher) + INPUT, f"network.{head(student.network)}{INPUT}")

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """Module paths of the teacher whose features are compared."""
        return () if self.pair is None else (self.pair.teacher,)

    @property
    def student_places(self) -> tuple[str, ...]:
        """Module paths of the student whose features are compared."""
        return () if self.pair is None else (self.pair.student,)

    def penalty(self) -> Tensor:
        """`gamma * (1 - lambda_t) * |c - 1|`, a scalar with gradient."""
        return self._student.penalty()

    def update(self, gradient: float, view: StudentView) -> dict[str, float]:
        """Adapt the width after a step.

        Args:
            gradient: norm of the gradient of this step.
            view: of this step, with the teacher's logits.

        Returns:
            What is logged, by name.
        """
        return self._student.update(gradient, float(self.similarity(view)))

    @torch.no_grad()
    def similarity(self, view: StudentView) -> Tensor:
        """S_t of student and teacher on a batch, a scalar in [0, 1]: linear CKA of their features, or agreement."""
        if self.pair is not None:
            return linear_cka(view.batch.teacher_features[self.pair.teacher], view.student_features[self.pair.student])
        assert view.batch.teacher_logits is not None
        return agreement(view.batch.teacher_logits, view.student)
