"""The distillation step: batch, teacher, student, loss terms, backward pass, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class DistillStep:
    """One training step of the student and of its peers, if any.

    Attributes:
        students: the student first, then its peers.
        dataset: batches, labelled by the teacher.
        accelerator: gathers priorities from all processes.
        bank: gets new priorities; None if draws are not prioritized.
        teaching: returns the number of the student whose logits are the soft labels at present, or None for the frozen
            teacher.
    """

    students: Sequence[Student]
    dataset: TransferBatches
    accelerator: Accelerator
    bank: MemoryBank | None = None
    teaching: Callable[[], int | None] = lambda: None

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """Run one step.

        Args:
            step: the student's own, 0-based.

        Returns:
            What is logged, by name.
        """
        # The teacher labels the images after augmentation, so that its logits belong to exactly these images.
        batch = self.dataset.label(self.dataset.draw(step))
        # All forward passes come before the first update, so that no peer learns from weights which the same batch has
        # just changed. (Deep mutual learning as published updates the networks of a batch in turn.)
        views = self._with_peers([student.forward(batch, step) for student in self.students])
        logged: dict[str, Tensor | float] = {}
        for student, view in zip(self.students, views, strict=True):
            loss = student.loss(view, step)  # the sum of weight(step) * term(view)
            logged |= student.update(loss, view, step)  # backward, clipping, optimizer step, average of weights
        # The priorities come from the logits before the update, as in prioritized replay.
        self._reprioritise(batch, views[0])
        return logged

    def rehearse(self, batch: Batch) -> None:
        """Compute every loss term once without an update, so that mistakes are found before anything is trained.

        Args:
            batch: labelled, with the same fields as the batches of the run; its images may be noise.

        Raises:
            ConfigError: a term that cannot be computed, or gives no loss.
        """
        # In eval mode: the images may be noise, whose moments must not enter the BatchNorm layers.
        views = self._with_peers([student.forward(batch, 0, training=False) for student in self.students])
        for student, view in zip(self.students, views, strict=True):
            student.all_terms(view)

    def _with_peers(self, views: list[StudentView]) -> list[StudentView]:
        """Add to each view the logits of all other students; the logits of one may replace the teacher's."""
        logits = [student.logits_for_peers(view) for student, view in zip(self.students, views, strict=True)]
        teaching = self.teaching()
        return [
            replace(
                view,
                others=tuple(one for other, one in enumerate(logits) if other != number),
                # The student that teaches cannot learn from itself: its soft labels stay those of the frozen teacher.
                teacher=view.teacher if teaching is None or teaching == number else logits[teaching],
            )
            for number, view in enumerate(views)
        ]

    def _reprioritise(self, batch: Batch, view: StudentView) -> None:
        """Set the priority of the batch's bank images to KL(teacher || student) (prioritized replay)."""
        if self.bank is None or batch.slots is None or batch.teacher_logits is None:
            return
        with torch.no_grad():
            # An image of priority 0 would never be drawn again, even if the student forgot it.
            divergence = kl_divergence(batch.teacher_logits, view.student) + 1e-6
        slots = batch.slots
        if self.students[0].learner.processes.world == 1:  # else the batch is that of all processes already
            # Every process holds a bank of its own, and all must draw the same images.
            slots, divergence = self.accelerator.gather((slots, divergence))
        from_bank = slots >= 0  # mixtures and images of other sources have slot -1 and no priority
        self.bank.reprioritise(slots[from_bank].cpu(), divergence[from_bank].cpu())
