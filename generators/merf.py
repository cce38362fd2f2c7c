"""DP-MERF: a generator that learns from one noisy look at private images (Harder, Adamczewski and Park 2021).

The look is the mean of random Fourier features of the images of each class, with Gaussian noise: one release, whose
cost is exact (`synthkd.generators.embedding`). Then a network is trained until its images have the same means (a
maximum mean discrepancy of 0), for as long as one likes and at no further cost; no private image is touched again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError, ModelError
from synthkd.generators.cgan import latent_length
from synthkd.generators.embedding import (
    ADJACENCY,
    HALVED_FROM,
    Embedding,
    Fourier,
    fourier_features,
    release,
    squared_discrepancy,
)
from synthkd.generators.files import INSIDE_A_RUN
from synthkd.generators.rounds import agreed_spec, sampled_round
from synthkd.generators.settings import MerfSettings
from synthkd.losses.objective import Loss
from synthkd.models.classifier import Classifier
from synthkd.models.size import in_proportion
from synthkd.models.weights import load_strictly, read_weights, save_weights
from synthkd.privacy.accounting import check_delta
from synthkd.privacy.calibration import release_noise_for
from synthkd.privacy.journal import Journal
from synthkd.privacy.ledger import Ledger, Release
from synthkd.rng import Rows, derive, stream
from synthkd.taps import evaluating
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import require_finite
from synthkd.types import ImageSpec, Round

WEIGHTS, RELEASE = "generator.safetensors", "release.safetensors"
BETAS = (0.5, 0.99)
LABEL = 16
"""Dimensions of a label's embedding."""


class Painter(nn.Module):
    """Latent vectors `[N, latent]` and labels int64 `[N]` to images float32 `[N, C, H, W]` in (0, 1).

    Two hidden layers, and a blur where features see half of the size. Mean embeddings fix an image's outline and its
    shades, not its texture, so convolutions are of no use here and cost twenty times as much.
    """

    def __init__(self, spec: ImageSpec, latent: int, width: int) -> None:
        super().__init__()
        self.shape = spec.shape
        self.label = nn.Embedding(spec.classes, LABEL)
        self.layers = nn.Sequential(
            nn.Linear(latent + LABEL, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, math.prod(spec.shape)),
        )

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        x = self.layers(torch.cat([latent, self.label(labels)], dim=1)).unflatten(1, self.shape)
        if min(x.shape[-2:]) < HALVED_FROM:
            return torch.sigmoid(x)
        # binomial, both ways; without it neighbouring pixels are set against each other to fit the noise
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        x = 0.25 * (padded[..., :-2] + 2.0 * padded[..., 1:-1] + padded[..., 2:])
        x = 0.25 * (x[..., :-2, :] + 2.0 * x[..., 1:-1, :] + x[..., 2:, :])
        return torch.sigmoid(x)


