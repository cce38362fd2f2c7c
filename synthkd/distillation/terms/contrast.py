"""Contrastive terms, which need extra images: rotated views of the batch (SSKD), negatives of the bank (CRD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthkd.data.augment import turn
from synthkd.data.bank import MemoryBank
from synthkd.losses.alignment import positions
from synthkd.losses.contrast import sskd
from synthkd.losses.logits import hard_label
from synthkd.losses.relations import full_precision, unit
from synthkd.models.classifier import Classifier
from synthkd.models.layout import head
from synthkd.rng import stream
from synthkd.settings import ContrastTerm, ViewTerm, by_name
from synthkd.taps import INPUT
from synthkd.types import Batch


@dataclass(frozen=True)
class ExtraImages:
    """Extra inputs of the contrastive losses for a batch of N images, on its device.

    Attributes:
        views: float32 `[N, C, H, W]` in [0, 1], the batch's images rotated; `[0, C, H, W]` where no term needs it.
        negatives: float32 `[K, C, H, W]` in [0, 1], drawn from the bank; K is 0 where it is empty.
        copies: bool `[N, N + K]`, True where the image of a column (batch, then negatives) is the same as that of the
            row, since draws are with replacement. The diagonal is False.
    """

    views: Tensor
    negatives: Tensor
    copies: Tensor

    @property
    def images(self) -> Tensor:
        """All of them for the teacher, `[N + K, C, H, W]`, views first."""
        return torch.cat([self.views, self.negatives])


class Contrast(nn.Module):
    """Contrastive losses of penultimate features, with their layers.

    `crd` (Tian et al. 2020; `synthkd.losses.contrast.crd` has the forms) is InfoNCE here, since the bank changes its
    size: the student's features of an image must identify the teacher's features of the same image among those of the
    batch and of the bank. Both go through a linear layer. `sskd` (Xu et al. 2020) compares similarities of rotated and
    upright images. The authors add a head to either network and first train the teacher's; here the teacher is not
    trained, and similarities are those of its own features.

    Args:
        terms: what is compared.
        teacher: gives the targets; its weights do not become part of this module.
        student: gives what is compared.
        seed: of the rotations.

    Attributes:
        terms: name -> term. A name is the term's kind, numbered where it comes again.

    Raises:
        ModelError: a network without a linear layer at its end.
    """

    def __init__(
        self, terms: Sequence[ContrastTerm | ViewTerm], teacher: Classifier, student: Classifier, seed: int = 0
    ) -> None:
        super().__init__()
        self.terms = by_name(terms)
        self._heads = (head(teacher), head(student))
        self._seed = seed
        self.layers = nn.ModuleDict()
        for name, term in self.terms.items():
            if isinstance(term, ContrastTerm):
                widths = [_width(model, at) for model, at in zip((teacher, student), self._heads, strict=True)]
                self.layers[name] = nn.ModuleList(nn.Linear(width, term.dimension) for width in widths)
        contrasts = [term for term in terms if isinstance(term, ContrastTerm)]
        self._turns = len(contrasts) < len(terms)
        self._negatives = max((term.negatives for term in contrasts), default=0)

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """Module path of the teacher whose features are compared."""
        return (self._heads[0] + INPUT,)

    @property
    def student_places(self) -> tuple[str, ...]:
        """Module path of the student whose features are compared."""
        return (self._heads[1] + INPUT,)

    def extra_images(self, batch: Batch, step: int, bank: MemoryBank | None = None) -> ExtraImages:
        """The extra images of a batch; a function of seed, step and what the bank holds.

        Args:
            batch: images, with their slots in the bank and their rows among real images.
            step: of the student.
            bank: negatives are drawn from it by its policy; None or an empty bank gives none.
        """
        images, count = batch.images, len(batch)
        views = turn(images, stream(self._seed, "view", step)) if self._turns else images[:0]
        unknown = torch.full((count,), -1, device=images.device)
        slots, rows = (unknown if numbers is None else numbers for numbers in (batch.slots, batch.rows))
        negatives, columns = images[:0], slots
        if self._negatives and bank is not None and len(bank):
            drawn = bank.draw(self._negatives, step, "negatives").to(images.device)
            assert drawn.slots is not None
            negatives, columns = drawn.images, torch.cat([slots, drawn.slots])
        copies = (slots[:, None] == columns) & (slots[:, None] >= 0)
        copies[:, :count] |= (rows[:, None] == rows) & (rows[:, None] >= 0)
        copies.fill_diagonal_(False)
        return ExtraImages(views, negatives, copies)

    def forward(
        self,
        teacher: Mapping[str, Tensor],
        student: Mapping[str, Tensor],
        teacher_extra: Mapping[str, Tensor],
        student_views: Mapping[str, Tensor],
        copies: Tensor,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms, scalars by name.

        A batch of one image gives 0 for `sskd`, and for `crd` where there are no negatives.

        Args:
            teacher: features of the batch by place, without gradient.
            student: features of the batch by place.
            teacher_extra: the teacher's of `ExtraImages.images`; may be empty where there are none.
            student_views: the student's of `ExtraImages.views`; may be empty where there are none.
            copies: `ExtraImages.copies`.
            weights: importance weights `[N]` of the images, or None for ones.
        """
        theirs, ours = (_vectors(f[at + INPUT]) for f, at in zip((teacher, student), self._heads, strict=True))
        extra = _vectors(teacher_extra[self.teacher_places[0]]) if teacher_extra else theirs[:0]
        views, negatives = extra.split([len(ours) if self._turns else 0, copies.shape[1] - len(ours)])
        losses = {}
        for name, term in self.terms.items():
            if isinstance(term, ViewTerm):
                of_views = _vectors(student_views[self.student_places[0]])
                losses[name] = sskd(theirs, ours, views, of_views, term.temperature, term.keep, weights)
            else:
                layers = self.layers[name]
                assert isinstance(layers, nn.ModuleList)
                others = torch.cat([theirs, negatives[: term.negatives]])
                columns = copies[:, : len(others)]
                losses[name] = _own_among_all(layers[0](others), layers[1](ours), columns, term.temperature, weights)
        return losses


def _own_among_all(
    teacher: Tensor, student: Tensor, copies: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """`crd` in the form infonce, row i of `student [N, D]` belonging to row i of `teacher [N + K, D]`.

    Each image is told from all the others and its copies are left out. One product of matrices gives every score,
    where negatives listed for each image would be N (N + K) D numbers.
    """
    ours, theirs = (unit(full_precision(features)) for features in (student, teacher))
    scores = (ours @ theirs.T / temperature).masked_fill(copies, -torch.inf)
    return hard_label(scores, torch.arange(len(ours), device=ours.device), weights)


def _vectors(features: Tensor) -> Tensor:
    return positions(full_precision(features)).mean(dim=1)


def _width(model: Classifier, path: str) -> int:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer.in_features
