"""How a finished student is judged, beside its test data."""

from __future__ import annotations

from synthkd.settings import Fraction, Settings


class Judged(Settings):
    """What the result compares a student with, and what an estimate without test data starts from."""

    teacher_accuracy: Fraction | None = None
    """Accuracy of the teacher on images of the task, if you know it; without `test` the report estimates the student's
    accuracy from it."""
    baseline: bool = True
    """After a run on generated images, let a student with the same start learn from drawn pictures alone, in a
    twentieth of the steps and at most 500. Short runs, and those with real images, have no such baseline."""
