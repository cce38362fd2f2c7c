"""Rounds of the generator: their images fill the bank, and the student's agreement on them moves the difficulty."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from synthkd.data.bank import MemoryBank
from synthkd.losses import logits as losses
from synthkd.schedules import DifficultyScheduler
from synthkd.taps import evaluating
from synthkd.types import Round, TrainableGenerator


class Synthesis:
    """Fills the bank, and measures the student on images it has not trained on: those just made.

    Args:
        generator: makes the images.
        bank: keeps them.
        difficulty: follows the agreement.
        student: gives the module that is asked.
    """

    def __init__(
        self,
        generator: TrainableGenerator,
        bank: MemoryBank,
        difficulty: DifficultyScheduler,
        student: Callable[[], nn.Module],
    ) -> None:
        self._generator = generator
        self._bank = bank
        self._difficulty = difficulty
        self._student = student

    def alone(self, index: int, keep: bool) -> dict[str, float]:
        """One round against the teacher alone."""
        samples = self._generator.round(index, self._difficulty.value)
        if keep:
            self._bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | {"difficulty": self._difficulty.value, "bank/size": float(len(self._bank))}

    def beside_student(self, index: int) -> dict[str, float]:
        """One round against teacher and student; the student's agreement on its images moves the difficulty."""
        student = self._student()
        samples = self._generator.round(index, self._difficulty.value, student)
        agreement = self._agreement(student, samples)
        self._difficulty.update(agreement)
        self._bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | {
            "difficulty": self._difficulty.value,
            "fresh/agreement": agreement,
            "generator/asked_label": float((samples.teacher_logits.argmax(1) == samples.labels).float().mean()),
            "bank/size": float(len(self._bank)),
        }

    def _agreement(self, student: nn.Module, samples: Round) -> float:
        with torch.no_grad(), evaluating(student):
            return float(losses.agreement(samples.teacher_logits, student(samples.images)))
