"""Scores of a candidate for the student: its agreement with the teacher after a short training, and its cost."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.compression.pareto import Scores
from synthkd.distillation.step import DistillStep, TransferBatches
from synthkd.distillation.student import Student
from synthkd.errors import TrainingError
from synthkd.metrics.utility import accuracy, predict
from synthkd.models.classifier import Classifier
from synthkd.models.cost import cost
from synthkd.rng import derive
from synthkd.settings import DistillSettings, ZooModel
from synthkd.taps import evaluating
from synthkd.training.learner import Learner

Evaluate = Callable[[ZooModel], Scores]
"""Candidate -> its scores."""


ENERGY_SECONDS = 0.5
"""Time for which a candidate runs for the energy counter, if the machine has one."""


def proxy_evaluator(
    source: TransferBatches,
    held_out: Tensor,
    teacher_logits: Tensor,
    builder: Callable[[ZooModel], Classifier],
    steps: int,
    seed: int,
    accelerator: Accelerator,
    settings: DistillSettings | None = None,
    threads: int = 1,
) -> Evaluate:
    """A function that trains a candidate for some steps and scores it; all have the same seed and the same batches.

    The proxy of the accuracy is the agreement with the teacher on held-out synthetic images. It ranks candidates and is
    not the accuracy of a finished student. A candidate whose training diverges has an agreement of 0.

    Args:
        source: batches of stored images with teacher logits.
        held_out: images `[N, C, H, W]`, uint8 or float, that are not in the source.
        teacher_logits: the teacher's logits `[N, K]` of the held-out images.
        builder: builds an untrained candidate.
        steps: of the training.
        seed: of weights and dropout.
        accelerator: device and precision, used by the candidates only.
        settings: loss and optimiser; None: the defaults.
        threads: of torch while latency and energy of one image are measured.
    """
    settings, expected = settings or DistillSettings(), teacher_logits.argmax(dim=1).cpu()

    def evaluate(candidate: ZooModel) -> Scores:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "candidate"))
            model = builder(candidate)
            # Measured before the learner prepares the model for training, which may change its precision and layout.
            spent = cost(model, accelerator.device, threads=threads, energy_seconds=ENERGY_SECONDS)
            learner = Learner("candidate", model, settings.optimizer, steps, accelerator)
            step = DistillStep([Student(learner, settings, accelerator)], source, accelerator)
            try:
                for number in range(steps):
                    step(number)
                with evaluating(model):
                    agreed = accuracy(predict(model, held_out, accelerator.device), expected).value
            except TrainingError:  # a candidate that diverges is a poor one; the search goes on
                agreed = 0.0
        accelerator.free_memory()  # the accelerator would keep every candidate
        return Scores(agreed, spent.latency.median_ms, spent.bytes, spent.energy.joules)

    return evaluate
