"""A data-free generator for teachers without BatchNorm: drawn images, moved in pixel space towards classes.

Such a teacher stores no statistics of images to match. So images start from drawings (or from results of earlier
rounds), and a few smoothed gradient steps move them towards target probabilities: a class, a mixture of two classes
that are similar in the teacher's last layer, or a Dirichlet sample around a class (ZSKD, Nayak et al. 2019). A share of
every round stays as drawn, with the teacher's prediction as label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.generators.local import autocast_of, local_accelerator
from synthkd.generators.procedural import EPSILON, ToneCurve, draw, fit_tone_curve
from synthkd.generators.settings import PixelSettings
from synthkd.generators.teacher_student import STUDENT_TERMS, TEACHER_TERMS, JointOutputs, joint_forward, teacher_logits
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Classifier, as_classifier
from synthkd.models.layout import head
from synthkd.passes import sample_in_chunks
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.rng import Rows, numpy_stream, stream
from synthkd.training.learner import require_finite
from synthkd.types import ImageSpec, Round, balanced_labels

CALIBRATION = 512
"""Drawn images on which the tone curve is fitted; fewer if they have more than CALIBRATION_SIDE pixels a side."""
CALIBRATION_LEAST, CALIBRATION_SIDE = 64, 64
"""Smallest number of them, and the side from which on pixels are left out."""
REMEMBERED, REMEMBERED_BYTES = 1024, 256 * 2**20
"""Results of earlier rounds from which later rounds may start, and the bytes that they may take."""
RESTART = 0.5
"""Share of the moved images that start from results of earlier rounds: these are moved further, over many rounds, while
the others, which start from drawn images, bring in new shapes."""
STEP_SIZE = 0.2
"""Root mean square of a step, in units of the pixels' logits. The few steps of a round then change an image visibly;
smaller ones were no better (docs/benchmarks.md)."""
MOMENTUM = 0.7
"""Weight of the earlier steps in a step: momentum of normalised gradients, as in MI-FGSM (Dong et al. 2018, equation
6), which also moves images by a few steps. The 1 that MI-FGSM takes would never forget the first step."""


def class_similarity(teacher: Classifier) -> Tensor:
    """Cosine similarity of the rows of the last layer's weight after subtraction of their mean, float32 `[K, K]`.

    ZSKD does not subtract the mean. It is common to all classes, so it does not tell which ones are similar.

    Raises:
        ModelError: the teacher does not end in a linear layer with one row for each class.
    """
    layer = teacher.get_submodule(head(teacher))
    weight = layer.weight
    if not isinstance(weight, Tensor) or weight.shape[0] != teacher.spec.classes:
        raise ModelError(
            "the pixels generator reads which classes are similar off a last linear layer with one row for each class, "
            "which the teacher lacks; take another generator.kind"
        )
    rows = F.normalize((weight - weight.mean(0)).detach().float().cpu().flatten(1), dim=1)
    return rows @ rows.T


class Pixels:
    """The pixel-space generator of one teacher.

    Args:
        settings: shares, steps and weights.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.

    Raises:
        ModelError: the teacher does not end in a linear layer with one row for each class, or its images and classes
            are unknown.
    """

    def __init__(
        self,
        settings: PixelSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        teacher = as_classifier(teacher, spec)
        accelerator = local_accelerator(accelerator, teacher)
        self.settings = settings
        self.spec = teacher.spec
        self._teacher = teacher
        self._seed = seed
        self._device = accelerator.device
        self._autocast = autocast_of(accelerator)
        self._processes = Processes.of(accelerator)
        self._similarity = class_similarity(teacher)
        self._tone = self._tone_curve()
        self._earlier = torch.empty(0, *self.spec.shape)
        self._bytes_of_image = self._earlier.element_size() * math.prod(self.spec.shape)
        self._remembered = max(1, min(REMEMBERED, REMEMBERED_BYTES // self._bytes_of_image))
        terms = {"one_hot": TEACHER_TERMS["one_hot"], **STUDENT_TERMS}
        weights = {"one_hot": 1.0, **{name: getattr(settings, name) for name in STUDENT_TERMS}}
        self._objective: Objective[JointOutputs] = Objective(terms, weights)

    @property
    def earlier_bytes(self) -> int:
        """Most bytes of the results of earlier rounds."""
        return self._remembered * self._bytes_of_image

    def _tone_curve(self) -> ToneCurve:
        """The curve that gives drawings the mean and deviation of the teacher's training images.

        Most teachers that normalise their input store both; for others the curve changes nothing.
        """
        normalize = self._teacher.normalize
        if not normalize.is_of_images:
            return ToneCurve()
        mean, std = normalize.mean.mean().item(), normalize.std.mean().item()
        # A hundred steps on all pixels of 512 images of 224 pixels would take minutes.
        area, side = self.spec.height * self.spec.width, min(self.spec.height, self.spec.width)
        count = max(CALIBRATION_LEAST, min(CALIBRATION, CALIBRATION * CALIBRATION_SIDE**2 // area))
        stride = max(1, side // CALIBRATION_SIDE)
        images = draw(count, self.spec, Rows(self._seed, "calibrate"))[..., ::stride, ::stride]
        return fit_tone_curve(images, mean, std)

    def _draw(self, count: int, rng: Rows) -> Tensor:
        return self._tone(draw(count, self.spec, rng))

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: `batch_size` images, the first of them moved to targets, the others as drawn.

        Args:
            index: number of the round.
            difficulty: in [0, 1], scales the terms that oppose the student.
            student: compared with the teacher by the student's terms, unchanged; None leaves those terms out.

        Returns:
            The images, their labels (the likeliest class of a moved image's target, the teacher's prediction for the
            others), the teacher's logits and the terms of the last step.

        Raises:
            ModelError: the teacher's logits are not finite.
            TrainingError: a loss is not finite.
        """
        s = self.settings
        count = max(1, s.batch_size - round(s.drawn * s.batch_size))  # a loss of no image is not finite
        drawings = self._draw(s.batch_size, Rows(self._seed, "draw", index * s.batch_size))
        start = drawings[:count].clone()
        # Images that start from earlier results take further steps, so a few steps a round add up to many.
        restarts = min(round(RESTART * count), len(self._earlier))
        if restarts:
            rows = torch.randint(len(self._earlier), (restarts,), generator=stream(self._seed, "restart", index))
            start[:restarts] = self._earlier[rows]
        targets = self._targets(count, index)
        results, terms = self._move(start, targets, s.steps, difficulty, student, index, self._processes)
        # On the CPU, where the device's memory is not taken and a checkpoint stores them as they are.
        self._earlier = torch.cat([self._earlier, results.cpu()])[-self._remembered :]
        images = torch.cat([results, drawings[count:].to(results.device)])
        logits = teacher_logits(self._teacher, images, self._autocast)
        labels = torch.cat([targets.argmax(1).to(logits.device), logits[count:].argmax(1)])
        return Round(images, labels, logits, terms)

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Drawings moved to the labels; image i is a function of its label and row alone.

        At difficulty 0 an image takes all of the steps. At difficulty 1 it takes half of them and stays nearer to its
        drawing, where the predictions of teacher and student are less certain.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1].
            rng: random rows; image i starts from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].

        Raises:
            ModelError: the teacher's logits are not finite.
        """
        targets = F.one_hot(labels.cpu(), self.spec.classes).float()
        steps = max(1, round(self.settings.sample_steps * (1.0 - 0.5 * difficulty)))

        def move(numbers: Tensor, rows: Rows) -> Tensor:
            return self._move(self._draw(len(numbers), rows), targets[numbers], steps)[0]

        return sample_in_chunks(move, self.settings.batch_size, torch.arange(len(labels)), rng)

    def _targets(self, count: int, index: int) -> Tensor:
        """Probabilities `[count, K]`: half one-hot, a quarter Dirichlet, a quarter mixtures of two similar classes."""
        # Every kind is computed for every image and one is taken at the end: the numbers drawn do not depend on kinds.
        classes, rng = self.spec.classes, numpy_stream(self._seed, "targets", index)
        labels = balanced_labels(count, index * count, classes)
        one_hot = F.one_hot(labels, classes).float()
        kind = torch.from_numpy(rng.random((count, 1)))
        # Dirichlet: gamma numbers whose parameters grow with the similarity to the label's class, divided by their sum.
        # The smaller beta (ZSKD has these two) gives sharper targets. The summand keeps every parameter above 0.
        lowest = self._similarity.min()
        similarity = (self._similarity - lowest) / (1.0 - lowest).clamp_min(1e-6)
        beta = torch.from_numpy(rng.choice([1.0, 0.1], (count, 1)))
        gammas = torch.from_numpy(rng.standard_gamma((similarity[labels].double() * beta * classes + 1e-2).numpy()))
        dirichlet = (gammas / gammas.sum(1, keepdim=True).clamp_min(1e-12)).float()
        # Mixtures: the second class is drawn by the softmax of its similarity (inverse transform sampling); the huge
        # number excludes the label itself.
        others = torch.softmax(self._similarity / 0.1 - 1e9 * torch.eye(classes), dim=1)[labels]
        second = (others.cumsum(1) < torch.from_numpy(rng.random((count, 1)))).sum(1).clamp_max(classes - 1)
        share = torch.from_numpy(rng.random((count, 1))).float()
        mixtures = share * one_hot + (1 - share) * F.one_hot(second, classes)
        return torch.where(kind < 0.5, one_hot, torch.where(kind < 0.75, dirichlet, mixtures))

    @torch.enable_grad()  # samples may be asked for without gradients
    def _move(
        self,
        start: Tensor,
        targets: Tensor,
        steps: int,
        difficulty: float = 0.0,
        student: nn.Module | None = None,
        index: int = 0,
        processes: Processes = ONE_PROCESS,
    ) -> tuple[Tensor, dict[str, float]]:
        """Normalised, blurred gradient steps with momentum; each image moves on its own."""
        s = self.settings
        # Steps are on the logits of pixels, so that pixels stay in (0, 1) without a clamp, which has no gradient.
        position = torch.logit(start, EPSILON).to(self._device)
        targets = targets.to(position.device)
        velocity = torch.zeros_like(position)
        terms: dict[str, float] = {}
        with joint_forward(self._teacher, student, self._autocast, s.semantic > 0, processes=processes) as forward:
            for _ in range(steps):
                position.requires_grad_(True)
                loss = self._objective(forward(torch.sigmoid(position), targets, difficulty), 0, 1)
                require_finite(loss, "generator", index, "round")
                (gradient,) = torch.autograd.grad(loss.total, position)
                # A raw gradient changes single pixels: noise that the teacher follows and no real image has.
                gradient = _blur(gradient)
                # Each image's step has one length, whatever the loss and the batch size (a mean has a factor 1 / N).
                gradient = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-20)
                velocity = MOMENTUM * velocity + gradient
                position = (position - STEP_SIZE * velocity).detach()
                terms = {f"generator/{name}": float(part.detach()) for name, part in loss.terms.items()}
        return torch.sigmoid(position), terms

    def save(self, directory: Path) -> None:
        """Write nothing: sampling needs the settings, the seed and the teacher alone."""

    def restore(self, directory: Path) -> None:
        """Read nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Results of earlier rounds, `earlier`: float32 `[M, C, H, W]` on the CPU."""
        return {"earlier": self._earlier.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._earlier = state["earlier"].clone()


def _blur(images: Tensor) -> Tensor:
    """Images `[N, C, H, W]` filtered with the 5x5 binomial kernel, channel by channel."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16.0
    channels = images.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 5, 5)
    return F.conv2d(images, kernel, padding=2, groups=channels)
