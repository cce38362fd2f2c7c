"""Scores of a generator while it is trained, on images that are sampled for them and then dropped."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from synthkd.pipelines.scores.running import SECONDS, RunningScores
from synthkd.rng import Rows
from synthkd.training.loop import Action, Values
from synthkd.types import SampleGenerator, balanced_labels

CHUNK = 128
"""Images that are sampled in one batch."""


def score_action(scores: RunningScores, generator: SampleGenerator, difficulty: float, seed: int) -> Action:
    """The action of a training that scores the generator as it is then; no later step of the run depends on it.

    Args:
        scores: measures the images, and says how many and how often.
        generator: in training.
        difficulty: of the images, in [0, 1].
        seed: of the run.
    """
    devices = [scores.device] if scores.device.type == "cuda" else []

    def score(step: int) -> Values:
        started = time.perf_counter()
        # A generator of the user may draw from torch's global generator as well.
        with torch.random.fork_rng(devices=devices):
            values = scores(*sample_for_scores(generator, scores, difficulty, seed, step))
        # The images are made for the scores alone, so their time is part of what the scores take.
        return values | {SECONDS: time.perf_counter() - started}

    return Action("score", score, scores.settings.every, after=True)


def sample_for_scores(
    generator: SampleGenerator, scores: RunningScores, difficulty: float, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Images float32 `[N, C, H, W]` and balanced labels int64 `[N]`, a function of generator, seed and step.

    Their random rows are those of no other step, and of no image of a dataset.
    """
    labels = balanced_labels(scores.settings.images, 0, scores.model.spec.classes)
    images = [
        generator.sample(part, difficulty, Rows(seed, f"score/{step}", CHUNK * number))
        for number, part in enumerate(labels.split(CHUNK))
    ]
    return torch.cat(images), labels
