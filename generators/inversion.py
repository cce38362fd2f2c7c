"""A data-free generator: a small network trained against the frozen teacher, one round at a time.

A round copies the shared network and trains the copy, with its latent vectors, for a few steps on one batch of labels.
It keeps the images of the best step and moves the shared network by the sum of the copy's gradients (the first-order
meta-update of FastDFKD, Fang et al. 2022, algorithm 1). Copies that start alike and end apart make rounds differ; the
shared start makes a handful of steps enough.

The class of an image comes from its latent vector, which is optimised until the teacher predicts the label: in a round
together with the network, in `sample` alone. A label embedding was tried instead: the network then gave nearly the same
image for each class, and students were several points worse.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import ConfigError, TrainingError
from synthkd.generators.inversion_network import BETAS, SAMPLE_RATE, images_of_labels, latent_network
from synthkd.generators.local import autocast_of, folded, local_accelerator, require_statistics
from synthkd.generators.moments import MovingMoments
from synthkd.generators.own_rounds import of_a_round
from synthkd.generators.settings import WITHOUT_STUDENT, InversionSettings
from synthkd.generators.teacher_student import STUDENT_TERMS, TEACHER_TERMS, JointOutputs, joint_forward, teacher_logits
from synthkd.generators.views import shifted
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Network, as_classifier
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import WEIGHTS, finite_state, read_weights, save_weights
from synthkd.passes import sample_in_chunks
from synthkd.rng import Rows, stream
from synthkd.training.learner import require_finite
from synthkd.types import ImageSpec, Outputs, Round, balanced_labels


def assign_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """The permutation of the labels with the largest sum of log-likelihoods over the images.

    Args:
        labels: int64 `[N]`, in any order.
        logits: the teacher's logits of the N images, `[N, K]`.

    Returns:
        int64 `[N]`; entry i is the label of image i.
    """
    from scipy.optimize import linear_sum_assignment

    # An assignment problem and not N maxima, since the counts of the classes must stay.
    gain = F.log_softmax(logits.detach().double(), dim=1)[:, labels].cpu()
    _, order = linear_sum_assignment(gain.numpy(), maximize=True)
    return labels[torch.from_numpy(order).to(labels.device)]


@dataclass(frozen=True)
class _Best:
    """The step of a round with the lowest loss: its loss, images `[N, C, H, W]` and teacher logits `[N, K]`."""

    loss: float
    images: Tensor
    logits: Tensor


class Inversion:
    """The data-free generator of one teacher.

    Args:
        settings: sizes, learning rates and weights of the terms.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.
        rounds_at_once: number of rounds that start from one state, each of a process alone (see `OwnRounds`); 1: all
            processes share a round.

    Raises:
        ModelError: BatchNorm matching has a weight and the teacher has no BatchNorm statistics, or its images and
            classes are unknown.
    """

    def __init__(
        self,
        settings: InversionSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        spec: ImageSpec | None = None,
        rounds_at_once: int = 1,
    ) -> None:
        teacher = as_classifier(teacher, spec)
        accelerator = local_accelerator(accelerator, teacher)
        self.settings = settings
        self.spec = teacher.spec
        self._seed = seed
        self._device = accelerator.device
        self._processes = of_a_round(accelerator, rounds_at_once)
        self._accelerator = accelerator
        require_statistics(teacher, settings.batch_norm)
        self._teacher = self._folded(teacher, statistics=settings.batch_norm > 0)
        self.network = latent_network(self.spec, settings.latent, settings.width, seed, self._device)
        # One meta-step follows the gradients of all steps of a round, hence the learning rate times their number.
        # The mean of several moves that start alike is smaller than one after the other would be. The root of their
        # number is the rule for larger batches of Adam (Malladi et al. 2022), and was as good as the number itself.
        rate = settings.lr * settings.steps * math.sqrt(rounds_at_once)
        self._meta = torch.optim.Adam(self.network.parameters(), rate, BETAS)
        self._autocast = autocast_of(accelerator)
        # Rounds that start from one state forget together what they would forget one after the other.
        self._moments = MovingMoments(settings.memory**rounds_at_once, self._device)
        terms = {**TEACHER_TERMS, **STUDENT_TERMS}
        self._objective: Objective[JointOutputs] = Objective(terms, {name: getattr(settings, name) for name in terms})

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: a batch of images and one meta-update of the shared network.

        Args:
            index: number of the round; its images use the rows `index * batch_size ...` of the run.
            difficulty: in [0, 1].
            student: compared with the teacher by the student's terms, unchanged; None leaves those terms out.

        Returns:
            Images, labels and teacher logits of the step with the lowest loss, and the terms of the last step.

        Raises:
            ConfigError: all terms with a weight need a student, and there is none.
            ModelError: the teacher's logits are not finite.
            TrainingError: a loss or gradient is not finite.
        """
        s = self.settings
        if student is None and s.needs_student:
            raise ConfigError(
                f"generator: its terms compare with a student, and there is none: set any of {WITHOUT_STUDENT}"
            )
        clone = copy.deepcopy(self.network).train()
        first = index * s.batch_size
        latent = Rows(self._seed, "latent", first).normal(s.batch_size, s.latent).to(self._device)
        labels = balanced_labels(s.batch_size, first, self.spec.classes).to(self._device)
        optimizer = self._inner_optimizer(clone, latent)
        gradients = [torch.zeros_like(parameter) for parameter in clone.parameters()]
        best: _Best | None = None
        # The student changes between rounds, so its copy serves one.
        rival = None if student is None else self._folded(student, statistics=False)
        processes = self._processes.dividing(s.batch_size)
        with joint_forward(
            self._teacher, rival, self._autocast, self._penultimate, s.batch_norm > 0, processes
        ) as forward:
            for step in range(s.steps):
                with self._autocast(), processes.norms():
                    images = processes.outputs(lambda rows: Outputs(clone(rows)), latent).logits.float()
                view = shifted(images, s.shift, s.flip, stream(self._seed, "views", index * s.steps + step))
                outputs = forward(view, labels, difficulty)
                teacher = outputs.teacher
                if step == 0:
                    # Latent vectors start at random, so each takes the label that its image suits best. Only once: the
                    # later steps are to reach that label.
                    labels = assign_labels(labels, teacher.logits)
                smoothed = self._moments.averaged(teacher.statistics)
                joint = replace(outputs, teacher=replace(teacher, statistics=smoothed), labels=labels)
                loss = self._objective(joint, 0, 1)  # its weights are constants, so any step will do
                require_finite(loss, "generator", index, "round")
                value = float(loss.total.detach())
                # The step is taken after the loss, so these are the images and logits that have this loss.
                if best is None or value < best.loss:
                    best = _Best(value, images.detach(), teacher.logits.detach())
                optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                processes.add_gradients(clone.parameters())
                torch._foreach_add_(gradients, [p.grad for p in clone.parameters() if p.grad is not None])
                optimizer.step()
        # A NaN or an infinity stays in the sum, so one check of it covers every step.
        if not all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
            raise TrainingError(f"generator: a gradient is not finite in round {index}; lower its lr")
        self._moments.keep(smoothed)
        self._meta_update(clone, gradients)
        assert best is not None
        terms = {f"generator/{name}": float(term.detach()) for name, term in loss.terms.items()}
        logits = best.logits
        if s.shift or s.flip:  # those are of a view of the images
            logits = teacher_logits(self._teacher, best.images, self._autocast)
        return Round(best.images.contiguous(), labels, logits, terms | {"generator/loss": best.loss})

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the labels: the shared network at latent vectors optimised for the teacher to predict the label.

        Each image is a function of its label and row alone, see `images_of_labels`. The difficulty sets the length of
        the initial latent vectors, `0.5 + 0.5 * difficulty`: easy images lie nearer to each other.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1].
            rng: random rows; image i starts from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].

        Raises:
            ModelError: the teacher's logits are not finite.
        """
        return sample_in_chunks(
            lambda part, rows: self._sample(part, difficulty, rows), self.settings.batch_size, labels, rng
        )

    def _sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """As `sample`, in one pass."""
        latent = rng.normal(len(labels), self.settings.latent) * (0.5 + 0.5 * difficulty)
        labels, latent = labels.to(self._device), latent.to(self._device)
        return images_of_labels(self.network, self._teacher, labels, latent, SAMPLE_RATE, self._autocast)

    @property
    def _penultimate(self) -> bool:
        """Whether a term reads the features before the last layer."""
        return self.settings.activation > 0 or self.settings.semantic > 0

    def _folded(self, network: Network, statistics: bool) -> Network:
        return folded(network, self._accelerator, self._penultimate, statistics)

    def _inner_optimizer(self, clone: nn.Module, latent: Tensor) -> torch.optim.Optimizer:
        """Adam on the copy's weights and, if `latent_lr` is not 0, on the latent vectors, which then get gradients."""
        s = self.settings
        groups: list[dict[str, Any]] = [{"params": list(clone.parameters())}]
        if s.latent_lr > 0:
            groups.append({"params": [latent.requires_grad_()], "lr": s.latent_lr})
        return torch.optim.Adam(groups, s.lr, BETAS)

    def _meta_update(self, clone: nn.Module, gradients: list[Tensor]) -> None:
        """One step of the shared network along the copy's gradients; BatchNorm moments are the copy's."""
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self._meta.step()
        self._meta.zero_grad(set_to_none=True)
        # The shared network never runs in training mode, so it has no moments of its own; `sample` uses these.
        with torch.no_grad():
            for buffer, adapted in zip(self.network.buffers(), clone.buffers(), strict=True):
                buffer.copy_(adapted)

    def save(self, directory: Path) -> None:
        """Write the shared network to `model.safetensors`; sampling also needs the teacher."""
        save_weights(self.network, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read the shared network back.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        load_strictly(self.network, read_weights(directory / WEIGHTS), str(directory / WEIGHTS))

    def state_dict(self) -> dict[str, Any]:
        """State of the shared network, the meta-optimiser and the moments of earlier rounds.

        Raises:
            TrainingError: a weight is not finite.
        """
        return {
            "network": finite_state(self.network, "generator"),
            "meta": self._meta.state_dict(),
            "moments": self._moments.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self._meta.load_state_dict(state["meta"])
        self._moments.load_state_dict(state["moments"])
