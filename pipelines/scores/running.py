"""Scores of the newest generated images while a run goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.data.read.real import RealData, load_test
from synthkd.data.read.splits import Splits
from synthkd.distillation.alarms import largest_similarity, statistics_distance
from synthkd.errors import ConfigError
from synthkd.generators.settings import GeneratorSettings, MerfSettings
from synthkd.metrics.features import FeatureExtractor, Features, build_extractor, extract
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.score import ScoredSet
from synthkd.metrics.suite import FEWEST, quick_scores
from synthkd.models import Classifier
from synthkd.passes import observe_in_chunks
from synthkd.pipelines.run.images import fitted
from synthkd.reports.results import RunningScoresResult
from synthkd.rng import stream
from synthkd.settings import DataSettings, ScoreSettings, TeacherExtractor, UnlabelledData
from synthkd.training.monitor import Row
from synthkd.types import to_uint8

BATCH = 128
"""Images of a forward pass, if nothing else is said."""
OPTIONS = SuiteOptions(subsets=20)
"""Fewer subsets than an evaluation has: they give the spread of the kernel distance, which a curve does not show."""
PREFIX = "score/"
MAIN = ("FD", "FID", "precision", "recall", "IS", "label_fidelity")
"""Beginnings of the names of scores that a summary has."""
SECONDS = PREFIX + "seconds"
"""Logged name of what a measurement took."""


@dataclass(frozen=True)
class RunningScores:
    """Measures generated images; the real ones went through the networks once, when this was built.

    Attributes:
        settings: how often, and how many images.
        model: the teacher.
        extractor: gives the features of the distances.
        teacher: gives features and logits for scores of labels; may be the same object.
        real: the real images that all are compared with, or None.
        device: of the teacher.
        batch_size: largest number of images of a pass.
    """

    settings: ScoreSettings
    model: Classifier
    extractor: FeatureExtractor
    teacher: FeatureExtractor
    real: ScoredSet | None
    device: torch.device
    batch_size: int = BATCH

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor | float]:
        """The scores of generated images by logged name, and the seconds that they took.

        Without real images, or of fewer than four images, they are the Inception score, the label fidelity, the
        distance of BatchNorm means from the teacher's stored ones (in stored standard deviations) and the largest mean
        cosine between images of a class.

        Args:
            images: float32 `[N, C, H, W]` in [0, 1].
            labels: int64 `[N]`.
        """
        started = time.perf_counter()
        generated = _scored("generated", to_uint8(images), labels, self.extractor, self.teacher, self.batch_size)
        scores = quick_scores(generated, self.real if len(generated) >= FEWEST else None, OPTIONS)
        values: dict[str, Tensor | float] = {
            PREFIX + score.name.replace(" ", "_"): score.value for score in scores if score.value is not None
        }
        values |= self._without_data(images, generated)
        values[SECONDS] = time.perf_counter() - started
        return values

    def _without_data(self, images: Tensor, generated: ScoredSet) -> dict[str, Tensor | float]:
        values: dict[str, Tensor | float] = {}
        outputs = observe_in_chunks(self.model, images, self.batch_size, self.device, statistics=True)
        if (distance := statistics_distance(outputs.statistics)) is not None:
            values[PREFIX + "batch_norm_distance"] = distance
        judged = generated.teacher or generated.features
        if generated.labels is not None:
            similarity = largest_similarity(judged.values.flatten(1), generated.labels)
            values |= {} if similarity is None else {PREFIX + "similarity_within_class": similarity}
        return values

    def result(self, rows: Sequence[Row]) -> RunningScoresResult | None:
        """What the measurements of a run came to; None if there was none.

        Args:
            rows: of the log.
        """
        measured = [row for row in rows if row.get(SECONDS) is not None]
        if not measured:
            return None
        last = {
            name.removeprefix(PREFIX): float(value)
            for name, value in measured[-1].items()
            if name.startswith(PREFIX) and name != SECONDS
        }
        seconds = round(sum(float(row[SECONDS]) for row in measured), 3)
        reference, count = (None, 0) if self.real is None else (self.real.name, len(self.real))
        return RunningScoresResult(last, len(measured), seconds, self.extractor.name, reference, count)


def build_scores(
    settings: ScoreSettings,
    teacher: Classifier,
    generator: GeneratorSettings,
    splits: Splits | None,
    device: torch.device,
    seed: int,
    training: Sequence[DataSettings | UnlabelledData] = (),
    batch_size: int = BATCH,
) -> RunningScores:
    """Build the networks, and take the features of the real images.

    Images from which the generator learns privately are compared with nothing: a score would release something of them
    without noise.

    Args:
        settings: how often, how many images, which network and which real images.
        teacher: judges labels, and is the network of the features if the settings name none.
        generator: settings of the generator whose images are scored.
        splits: the real images of the run, or None.
        device: of the networks.
        seed: of the choice among the real images.
        training: the datasets that the run trains on.
        batch_size: largest number of images of a pass.

    Raises:
        SynthkdError: a feature network or real images that cannot be loaded, or images of another size than the
            teacher's, or with other classes, or fewer than four.
    """
    of_teacher = build_extractor(TeacherExtractor(kind="teacher"), device, teacher)
    extractor = of_teacher if settings.features is None else build_extractor(settings.features, device, teacher)
    real = None
    visible = None if isinstance(generator, MerfSettings) else splits
    if (data := _reference(settings, visible, teacher, training)) is not None:
        order = torch.randperm(len(data), generator=stream(seed, "score reference"))[: settings.images]
        real = _scored(data.name, data.images[order], data.labels[order], extractor, of_teacher, batch_size)
    return RunningScores(settings, teacher, extractor, of_teacher, real, device, batch_size)


def scores_in_words(result: RunningScoresResult) -> str:
    """The main ones of the last scores, and what they were compared with, in a line."""
    main = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.last.items() if name.startswith(MAIN)]
    against = "" if result.reference is None else f", against {result.reference_n:,} images of {result.reference}"
    return f"{', '.join(main)} at the end of the training{against}"


def _reference(
    settings: ScoreSettings,
    splits: Splits | None,
    teacher: Classifier,
    training: Sequence[DataSettings | UnlabelledData],
) -> RealData | None:
    """The public test images of the settings, else the held-out images of the run, else its training images.

    None: the run has too few real images for any score.
    """
    if settings.real is not None:
        test = load_test(settings.real, training)
        if len(test) < FEWEST:
            raise ConfigError(
                f"score.real: {test.name} has {len(test) or 'no'} test images; leave score.real.test out for all "
                f"images, or name a set of at least {FEWEST}"
            )
        return fitted("score.real", test, teacher.spec, teacher.class_names, lacks_classes=True)
    if splits is None:
        return None
    part = splits.holdout if len(splits.holdout) >= max(FEWEST, teacher.spec.classes) else splits.train
    return part if len(part) >= FEWEST else None


def _scored(
    name: str, images: Tensor, labels: Tensor, extractor: FeatureExtractor, teacher: FeatureExtractor, batch_size: int
) -> ScoredSet:
    def features(network: FeatureExtractor) -> Features:
        return extract([images], network, batch_size)

    taken = features(extractor)
    return ScoredSet(name, taken, labels.cpu(), taken if teacher is extractor else features(teacher))
