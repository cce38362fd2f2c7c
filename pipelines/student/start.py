"""Where a student starts: at random, or from weights of its teacher; and what it knows before its first step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.generators.procedural import draw
from synthkd.models import Classifier, Inherited, Slimmable, inherit, is_fresh
from synthkd.models.classifier import copied
from synthkd.models.filling import reset_statistics
from synthkd.pipelines.config import DistillConfig
from synthkd.rng import Rows
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
        network: a copy of the student as it starts, on the CPU; None of one that starts at random.
    """

    inherited: Inherited
    network: Classifier | None = None

    @property
    def words(self) -> str:
        """For the plan."""
        inherited = self.inherited
        if inherited.by:
            return f"{inherited.parameters:,} of them start from its weights, matched by {inherited.by}"
        return "freshly initialised" + (f" ({inherited.why})" if inherited.why else "")

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

    Args:
        config: of the run.
        student: freshly initialised, or with weights of its own, which stay.
        teacher: None without one.

    Raises:
        ConfigError: channels are to be merged, and the structures differ.
    """
    if not isinstance(student, Classifier) or teacher is None or not config.inherits or not is_fresh(config.student):
        return Start(Inherited())
    merge = config.inherit == "merged"
    inherited = inherit(student, teacher, merge, lambda: draw(DRAWN, student.spec, Rows(config.seed, "start")))
    if merge and not inherited.by:
        raise ConfigError(
            f"inherit: merged needs a student that differs from its teacher in width and residual blocks alone: "
            f"{inherited.why}; set inherit to true or false"
        )
    return Start(inherited, copied(student) if inherited.by else None)
