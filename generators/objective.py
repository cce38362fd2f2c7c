"""What teacher and student say of generated images, and the terms of it that any generator may add to its objective.

The generator and the student pull at the distillation loss from both ends: `L = L_adv + lambda * L_distill` with
`L_distill = KL(teacher(G(z)) || student(G(z)))`, which the student minimises and the generator maximises. So in the
generator's objective, which is minimised, the term `distillation` is `-KL`, scaled by the difficulty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, TrainingError
from synthkd.losses import inversion as losses
from synthkd.losses.logits import kl_divergence
from synthkd.losses.relations import semantic_consistency
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.layout import head
from synthkd.taps import INPUT, Taps, evaluating, frozen
from synthkd.types import Outputs

PENULTIMATE = "penultimate"
"""Name of the features before the last linear layer, whatever their path in the network."""


@dataclass(frozen=True)
class GeneratedView:
    """What a step of a generator is judged on.

    Attributes:
        teacher: the frozen teacher's answers to the images.
        student: the student's, or None while there is no student to disagree with.
        labels: what was asked for: int64 `[N]`, or probabilities `[N, K]`.
        difficulty: in [0, 1], scales the terms that set the images against the student.
    """

    teacher: Outputs
    student: Outputs | None
    labels: Tensor
    difficulty: float


def _adversarial(view: GeneratedView) -> Tensor:
    if view.student is None:
        return view.teacher.logits.new_zeros(())
    return view.difficulty * losses.adversarial(view.teacher.logits, view.student.logits)


def _distillation(view: GeneratedView) -> Tensor:
    if view.student is None:
        return view.teacher.logits.new_zeros(())
    return -view.difficulty * kl_divergence(view.teacher.logits, view.student.logits).mean()


def _semantic(view: GeneratedView) -> Tensor:
    if view.student is None:
        return view.teacher.logits.new_zeros(())
    return semantic_consistency(view.teacher.features[PENULTIMATE], view.student.features[PENULTIMATE])


STUDENT_TERMS: Mapping[str, Callable[[GeneratedView], Tensor]] = {
    "adversarial": _adversarial,
    "distillation": _distillation,
    "semantic": _semantic,
}
"""Terms that need a student, and are 0 while there is none: `adversarial` sets images both still agree on against the
student (Fang et al. 2021), `distillation` all of them, `semantic` keeps alike for the student what the teacher finds
alike (`synthkd.losses.relations.semantic_consistency`)."""


@contextmanager
def judging(
    teacher: Classifier,
    student: nn.Module | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    penultimate: bool = False,
    statistics: bool = False,
) -> Iterator[Callable[[Tensor, Tensor, float], GeneratedView]]:
    """A context in which teacher and student, in eval mode and out of the gradient, look at generated images.

    It gives a function (images float32 `[N, C, H, W]` in [0, 1], labels, difficulty) -> view; gradients
    flow from the view to the images.

    Args:
        teacher: the frozen teacher.
        student: the student of the moment, or None.
        autocast: precision of both.
        penultimate: also take both networks' penultimate features, as `features[PENULTIMATE]`.
        statistics: also take the moments at the teacher's BatchNorm layers.

    Raises:
        ConfigError: penultimate features of a student that is no `Classifier`.
        ModelError, TrainingError: on a look, where the teacher's answers or the student's are not finite.
    """
    if penultimate and student is not None and not isinstance(student, Classifier):
        raise ConfigError("generator.semantic compares penultimate features, which this student does not name; set 0")
    networks = [teacher] if student is None else [teacher, student]
    with evaluating(*networks), frozen(*networks), ExitStack() as hooks:
        looks: list[Taps] = []
        for network in networks:
            paths = [head(network) + INPUT] if penultimate and isinstance(network, Classifier) else []
            taps = hooks.enter_context(Taps(network, paths, statistics and network is teacher))
            looks.append(taps)

        def look(images: Tensor, labels: Tensor, difficulty: float) -> GeneratedView:
            with autocast():
                seen = [_named(taps(images)) for taps in looks]
            finite_logits(seen[0].logits)
            if len(seen) > 1 and not bool(torch.isfinite(seen[1].logits).all()):
                raise TrainingError(
                    "student: its answers to generated images are not finite, its training diverged; lower "
                    "distill.optimizer.lr or set distill.optimizer.clip"
                )
            return GeneratedView(seen[0], seen[1] if len(seen) > 1 else None, labels, difficulty)

        yield look


def _named(seen: Outputs) -> Outputs:
    features = dict(zip([PENULTIMATE], (value.float() for value in seen.features.values()), strict=False))
    return Outputs(seen.logits.float(), features, seen.statistics)
