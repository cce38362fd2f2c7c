"""One step of those who learn: a batch, what each makes of it, an update of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.student import Pupil
from synthkd.distillation.terms.objective import StudentView
from synthkd.losses import logits as losses
from synthkd.types import Batch, BatchSource


class DistillStep:
    """Draws a batch, shows it to the student and its peers, updates each, and reprioritises what was drawn.

    All look before any learns, so that nobody is taught by weights that the same batch has just changed. (Deep mutual
    learning as published lets the networks of a batch learn in turn.)

    Args:
        pupils: the student first, then its peers.
        source: batches.
        accelerator: processes.
        bank: where priorities go, or None when draws are not prioritized.
        roles: which of the pupils teaches the others; None: the frozen teacher teaches all.
    """

    def __init__(
        self,
        pupils: Sequence[Pupil],
        source: BatchSource,
        accelerator: Accelerator,
        bank: MemoryBank | None = None,
        roles: Roles | None = None,
    ) -> None:
        self._pupils = tuple(pupils)
        self._source = source
        self._accelerator = accelerator
        self._bank = bank
        self._roles = roles

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """The student's own 0-based step; returns what is worth logging."""
        batch = self._source.batch(step)
        views = self._views(batch, step)
        logged: dict[str, Tensor | float] = {}
        for pupil, view in zip(self._pupils, views, strict=True):
            logged |= pupil.learn(view, step)
        if self._bank is not None and batch.slots is not None and batch.teacher_logits is not None:
            self._reprioritise(self._bank, batch.slots, batch.teacher_logits, views[0])
        return logged

    def rehearse(self, batch: Batch) -> None:
        """Go once through every term, and learn nothing: what does not fit is told before anything is trained.

        Args:
            batch: like those of the run; what its images show does not matter.

        Raises:
            ConfigError: a term that cannot be computed, or gives no loss.
        """
        for pupil, view in zip(self._pupils, self._views(batch, 0, training=False), strict=True):
            pupil.rehearse(view)

    def _views(self, batch: Batch, step: int, training: bool = True) -> list[StudentView]:
        """What each pupil makes of a batch, and what it is shown of the others."""
        views = [pupil.look(batch, step, training) for pupil in self._pupils]
        answers = [pupil.answer(view) for pupil, view in zip(self._pupils, views, strict=True)]
        teaching = None if self._roles is None else self._roles.teaching
        return [
            replace(
                view,
                others=tuple(answer for other, answer in enumerate(answers) if other != number),
                teacher=view.teacher if teaching is None or teaching == number else answers[teaching],
            )
            for number, view in enumerate(views)
        ]

    def _reprioritise(self, bank: MemoryBank, slots: Tensor, teacher: Tensor, view: StudentView) -> None:
        """Priority is the divergence from the teacher; mixtures and foreign rows have slot -1 and keep theirs."""
        with torch.no_grad():
            divergence = losses.kl_divergence(teacher, view.student) + 1e-6
        slots, divergence = self._accelerator.gather((slots, divergence))
        mine = slots >= 0
        bank.reprioritise(slots[mine].cpu(), divergence[mine].cpu())
