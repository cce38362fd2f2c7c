"""Where a student starts: at random, or from weights of its teacher; and what it knows before its first step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.generators.procedural import draw
from synthkd.models import Classifier, Inherited, Slimmable, has_weights, inherit, is_fresh
from synthkd.models.classifier import copied
from synthkd.models.filling import reset_statistics
from synthkd.pipelines.config import DistillConfig
from synthkd.rng import Rows
from synthkd.settings import GivenModel
from synthkd.training.measuring import Watch

DRAWN = 64
"""Procedural images for the statistics of layers that the teacher does not have."""
RESET = 512
"""Largest number of images over which the BatchNorm statistics of the student as it starts are taken."""


@dataclass(frozen=True)
class Start:
    """Where a student starts.

    Attributes:
        inherited: what it has of the teacher.
        network: a copy of the student as it starts, on the CPU; None of one that has nothing of the teacher.
        otherwise: where it starts if it has nothing of the teacher, for the plan.
    """

    inherited: Inherited
    network: Classifier | None = None
    otherwise: str = "freshly initialised"

    @property
    def words(self) -> str:
        """For the plan."""
        inherited = self.inherited
        if inherited.by:
            return f"{inherited.parameters:,} of them start from its weights, matched by {inherited.by}"
        return self.otherwise + (f" ({inherited.why})" if inherited.why else "")

    def reset(self, images: Tensor, size: int, watch: Watch) -> Classifier:
        """The student as it starts, with BatchNorm statistics of images: those of the teacher are of other channels.

        Args:
            images: float32 `[N, C, H, W]` in [0, 1].
            size: images of a pass; fewer than twice as many, if they are not a multiple of it.
            watch: of the measurement.
        """
        assert self.network is not None
        network, images = copied(self.network).to(images.device), images[:RESET]
        tick = watch("the student as it starts, BatchNorm statistics", len(images))
        # In parts of nearly equal size, since each counts equally, and never of one image, of which BatchNorm has no
        # variance where maps have one pixel.
        reset_statistics(network, images.tensor_split(max(1, len(images) // max(2, size))))
        tick(len(images))
        return network.eval()


def start_of(config: DistillConfig, student: Classifier | Slimmable, teacher: Classifier | None) -> Start:
    """Let a fresh student start from its teacher's weights where the configuration says so, in place.

    Weights of its own stay. A function may give some, so its network takes those of the teacher only where `inherit` is
    written.

    Args:
        config: of the run.
        student: untrained, or with weights of its own.
        teacher: None without one.

    Raises:
        ConfigError: `inherit` is written for a student with weights of its own, or channels are to be merged, and the
            structures differ.
    """
    if config.inherit and has_weights(config.student):
        raise ConfigError("inherit: the student has weights of its own: leave inherit out, or name no weights for it")
    otherwise = _otherwise(config)
    may_inherit = config.inherits and (is_fresh(config.student) or config.inherit)
    if not isinstance(student, Classifier) or teacher is None or not may_inherit:
        return Start(Inherited(), otherwise=otherwise)
    merge = config.inherit == "merged"
    inherited = inherit(student, teacher, merge, lambda: draw(DRAWN, student.spec, Rows(config.seed, "start")))
    if merge and not inherited.by:
        raise ConfigError(
            f"inherit: merged needs a student that differs from its teacher in width and residual blocks alone: "
            f"{inherited.why}; set inherit to true or false"
        )
    return Start(inherited, copied(student) if inherited.by else None, otherwise)


def _otherwise(config: DistillConfig) -> str:
    """Where the student starts if it takes no weights of the teacher."""
    if is_fresh(config.student):
        return Start.otherwise
    if has_weights(config.student):
        return "with weights of its own"
    given = "as it was given" if isinstance(config.student, GivenModel) else "as its function returns it"
    is_open = config.inherits and config.inherit is None
    return f"{given}; `inherit: true` lets it start from its teacher" if is_open else given
