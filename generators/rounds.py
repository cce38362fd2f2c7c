"""Base class of the generators whose round is a call of `fit` and then a batch of samples, labelled by the teacher."""

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
from synthkd.processes import Processes
from synthkd.rng import Rows
from synthkd.types import ImageSpec, Round, SampleGenerator, balanced_labels, repeats, takes_labels


def agreed_spec(
    kind: str, teacher: Classifier | None, train: RealData | None, spec: ImageSpec | None = None
) -> ImageSpec:
    """The one image spec of the teacher, the real data and the generator; any of the three may be None.

    Args:
        kind: kind of the generator, for the error.
        teacher: the frozen teacher.
        train: real images to learn from.
        spec: spec that the generator itself was given.

    Raises:
        ConfigError: the specs differ, or all three are None.
    """
    candidates = {
        "the generator": spec,
        "the teacher": None if teacher is None else teacher.spec,
        "the real data": None if train is None else train.spec,
    }
    specs = {owner: value for owner, value in candidates.items() if value is not None}
    if len(set(specs.values())) != 1:
        got = "; ".join(f"{owner}: {value}" for owner, value in specs.items()) or "neither teacher nor real data"
        raise ConfigError(f"{kind}: teacher and real data must have the same images and classes, got {got}")
    return next(iter(specs.values()))


def labelling_teacher(teacher: nn.Module, spec: ImageSpec | None, train: RealData | None) -> Classifier:
    """The teacher as a classifier; one that is none yet has the images and classes of the generator or of real data.

    Args:
        teacher: any network from images to logits.
        spec: of the generator itself.
        train: real images.

    Raises:
        ModelError: nothing tells the images and classes of the teacher.
    """
    if isinstance(teacher, Classifier):
        return teacher
    return as_classifier(teacher, train.spec if spec is None and train is not None else spec)


def require_real_data(source: EpochSource | None) -> EpochSource:
    """The batches of real images.

    Raises:
        ConfigError: there are none, because the generator was restored without real data.
    """
    if source is None:
        raise ConfigError(
            "this generator was saved to be sampled from and has no real data to learn from; train one anew"
        )
    return source


class SampledRounds(ABC):
    """A generator whose round is `fit`, then `batch_size` samples of balanced labels with the teacher's logits.

    A subclass implements `fit` and `sample`.

    Attributes:
        for_labels: whether samples are images of the labels that were asked for; else the labels of a round are the
            teacher's predictions.

    Args:
        batch_size: images of a round.
        teacher: the frozen teacher, which gives the logits of a round's images; None for a generator that is only
            fitted and sampled.
        seed: the run's seed.
        accelerator: device and precision.
    """

    for_labels: bool = True

    def __init__(self, batch_size: int, teacher: Classifier | None, seed: int, accelerator: Accelerator) -> None:
        self._batch_size = batch_size
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator
        self._device = accelerator.device
        self._processes = Processes.of(accelerator)

    @abstractmethod
    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Take the training steps of round `index` and return values for the log, by name."""

    @abstractmethod
    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images float32 `[N, C, H, W]` in [0, 1] of the labels int64 `[N]`; image i uses row `rng.start + i`."""

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: `fit`, then `batch_size` images with balanced labels.

        Arguments and further errors are those of `fit`.

        Raises:
            ConfigError: the generator has no teacher.
            ModelError: the teacher's logits are not finite.
        """
        if self._teacher is None:
            raise ConfigError("a round gives the teacher's logits of its images, and this generator has no teacher")
        # Training first, so that the images of a round are of the newest weights.
        terms = self.fit(index, difficulty, student)
        # Rows and labels go on where the last round ended: no image repeats, and labels stay balanced over rounds.
        first = index * self._batch_size
        labels = balanced_labels(self._batch_size, first, self._teacher.spec.classes).to(self._device)
        images = self._processes.samples(
            lambda part, place: self._round_images(part, difficulty, Rows(self._seed, "round", first + place), student),
            labels,
        )
        logits = teacher_logits(self._teacher, images, self._accelerator.autocast)
        return Round(images, labels if self.for_labels else logits.argmax(dim=1), logits, terms)

    def _round_images(self, labels: Tensor, difficulty: float, rng: Rows, student: nn.Module | None) -> Tensor:
        """The images of a round. A subclass whose samples depend on the current student overrides this."""
        return self.sample(labels, difficulty, rng)


class Fixed(SampledRounds):
    """Rounds of samples from a generator that is trained already.

    Args:
        generator: the generator that is sampled.
        batch_size: images of a round.
        teacher: gives the logits of those images.
        seed: the run's seed.
        accelerator: device and precision.

    Attributes:
        repeats: whether samples are images of earlier rounds of that generator.
    """

    def __init__(
        self, generator: SampleGenerator, batch_size: int, teacher: Classifier, seed: int, accelerator: Accelerator
    ) -> None:
        super().__init__(batch_size, teacher, seed, accelerator)
        self._generator = generator
        self.repeats, self.for_labels = repeats(generator), takes_labels(generator)

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
