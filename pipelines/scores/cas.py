"""Classification accuracy score (CAS): the accuracy on real images of a classifier trained on generated ones.

Ravuri and Vinyals (2019). A fixed small network is trained on the generated images and their labels. The same network,
trained on half of the real images, is the upper bound. Both are tested on the other half. Each training is a run of
`teach` in the evaluation's directory, so a killed evaluation resumes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.data.read.sample_set import Samples
from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError, DataError, ModelError, TrainingError
from synthkd.metrics.score import Score
from synthkd.metrics.utility import Proportion, proportion
from synthkd.pipelines.config import EvaluateConfig, TeachConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.run.timing import Work
from synthkd.pipelines.teach import teach
from synthkd.pipelines.teacher.learning import untrained, works
from synthkd.rng import stream
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.types import ImageSpec

RECIPE = {
    "model": {"arch": "convnet", "width": 16},
    "training": {
        "steps": 2000,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "lr": 0.1, "weight_decay": 5e-4, "schedule": "one_cycle"},
    },
}
"""The fixed classifier: about 26,000 parameters, trained on 128,000 images with repetitions. Scores of two evaluations
can be compared only where it is the same, so it is no setting."""
UNMEASURED = (ConfigError, DataError, ModelError, TrainingError)
"""Errors of images that the classifier cannot be trained on. They cost this score alone, not the finished others."""


def classification_accuracy_scores(
    config: EvaluateConfig, generated: Sequence[Samples], real: Samples, directory: Path
) -> list[Score]:
    """One score for each generated set; a score that cannot be measured has no value, and a note with the reason.

    Args:
        config: seed, device and threads.
        generated: the sets, with labels in terms of the real set's classes.
        real: labelled real images; one half trains the upper bound, the other tests.
        directory: of the runs.
    """
    # Without usable real images no score can be measured, and each says why; a bad generated set loses its own only.
    try:
        images, labels = _labelled(real)
        classes = labels.unique()
        order = torch.randperm(len(labels), generator=stream(config.seed, "cas halves"))
        half = len(labels) // 2
        train, test = order[:half], order[half:]
        exam = _Exam(config, classes, images[test], labels[test])
        bound = exam.accuracy(directory / f"real-{real.digest[:8]}", images[train], labels[train])
    except UNMEASURED as error:
        return [_missing(one, str(error)) for one in generated]
    note = f"{bound.value:.3f} [{bound.low:.3f}, {bound.high:.3f}] when trained on {half:,} real images"
    scores = []
    for number, one in enumerate(generated):
        try:
            own_images, own_labels = _labelled(one)
            if own_images.shape[1:] != images.shape[1:]:
                ours, theirs = ("x".join(map(str, shape[1:])) for shape in (own_images.shape, images.shape))
                raise DataError(f"its images are {ours}, the real ones {theirs} (channels x height x width)")
            # The digests in its name keep this run from being resumed by an evaluation of other images.
            run = directory / f"generated.{number}-{real.digest[:8]}-{one.digest[:8]}"
            accuracy = exam.accuracy(run, own_images, own_labels)
        except UNMEASURED as error:
            scores.append(_missing(one, str(error)))
            continue
        interval = (accuracy.low, accuracy.high)
        scores.append(Score("CAS", accuracy.value, "higher", (one.count, accuracy.n), interval=interval, note=note))
    return scores


def classifier_works(config: EvaluateConfig, real: Samples, count: int) -> list[Work]:
    """The training and the tests of `count` classifiers; none if the real images cannot be used.

    Args:
        config: seed, device and threads.
        real: labelled real images.
        count: of the classifiers.
    """
    try:
        return _works(config, *_labelled(real), count)
    except UNMEASURED:  # each score will say why it is missing
        return []


def _works(config: EvaluateConfig, images: Tensor, labels: Tensor, count: int) -> list[Work]:
    classes = int(labels.max()) + 1
    spec = ImageSpec(images.shape[1], images.shape[2], images.shape[3], classes)
    train = RealData(images, labels, spec, tuple(map(str, range(classes))), "real")
    half = replace(train, images=images[len(labels) // 2 :], labels=labels[len(labels) // 2 :])
    shared = {"seed": config.seed, "device": config.device, "threads": config.threads}
    # The dataset is not read; these images are in its place.
    teaching = load_config(TeachConfig, {**RECIPE, **shared, "data": {"kind": "digits"}}, [])
    splits = Splits(train, replace(train, images=images[:0], labels=labels[:0]), half)
    model = untrained(teaching, splits)
    each = works(teaching, splits, model, make_accelerator(teaching), "steps of classifiers")
    return [replace(work, count=count * work.count) for work in each]


def _labelled(samples: Samples) -> tuple[Tensor, Tensor]:
    """All images uint8 `[N, C, H, W]` with their labels."""
    if samples.labels is None:
        raise DataError(f"{samples.name} has no labels")
    batches = list(samples.batches(1024))
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise DataError(f"{samples.name} has images of unlike sizes")
    return torch.cat(batches), samples.labels


@dataclass(frozen=True)
class _Exam:
    """The real images that every classifier is tested on.

    Attributes:
        config: seed, device and threads.
        classes: int64 `[K]`, the labels of the real set in order.
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
    """

    config: EvaluateConfig
    classes: Tensor
    images: Tensor
    labels: Tensor

    def accuracy(self, run: Path, images: Tensor, labels: Tensor) -> Proportion:
        """The accuracy on the real images of a classifier that a run of `teach` trains.

        Test images of classes without a training image count as wrong.

        Args:
            run: directory of the run.
            images: uint8 `[N, C, H, W]` to train on.
            labels: int64 `[N]`, among the classes.

        Raises:
            DataError: labels of other classes, or fewer than two classes to train on.
            ConfigError, ModelError, TrainingError: as `teach`, e.g. for images that are too small for the classifier.
        """
        trained = self.classes[torch.isin(self.classes, labels)]
        if not torch.isin(labels, self.classes).all():
            raise DataError("it has classes without a real image")
        if len(trained) < 2:
            raise DataError("fewer than two of the real classes have images to train on")
        # A dataset numbers its classes without gaps, so the classifier has no output for classes without a training
        # image. It is tested on the images of the others, and the accuracy is then taken over all.
        testable = torch.isin(self.labels, trained)
        file = run.with_suffix(".npz")
        buffer = io.BytesIO()
        np.savez(
            buffer,
            images=images.numpy(),
            labels=torch.searchsorted(trained, labels).numpy(),
            test_images=self.images[testable].numpy(),
            test_labels=torch.searchsorted(trained, self.labels[testable]).numpy(),
        )
        write_atomically(file, buffer.getvalue())
        shared = {"seed": self.config.seed, "device": self.config.device, "threads": self.config.threads}
        data = {"kind": "npz", "path": str(file), "holdout": 0.0}
        source = {**RECIPE, **shared, "name": "cas", "out": str(run), "data": data}
        try:
            result = teach(load_config(TeachConfig, source, []))
        finally:
            file.unlink()  # as large as the images, and can be made again from them
        assert isinstance(result, Result)
        taught = result.content.teacher
        assert taught is not None
        assert taught.accuracy is not None
        assert taught.n is not None
        return proportion(round(taught.accuracy * taught.n), len(self.labels))


def _missing(samples: Samples, why: str) -> Score:
    return Score("CAS", None, "higher", (samples.count,), note=why)
