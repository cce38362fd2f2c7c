"""Rounds of the generator: images into the bank, the student's agreement on them into the difficulty."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from synthkd.data.bank import MemoryBank
from synthkd.metrics.utility import Proportion, proportion
from synthkd.schedules import DifficultyController
from synthkd.taps import evaluating
from synthkd.types import Round, TrainableGenerator


class Synthesis:
    """Fills the bank, and measures the student on images it has not trained on: those just made.

    Args:
        generator: makes the images.
        bank: keeps them.
        difficulty: follows the agreement.
        student: gives the module that is asked.
        window: rounds over which the agreement on fresh samples is averaged.
    """

    def __init__(
        self,
        generator: TrainableGenerator,
        bank: MemoryBank,
        difficulty: DifficultyController,
        student: Callable[[], nn.Module],
        window: int = 8,
    ) -> None:
        self._generator = generator
        self._bank = bank
        self._difficulty = difficulty
        self._student = student
        self._recent: deque[tuple[int, int]] = deque(maxlen=window)
        self.rounds = 0

    @property
    def fresh_agreement(self) -> Proportion | None:
        """Agreement of student and teacher on the images of the last rounds, before the student saw them."""
        if not self._recent:
            return None
        return proportion(sum(hits for hits, _ in self._recent), sum(n for _, n in self._recent))

    def alone(self, index: int, keep: bool) -> dict[str, float]:
        """One round against the teacher alone."""
        made = self._generator.round(index, self._difficulty.value)
        if keep:
            self._bank.add(made.images, made.labels, made.teacher_logits)
        self.rounds += 1
        return dict(made.terms) | {"difficulty": self._difficulty.value, "bank/size": float(len(self._bank))}

    def beside_student(self, index: int) -> dict[str, float]:
        """One round against teacher and student; the student's agreement on its images moves the difficulty."""
        student = self._student()
        made = self._generator.round(index, self._difficulty.value, student)
        hits = self._ask(student, made)
        self._recent.append((hits, len(made.labels)))
        self._difficulty.update(hits / len(made.labels))
        self._bank.add(made.images, made.labels, made.teacher_logits)
        self.rounds += 1
        return dict(made.terms) | {
            "difficulty": self._difficulty.value,
            "fresh/agreement": hits / len(made.labels),
            "generator/asked_label": float((made.teacher_logits.argmax(1) == made.labels).float().mean()),
            "bank/size": float(len(self._bank)),
        }

    def _ask(self, student: nn.Module, made: Round) -> int:
        with torch.no_grad(), evaluating(student):
            return int((student(made.images).argmax(1) == made.teacher_logits.argmax(1)).sum())

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [list(pair) for pair in self._recent], "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend((int(hits), int(n)) for hits, n in state["recent"])
        self.rounds = int(state["rounds"])
