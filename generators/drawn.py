"""Drawn images as they are: the generator for a teacher that gives answers and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.generators.procedural import draw
from synthkd.generators.rounds import SampledRounds
from synthkd.generators.settings import ProceduralSettings
from synthkd.models.classifier import Classifier
from synthkd.rng import Rows


class Drawn(SampledRounds):
    """Procedural images, labelled by the teacher. Nothing is trained, and no class can be asked for.

    Args:
        settings: images of a round.
        teacher: labels the images.
        seed: the run's seed.
        accelerator: device and precision.
    """

    for_labels = False

    def __init__(self, settings: ProceduralSettings, teacher: Classifier, seed: int, accelerator: Accelerator) -> None:
        super().__init__(settings.batch_size, teacher, seed, accelerator)
        self._spec = teacher.spec

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Do nothing and return no values."""
        return {}

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """As many images as there are labels, float32 `[N, C, H, W]` in [0, 1]; the labels do not change them."""
        return draw(len(labels), self._spec, rng).to(self._device)

    def state_dict(self) -> dict[str, Any]:
        """An empty state: nothing changes during a run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: the state is empty."""
