"""Rounds of the generator, which fill the memory bank and move the difficulty."""

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
    """Trains the generator in rounds whose images go into the memory bank.

    With a student, each round also measures how often the student agrees with the teacher on the new images, which
    it has not learned from yet. The difficulty follows this agreement.

    Args:
        generator: generates the images of a round.
        bank: keeps them.
        difficulty: follows the agreement.
        student: returns the module whose agreement is measured.
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
        """One round against the teacher alone.

        Args:
            index: number of the round from 0.
            keep: whether its images go into the bank.

        Returns:
            What is logged, by name.
        """
        samples = self._generator.round(index, self._difficulty.value)
        if keep:
            self._bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | {"difficulty": self._difficulty.value, "bank/size": float(len(self._bank))}

    def beside_student(self, index: int) -> dict[str, float]:
        """One round against teacher and student; the student's agreement on its images moves the difficulty.

        Args:
            index: number of the round from 0.

        Returns:
            What is logged, by name.
        """
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

    @staticmethod
    def _agreement(student: nn.Module, samples: Round) -> float:
        with torch.no_grad(), evaluating(student):
            return float(losses.agreement(samples.teacher_logits, student(samples.images)))
