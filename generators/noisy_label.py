"""A data-free generator from classes to images through a random layer that is new for every batch (NAYER).

Tran et al. 2024: the embedding of a class goes through a linear layer with random weights, drawn anew for every batch,
and then through a network that keeps what it has learned for some rounds. So all images of a class start from one
embedding, and the layer makes them differ. A layer serves one image of each class; a batch has as many as it needs.

The published embeddings are those of a language model for the names of the classes. They are not at hand here: the
embedding of a class is its one-hot vector, the paper's own alternative.

A sample is a new image: the network gives it from a latent vector of its own, as random layers would draw it, which is
optimised until the teacher predicts the label.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.generators.batchwise import Batchwise, Canvas
from synthkd.generators.inversion_network import SAMPLE_RATE, GeneratorNetwork, images_of_labels, initialised
from synthkd.generators.method_settings import NoisyLabelSettings
from synthkd.generators.teacher_student import STUDENT_TERMS
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import WEIGHTS, finite_state, read_weights, save_weights
from synthkd.passes import sample_in_chunks
from synthkd.rng import Rows, derive
from synthkd.types import ImageSpec


class NoisyLabelNetwork(nn.Module):
    """Classes to images: one-hot vectors, BatchNorm, random layers, and the network of the inversion generator.

    Args:
        spec: of the images.
        noise: units of a random layer.
        width: channels of the last hidden layer.
        groups: number of random layers; image i of a batch goes through layer `i // classes`.
    """

    def __init__(self, spec: ImageSpec, noise: int, width: int, groups: int) -> None:
        super().__init__()
        self.classes = spec.classes
        self.norm = nn.BatchNorm1d(spec.classes)
        self.noisy = nn.ModuleList(nn.Linear(spec.classes, noise) for _ in range(groups))
        self.images = GeneratorNetwork(spec, noise, width)

    def renew(self) -> None:
        """Draw the random layers anew, with standard normal weights, from torch's global generator."""
        for layer in self.noisy:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels int64 `[N]` to images `[N, C, H, W]` in (0, 1)."""
        embedded = self.norm(F.one_hot(labels, self.classes).float())
        parts = [layer(part) for layer, part in zip(self.noisy, embedded.split(self.classes), strict=True)]
        images: Tensor = self.images(torch.cat(parts))
        return images


class NoisyLabel(Batchwise):
    """The generator of one teacher with a random layer for every batch.

    Args:
        settings: sizes, rates and weights.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.

    Raises:
        ModelError: BatchNorm matching has a weight and the teacher has no BatchNorm statistics, or its images and
            classes are unknown.
    """

    def __init__(
        self,
        settings: NoisyLabelSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        super().__init__(settings, teacher, seed, accelerator, spec, {"adversarial": STUDENT_TERMS["adversarial"]})
        self.settings = settings
        self.network = self._new_network(0)
        self._grown: GeneratorNetwork | None = None

    def _new_network(self, life: int) -> NoisyLabelNetwork:
        s, groups = self.settings, -(-self.settings.batch_size // self.spec.classes)
        sizes = f"noise={s.noise}, width={s.width} for {self.spec}"
        make = functools.partial(NoisyLabelNetwork, self.spec, s.noise, s.width, groups)
        return initialised(make, sizes, self._seed, self._device, life)

    def _begin(self, index: int, labels: Tensor) -> Canvas:
        life, age = divmod(index, self.settings.life)
        if age == 0:
            # The one before has learned for a whole life, so it gives the samples.
            self._grown = self.network.images if life else None
            self.network = self._new_network(life)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self._seed, "noisy layer", index))
            self.network.cpu().renew()
        network = self.network.to(self._device).train()
        return Canvas(list(network.parameters()), lambda: network(labels))

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the labels, of the network that has learned for a whole life, see `images_of_labels`.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1]; latent vectors have `0.5 + 0.5 * difficulty` times the length of those of a round.
            rng: random rows; image i starts from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].

        Raises:
            ModelError: the teacher's logits are not finite.
        """
        # As long as a one-hot class that BatchNorm has normalised over a batch: its squared length is the number of
        # classes in the batch.
        scale = math.sqrt(min(self.spec.classes, self.settings.batch_size))

        def images(part: Tensor, rows: Rows) -> Tensor:
            latent = rows.normal(len(part), self.settings.noise) * (scale * (0.5 + 0.5 * difficulty))
            part, latent = part.to(self._device), latent.to(self._device)
            return images_of_labels(
                self._sampled, self._fast_teacher, part, latent, scale * SAMPLE_RATE, self._autocast
            )

        return sample_in_chunks(images, self.settings.batch_size, labels, rng)

    @property
    def _sampled(self) -> GeneratorNetwork:
        """The network of the samples; in the first life the one that is learning."""
        return self.network.images if self._grown is None else self._grown

    def save(self, directory: Path) -> None:
        """Write the network of the samples to `model.safetensors`; sampling also needs the teacher."""
        save_weights(self._sampled, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read it back.

        Raises:
            ModelError: the file is missing, damaged or of another architecture.
        """
        load_strictly(self._sampled, read_weights(directory / WEIGHTS), str(directory / WEIGHTS))

    def state_dict(self) -> dict[str, Any]:
        """Both networks, and the moments to which later rounds are averaged.

        Raises:
            TrainingError: a weight is not finite.
        """
        grown = None if self._grown is None else finite_state(self._grown, "generator")
        return super().state_dict() | {"network": finite_state(self.network, "generator"), "grown": grown}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self.network = self._new_network(0)
        self.network.load_state_dict(state["network"])
        self._grown = None
        if state["grown"] is not None:
            self._grown = self._new_network(0).images
            self._grown.load_state_dict(state["grown"])
