"""A data-free generator for teachers without BatchNorm: drawn images, moved in pixel space towards classes.

Without stored statistics nothing says what an image looks like, so images start from drawn ones (or from earlier
results), and a few smoothed gradient steps on their logits lead them to targets: a class, a mixture of two classes that
the teacher's last layer holds for similar, or a Dirichlet sample around a class (ZSKD, Nayak et
al. 2019). A share of every round is kept as drawn, for the teacher to label.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.generators.objective import STUDENT_TERMS, GeneratedView, judging
from synthkd.generators.procedural import EPSILON, ToneCurve, draw, fit_tone_curve
from synthkd.generators.settings import PixelSettings
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.layout import head
from synthkd.rng import Rows, numpy_stream, stream
from synthkd.taps import evaluating
from synthkd.training.learner import require_finite
from synthkd.types import Round, balanced_labels

CALIBRATION = 512
"""Drawn images on which the tone curve is fitted."""
REMEMBERED = 1024
"""Earlier results that later rounds may start from."""


def class_similarity(teacher: Classifier) -> Tensor:
    """Cosine of the last layer's weight rows after their mean is taken off, float32 `[K, K]`.

    As in ZSKD, but with the mean removed: what all classes share says nothing about which are alike.

    Raises:
        ModelError: when the teacher does not end in a linear layer with one row for each class.
    """
    layer = teacher.get_submodule(head(teacher))
    weight = layer.weight
    if not isinstance(weight, Tensor) or weight.shape[0] != teacher.spec.classes:
        raise ModelError(
            "similar classes are read off a last linear layer with one row a class, which the teacher lacks"
        )
    rows = F.normalize((weight - weight.mean(0)).detach().float().cpu(), dim=1)
    return rows @ rows.T


class Pixels:
    """The pixel-space generator of one teacher.

    Args:
        settings: shares, steps and rates.
        teacher: the frozen teacher; it is only read.
        seed: the run's seed.
        accelerator: device and precision.
    """

    def __init__(self, settings: PixelSettings, teacher: Classifier, seed: int, accelerator: Accelerator) -> None:
        self.settings = settings
        self.spec = teacher.spec
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator
        self._similarity = class_similarity(teacher)
        self._tone = self._calibrate()
        self._earlier = torch.empty(0, *self.spec.shape)
        terms = {"one_hot": lambda view: F.cross_entropy(view.teacher.logits, view.labels), **STUDENT_TERMS}
        weights = {"one_hot": 1.0, **{name: getattr(settings, name) for name in STUDENT_TERMS}}
        self._objective: Objective[GeneratedView] = Objective(terms, weights)

    def _calibrate(self) -> ToneCurve:
        """To the mean and deviation the teacher normalises by; as drawn where it does not normalise."""
        mean, std = (v.mean().item() for v in (self._teacher.normalize.mean, self._teacher.normalize.std))
        if (mean, std) == (0.0, 1.0):
            return ToneCurve()
        return fit_tone_curve(draw(CALIBRATION, self.spec, Rows(self._seed, "calibrate")), mean, std)

    def _draw(self, count: int, rng: Rows) -> Tensor:
        return self._tone(draw(count, self.spec, rng))

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: `batch_size` images, the first of them moved to targets, the last kept as drawn.

        Args:
            index: number of the round.
            difficulty: in [0, 1], scales the adversarial term.
            student: takes part in the adversarial term, unchanged; None leaves that term out.

        Raises:
            TrainingError: when a loss is not finite.
        """
        s = self.settings
        kept = round(s.drawn * s.batch_size)
        moved = s.batch_size - kept
        fresh = self._draw(s.batch_size, Rows(self._seed, "draw", index * s.batch_size))
        start = fresh[:moved].clone()
        again = min(round(s.restart * moved), len(self._earlier))
        if again:
            rows = torch.randint(len(self._earlier), (again,), generator=stream(self._seed, "restart", index))
            start[:again] = self._earlier[rows]
        targets = self._targets(moved, index)
        images, terms = self._move(start, targets, difficulty, student, index)
        self._earlier = torch.cat([self._earlier, images.cpu()])[-REMEMBERED:]
        everything = torch.cat([images, fresh[moved:].to(images.device)])
        with torch.no_grad(), evaluating(self._teacher), self._accelerator.autocast():
            logits = finite_logits(self._teacher(everything).float())
        labels = logits.argmax(1)
        labels[:moved] = targets.argmax(1).to(labels.device)
        return Round(everything, labels, logits, terms)

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the asked labels, moved there from drawn ones; a function of label and row.

        Difficulty shortens the way: an easy image takes all of `sample_steps`, the hardest half of them, and so stays
        nearer to the drawn image, on which teacher and student are less sure.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1].
            rng: random rows; image i starts from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        targets = F.one_hot(labels.cpu(), self.spec.classes).float()
        steps = max(1, round(self.settings.sample_steps * (1.0 - 0.5 * difficulty)))
        return self._move(self._draw(len(labels), rng), targets, 0.0, None, 0, steps)[0]

    def _targets(self, count: int, index: int) -> Tensor:
        """Probabilities `[count, K]`: half one-hot, a quarter Dirichlet, a quarter mixtures of two similar classes."""
        classes, rng = self.spec.classes, numpy_stream(self._seed, "targets", index)
        labels = balanced_labels(count, index * count, classes)
        targets = F.one_hot(labels, classes).float()
        kind = torch.from_numpy(rng.random(count))
        nearness = (self._similarity - self._similarity.min()) / (1.0 - self._similarity.min()).clamp_min(1e-6)
        beta = torch.from_numpy(rng.choice([1.0, 0.1], (count, 1)))
        gammas = torch.from_numpy(rng.standard_gamma((nearness[labels].double() * beta * classes + 1e-2).numpy()))
        dirichlet = (gammas / gammas.sum(1, keepdim=True).clamp_min(1e-12)).float()
        others = torch.softmax(self._similarity / 0.1 - 1e9 * torch.eye(classes), dim=1)[labels]
        chosen = (others.cumsum(1) < torch.from_numpy(rng.random((count, 1)))).sum(1).clamp_max(classes - 1)
        share = torch.from_numpy(rng.random((count, 1))).float()
        pairs = share * targets + (1 - share) * F.one_hot(chosen, classes)
        targets = torch.where(((kind >= 0.5) & (kind < 0.75)).unsqueeze(1), dirichlet, targets)
        return torch.where((kind >= 0.75).unsqueeze(1), pairs, targets)

    def _move(
        self,
        start: Tensor,
        targets: Tensor,
        difficulty: float,
        student: nn.Module | None,
        index: int,
        steps: int | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Normalised, blurred gradient steps with momentum on the images' logits; each image moves on its own."""
        s = self.settings
        position = torch.logit(start, EPSILON).to(self._accelerator.device)
        targets = targets.to(position.device)
        velocity = torch.zeros_like(position)
        terms: dict[str, float] = {}
        with judging(self._teacher, student, self._accelerator.autocast, s.semantic > 0) as look:
            for _ in range(s.steps if steps is None else steps):
                position.requires_grad_(True)
                view = look(torch.sigmoid(position), targets, difficulty)
                loss = self._objective(view, 0, 1)
                require_finite(loss, "generator", index, "round")
                # a mean over images has gradients that differ by a factor alone, which the normalisation takes out
                (gradient,) = torch.autograd.grad(loss.total, position)
                gradient = _blur(gradient)
                gradient = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-20)
                velocity = s.momentum * velocity + gradient
                position = (position - s.step_size * velocity).detach()
                terms = {f"generator/{name}": float(part.detach()) for name, part in loss.terms.items()}
        return torch.sigmoid(position), terms

    def save(self, directory: Path) -> None:
        """Nothing: an image that is asked for starts from a drawn one, and only the teacher moves it."""

    def restore(self, directory: Path) -> None:
        """Nothing, likewise."""

    def state_dict(self) -> dict[str, Any]:
        return {"earlier": self._earlier.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._earlier = state["earlier"].clone()


def _blur(images: Tensor) -> Tensor:
    """The 5x5 binomial filter on each channel."""
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16.0
    channels = images.shape[1]
    kernel = torch.outer(row, row).expand(channels, 1, 5, 5)
    return F.conv2d(images, kernel, padding=2, groups=channels)
