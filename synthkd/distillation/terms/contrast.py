"""Terms that need images beside the batch: its own, turned (SSKD), and those of the bank, to be told from it (CRD)."""

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
class Beside:
    """What is shown beside a batch of N images; on its device.

    Attributes:
        views: float32 `[N, C, H, W]` in [0, 1], each image of the batch, turned; `[0, C, H, W]` where no term asks.
        negatives: float32 `[K, C, H, W]` in [0, 1], of the bank; K is 0 where it is empty.
        copies: bool `[N, N + K]`, True where a column, an image of the batch or a negative, is that of the row once
            more: draws are with replacement. The images themselves, on the diagonal, are not copies.
    """

    views: Tensor
    negatives: Tensor
    copies: Tensor

    @property
    def images(self) -> Tensor:
        """All of them for the teacher, `[N + K, C, H, W]`, views first."""
        return torch.cat([self.views, self.negatives])


class Contrast(nn.Module):
    """Terms that tell images from others, by penultimate features; their layers are trained with the student and never
    saved with it.

    `crd` is InfoNCE, since a bank changes its size (Tian et al. 2020, and `synthkd.losses.contrast.crd` for the forms):
    for each image of the student, which of the teacher's features are its own, among those of the batch and of the
    bank? Both sides go through a linear layer. `sskd` compares similarities of turned and upright images (Xu et al.
    2020) in the features themselves. The authors put a head on either side and first train the teacher's to know an
    image again; here no training of the teacher comes before, and similarities are what its features say.

    Args:
        terms: what is compared.
        teacher: gives the targets; its weights do not become part of this module.
        student: gives what is compared.
        seed: of the turns.

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
        """What to tap of the teacher."""
        return (self._heads[0] + INPUT,)

    @property
    def student_places(self) -> tuple[str, ...]:
        """What to tap of the student."""
        return (self._heads[1] + INPUT,)

    def beside(self, batch: Batch, step: int, bank: MemoryBank | None = None) -> Beside:
        """The images that the terms need beside a batch; a function of seed, step and what the bank holds.

        Args:
            batch: images, with their slots in the bank and their rows among real images.
            step: of the student.
            bank: where negatives come from, by its policy; None or an empty bank gives none.
        """
        images, count = batch.images, len(batch)
        views = turn(images, stream(self._seed, "view", step)) if self._turns else images[:0]
        unknown = torch.full((count,), -1, device=images.device)
        slots, rows = (unknown if known is None else known for known in (batch.slots, batch.rows))
        negatives, columns = images[:0], slots
        if self._negatives and bank is not None and len(bank):
            drawn = bank.draw(self._negatives, step, "negatives").to(images.device)
            assert drawn.slots is not None
            negatives, columns = drawn.images, torch.cat([slots, drawn.slots])
        copies = (slots[:, None] == columns) & (slots[:, None] >= 0)
        copies[:, :count] |= (rows[:, None] == rows) & (rows[:, None] >= 0)
        copies.fill_diagonal_(False)
        return Beside(views, negatives, copies)

    def forward(
        self,
        teacher: Mapping[str, Tensor],
        student: Mapping[str, Tensor],
        shown: Mapping[str, Tensor],
        turned: Mapping[str, Tensor],
        copies: Tensor,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The unweighted terms, scalars by name.

        A batch of one image gives 0 for `sskd`, and for `crd` where there are no negatives.

        Args:
            teacher: features of the batch by place, without gradient.
            student: features of the batch by place.
            shown: the teacher's of `Beside.images`; may be empty where there are none.
            turned: the student's of `Beside.views`; may be empty where there are none.
            copies: `Beside.copies`.
            weights: importance weights `[N]` of the images, or None for ones.
        """
        theirs, ours = (_vectors(f[at + INPUT]) for f, at in zip((teacher, student), self._heads, strict=True))
        beside = _vectors(shown[self.teacher_places[0]]) if shown else theirs[:0]
        views, negatives = beside.split([len(ours) if self._turns else 0, copies.shape[1] - len(ours)])
        found = {}
        for name, term in self.terms.items():
            if isinstance(term, ViewTerm):
                ours_turned = _vectors(turned[self.student_places[0]])
                found[name] = sskd(theirs, ours, views, ours_turned, term.temperature, term.keep, weights)
            else:
                layers = self.layers[name]
                assert isinstance(layers, nn.ModuleList)
                others = torch.cat([theirs, negatives[: term.negatives]])
                columns = copies[:, : len(others)]
                found[name] = _own_among_all(layers[0](others), layers[1](ours), columns, term.temperature, weights)
        return found


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
