"""Feature hints: where teacher and student are compared, and the regressors that align their dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import ConfigError
from synthkd.losses.features import hint
from synthkd.models.classifier import Classifier
from synthkd.models.layout import head, stages
from synthkd.taps import INPUT, evaluating, observe


@dataclass(frozen=True)
class Pair:
    """A place in the teacher and the place of the student that is compared with it, as paths for `Taps`."""

    teacher: str
    student: str


class Hints(nn.Module):
    """Regressors from the student's stages and penultimate features to the teacher's; trained with the student only.

    The last stages of both belong together, the last but one, and so on, as far as both have any. A map is regressed
    by a 1x1 convolution, a vector or token by a linear layer; of two maps of unlike size the larger one is averaged
    down first.

    Args:
        teacher: gives the targets.
        student: gives what is regressed.

    Raises:
        ConfigError: when stages of unlike kind (maps and tokens) or with unlike numbers of tokens would be compared.
    """

    def __init__(self, teacher: Classifier, student: Classifier) -> None:
        super().__init__()
        places = [[*stages(model), head(model) + INPUT] for model in (teacher, student)]
        count = min(len(p) for p in places)
        self.pairs = tuple(Pair(t, s) for t, s in zip(places[0][-count:], places[1][-count:], strict=True))
        regressors: list[nn.Module] = []
        seen = [
            _features(teacher, [p.teacher for p in self.pairs]),
            _features(student, [p.student for p in self.pairs]),
        ]
        for pair in self.pairs:
            target, source = seen[0][pair.teacher], seen[1][pair.student]
            if target.dim() != source.dim():
                raise ConfigError(
                    f"distill.hint: the teacher's {pair.teacher} gives {target.dim() - 1} dimensions for an image, the "
                    f"student's {pair.student} {source.dim() - 1}; set distill.hint to 0 for such a pair"
                )
            if target.dim() == 3 and target.shape[1] != source.shape[1]:
                raise ConfigError(
                    f"distill.hint: the teacher's {pair.teacher} gives {target.shape[1]} tokens for an image, the "
                    f"student's {pair.student} {source.shape[1]}; set distill.hint to 0 for such a pair"
                )
            if target.dim() == 4:
                regressors.append(nn.Conv2d(source.shape[1], target.shape[1], 1))
            else:
                regressors.append(nn.Linear(source.shape[-1], target.shape[-1]))
        self.regressors = nn.ModuleList(regressors)

    def forward(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> Tensor:
        """Mean hint loss over the pairs, a scalar."""
        losses: list[Tensor] = []
        for pair, regressor in zip(self.pairs, self.regressors, strict=True):
            target, source = teacher[pair.teacher].float(), student[pair.student].float()
            if target.dim() == 4 and target.shape[2:] != source.shape[2:]:
                size = (min(target.shape[2], source.shape[2]), min(target.shape[3], source.shape[3]))
                target, source = F.adaptive_avg_pool2d(target, size), F.adaptive_avg_pool2d(source, size)
            losses.append(hint(target, regressor(source)))
        return torch.stack(losses).mean()


def _features(model: Classifier, paths: list[str]) -> Mapping[str, Tensor]:
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        return observe(model, torch.zeros(1, *model.spec.shape, device=device), features=paths).features
