"""A data-free generator whose network is trained throughout the run, on new latent vectors at every step.

So do DAFL (Chen et al. 2019), DFAD (Fang et al. 2019), ZSKT (Micaelli and Storkey 2019) and DFQ (Choi et al. 2020),
which differ in the terms of the loss. Nothing tells the network a class: the label of an image is what the
teacher predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from synthkd.errors import ConfigError
from synthkd.generators.inversion_network import Normalised, image_moments, latent_network
from synthkd.generators.local import autocast_of, local_accelerator, require_statistics
from synthkd.generators.method_settings import ContinuousSettings
from synthkd.generators.own_rounds import of_a_round
from synthkd.generators.teacher_student import (
    MORE_STUDENT_TERMS,
    STUDENT_TERMS,
    TEACHER_TERMS,
    JointOutputs,
    joint_forward,
)
from synthkd.losses.objective import Objective
from synthkd.models.classifier import as_classifier
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import WEIGHTS, finite_state, read_weights, save_weights
from synthkd.passes import sample_in_chunks
from synthkd.rng import Rows
from synthkd.schedules import value_at
from synthkd.taps import evaluating
from synthkd.training.learner import require_finite
from synthkd.types import ImageSpec, Round

TERMS = {
    **TEACHER_TERMS,
    **{name: STUDENT_TERMS[name] for name in ("adversarial", "distillation")},
    "logit_gap": MORE_STUDENT_TERMS["logit_gap"],
}

BETA2 = 0.999
"""Second beta of Adam."""


class Continuous:
    """The continuously trained generator of one teacher.

    Args:
        settings: sizes, learning rate and weights of the terms.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.
        rounds_at_once: number of rounds that start from one state, each of a process alone (see `OwnRounds`); 1: all
            processes share a round.
        rounds: of the run, over which the learning rate follows its curve; None: it stays where the curve starts.

    Raises:
        ModelError: BatchNorm matching has a weight and the teacher has no BatchNorm statistics, or its images and
            classes are unknown.
    """

    for_labels = False

    def __init__(
        self,
        settings: ContinuousSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        spec: ImageSpec | None = None,
        rounds_at_once: int = 1,
        rounds: int | None = None,
    ) -> None:
        teacher = as_classifier(teacher, spec)
        accelerator = local_accelerator(accelerator, teacher)
        require_statistics(teacher, settings.batch_norm)
        self.settings = settings
        self.spec = teacher.spec
        self._teacher = teacher
        self._seed = seed
        self._device = accelerator.device
        self._processes = of_a_round(accelerator, rounds_at_once)
        output = Normalised(*image_moments(teacher.normalize)) if settings.output == "normalised" else None
        self.network = latent_network(self.spec, settings.latent, settings.width, seed, self._device, output=output)
        self._rounds = rounds
        self._optimizer = torch.optim.Adam(self.network.parameters(), self._rate(0), (settings.beta1, BETA2))
        self._autocast = autocast_of(accelerator)
        self._objective: Objective[JointOutputs] = Objective(TERMS, {name: getattr(settings, name) for name in TERMS})

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """The steps of a round.

        Args:
            index: number of the round; its latent vectors use the rows `index * steps * batch_size ...` of the run.
            difficulty: in [0, 1].
            student: compared with the teacher by the student's terms, unchanged; None leaves those terms out.

        Returns:
            The images of the last step, with the teacher's predictions as labels, and its terms.

        Raises:
            ConfigError: all terms with a weight need a student, and there is none.
            ModelError: the teacher's logits are not finite.
            TrainingError: a loss is not finite.
        """
        s = self.settings
        if student is None and s.needs_student:
            raise ConfigError("generator: its terms compare with a student, and there is none: give one_hot a weight")
        opponent = student if s.opposes else None  # of no use to the other terms
        network = self.network.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(index)
        with joint_forward(
            self._teacher, opponent, self._autocast, s.activation > 0, s.batch_norm > 0, self._processes
        ) as forward:
            for step in range(s.steps):
                rows = Rows(self._seed, "latent", (index * s.steps + step) * s.batch_size)
                with self._autocast():
                    images = network(rows.normal(s.batch_size, s.latent).to(self._device)).float()
                outputs = forward(images, torch.empty(0), difficulty)
                labels = outputs.teacher.logits.argmax(dim=1)
                loss = self._objective(JointOutputs(outputs.teacher, outputs.student, labels, difficulty), 0, 1)
                require_finite(loss, "generator", index, "round")
                self._optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                if s.clip is not None:
                    clip_grad_norm_(network.parameters(), s.clip)
                self._optimizer.step()
        terms = {f"generator/{name}": float(term.detach()) for name, term in loss.terms.items()}
        terms["generator/loss"] = float(loss.total.detach())
        return Round(images.detach().contiguous(), labels, outputs.teacher.logits.detach(), terms)

    def _rate(self, index: int) -> float:
        return value_at(self.settings.lr, 0 if self._rounds is None else index, self._rounds or 1)

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """As many images as there are labels; labels and difficulty do not change them.

        The network is in eval mode, so image i is a function of row `rng.start + i` alone.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1].
            rng: random rows.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        return sample_in_chunks(self._sample, self.settings.batch_size, labels, rng)

    @torch.no_grad()
    def _sample(self, labels: Tensor, rng: Rows) -> Tensor:
        latent = rng.normal(len(labels), self.settings.latent).to(self._device)
        with evaluating(self.network), self._autocast():
            images: Tensor = self.network(latent)
        return images.float().contiguous()

    def save(self, directory: Path) -> None:
        """Write the network to `model.safetensors`."""
        save_weights(self.network, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read the network back.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        load_strictly(self.network, read_weights(directory / WEIGHTS), str(directory / WEIGHTS))

    def state_dict(self) -> dict[str, Any]:
        """State of the network and of its optimiser.

        Raises:
            TrainingError: a weight is not finite.
        """
        return {"network": finite_state(self.network, "generator"), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
