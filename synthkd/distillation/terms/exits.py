"""Self-distillation: exits at early stages learn the logits of the network's last layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synthkd.distillation.terms.features import shown_at
from synthkd.errors import ConfigError
from synthkd.losses.alignment import positions
from synthkd.losses.features import hint
from synthkd.losses.logits import distillation_loss
from synthkd.losses.relations import full_precision
from synthkd.models.classifier import Classifier
from synthkd.models.layout import head, stages
from synthkd.settings import ExitsTerm
from synthkd.taps import INPUT

WIDTH = 64


class Exits(nn.Module):
    """Exits at modules of the student, trained with it and never saved with it.

    "Be Your Own Teacher" (Zhang et al. 2019): shallow stages predict the class too, which improves the features of the
    stages above. The paper gives an exit three losses. Two of them are here: the divergence from the deepest logits
    and, by `features`, the hint from the deepest features. The third, the hard label, reaches exits through the
    deepest logits alone, because a label may be missing, or be the one that a generator was conditioned on.

    An exit is a convolution of stride 2 (for tokens and vectors a linear layer), ReLU, the mean over positions and a
    linear layer. Without the convolution the mean of a first stage's few channels hardly tells one class from another.

    Args:
        term: where, and the weight of features.
        student: what learns from itself.

    Attributes:
        term: as given.
        places: module paths with an exit, in the order of `answers`.

    Raises:
        ConfigError: a network that has no stage before its last.
        ModelError: a place that the student does not have.
    """

    def __init__(self, term: ExitsTerm, student: Classifier) -> None:
        super().__init__()
        self.term = term
        self.places = stages(student)[:-1] if term.at == "stages" else tuple(dict.fromkeys(term.at))
        if not self.places:
            raise ConfigError(
                f"distill.transfer: exits at {term.at or 'no module'}: no stage is found before the student's last; "
                "name modules (at), or take a deeper student"
            )
        self._last = head(student) + INPUT
        features = shown_at("student", student, (*self.places, self._last))
        self.necks = nn.ModuleList(_neck(features[place]) for place in self.places)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, student.spec.classes) for _ in self.places)
        width = features[self._last].shape[-1]
        self.regressors = nn.ModuleList(nn.Linear(WIDTH, width) for _ in self.places if term.features > 0.0)

    @property
    def student_places(self) -> tuple[str, ...]:
        """What to tap of the student."""
        return (*self.places, self._last) if self.regressors else self.places

    def answers(self, student: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits `[N, K]` of every exit by place, of features by place."""
        necks = self._necks(student)
        return {place: layer(neck) for place, layer, neck in zip(self.places, self.heads, necks, strict=True)}

    def forward(
        self, student: Mapping[str, Tensor], logits: Tensor, temperature: float, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`exits`: the mean over exits of `T^2 KL(deepest_T || exit_T) + features * hint`, a scalar.

        Args:
            student: features by place; the gradient reaches the layers below each place.
            logits: the student's own `[N, K]`, a target: no gradient goes there.
            temperature: T > 0.
            weights: importance weights `[N]` of the images, or None for ones.
        """
        necks = self._necks(student)
        target = full_precision(logits.detach())
        losses = [
            distillation_loss(target, full_precision(layer(neck)), temperature, weights)
            for layer, neck in zip(self.heads, necks, strict=True)
        ]
        if self.regressors:
            deepest = _mean(student[self._last].detach())
            hints = [
                hint(deepest, full_precision(layer(neck)), weights)
                for layer, neck in zip(self.regressors, necks, strict=True)
            ]
            losses = [loss + self.term.features * term for loss, term in zip(losses, hints, strict=True)]
        return {"exits": torch.stack(losses).mean()}

    def _necks(self, student: Mapping[str, Tensor]) -> list[Tensor]:
        """`[N, WIDTH]` at each place."""
        return [_mean(neck(student[place].float())) for place, neck in zip(self.places, self.necks, strict=True)]


def _neck(features: Tensor) -> nn.Module:
    if features.dim() == 4:
        return nn.Sequential(nn.Conv2d(features.shape[1], WIDTH, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(nn.Linear(features.shape[-1], WIDTH), nn.ReLU())


def _mean(features: Tensor) -> Tensor:
    return positions(full_precision(features)).mean(dim=1)
