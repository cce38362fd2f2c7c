"""Rounds of the generator: they fill the memory bank and move the difficulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from synthkd.data.bank import MemoryBank
from synthkd.losses import logits as losses
from synthkd.schedules import DifficultyScheduler
from synthkd.taps import evaluating
from synthkd.types import TrainableGenerator


@dataclass(frozen=True)
class Synthesis:
    """Trains the generator in rounds, whose images go into the memory bank.

    Attributes:
        generator: generates the images of a round.
        bank: stores the images with the teacher's logits.
        difficulty: follows the agreement of student and teacher on new images.
        student: returns the module whose agreement is measured.
    """

    generator: TrainableGenerator
    bank: MemoryBank
    difficulty: DifficultyScheduler
    student: Callable[[], nn.Module]

    def alone(self, index: int, keep: bool) -> dict[str, float]:
        """One round of the generator against the teacher alone.

        Args:
            index: number of the round from 0.
            keep: whether its images go into the bank.

        Returns:
            What is logged, by name.
        """
        samples = self.generator.round(index, self.difficulty.value)
        if keep:
            self.bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | {"difficulty": self.difficulty.value, "bank/size": float(len(self.bank))}

    def beside_student(self, index: int) -> dict[str, float]:
        """One round of the generator against teacher and student; their agreement on its images moves the difficulty.

        Args:
            index: number of the round from 0.

        Returns:
            What is logged, by name.
        """
        student = self.student()
        samples = self.generator.round(index, self.difficulty.value, student)
        # Measured before the student learns from these images: later it may agree on them by memory alone.
        with torch.no_grad(), evaluating(student):
            agreement = float(losses.agreement(samples.teacher_logits, student(samples.images)))
        # After the round, whose images are of the old difficulty; the next round takes the new one.
        self.difficulty.update(agreement)
        self.bank.add(samples.images, samples.labels, samples.teacher_logits)
        return dict(samples.terms) | {
            "difficulty": self.difficulty.value,
            "fresh/agreement": agreement,
            "generator/asked_label": float((samples.teacher_logits.argmax(1) == samples.labels).float().mean()),
            "bank/size": float(len(self.bank)),
        }
