"""Generators whose rounds are samples: a round is `fit`, then images of balanced labels with the teacher's logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.epochs import EpochSource
from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError
from synthkd.generators.teacher_student import teacher_logits
from synthkd.models.classifier import Classifier, as_classifier
from synthkd.rng import Rows
from synthkd.types import ImageSpec, Round, SampleGenerator, balanced_labels


def agreed_spec(kind: str, spec: ImageSpec | None, teacher: Classifier | None, train: RealData | None) -> ImageSpec:
    """The image spec that generator, teacher and real data share; each of them may be None.

    Args:
        kind: of the generator, for the message.
        spec: of the generator itself.
        teacher: its spec counts.
        train: real images, whose spec counts.

    Raises:
        ConfigError: the specs differ, or there is none.
    """
    specs = {
        "the generator": spec,
        "the teacher": None if teacher is None else teacher.spec,
        "the real data": None if train is None else train.spec,
    }
    distinct = {value for value in specs.values() if value is not None}
    if len(distinct) != 1:
        got = "; ".join(f"{owner}: {value}" for owner, value in specs.items() if value is not None)
        got = got or "neither teacher nor real data"
        raise ConfigError(f"{kind}: teacher and real data must have the same images and classes, got {got}")
    return distinct.pop()


def labelling_teacher(teacher: nn.Module | None, spec: ImageSpec | None, train: RealData | None) -> Classifier | None:
    """The teacher as a classifier; one that is none yet has the images and classes of the generator or of real data.

    Args:
        teacher: or None.
        spec: of the generator itself.
        train: real images.

    Raises:
        ModelError: nothing tells the images and classes of the teacher.
    """
    if teacher is None or isinstance(teacher, Classifier):
        return teacher
    return as_classifier(teacher, train.spec if spec is None and train is not None else spec)


def require_real_data(source: EpochSource | None) -> EpochSource:
    """The batches of real images.

    Raises:
        ConfigError: there are none, since the generator was restored without real data.
    """
    if source is None:
        raise ConfigError(
            "this generator was saved to be sampled from and has no real data to learn from; train one anew"
        )
    return source


class SampledRounds(ABC):
    """Base of the generators whose rounds are samples. A subclass implements `fit` and `sample`.

    Args:
        batch_size: images of a round.
        teacher: the frozen teacher, which labels the images of a round; None for a generator without rounds.
        seed: the run's seed.
        accelerator: device and precision.
    """

    def __init__(self, batch_size: int, teacher: Classifier | None, seed: int, accelerator: Accelerator) -> None:
        self._batch_size = batch_size
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator
        self._device = accelerator.device

    @abstractmethod
    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Take the training steps of round `index` and return values for the log, by name."""

    @abstractmethod
    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images float32 `[N, C, H, W]` in [0, 1] of the labels int64 `[N]`; image i uses row `rng.start + i`."""

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: `fit`, then `batch_size` images with balanced labels.

        The images of round i use the rows `i * batch_size ...` of the run. Arguments and further errors are those of
        `fit`.

        Raises:
            ConfigError: there is no teacher to label the images.
            ModelError: the teacher's logits are not finite.
        """
        if self._teacher is None:
            raise ConfigError("a round gives the teacher's logits of its images, and this generator has no teacher")
        terms = self.fit(index, difficulty, student)
        first = index * self._batch_size
        labels = balanced_labels(self._batch_size, first, self._teacher.spec.classes).to(self._device)
        images = self._round_images(labels, difficulty, Rows(self._seed, "round", first), student)
        return Round(images, labels, teacher_logits(self._teacher, images, self._accelerator.autocast), terms)

    def _round_images(self, labels: Tensor, difficulty: float, rng: Rows, student: nn.Module | None) -> Tensor:
        """The images of a round. A subclass whose samples depend on the current student overrides this."""
        return self.sample(labels, difficulty, rng)


class Fixed(SampledRounds):
    """Rounds of samples from a generator that is not trained.

    Args:
        generator: is sampled.
        batch_size: images of a round.
        teacher: labels them.
        seed: the run's seed.
        accelerator: device and precision.
    """

    def __init__(
        self, generator: SampleGenerator, batch_size: int, teacher: Classifier, seed: int, accelerator: Accelerator
    ) -> None:
        super().__init__(batch_size, teacher, seed, accelerator)
        self._generator = generator

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Do nothing and return no values."""
        return {}

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """The generator's images of the labels, float32 `[N, C, H, W]` in [0, 1]."""
        return self._generator.sample(labels, difficulty, rng)

    def state_dict(self) -> dict[str, Any]:
        """An empty state: nothing changes during a run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: the state is empty."""
