"""Contrastive terms, which need extra images: rotated views of the batch (SSKD), negatives from the bank (CRD)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthkd.data.augment import turn
from synthkd.data.bank import MemoryBank
from synthkd.losses.alignment import pooled
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
        views: float32 `[N, C, H, W]` in [0, 1], the batch's images rotated; `[0, C, H, W]` if no term needs them.
        negatives: float32 `[K, C, H, W]` in [0, 1], drawn from the bank; K is 0 if the bank is empty or not needed.
        copies: bool `[N, N + K]`, True where the image of a column (batch, then negatives) is that of the row, which
            happens because draws are with replacement. The diagonal is False.
    """

    views: Tensor
    negatives: Tensor
    copies: Tensor

    @property
    def images(self) -> Tensor:
        """All extra images, for the teacher: `[N + K, C, H, W]`, views first."""
        return torch.cat([self.views, self.negatives])


class Contrast(nn.Module):
    """Contrastive losses of penultimate features, with their layers.

    `crd` (Tian et al. 2020; `synthkd.losses.contrast.crd` has the forms) is InfoNCE here, because the size of the bank
    changes. The student's features of an image must identify the teacher's features of the same image among those of
    the batch and of the bank. Both go through a linear layer. `sskd` (Xu et al. 2020) compares similarities of rotated
    and upright images. The authors add a head to each network and train the teacher's head first; here the teacher is
    not trained, and the similarities are those of its own features.

    Args:
        terms: the contrastive terms.
        teacher: gives the targets; its weights do not become part of this module.
        student: the network that learns.
        seed: of the rotations.

    Attributes:
        terms: name -> term. A name is the term's kind, numbered from the second term of a kind on.
        layers: name -> the two projections of a `crd` term, the teacher's first.

    Raises:
        ModelError: a network whose last layer is not linear.
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
        # One draw for all `crd` terms: each takes the first of the negatives, as many as it needs.
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
        """The extra images of a batch; a function of seed, step and the content of the bank.

        Args:
            batch: images, with their slots in the bank and their numbers among real images.
            step: of the student.
            bank: negatives are drawn from it by its policy; there are none if it is None or empty.
        """
        images, count = batch.images, len(batch)
        views = turn(images, stream(self._seed, "view", step)) if self._turns else images[:0]
        unknown = torch.full((count,), -1, device=images.device)
        slots, rows = (unknown if numbers is None else numbers for numbers in (batch.slots, batch.rows))
        negatives, columns = images[:0], slots
        if self._negatives and bank is not None and len(bank):
            # A stream of their own, so that the negatives change no draw of the batches.
            sample = bank.draw(self._negatives, step, "negatives").to(images.device)
            assert sample.slots is not None
            negatives, columns = sample.images, torch.cat([slots, sample.slots])
        # A copy among the negatives would be pushed away from itself. -1 is an unknown slot or number, so two of them
        # are no copies.
        copies = (slots[:, None] == columns) & (slots[:, None] >= 0)
        copies[:, :count] |= (rows[:, None] == rows) & (rows[:, None] >= 0)
        copies.fill_diagonal_(False)  # the diagonal has the positive pairs
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
        """The unweighted terms.

        Args:
            teacher: the teacher's features of the batch by module path, without gradient.
            student: the student's features of the batch by module path.
            teacher_extra: the teacher's features of `ExtraImages.images`; may be empty if there are none.
            student_views: the student's features of `ExtraImages.views`; may be empty if there are none.
            copies: `ExtraImages.copies`.
            weights: importance weights `[N]` of the images, or None for ones.

        Returns:
            Scalars by name. For a batch of one image `sskd` is 0, and so is `crd` without negatives.
        """
        theirs, ours = (pooled(f[at + INPUT]) for f, at in zip((teacher, student), self._heads, strict=True))
        extra = pooled(teacher_extra[self.teacher_places[0]]) if teacher_extra else theirs[:0]
        # The order of `ExtraImages.images`.
        views, negatives = extra.split([len(ours) if self._turns else 0, copies.shape[1] - len(ours)])
        losses = {}
        for name, term in self.terms.items():
            if isinstance(term, ViewTerm):
                of_views = pooled(student_views[self.student_places[0]])
                losses[name] = sskd(theirs, ours, views, of_views, term.temperature, term.keep, weights)
            else:
                layers = self.layers[name]
                assert isinstance(layers, nn.ModuleList)
                others = torch.cat([theirs, negatives[: term.negatives]])
                columns = copies[:, : len(others)]
                losses[name] = _infonce(layers[0](others), layers[1](ours), columns, term.temperature, weights)
        return losses


def _infonce(
    teacher: Tensor, student: Tensor, copies: Tensor, temperature: float, weights: Tensor | None = None
) -> Tensor:
    """`crd` in the form infonce, where row i of `student [N, D]` belongs to row i of `teacher [N + K, D]`.

    All other rows that are not copies are negatives.
    """
    # InfoNCE is the cross-entropy of the scores with the image's own row as label. One matrix product gives all scores;
    # `crd` would need a list of negatives for each image, N (N + K) D numbers.
    ours, theirs = (unit(full_precision(features)) for features in (student, teacher))
    scores = (ours @ theirs.T / temperature).masked_fill(copies, -torch.inf)
    return hard_label(scores, torch.arange(len(ours), device=ours.device), weights)


def _width(model: Classifier, path: str) -> int:
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
