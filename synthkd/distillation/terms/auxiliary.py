"""All that is trained beside a student and never saved with it, as one module that is passed through once a step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.distillation.terms.contrast import Beside, Contrast
from synthkd.distillation.terms.exits import Exits
from synthkd.distillation.terms.features import Transfer
from synthkd.distillation.terms.objective import Origin
from synthkd.errors import ConfigError
from synthkd.models.classifier import Classifier
from synthkd.settings import (
    ContrastTerm,
    DistillSettings,
    ExitsTerm,
    Schedule,
    ViewTerm,
)
from synthkd.types import Batch


class Lessons(nn.Module):
    """The terms of a student that look inside networks, with their layers.

    Args:
        settings: the terms.
        teacher: what it is compared with; None where only the student's own inside is looked at.
        student: what learns.
        seed: of random directions and turns.

    Raises:
        ConfigError: features that a term cannot compare.
        ModelError: a place that a model does not have.
    """

    def __init__(self, settings: DistillSettings, teacher: Classifier | None, student: Classifier, seed: int) -> None:
        super().__init__()
        pictures = [term for term in settings.transfer if isinstance(term, ContrastTerm | ViewTerm)]
        exits = [term for term in settings.transfer if isinstance(term, ExitsTerm)]
        if len(exits) > 1:
            raise ConfigError("distill.transfer: exits may stand once; name all their modules in one (at)")
        self.transfer: Transfer | None = None
        self.contrast: Contrast | None = None
        if teacher is not None and settings.features:
            self.transfer = Transfer(settings.features, teacher, student, seed)
        if teacher is not None and pictures:
            self.contrast = Contrast(pictures, teacher, student, seed)
        self.exits = Exits(exits[0], student) if exits else None

    @property
    def weights(self) -> dict[str, tuple[Schedule, Origin]]:
        """Weight and origin of each term by name."""
        found: dict[str, tuple[Schedule, Origin]] = {}
        for part in (self.transfer, self.contrast):
            if part is not None:
                found |= {name: (term.weight, "features") for name, term in part.terms.items()}
        if self.exits is not None:
            found["exits"] = (self.exits.term.weight, "own")
        return found

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """What to tap of the teacher."""
        parts = (self.transfer, self.contrast)
        return tuple(dict.fromkeys(place for part in parts if part is not None for place in part.teacher_places))

    @property
    def student_places(self) -> tuple[str, ...]:
        """What to tap of the student."""
        parts = (self.transfer, self.contrast, self.exits)
        return tuple(dict.fromkeys(place for part in parts if part is not None for place in part.student_places))

    def beside(self, batch: Batch, step: int, bank: MemoryBank | None) -> Beside | None:
        """Images to be shown to the networks beside the batch; None where no term asks for any."""
        return None if self.contrast is None else self.contrast.beside(batch, step, bank)

    def forward(
        self,
        batch: Batch,
        student: Mapping[str, Tensor],
        logits: Tensor,
        temperature: float,
        step: int,
        beside: Beside | None = None,
        shown: Mapping[str, Tensor] | None = None,
        turned: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms, scalars by name.

        Args:
            batch: with the teacher's features.
            student: features of the student by place.
            logits: of the student `[N, K]`.
            temperature: T of the exits.
            step: of the student.
            beside, shown, turned: images beside the batch, the teacher's features of them, and the student's of the
                views among them.
        """
        found: dict[str, Tensor] = {}
        weights = batch.weights
        # whoever trains this module may run it in half precision, in which products of features are too coarse
        with torch.autocast(logits.device.type, enabled=False):
            if self.transfer is not None:
                found |= self.transfer(batch.teacher_features, student, step, weights)
            if self.contrast is not None:
                assert beside is not None
                shown, turned, copies = shown or {}, turned or {}, beside.copies
                found |= self.contrast(batch.teacher_features, student, shown, turned, copies, weights)
            if self.exits is not None:
                found |= self.exits(student, logits, temperature, weights)
        return found
