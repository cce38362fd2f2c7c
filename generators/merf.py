"""DP-MERF: a generator that learns from one noisy release of private images (Harder, Adamczewski and Park 2021).

The release is the mean of random Fourier features of the images of each class, with Gaussian noise; its privacy cost is
exact (`synthkd.generators.embedding`). A network is then trained until its images have the same means, which is a
maximum mean discrepancy of 0. Training reads the release and no private image, so its length costs no privacy.
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
from synthkd.generators.latent import AveragedNetwork, latent_length
from synthkd.generators.local import local_accelerator
from synthkd.generators.rounds import SampledRounds, agreed_spec, labelling_teacher
from synthkd.generators.settings import MerfSettings
from synthkd.losses.objective import Loss
from synthkd.models.size import in_proportion
from synthkd.passes import sample_in_chunks
from synthkd.privacy.accounting import check_delta
from synthkd.privacy.calibration import release_noise_for
from synthkd.privacy.journal import Journal
from synthkd.privacy.ledger import Ledger, Release
from synthkd.rng import Rows, derive, stream
from synthkd.types import ImageSpec

RELEASE = "release.safetensors"
BETAS = (0.5, 0.99)
LABEL = 16
"""Dimensions of a label's embedding."""


class MeanMatchingNetwork(nn.Module):
    """Latent vectors and labels to images: two hidden layers, then a blur if the features are of halved images.

    Mean embeddings determine an image's outline and shades, not its texture. Convolutions cost twenty times as much and
    did not help.

    Args:
        spec: of the images.
        latent: dimensions of a latent vector.
        width: units of a hidden layer.
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
        """Latent vectors `[N, latent]` and labels int64 `[N]` to images float32 `[N, C, H, W]` in (0, 1)."""
        x = self.layers(torch.cat([latent, self.label(labels)], dim=1)).unflatten(1, self.shape)
        if min(x.shape[-2:]) < HALVED_FROM:
            return torch.sigmoid(x)
        # A binomial blur of rows and columns: without it neighbouring pixels take opposite values to fit the noise.
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        x = 0.25 * (padded[..., :-2] + 2.0 * padded[..., 1:-1] + padded[..., 2:])
        x = 0.25 * (x[..., :-2, :] + 2.0 * x[..., 1:-1, :] + x[..., 2:, :])
        return torch.sigmoid(x)


@dataclass(frozen=True)
class _Target:
    """A release as training needs it, on the device.

    Attributes:
        means: float32 `[K, D]`, mean features of each class.
        frequencies: see `Fourier.frequencies`.
        noise: expected squared length of the noise in `means`, averaged over classes.
    """

    means: Tensor
    frequencies: Tensor
    noise: float


class Merf(SampledRounds):
    """The generator of one release.

    Args:
        settings: budget, features, sizes and learning rate.
        teacher: the frozen teacher, which gives the logits of a round's images; None for a generator that is only
            fitted and sampled. A teacher that was trained on the private images has a budget of its own.
        seed: the run's seed, public; the noise does not come from it.
        accelerator: device and precision; None: the teacher's device, full precision.
        train: the private images. The main process reads them in the first round, unless there is a release already.
            None for a generator that is restored.
        spec: image spec; needed if there is neither a teacher nor real data.
        run: directory of the run. Its journal is charged before the private images are read, and the release is written
            to it before training uses it, so an interrupted run does not read the images again. None writes nothing.

    Raises:
        ConfigError: teacher and data differ in their images, or delta is too large for the number of images.
        CheckpointError: the run's release is lost or changed, or its journal is damaged.
        ModelError: the release has other images or other noise than the settings.
    """

    def __init__(
        self,
        settings: MerfSettings,
        teacher: nn.Module | None = None,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        train: RealData | None = None,
        spec: ImageSpec | None = None,
        run: Path | None = None,
    ) -> None:
        accelerator = local_accelerator(accelerator, teacher)
        teacher = None if teacher is None else labelling_teacher(teacher, spec, train)
        super().__init__(settings.batch_size, teacher, seed, accelerator)
        self.settings = s = settings
        self.spec = agreed_spec("merf", teacher, train, spec)
        self.embedding: Embedding | None = None
        self._target: _Target | None = None
        self._private = train
        self._run = run
        self._journal = Journal(run)
        self._release_file = None if run is None else run / INSIDE_A_RUN / RELEASE
        if s.noise_multiplier is not None:
            self._noise = s.noise_multiplier
        elif s.epsilon is not None:
            self._noise = release_noise_for(s.epsilon, s.delta)
        if train is not None:
            check_delta(s.delta, len(train))
        # Initial weights are a function of the seed, and torch's global generator stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "merf/init"))
            network = in_proportion(
                lambda: MeanMatchingNetwork(self.spec, s.latent, s.width),
                f"generator, latent={s.latent}, width={s.width} for {self.spec}",
            )
        self.network = network.to(self._device)
        self._averaged = AveragedNetwork(self.network, s.latent, s.lr, BETAS, s.ema)
        file = self._release_file
        if file is not None and self._journal.has_release(file):
            self._train_on(Embedding.load(file), str(file))
            if accelerator.is_main_process:
                self._journal.keep_release(file)

    @property
    def ledger(self) -> Ledger:
        """All releases of the run, also those that an interruption lost before they were on disk."""
        if self._run is not None:
            return Journal(self._run).ledger  # read anew, since the main process alone writes it
        return Ledger() if self.embedding is None else self.embedding.ledger

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Take the training steps of one round; the first round makes the release if there is none.

        Args:
            index: number of the round, which sets its latent vectors.
            difficulty: in [0, 1]; not used.
            student: not used.

        Returns:
            `generator/loss`: an estimate, from the release, of the squared maximum mean discrepancy between the last
            step's images and the private ones. It falls below 0 when the network fits the noise.

        Raises:
            ConfigError: there is neither a release nor private images.
            TrainingError: the loss is not finite.
        """
        s, classes = self.settings, self.spec.classes
        target = self._require_target()
        # Equally many images of every class, since each class counts alike; two at least, since the estimate is over
        # pairs.
        per_class = max(2, s.batch_size // classes)
        labels = torch.arange(classes, device=self._device).repeat_interleave(per_class)
        self.network.train()
        for step in range(index * s.steps, (index + 1) * s.steps):
            # A stream for each step, so that a resumed run draws what an unbroken run draws.
            latent = torch.randn(len(labels), s.latent, generator=stream(self._seed, "merf/latent", step))
            images = self.network(latent.to(self._device), labels)
            features = fourier_features(images, target.frequencies).unflatten(0, (classes, per_class))
            # The noise lengthens the released means by a known amount. It is a constant, so it moves no weight.
            loss = squared_discrepancy(features, target.means) - target.noise
            self._averaged.update(Loss(loss, {"loss": loss}), index)
        return {"generator/loss": float(loss.detach())}

    @torch.no_grad()
    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the averaged weights, each a function of its label and row alone.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1], sets the length of the latent vectors: easy images lie near the middle of their
                class.
            rng: random rows; image i uses row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1].
        """
        return sample_in_chunks(
            lambda part, rows: self._sample(part, difficulty, rows), self.settings.batch_size, labels, rng
        )

    def _sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """As `sample`, in one pass."""
        images = self._averaged.sample(labels, latent_length(difficulty), rng)
        grain = self.settings.grain
        if grain > 0:
            # Streams of their own by row, so that the grain of an image does not depend on its batch.
            noise = Rows(rng.seed, f"{rng.purpose}/grain", rng.start).normal(len(labels), images[0].numel())
            strength = grain * Rows(rng.seed, f"{rng.purpose}/strength", rng.start).uniform(len(labels), 1)
            images = (images + (strength * noise).view(images.shape).to(images.device)).clamp(0.0, 1.0)
        return images

    def save(self, directory: Path) -> None:
        """Write the averaged weights, which suffice for sampling, and the release, which states their privacy cost."""
        self._averaged.save(directory)
        if self.embedding is not None:
            self.embedding.save(directory / RELEASE)

    def restore(self, directory: Path) -> None:
        """Read what `save` wrote into a generator of the same settings and images.

        Raises:
            ModelError: a file is missing, damaged or of other settings.
        """
        self._averaged.restore(directory)
        if (directory / RELEASE).is_file():
            self._train_on(Embedding.load(directory / RELEASE), str(directory / RELEASE))

    def state_dict(self) -> dict[str, Any]:
        """State of network, average and optimiser, and the release if there is one.

        Raises:
            TrainingError: a weight is not finite.
        """
        return {**self._averaged.state_dict(), "release": {} if self.embedding is None else self.embedding.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CheckpointError: the state has a release that the run's journal does not have.
            ModelError: the release has other images or other noise than the settings.
        """
        self._averaged.load_state_dict(state)
        if state["release"]:
            # A checkpoint from another run must not bring in a release that this run's journal does not count.
            if self._run is not None:
                self._journal.require(releases=1)
            self._train_on(Embedding.from_state(state["release"]), "the checkpoint")

    def _require_target(self) -> _Target:
        """The release on the device; if there is none, it is made now."""
        if self._target is None:
            # The main process alone makes it: one release for each process would multiply the cost.
            states = [self._release().state_dict() if self._accelerator.is_main_process else None]
            (state,) = broadcast_object_list(states)
            self._train_on(Embedding.from_state(state), "the release")
        assert self._target is not None
        return self._target

    def _release(self) -> Embedding:
        """Make the release of the private images."""
        if self._private is None:
            raise ConfigError("this generator has no release, and no private images to make one of; restore one")
        s, private = self.settings, self._private
        fourier = Fourier(self.spec, s.features, s.bandwidths, derive(self._seed, "merf/fourier"))
        # Charged before the images are read, so that an interrupted release counts, lost or not.
        self._journal.charge(Release(self._noise, ADJACENCY))
        embedding = release(private.images, private.labels, fourier, self._noise, self._device, s.test_seed)
        if self._release_file is not None:
            embedding.save(self._release_file)
            self._journal.keep_release(self._release_file)
        return embedding

    def _train_on(self, embedding: Embedding, source: str) -> None:
        """Train on this release from now on, and drop the private images."""
        spec, noise = embedding.fourier.spec, embedding.noise_multiplier
        # The noise of an epsilon is computed, and its last digits depend on the machine.
        if spec != self.spec or not math.isclose(noise, self._noise, rel_tol=1e-6):
            raise ModelError(
                f"{source} is a release of {spec} with noise {noise:g}, the settings ask for {self.spec} with noise "
                f"{self._noise:g}; keep the settings of the run that made it"
            )
        means, variances = (values.to(self._device) for values in embedding.means())
        frequencies = embedding.fourier.frequencies().to(self._device)
        self.embedding = embedding
        self._target = _Target(means, frequencies, float(variances.mean()) * means.shape[1])
        self._private = None
