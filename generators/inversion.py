"""A data-free generator: a small network trained against the frozen teacher, one round at a time.

Each round clones the shared network, adapts the clone and the latent vectors for a few steps to one batch of labels,
keeps the batch's images, and moves the shared network by the gradients the clone met on its way (the first-order
meta-update of FastDFKD, Fang et al. 2022, algorithm 1). The clone gives variety between rounds, the shared start makes
a round cost a handful of steps.

It is conditional on the class through its latent vectors, which are moved until the teacher sees the asked label: in a
round together with the network, afterwards alone. A label embedding was tried: the network then answers with much the
same image for each class, and students came out several points worse.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError, TrainingError
from synthkd.generators.objective import PENULTIMATE, STUDENT_TERMS, GeneratedView, judging
from synthkd.generators.settings import ALONE, InversionSettings
from synthkd.losses import inversion as losses
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.size import in_proportion
from synthkd.models.weights import WEIGHTS, finite_state, load_strictly, read_weights, save_weights
from synthkd.rng import Rows, derive
from synthkd.taps import evaluating, frozen, has_statistics
from synthkd.training.learner import require_finite
from synthkd.types import BatchNormStatistics, ImageSpec, Outputs, Round, balanced_labels

SAMPLE_STEPS = 10
SAMPLE_RATE = 0.1
"""Steps and learning rate that move a latent vector to its label when the finished network is sampled."""


class GeneratorNetwork(nn.Module):
    """Latent vectors `[N, latent]` to images `[N, C, H, W]` in (0, 1).

    A linear layer to a map at a quarter of the image's size, then twice: nearest upsampling, 3x3 convolution,
    BatchNorm, leaky ReLU. Sizes that are no multiple of 4 are cropped from the next multiple.
    """

    def __init__(self, spec: ImageSpec, latent: int, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.start = (2 * width, -(-spec.height // 4), -(-spec.width // 4))
        self.project = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        self.layers = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, spec.channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.project(latent).unflatten(1, self.start)
        images: Tensor = self.layers(hidden.contiguous(memory_format=torch.channels_last))
        return images[..., : self.spec.height, : self.spec.width]


def assigned(labels: Tensor, logits: Tensor) -> Tensor:
    """The same labels in the order in which the images take to them most: the assignment of largest log-likelihood.

    Args:
        labels: int64 `[N]`, the labels asked for, in any order.
        logits: the teacher's answers to the N images as they are, `[N, K]`.

    Returns:
        int64 `[N]`, a permutation of `labels`; labels[i] is image i's.
    """
    gain = F.log_softmax(logits.detach().double(), dim=1)[:, labels].cpu()
    _, chosen = linear_sum_assignment(gain.numpy(), maximize=True)
    return labels[torch.from_numpy(chosen).to(labels.device)]


class Inversion:
    """The data-free generator of one teacher.

    Args:
        settings: sizes, rates and weights of the losses.
        teacher: the frozen teacher; it is only read.
        seed: the run's seed.
        accelerator: device and precision.

    Raises:
        ModelError: when BatchNorm matching is asked of a teacher that has no BatchNorm statistics.
    """

    def __init__(self, settings: InversionSettings, teacher: Classifier, seed: int, accelerator: Accelerator) -> None:
        self.settings = settings
        self.spec = teacher.spec
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator
        self._device = accelerator.device
        if settings.batch_norm > 0 and not any(has_statistics(m) for m in teacher.modules()):
            raise ModelError(
                "the teacher has no BatchNorm statistics, which generator.batch_norm matches: set "
                "generator.kind=pixels, or generator.batch_norm=0 and rely on the other terms"
            )
        torch.manual_seed(derive(seed, "generator/init"))
        network = in_proportion(
            lambda: GeneratorNetwork(self.spec, settings.latent, settings.width),
            f"generator, latent={settings.latent}, width={settings.width} for {self.spec}",
        )
        self.network = network.to(self._device)
        self.network = self.network.to(memory_format=torch.channels_last)
        self._meta = torch.optim.Adam(self.network.parameters(), settings.lr * settings.steps, betas=(0.5, 0.999))
        # half precision would need a gradient scaler of its own here; bfloat16 does not
        self._autocast = nullcontext if accelerator.mixed_precision == "fp16" else accelerator.autocast
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}
        terms = {
            "batch_norm": lambda view: losses.batch_norm(view.teacher.statistics),
            "one_hot": lambda view: losses.one_hot(view.teacher.logits, view.labels),
            "entropy": lambda view: losses.information_entropy(view.teacher.logits),
            "activation": lambda view: losses.activation(view.teacher.features[PENULTIMATE]),
            **STUDENT_TERMS,
        }
        self._objective: Objective[GeneratedView] = Objective(terms, {name: getattr(settings, name) for name in terms})

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: a batch of images and one meta-update of the shared network.

        Args:
            index: number of the round; images of round i have the indices `i * batch_size ...` of the run.
            difficulty: in [0, 1].
            student: takes part in the adversarial term, unchanged; None leaves that term out.

        Raises:
            ConfigError: no term has a weight that does without a student, and there is none.
            ModelError: when the teacher's answers are not finite.
            TrainingError: when a loss is not finite.
        """
        s = self.settings
        if student is None and s.needs_student:
            raise ConfigError(f"generator: its terms compare with a student, and there is none: set any of {ALONE}")
        clone = copy.deepcopy(self.network).train()
        count = s.batch_size
        latent = Rows(self._seed, "latent", index * count).normal(count, s.latent).to(self._device)
        latent.requires_grad_(s.latent_lr > 0)
        labels = balanced_labels(count, index * count, self.spec.classes).to(self._device)
        groups: list[dict[str, Any]] = [{"params": list(clone.parameters())}]
        if s.latent_lr > 0:
            groups.append({"params": [latent], "lr": s.latent_lr})
        inner = torch.optim.Adam(groups, s.lr, betas=(0.5, 0.999))
        gradients = [torch.zeros_like(p) for p in clone.parameters()]
        best: tuple[float, Tensor, Tensor] | None = None
        terms: dict[str, float] = {}
        observed: dict[str, tuple[Tensor, Tensor]] = {}
        penultimate = s.activation > 0 or s.semantic > 0
        with judging(self._teacher, student, self._autocast, penultimate, s.batch_norm > 0) as look:
            for step in range(s.steps):
                with self._autocast():
                    images = clone(latent).float()
                view = look(images, labels, difficulty)
                seen = view.teacher
                observed = {k: (v.mean.detach(), v.var.detach()) for k, v in seen.statistics.items()}
                if step == 0:
                    labels = assigned(labels, seen.logits)
                smoothed = Outputs(seen.logits, seen.features, self._smoothed(seen.statistics))
                loss = self._objective(replace(view, teacher=smoothed, labels=labels), 0, 1)
                require_finite(loss, "generator", index, "round")
                value = float(loss.total.detach())
                if best is None or value < best[0]:
                    best = (value, images.detach(), seen.logits.detach())
                inner.zero_grad(set_to_none=True)
                loss.total.backward()
                met = [p.grad for p in clone.parameters() if p.grad is not None]
                torch._foreach_add_(gradients, met)
                inner.step()
                terms = {f"generator/{name}": float(term.detach()) for name, term in loss.terms.items()}
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise TrainingError(f"generator: a gradient is not finite in round {index}; lower generator.lr")
        self._remember(observed)
        self._move_towards(clone, gradients)
        assert best is not None
        return Round(best[1].contiguous(), labels, best[2], terms | {"generator/loss": best[0]})

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the asked labels: the shared network at latent vectors moved until the teacher sees the label.

        The network itself is fixed and in eval mode, and the loss is a sum over images, so each image is a function of
        its label and row alone (up to the rounding of batched kernels). Difficulty is the length of the random latent
        vectors it starts from, scaled by `0.5 + 0.5 * difficulty`: easy images lie nearer to each other.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1].
            rng: random rows; image i starts from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        start = rng.normal(len(labels), self.settings.latent) * (0.5 + 0.5 * difficulty)
        latent = start.to(self._device).requires_grad_()
        asked = labels.to(self._device)
        optimizer = torch.optim.Adam([latent], SAMPLE_RATE, betas=(0.5, 0.999))
        models = (self.network, self._teacher)
        with evaluating(*models), frozen(*models):
            for _ in range(SAMPLE_STEPS):
                with self._autocast():
                    logits = finite_logits(self._teacher(self.network(latent)))
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(logits.float(), asked, reduction="sum").backward()
                optimizer.step()
            images: Tensor = self.network(latent.detach())
        return images.detach().float().contiguous()

    def _smoothed(self, seen: Mapping[str, BatchNormStatistics]) -> dict[str, BatchNormStatistics]:
        """Moments averaged with those of earlier rounds, so that one small batch need not match them all alone."""
        return {
            path: BatchNormStatistics(*self._blended(path, s.mean, s.var), s.running_mean, s.running_var)
            for path, s in seen.items()
        }

    def _remember(self, observed: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self._moments = {path: self._blended(path, *moments) for path, moments in observed.items()}

    def _blended(self, path: str, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        if path not in self._moments:
            return mean, var
        keep, (old_mean, old_var) = self.settings.memory, self._moments[path]
        return keep * old_mean + (1 - keep) * mean, keep * old_var + (1 - keep) * var

    def _move_towards(self, clone: nn.Module, gradients: list[Tensor]) -> None:
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self._meta.step()
        self._meta.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, adapted in zip(self.network.buffers(), clone.buffers(), strict=True):
                buffer.copy_(adapted)

    def save(self, directory: Path) -> None:
        """Write the shared network; sampling also needs the teacher."""
        save_weights(self.network, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read the shared network back.

        Raises:
            ModelError: when the file is missing, damaged or of another architecture.
        """
        load_strictly(self.network, read_weights(directory / WEIGHTS), str(directory / WEIGHTS))

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": finite_state(self.network, "generator"),
            "meta": self._meta.state_dict(),
            "moments": {path: list(pair) for path, pair in self._moments.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._meta.load_state_dict(state["meta"])
        self._moments = {
            path: (mean.to(self._device), var.to(self._device)) for path, (mean, var) in state["moments"].items()
        }
