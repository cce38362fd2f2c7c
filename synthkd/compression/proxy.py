"""Scores of a candidate for the student: its agreement with the teacher after a short training, and its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.compression.pareto import Scores
from synthkd.distillation.step import DistillStep, TransferBatches
from synthkd.distillation.student import Student
from synthkd.errors import TrainingError
from synthkd.metrics.utility import accuracy, predict
from synthkd.models.classifier import Classifier
from synthkd.models.cost import Cost, cost
from synthkd.rng import derive
from synthkd.settings import DistillSettings, ZooModel
from synthkd.taps import evaluating
from synthkd.training.learner import Learner

Evaluate = Callable[[ZooModel], Scores]
"""Candidate -> its scores."""


ENERGY_SECONDS = 0.5
"""Time for which a candidate runs for the energy counter, if the machine has one."""


@dataclass(frozen=True)
class Proxy:
    """Scores candidates; all have the same seed and the same batches, so their order does not matter.

    The proxy of the accuracy is the agreement with the teacher on held-out synthetic images. It ranks candidates and is
    not the accuracy of a finished student.

    Attributes:
        source: batches of stored images with teacher logits.
        held_out: images `[N, C, H, W]`, uint8 or float, that are not in the source.
        expected: int64 `[N]`, the teacher's classes of the held-out images.
        builder: builds an untrained candidate.
        steps: of the training.
        seed: of weights and dropout.
        accelerator: device and precision, used by the candidates only.
        settings: loss and optimiser.
        threads: of torch while latency and energy of one image are measured.
    """

    source: TransferBatches
    held_out: Tensor
    expected: Tensor
    builder: Callable[[ZooModel], Classifier]
    steps: int
    seed: int
    accelerator: Accelerator
    settings: DistillSettings
    threads: int

    def __call__(self, candidate: ZooModel) -> Scores:
        """Measure a candidate, and train it."""
        return self.scores(self.agreement(candidate), self.cost(candidate))

    def cost(self, candidate: ZooModel) -> Cost:
        """Size, latency and energy of a candidate, which its training does not change."""
        with torch.random.fork_rng(devices=[]):
            # As it is built: a learner may change precision and layout of a model.
            model = self._built(candidate)
            return cost(model, self.accelerator.device, threads=self.threads, energy_seconds=ENERGY_SECONDS)

    def agreement(self, candidate: ZooModel) -> float:
        """Share of the held-out images on which a candidate agrees with the teacher after its training, 0 to 1.

        It is 0 if the training diverges.
        """
        accelerator = self.accelerator
        with torch.random.fork_rng(devices=[]):
            model = self._built(candidate)
            learner = Learner("candidate", model, self.settings.optimizer, self.steps, accelerator)
            step = DistillStep([Student(learner, self.settings, accelerator)], self.source, accelerator)
            try:
                for number in range(self.steps):
                    step(number)
                with evaluating(model):
                    agreed = accuracy(predict(model, self.held_out, accelerator.device), self.expected).value
            except TrainingError:  # a candidate that diverges is a poor one; the search goes on
                agreed = 0.0
        accelerator.free_memory()  # the accelerator would keep every candidate
        return agreed

    @staticmethod
    def scores(agreement: float, spent: Cost) -> Scores:
        """The scores of a candidate."""
        return Scores(agreement, spent.latency.median_ms, spent.bytes, spent.energy.joules)

    def _built(self, candidate: ZooModel) -> Classifier:
        torch.manual_seed(derive(self.seed, "candidate"))
        return self.builder(candidate)


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
) -> Proxy:
    """A function that trains a candidate for some steps and scores it.

    Args:
        teacher_logits: the teacher's logits `[N, K]` of the held-out images.
        settings: loss and optimiser; None: the defaults.
        source, held_out, builder, steps, seed, accelerator, threads: see `Proxy`.
    """
    expected = teacher_logits.argmax(dim=1).cpu()
    return Proxy(source, held_out, expected, builder, steps, seed, accelerator, settings or DistillSettings(), threads)
