"""What a distillation without test data may be told."""

from __future__ import annotations

from synthkd.settings import Fraction, Settings


class Untested(Settings):
    """Facts that an estimate without test data starts from."""

    teacher_accuracy: Fraction | None = None
    """Accuracy of the teacher on images of the task, if you know it; without `test` the report estimates the student's
    accuracy from it."""
