"""The distillation step: batch, teacher, student, loss terms, backward pass, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.distillation.student import Student
from synthkd.distillation.terms.objective import StudentView
from synthkd.losses.logits import kl_divergence
from synthkd.types import Batch


class TransferBatches(Protocol):
    """The source of a run's batches and of their soft labels; `synthkd.data.hybrid.HybridDataset` is one."""

    def draw(self, step: int) -> Batch:
        """The augmented images of a step with their hard labels."""
        ...

    def label(self, batch: Batch) -> Batch:
        """The same images with the teacher's logits, if there is a teacher."""
        ...


class DistillStep:
    """One training step of the student and of its peers, if any.

    Args:
        students: the student first, then its peers.
        dataset: batches, labelled by the teacher.
        accelerator: gathers priorities from all processes.
        bank: gets new priorities; None if draws are not prioritized.
        teaching: returns the number of the student whose logits are the soft labels at present, or None for the frozen
            teacher.
    """

    def __init__(
        self,
        students: Sequence[Student],
        dataset: TransferBatches,
        accelerator: Accelerator,
        bank: MemoryBank | None = None,
        teaching: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._students = tuple(students)
        self._dataset = dataset
        self._accelerator = accelerator
        self._bank = bank
        self._teaching = teaching

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """Run one step.

        Args:
            step: the student's own, 0-based.

        Returns:
            What is logged, by name.
        """
        # The teacher labels the images after augmentation, so that its logits belong to exactly these images.
        batch = self._dataset.label(self._dataset.draw(step))
        # All forward passes come before the first update, so that no peer learns from weights which the same batch has
        # just changed. (Deep mutual learning as published updates the networks of a batch in turn.)
        views = self._with_peers([student.forward(batch, step) for student in self._students])
        logged: dict[str, Tensor | float] = {}
        for student, view in zip(self._students, views, strict=True):
            loss = student.loss(view, step)  # the sum of weight(step) * term(view)
            logged |= student.update(loss, view, step)  # backward, clipping, optimizer step, average of weights
        self._reprioritise(batch, views[0])
        return logged

    def rehearse(self, batch: Batch) -> None:
        """Compute every loss term once without an update, so that mistakes are found before anything is trained.

        Args:
            batch: labelled, with the same fields as the batches of the run; its images may be noise.

        Raises:
            ConfigError: a term that cannot be computed, or gives no loss.
        """
        views = self._with_peers([student.forward(batch, 0, training=False) for student in self._students])
        for student, view in zip(self._students, views, strict=True):
            student.all_terms(view)

    def _with_peers(self, views: list[StudentView]) -> list[StudentView]:
        """Add to each view the logits of all other students; those of one may take the place of the teacher's."""
        answers = [student.answer(view) for student, view in zip(self._students, views, strict=True)]
        teaching = self._teaching()
        return [
            replace(
                view,
                others=tuple(answer for other, answer in enumerate(answers) if other != number),
                # The student that teaches has no soft labels of its own but those of the frozen teacher, if any.
                teacher=view.teacher if teaching is None or teaching == number else answers[teaching],
            )
            for number, view in enumerate(views)
        ]

    def _reprioritise(self, batch: Batch, view: StudentView) -> None:
        """Set the priority of the batch's bank images to KL(teacher || student) (prioritized replay)."""
        if self._bank is None or batch.slots is None or batch.teacher_logits is None:
            return
        with torch.no_grad():
            divergence = kl_divergence(batch.teacher_logits, view.student) + 1e-6  # no image gets priority 0
        slots, divergence = self._accelerator.gather((batch.slots, divergence))
        from_bank = slots >= 0  # mixtures and images of other sources have slot -1 and no priority
        self._bank.reprioritise(slots[from_bank].cpu(), divergence[from_bank].cpu())