class Merf:
    """The generator of one release.

    Args:
        settings: budget, features, sizes and rates.
        teacher: the frozen teacher, which labels rounds and nothing else; None where images are made without one. One
            that was trained on the private images costs its own budget.
        seed: the run's seed, public; the noise does not come from it.
        accelerator: device and precision.
        train: the private images, looked at in the first round unless there is a release, by the main process for all;
            None for a generator that is restored.
        spec: the images, needed where there is neither a teacher nor real data.
        run: directory of the run, whose journal is charged before the look. The release is written into it before
            anything is made of it, and read from there where it exists, so that a run that was cut short does not look
            again. None writes nothing.

    Raises:
        ConfigError: teacher and data of other images, or a delta that is too large for the number of images.
        CheckpointError: the run's release is lost, or another one than it made, or its journal damaged.
        ModelError: a release of other images or with other noise than the settings ask for.
    """

    def __init__(
        self,
        settings: MerfSettings,
        teacher: Classifier | None,
        seed: int,
        accelerator: Accelerator,
        train: RealData | None = None,
        spec: ImageSpec | None = None,
        run: Path | None = None,
    ) -> None:
        self.settings = settings
        self.spec = agreed_spec("merf", spec, teacher, train)
        self.embedding: Embedding | None = None
        self._target: _Target | None = None
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator
        self._device = accelerator.device
        self._private = train
        self._run = run
        self._journal = None if run is None else Journal(run)
        self._store = None if run is None else run / INSIDE_A_RUN / RELEASE
        if settings.noise_multiplier is not None:
            self._noise = settings.noise_multiplier
        elif settings.epsilon is not None:
            self._noise = release_noise_for(settings.epsilon, settings.delta)
        if train is not None:
            check_delta(settings.delta, len(train))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "merf/init"))
            network = in_proportion(
                lambda: Painter(self.spec, settings.latent, settings.width),
                f"generator, latent={settings.latent}, width={settings.width} for {self.spec}",
            )
        self.network = network.to(self._device)
        self._average = WeightAverage(self.network, settings.ema)
        self._optimizer = torch.optim.Adam(self.network.parameters(), settings.lr, BETAS)
        if self._store is not None and self._journal is not None and self._journal.has_release(self._store):
            self._take(Embedding.load(self._store), str(self._store))
            if accelerator.is_main_process:
                self._journal.keep_release(self._store)

    @property
    def ledger(self) -> Ledger:
        """What was looked at: the release, and those of the run that a kill took before they were on disk."""
        if self._run is not None:
            return Journal(self._run).ledger  # whichever process looked
        return Ledger() if self.embedding is None else self.embedding.ledger

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """The training steps of one round; the very first one makes the release, where there is none.

        Args:
            index: number of the round, which sets its latent vectors.
            difficulty: in [0, 1]; changes nothing here.
            student: likewise.

        Returns:
            `generator/loss`, the squared maximum mean discrepancy of the latest step's images to the private ones, as
            far as the release tells it: an estimate that may be below 0, and is when the noise is being fitted.

        Raises:
            ConfigError: neither a release nor private images.
            TrainingError: when the loss is not finite.
        """
        s, classes = self.settings, self.spec.classes
        release = self._released()
        each = max(2, s.batch_size // classes)
        labels = torch.arange(classes, device=self._device).repeat_interleave(each)
        self.network.train()
        for step in range(index * s.steps, (index + 1) * s.steps):
            latent = torch.randn(len(labels), s.latent, generator=stream(self._seed, "merf/latent", step))
            images = self.network(latent.to(self._device), labels)
            features = fourier_features(images, release.frequencies).unflatten(0, (classes, each))
            discrepancy = squared_discrepancy(features, release.means) - release.noise
            require_finite(Loss(discrepancy, {"loss": discrepancy}), "generator", index, "round")
            self._optimizer.zero_grad(set_to_none=True)
            discrepancy.backward()
            self._optimizer.step()
            self._average.update(self.network)
        return {"generator/loss": float(discrepancy.detach())}

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: training steps, then a batch of images with balanced labels.

        Args and errors are those of `fit`; a ConfigError also says when there is no teacher to label the images.
        """
        terms = self.fit(index, difficulty, student)
        count = self.settings.batch_size
        return sampled_round(self.sample, difficulty, self._teacher, self._seed, index, count, self._accelerator, terms)

    @torch.no_grad()
    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the asked labels from the averaged weights, each a function of its label and row.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1], the length of the latent vectors: easy images lie near the middle of their class.
            rng: random rows; image i is made from row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        network, grain = self._average.module, self.settings.grain
        latent = rng.normal(len(labels), self.settings.latent) * latent_length(difficulty)
        with evaluating(network):
            images: Tensor = network(latent.to(self._device), labels.to(self._device))
        if grain > 0:
            rough = Rows(rng.seed, f"{rng.purpose}/grain", rng.start).normal(len(labels), images[0].numel())
            strength = grain * Rows(rng.seed, f"{rng.purpose}/strength", rng.start).uniform(len(labels), 1)
            images = (images + (strength * rough).view(images.shape).to(images.device)).clamp(0.0, 1.0)
        return images

    def save(self, directory: Path) -> None:
        """Write the averaged weights, which is what sampling needs, and the release, which says what they cost."""
        save_weights(self._average.module, directory / WEIGHTS)
        if self.embedding is not None:
            self.embedding.save(directory / RELEASE)

    def restore(self, directory: Path) -> None:
        """Read what `save` wrote into a generator of the same settings and images.

        Raises:
            ModelError: a file that is missing, damaged or of other settings.
        """
        path = directory / WEIGHTS
        state = read_weights(path)
        load_strictly(self._average.module, state, str(path))
        load_strictly(self.network, state, str(path))
        if (directory / RELEASE).is_file():
            self._take(Embedding.load(directory / RELEASE), str(directory / RELEASE))

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "release": {} if self.embedding is None else self.embedding.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["release"]:
            if self._journal is not None:
                self._journal.require(releases=1)
            self._take(Embedding.from_state(state["release"]), "the checkpoint")

    def _released(self) -> _Target:
        """The release as training needs it, made where there is none yet."""
        if self._target is None:
            shared = [self._look().state_dict() if self._accelerator.is_main_process else None]
            (made,) = broadcast_object_list(shared)  # another look for each process would be another release
            self._take(Embedding.from_state(made), "the release")
        assert self._target is not None
        return self._target

    def _look(self) -> Embedding:
        """The one look at the private images, charged before it is taken."""
        if self._private is None:
            raise ConfigError("this generator has no release, and no private images to make one of; restore one")
        s, private = self.settings, self._private
        fourier = Fourier(self.spec, s.features, s.bandwidths, derive(self._seed, "merf/fourier"))
        if self._journal is not None:
            self._journal.charge(Release(self._noise, ADJACENCY))
        made = release(private.images, private.labels, fourier, self._noise, self._device, s.test_seed)
        if self._store is not None and self._journal is not None:
            made.save(self._store)
            self._journal.keep_release(self._store)
        return made

    def _take(self, embedding: Embedding, source: str) -> None:
        """Train on this release from now on and on nothing else."""
        given = (embedding.fourier.spec, embedding.noise_multiplier)
        if given != (self.spec, self._noise):
            raise ModelError(
                f"{source} is a release of {given[0]} with noise {given[1]:g}, the settings ask for {self.spec} with "
                f"noise {self._noise:g}; keep the settings of the run that made it"
            )
        means, noise = (part.to(self._device) for part in embedding.means())
        frequencies = embedding.fourier.frequencies().to(self._device)
        self.embedding = embedding
        self._target = _Target(means, frequencies, float(noise.mean()) * means.shape[1])
        self._private = None


@dataclass(frozen=True)
class _Target:
    """A release on the device.

    Attributes:
        means: float32 `[K, D]`, mean features of each class.
        frequencies: of the features.
        noise: squared length of the noise in `means`, as expected, averaged over classes.
    """

    means: Tensor
    frequencies: Tensor
    noise: float
