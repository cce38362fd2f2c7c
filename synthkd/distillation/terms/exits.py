"""Self-distillation: exits at early stages of a network learn the logits of its last layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synthkd.distillation.terms.features import shown_at
from synthkd.errors import ConfigError
from synthkd.losses.alignment import pooled
from synthkd.losses.features import hint
from synthkd.losses.logits import distillation_loss
from synthkd.losses.relations import full_precision
from synthkd.models.classifier import Classifier
from synthkd.models.layout import head, stages
from synthkd.settings import ExitsTerm
from synthkd.taps import INPUT

WIDTH = 64
"""Channels of an exit before its linear layer."""


class Exits(nn.Module):
    """Exits at modules of the student, trained with it and never saved with it.

    "Be Your Own Teacher" (Zhang et al. 2019): shallow stages predict the class too, which improves the features of the
    stages above. The paper gives an exit three losses. Two of them are implemented: the divergence from the deepest
    logits and, with the weight `features`, the hint from the deepest features. The third, the hard label, reaches exits
    through the deepest logits only: a label may be missing, or name only the class that a generator was asked for.

    An exit is a convolution of stride 2 (for tokens and vectors a linear layer), ReLU, the mean over positions and a
    linear layer. Without the convolution the mean of a first stage's few channels hardly separates the classes.

    Args:
        term: the places of the exits, and the weight of features.
        student: the network that learns from itself.

    Attributes:
        term: as given.
        places: module paths with an exit, in order.

    Raises:
        ConfigError: a network without a stage before its last one.
        ModelError: a module path that the student does not have.
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
        width = pooled(features[self._last]).shape[1]
        # Only if they have a weight: DistributedDataParallel waits for the gradient of every parameter.
        self.regressors = nn.ModuleList(nn.Linear(WIDTH, width) for _ in self.places if term.features > 0.0)

    @property
    def student_places(self) -> tuple[str, ...]:
        """Module paths of the student whose features are needed."""
        return (*self.places, self._last) if self.regressors else self.places

    def logits(self, student: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits of every exit.

        Args:
            student: features by module path.

        Returns:
            `[N, K]` by module path.
        """
        necks = self._necks(student)
        return {place: layer(neck) for place, layer, neck in zip(self.places, self.heads, necks, strict=True)}

    def forward(
        self, student: Mapping[str, Tensor], logits: Tensor, temperature: float, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`exits`: the mean over exits of `T^2 KL(deepest_T || exit_T) + features * hint`, a scalar.

        Args:
            student: features by module path; the gradient reaches the layers below each of them.
            logits: the student's own `[N, K]`, the target; they get no gradient.
            temperature: T > 0.
            weights: importance weights `[N]` of the images, or None for ones.
        """
        necks = self._necks(student)
        # Detached, as the deepest features below: the last layer teaches the exits and must not move towards them.
        target = full_precision(logits.detach())
        losses = [
            distillation_loss(target, full_precision(layer(neck)), temperature, weights)
            for layer, neck in zip(self.heads, necks, strict=True)
        ]
        if self.regressors:
            deepest = pooled(student[self._last].detach())
            hints = [
                hint(deepest, full_precision(layer(neck)), weights)
                for layer, neck in zip(self.regressors, necks, strict=True)
            ]
            losses = [loss + self.term.features * term for loss, term in zip(losses, hints, strict=True)]
        return {"exits": torch.stack(losses).mean()}

    def _necks(self, student: Mapping[str, Tensor]) -> list[Tensor]:
        """Features `[N, WIDTH]` of each exit, in float32 also under mixed precision."""
        return [pooled(neck(student[place].float())) for place, neck in zip(self.places, self.necks, strict=True)]


def _neck(features: Tensor) -> nn.Module:
    if features.dim() == 4:
        return nn.Sequential(nn.Conv2d(features.shape[1], WIDTH, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(nn.Linear(features.shape[-1], WIDTH), nn.ReLU())
