"""Rounds of the generator: they fill the memory bank and move the difficulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from synthkd.data.bank import MemoryBank
from synthkd.losses import logits as losses
from synthkd.models.black_box import BlackBox
from synthkd.schedules import DifficultyScheduler
from synthkd.taps import evaluating
from synthkd.types import Rounds


@dataclass(frozen=True)
class Synthesis:
    """Trains the generator in rounds, whose images go into the memory bank.

    Attributes:
        generator: makes the images of a round.
        bank: stores the images with the teacher's logits.
        difficulty: follows the agreement of student and teacher on new images.
        student: returns the module whose agreement is measured.
        black_box: the teacher, if each image costs a query; None otherwise. A round that its budget does not cover is
            left out, and the student goes on with the images of the bank.
        images: of a round; None where the generator does not tell before it makes one.
    """

    generator: Rounds
    bank: MemoryBank
    difficulty: DifficultyScheduler
    student: Callable[[], nn.Module]
    black_box: BlackBox | None = None
    images: int | None = None

    def alone(self, index: int, keep: bool) -> dict[str, float]:
        """One round of the generator against the teacher alone.

        Args:
            index: number of the round from 0.
            keep: whether its images go into the bank.

        Returns:
            What is logged, by name.
        """
        if self._is_spent:
            return self._logged
        samples = self.generator.round(index, self.difficulty.value)
        if keep:
            self.bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | self._logged

    def beside_student(self, index: int) -> dict[str, float]:
        """One round of the generator against teacher and student; their agreement on its images moves the difficulty.

        Args:
            index: number of the round from 0.

        Returns:
            What is logged, by name.
        """
        if self._is_spent:
            return self._logged
        student = self.student()
        samples = self.generator.round(index, self.difficulty.value, student)
        # Measured before the student learns from these images: later it may agree on them by memory alone.
        with torch.no_grad(), evaluating(student):
            agreement = float(losses.agreement(samples.teacher_logits, student(samples.images)))
        # After the round, whose images are of the old difficulty; the next round takes the new one.
        self.difficulty.update(agreement)
        self.bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | {
            **self._logged,
            "fresh/agreement": agreement,
            "generator/asked_label": float((samples.teacher_logits.argmax(1) == samples.labels).float().mean()),
        }

    @property
    def _is_spent(self) -> bool:
        return self.black_box is not None and self.black_box.left < (self.images or 1)

    @property
    def _logged(self) -> dict[str, float]:
        queries = {} if self.black_box is None else {"teacher/queries": float(self.black_box.used)}
        return {"difficulty": self.difficulty.value, "bank/size": float(len(self.bank)), **queries}
