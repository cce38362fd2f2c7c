"""Auxiliary layers of the feature, contrastive and exit losses: trained with the student, never saved with it.

They are one module with one forward pass per step, as DistributedDataParallel needs it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.distillation.terms.contrast import Contrast, ExtraImages
from synthkd.distillation.terms.exits import Exits
from synthkd.distillation.terms.features import Transfer
from synthkd.distillation.terms.objective import Origin
from synthkd.errors import ConfigError
from synthkd.models.classifier import Classifier
from synthkd.rng import derive
from synthkd.settings import ContrastTerm, DistillSettings, ExitsTerm, Schedule, ViewTerm
from synthkd.types import Batch


class AuxiliaryLayers(nn.Module):
    """The loss terms that compare features, with the layers that they train.

    Args:
        settings: the terms.
        teacher: the network whose features the student's are compared with; None: only terms of the student's own
            features are computed.
        student: the network that learns.
        seed: of random directions and rotated views.

    Attributes:
        transfer, contrast, exits: the layers of each kind of term, or None without such a term.

    Raises:
        ConfigError: features that a term cannot compare.
        ModelError: a module path that a model does not have.
    """

    def __init__(self, settings: DistillSettings, teacher: Classifier | None, student: Classifier, seed: int) -> None:
        super().__init__()
        contrastive = [term for term in settings.transfer if isinstance(term, ContrastTerm | ViewTerm)]
        exits = [term for term in settings.transfer if isinstance(term, ExitsTerm)]
        if len(exits) > 1:
            raise ConfigError("distill.transfer: exits may stand once; name all their modules in one (at)")
        self.transfer: Transfer | None = None
        self.contrast: Contrast | None = None
        if teacher is not None and settings.features:
            self.transfer = Transfer(settings.features, teacher, student, seed)
        if teacher is not None and contrastive:
            self.contrast = Contrast(contrastive, teacher, student, seed)
        self.exits = Exits(exits[0], student) if exits else None

    @property
    def weights(self) -> dict[str, tuple[Schedule, Origin]]:
        """Weight and origin of each term by name."""
        weights: dict[str, tuple[Schedule, Origin]] = {}
        for group in (self.transfer, self.contrast):
            if group is not None:
                weights |= {name: (term.weight, "features") for name, term in group.terms.items()}
        if self.exits is not None:
            weights["exits"] = (self.exits.term.weight, "own")
        return weights

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """Module paths of the teacher whose features are compared."""
        groups = (self.transfer, self.contrast)
        return tuple(dict.fromkeys(place for group in groups if group is not None for place in group.teacher_places))

    @property
    def student_places(self) -> tuple[str, ...]:
        """Module paths of the student whose features are compared."""
        groups = (self.transfer, self.contrast, self.exits)
        return tuple(dict.fromkeys(place for group in groups if group is not None for place in group.student_places))

    def extra_images(self, batch: Batch, step: int, bank: MemoryBank | None) -> ExtraImages | None:
        """Augmented views and negatives for a batch; None if there is no contrastive term.

        Args:
            batch, step, bank: see `Contrast.extra_images`.
        """
        return None if self.contrast is None else self.contrast.extra_images(batch, step, bank)

    def forward(
        self,
        batch: Batch,
        student: Mapping[str, Tensor],
        logits: Tensor,
        temperature: float,
        step: int,
        extra: ExtraImages | None = None,
        teacher_extra: Mapping[str, Tensor] | None = None,
        student_views: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms.

        Args:
            batch: with the teacher's features.
            student: features of the student by module path.
            logits: of the student, `[N, K]`.
            temperature: T of the exits.
            step: of the student.
            extra: the extra images; not None if there are contrastive terms.
            teacher_extra: the teacher's features of all extra images; None: there are none.
            student_views: the student's features of the augmented views; None: there are none.

        Returns:
            Scalars by name.
        """
        terms: dict[str, Tensor] = {}
        weights = batch.weights
        # The caller may run in mixed precision, and half precision is too coarse for products of features.
        with torch.autocast(logits.device.type, enabled=False):
            if self.transfer is not None:
                terms |= self.transfer(batch.teacher_features, student, step, weights)
            if self.contrast is not None:
                assert extra is not None
                features = (batch.teacher_features, student, teacher_extra or {}, student_views or {})
                terms |= self.contrast(*features, extra.copies, weights)
            if self.exits is not None:
                terms |= self.exits(student, logits, temperature, weights)
        return terms


def auxiliary_layers(
    settings: DistillSettings, teacher: Classifier | None, student: nn.Module, seed: int, name: str
) -> AuxiliaryLayers | None:
    """The auxiliary layers of one student, or None if it has no term with such layers.

    Args:
        settings, teacher, seed: see `AuxiliaryLayers`.
        student: the network. If it changes its width, it has no layer whose features could be compared.
        name: of the student; it decides the initial weights of the layers.

    Raises:
        ConfigError, ModelError: see `AuxiliaryLayers`.
    """
    if not isinstance(student, Classifier):
        return None
    # Seeded by name, so that the layers of a student do not depend on how many networks were built before.
    torch.manual_seed(derive(seed, f"{name}/lessons"))
    layers = AuxiliaryLayers(settings, teacher, student, seed)
    return layers if layers.weights else None
