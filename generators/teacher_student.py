"""Forward passes of teacher and student on generated images, and a generator's loss terms on their outputs.

Generator and student are opponents in `L_distill = KL(teacher(G(z)) || student(G(z)))`: the student minimises it, the
generator maximises it. A generator's objective `L_adv + lambda * L_distill` is minimised, so its term `distillation` is
`-KL`, scaled by the difficulty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, TrainingError
from synthkd.losses import inversion as losses
from synthkd.losses.alignment import pooled
from synthkd.losses.logits import kl_divergence
from synthkd.losses.relations import semantic_consistency
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.layout import head
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.taps import INPUT, Taps, evaluating, frozen
from synthkd.types import Outputs

PENULTIMATE = "penultimate"
"""Name of the features before the last linear layer, whose path differs between networks."""


@dataclass(frozen=True)
class JointOutputs:
    """Outputs of teacher and student for the same N generated images.

    Attributes:
        teacher: of the frozen teacher.
        student: of the student, or None without a student.
        labels: the labels the images were generated for: int64 `[N]`, or probabilities float32 `[N, K]`.
        difficulty: in [0, 1]; the factor of the terms that oppose the student.
    """

    teacher: Outputs
    student: Outputs | None
    labels: Tensor
    difficulty: float


Term = Callable[[JointOutputs], Tensor]
"""A loss term: a scalar with gradient."""
JointForward = Callable[[Tensor, Tensor, float], JointOutputs]
"""(images float32 `[N, C, H, W]` in [0, 1], labels, difficulty) -> outputs, with gradient to the images."""


def _zero_without_student(term: Callable[[Outputs, Outputs, float], Tensor]) -> Term:
    def value(outputs: JointOutputs) -> Tensor:
        # 0 and not left out: the objective has the same terms before there is a student.
        if outputs.student is None:
            return outputs.teacher.logits.new_zeros(())
        return term(outputs.teacher, outputs.student, outputs.difficulty)

    return value


TEACHER_TERMS: Mapping[str, Term] = {
    "batch_norm": lambda outputs: losses.batch_norm(outputs.teacher.statistics),
    "one_hot": lambda outputs: losses.one_hot(outputs.teacher.logits, outputs.labels),
    "entropy": lambda outputs: losses.information_entropy(outputs.teacher.logits),
    "activation": lambda outputs: losses.activation(outputs.teacher.features[PENULTIMATE]),
}
"""Terms of the teacher's outputs alone; see `synthkd.losses.inversion`."""

STUDENT_TERMS: Mapping[str, Term] = {
    "adversarial": _zero_without_student(
        lambda teacher, student, difficulty: difficulty * losses.adversarial(teacher.logits, student.logits)
    ),
    "distillation": _zero_without_student(
        lambda teacher, student, difficulty: -difficulty * kl_divergence(teacher.logits, student.logits).mean()
    ),
    "semantic": _zero_without_student(
        lambda teacher, student, _: semantic_consistency(teacher.features[PENULTIMATE], student.features[PENULTIMATE])
    ),
}
"""Terms that compare teacher and student; 0 without a student.

Minimising `adversarial` raises the divergence on images for which both predict the same class (Fang et al. 2021),
minimising `distillation` raises it on all images; both are scaled by the difficulty. `semantic` penalises pairs of
images whose similarity differs between teacher and student (`synthkd.losses.relations.semantic_consistency`).
"""

MORE_STUDENT_TERMS: Mapping[str, Term] = {
    "logit_gap": _zero_without_student(
        lambda teacher, student, difficulty: -difficulty * losses.logit_gap(teacher.logits, student.logits)
    ),
    "competition": _zero_without_student(
        lambda teacher, student, difficulty: difficulty * losses.competition(teacher.logits, student.logits)
    ),
}
"""Terms that single published methods have in place of those above; scaled by the difficulty."""


@contextmanager
def joint_forward(
    teacher: Classifier,
    student: nn.Module | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    penultimate: bool = False,
    statistics: bool = False,
    processes: Processes = ONE_PROCESS,
) -> Iterator[JointForward]:
    """Context manager: teacher and student in eval mode; yields a function that runs both on generated images.

    Inside the context parameters get no gradient; gradients flow to the images. Afterwards both networks are as before.

    Args:
        teacher: the frozen teacher.
        student: the current student, or None.
        autocast: context manager that sets the precision of both networks.
        penultimate: also return both networks' penultimate features, as `features[PENULTIMATE]`.
        statistics: also return the moments at the teacher's BatchNorm layers.
        processes: that share the passes; all of them hold the same images.

    Raises:
        ConfigError: `penultimate` with a student that is no `Classifier`.
        ModelError: in a forward pass, if the teacher's logits are not finite.
        TrainingError: in a forward pass, if the student's logits are not finite.
    """
    if penultimate and student is not None and not isinstance(student, Classifier):
        raise ConfigError(
            "the generator's semantic compares penultimate features, which this student has no name for; set it to 0"
        )
    networks = [teacher] if student is None else [teacher, student]
    # In training mode BatchNorm would normalise by the generated batch, and add its moments to the running statistics.
    # Frozen, which saves the gradients of weights: those of the images are all that is used.
    with evaluating(*networks), frozen(*networks), ExitStack() as hooks:
        taps: list[Taps] = []
        for network in networks:
            # The input of the last layer, before logits have mixed the features.
            paths = [head(network) + INPUT] if penultimate and isinstance(network, Classifier) else []
            taps.append(hooks.enter_context(Taps(network, paths, statistics and network is teacher)))

        def forward(images: Tensor, labels: Tensor, difficulty: float) -> JointOutputs:
            with autocast():
                runs = [lambda rows, tap=tap: _in_float32(tap(rows)) for tap in taps]
                of_teacher, *of_student = processes.outputs_of_each(runs, images)
            # Two errors: a teacher with such logits is at fault itself, a student's training has diverged.
            finite_logits(of_teacher.logits)
            if of_student and not bool(torch.isfinite(of_student[0].logits).all()):
                raise TrainingError(
                    "student: its logits of generated images are not finite, its training diverged; lower "
                    "distill.optimizer.lr or set distill.optimizer.clip"
                )
            return JointOutputs(of_teacher, of_student[0] if of_student else None, labels, difficulty)

        yield forward


@torch.no_grad()
def teacher_logits(
    teacher: Classifier, images: Tensor, autocast: Callable[[], AbstractContextManager[object]]
) -> Tensor:
    """The teacher's logits of generated images, in eval mode and without gradient.

    Args:
        teacher: the frozen teacher.
        images: float32 `[N, C, H, W]` in [0, 1].
        autocast: context manager that sets the precision.

    Returns:
        float32 `[N, K]`.

    Raises:
        ModelError: the logits are not finite.
    """
    with evaluating(teacher), autocast():
        return finite_logits(teacher(images).float())


def _in_float32(outputs: Outputs) -> Outputs:
    """The same logits in float32; the one tapped feature, if there is one, pooled `[N, D]` and named PENULTIMATE."""
    # Losses and their sums are in float32: half precision rounds small divergences away.
    features = [(PENULTIMATE, pooled(value.float())) for value in outputs.features.values()]
    return Outputs(outputs.logits.float(), dict(features), outputs.statistics)
