"""Classification accuracy score: how good a classifier the generated images make, tested on real ones.

Ravuri and Vinyals (2019). A fixed small network is trained on the generated images and their labels, and the same
network on half of the real images as the upper bound; both are tested on the other half. Each training is a run of
`teach` in the evaluation's directory, so that a killed one resumes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.configuration import load_config
from synthkd.data.samples import Samples
from synthkd.errors import DataError
from synthkd.files import write_atomically
from synthkd.metrics.suite import Score
from synthkd.metrics.utility import Proportion, proportion
from synthkd.pipelines.config import EvaluateConfig, TeachConfig
from synthkd.pipelines.run import Result
from synthkd.pipelines.teach import teach
from synthkd.rng import stream

RECIPE = {
    "model": {"arch": "convnet", "width": 16},
    "training": {
        "steps": 2000,
        "batch_size": 64,
        "optimizer": {"kind": "sgd", "lr": 0.1, "weight_decay": 5e-4, "schedule": "one_cycle"},
    },
}
"""The fixed classifier: about 26,000 parameters and 128,000 images seen."""


def classification_accuracy_scores(
    config: EvaluateConfig, generated: Sequence[Samples], real: Samples, directory: Path
) -> list[Score]:
    """One score for each generated set; where it cannot be measured the score says why.

    Args:
        config: seed, device and threads.
        generated: the sets.
        real: labelled real images; half of them train the upper bound, half test.
        directory: where the trainings keep their runs.
    """
    try:
        images, labels = _labelled(real)
    except DataError as error:
        return [_missing(one, str(error)) for one in generated]
    order = torch.randperm(len(labels), generator=stream(config.seed, "cas halves"))
    half = len(labels) // 2
    train, test = order[:half], order[half:]
    bound = _accuracy(config, directory / "real", images[train], labels[train], images[test], labels[test])
    scores = []
    for number, one in enumerate(generated):
        try:
            ours, asked = _labelled(one)
            if ours.shape[1:] != images.shape[1:] or one.class_names != real.class_names:
                raise DataError("its image size or its classes are not those of the real set")
        except DataError as error:
            scores.append(_missing(one, str(error)))
            continue
        reached = _accuracy(config, directory / f"generated.{number}", ours, asked, images[test], labels[test])
        note = f"{bound.value:.3f} [{bound.low:.3f}, {bound.high:.3f}] when trained on {half:,} real images"
        interval = (reached.low, reached.high)
        scores.append(Score("CAS", reached.value, "higher", (one.count, len(test)), interval=interval, note=note))
    return scores


def _labelled(samples: Samples) -> tuple[Tensor, Tensor]:
    """All images uint8 `[N, C, H, W]` with their labels."""
    if samples.labels is None:
        raise DataError(f"{samples.name} has no labels")
    batches = list(samples.batches(1024))
    if len({batch.shape[1:] for batch in batches}) > 1:
        raise DataError(f"{samples.name} has images of unlike sizes")
    return torch.cat(batches), samples.labels


def _accuracy(
    config: EvaluateConfig, run: Path, images: Tensor, labels: Tensor, test: Tensor, truth: Tensor
) -> Proportion:
    if len(labels.unique()) < int(truth.max()) + 1:
        raise DataError("a class of the real images has no image to train on")
    file = run.with_suffix(".npz")
    buffer = io.BytesIO()
    np.savez(buffer, images=images.numpy(), labels=labels.numpy(), test_images=test.numpy(), test_labels=truth.numpy())
    write_atomically(file, buffer.getvalue())
    shared = {"seed": config.seed, "device": config.device, "threads": config.threads}
    source = {**RECIPE, **shared, "name": "cas", "data": {"kind": "npz", "path": str(file), "holdout": 0.0}}
    result = teach(load_config(TeachConfig, source, [f"out={run}"]))
    assert isinstance(result, Result)
    file.unlink()  # as large as the images, and made again from them
    taught = result.values["teacher"]
    return proportion(round(taught["accuracy"] * taught["n"]), taught["n"])


def _missing(samples: Samples, why: str) -> Score:
    return Score("CAS", None, "higher", (samples.count,), note=why)
