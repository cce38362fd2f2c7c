"""One noisy release of private images: the mean of their random Fourier features for each class (DP-MERF).

Harder, Adamczewski and Park (2021). The features are public: a seed and the settings determine them, never the images.
The number of images, their size and the class names count as public, too. The number of images of each class is
private: the release contains it with noise, at no extra cost (see `embed`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.privacy.accounting import epsilon
from synthkd.privacy.claims import dp_statement
from synthkd.privacy.ledger import Adjacency, Ledger, Release
from synthkd.rng import stream, unpredictable
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed_tensors, unsealed_tensors
from synthkd.system.text import parse_json
from synthkd.types import ImageSpec, InBlocks, to_float

HALVED_FROM = 16
"""Images whose sides are at least this are halved before their features are computed, which averages fine noise."""
WINDOWS = (1, 2)
"""Divisors of the sides: features are computed from whole images and from windows of half their sides."""
CHUNK = 1000
"""Images whose features are computed at once."""
ADJACENCY: Adjacency = "replace_one"
"""Neighbouring sets, for the sensitivity of a release: one image with its label is replaced."""
SHRINK = 1.0 - 1e-6
"""Norm of a feature vector; a little below 1, since rounding above 1 would break the sensitivity."""
FEWEST = 0.1
"""Smallest share of images that a class is assumed to have, as a fraction of an equal share. A released share is noisy
and may be 0 or below, where no mean can be computed."""


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features (Rahimi and Recht 2007) of images, a public function of these values.

    They approximate a mean of Gaussian kernels `exp(-r^2 / 2 b^2)`, where r is the root mean square difference of two
    images. Half of the kernels compare whole images, half random windows of half their sides; each half has equally
    many features for every bandwidth b.

    Attributes:
        spec: of the images.
        count: features of an image; rounded up to a multiple of twice the number of kernels.
        bandwidths: b, on the scale [0, 1] of pixels.
        seed: of the frequencies.
    """

    spec: ImageSpec
    count: int
    bandwidths: tuple[float, ...]
    seed: int

    def frequencies(self) -> Tensor:
        """The frequencies, float32 `[P, D / 2]`, for the P pixel values of an image (halved, if it is large)."""
        channels = self.spec.channels
        halved = min(self.spec.height, self.spec.width) >= HALVED_FROM
        height, width = (side // 2 if halved else side for side in (self.spec.height, self.spec.width))
        rng = stream(self.seed, "merf/frequencies")
        # Half of the features are cosines and half sines of the same frequencies, hence the 2; rounded up.
        per_kernel = -(-self.count // (2 * len(WINDOWS) * len(self.bandwidths)))
        blocks = []
        # A difference in one place is small in the mean over a whole image and large in that over a window.
        for bandwidth in self.bandwidths:
            for divisor in WINDOWS:
                high, wide = -(-height // divisor), -(-width // divisor)
                rows = _random_windows(per_kernel, height, high, rng)
                columns = _random_windows(per_kernel, width, wide, rng)
                # Normal frequencies give a Gaussian kernel (Bochner's theorem: Rahimi and Recht 2007).
                normal = torch.randn(per_kernel, channels, height, width, generator=rng)
                normal = normal * rows[:, None, :, None] * columns[:, None, None, :]
                # r is a root mean square over the window's values, hence the root of their number.
                blocks.append(normal.flatten(1) / (bandwidth * math.sqrt(channels * high * wide)))
        return torch.cat(blocks).T.contiguous()


def _random_windows(count: int, length: int, window: int, rng: torch.Generator) -> Tensor:
    """Masks of windows at random places, bool `[count, length]`, `window` of them True in each row."""
    first = torch.randint(length - window + 1, (count, 1), generator=rng)
    place = torch.arange(length)
    return (place >= first) & (place < first + window)


def fourier_features(images: Tensor, frequencies: Tensor) -> Tensor:
    """The features `sqrt(2 / D) [cos(w x), sin(w x)]`, times SHRINK, which is then their norm.

    Args:
        images: x, float32 `[N, C, H, W]` in [0, 1].
        frequencies: w, of `Fourier.frequencies`.

    Returns:
        float32 `[N, D]`.
    """
    if min(images.shape[-2:]) >= HALVED_FROM:
        images = F.avg_pool2d(images, 2)
    angles = images.flatten(1) @ frequencies
    # cos^2 + sin^2 = 1 for each of the D / 2 frequencies, so every image has the same norm: no clipping is needed.
    return torch.cat([angles.cos(), angles.sin()], dim=1) * (SHRINK / math.sqrt(frequencies.shape[1]))


def embed(images: InBlocks, labels: Tensor, fourier: Fourier, device: torch.device | None = None) -> Tensor:
    """The mean embedding without noise, `1/m sum_i (phi(x_i), 1) onehot(y_i)`; PRIVATE.

    Its sensitivity is 2/m if one image with its label is replaced. If the label stays, one row changes by
    `phi(x) - phi(x')`, of length at most 2, and the last column, which counts the images of the class, not at all. If
    the label changes, two rows change by a vector of length `sqrt(2)` each, together 2.

    Args:
        images: x, uint8 `[m, C, H, W]`.
        labels: y, int64 `[m]`.
        fourier: the features phi.
        device: for the computation; None is the CPU.

    Returns:
        float64 `[K, D + 1]` on the CPU.
    """
    frequencies = fourier.frequencies().to(device)
    # Summed in float64: in float32 many small summands would lose digits to a large sum.
    sums = torch.zeros(fourier.spec.classes, 2 * frequencies.shape[1] + 1, dtype=torch.float64)
    for chunk, chunk_labels in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        # The last column, 1 for every image, counts the images of its class.
        features = fourier_features(to_float(chunk).to(device), frequencies).double().cpu()
        sums.index_add_(0, chunk_labels, F.pad(features, (0, 1), value=1.0))
    return sums / len(labels)


@dataclass(frozen=True)
class Embedding:
    """A released mean embedding; the generator learns nothing else from the private images.

    Attributes:
        sums: float32 `[K, D]`, `1/m sum_i phi(x_i)` over the images of each class, with noise.
        shares: float32 `[K]`, each class's share of the images, with noise; may be negative.
        fourier: the features phi.
        examples: m, public.
        noise_multiplier: standard deviation of the noise in each number over `sensitivity`.
        adjacency: relation of neighbouring data sets, for which the sensitivity holds.
        insecure: True if the noise can be reproduced from a seed; then this is NOT DP.
    """

    sums: Tensor
    shares: Tensor
    fourier: Fourier
    examples: int
    noise_multiplier: float
    adjacency: Adjacency
    insecure: bool

    @property
    def sensitivity(self) -> float:
        """Largest distance between the embeddings of neighbouring data sets, before noise."""
        return 2.0 / self.examples

    @property
    def ledger(self) -> Ledger:
        """The privacy cost: one release. What is computed from the embedding costs nothing more (post-processing)."""
        return Ledger((Release(self.noise_multiplier, self.adjacency),))

    def statement(self, delta: float, ledger: Ledger) -> dict[str, Any]:
        """Its privacy claim, see `synthkd.privacy.claims.dp_statement`; `insecure` claims nothing.

        Args:
            delta: delta of the claim.
            ledger: all releases of the run, lost ones included.
        """
        spent = epsilon(ledger, delta, self.adjacency)
        how = {"noise_multiplier": self.noise_multiplier, "sensitivity": self.sensitivity}
        return dp_statement(ledger, spent, self.examples, self.insecure, **how)

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean features of the images of each class, `[K, D]`, and the variance of their noise, `[K]`; float32."""
        # The sums are over all m images, so a mean of a class is its sum over its share; the noise is divided with it.
        shares = self.shares.clamp(min=FEWEST / len(self.shares))
        return self.sums / shares[:, None], (self.noise_multiplier * self.sensitivity / shares).square()

    def state_dict(self) -> dict[str, Any]:
        """The tensors `sums` and `shares`, and all other values as JSON text under `facts`."""
        facts = {name: getattr(self, name) for name in ("examples", "noise_multiplier", "adjacency", "insecure")}
        facts["fourier"] = asdict(self.fourier)
        return {"sums": self.sums, "shares": self.shares, "facts": json.dumps(facts)}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Embedding:
        """The embedding of a `state_dict`."""
        facts = parse_json(state["facts"])
        fourier = facts.pop("fourier")
        spec, bandwidths = ImageSpec(**fourier.pop("spec")), tuple(fourier.pop("bandwidths"))
        return Embedding(state["sums"], state["shares"], Fourier(spec, bandwidths=bandwidths, **fourier), **facts)

    def save(self, path: Path) -> None:
        """Write a .safetensors file with a checksum, atomically; `facts` goes into its metadata."""
        state = self.state_dict()
        facts = {"facts": state.pop("facts")}
        write_atomically(path, sealed_tensors(state, facts))

    @staticmethod
    def load(path: Path) -> Embedding:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing or damaged.
        """
        try:
            tensors, facts = unsealed_tensors(path)
            return Embedding.from_state({**tensors, **facts})
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} holds no readable release ({str(error)[:120]}); copy it again: another release costs its "
                "budget a second time"
            ) from error


def release(
    images: InBlocks,
    labels: Tensor,
    fourier: Fourier,
    noise_multiplier: float,
    device: torch.device | None = None,
    test_seed: int | None = None,
) -> Embedding:
    """Release the mean embedding of private images with Gaussian noise in every number.

    Args:
        images: uint8 `[m, C, H, W]`.
        labels: int64 `[m]`.
        fourier: the features.
        noise_multiplier: standard deviation of the noise over the sensitivity, 2/m.
        device: for the computation; None is the CPU.
        test_seed: seed of the noise, for tests; with None the seed comes from the operating system and is not kept.

    Returns:
        The embedding, which may be published at the cost in its `ledger`.
    """
    exact = embed(images, labels, fourier, device)
    # The run's seed is public: noise from it could be computed and subtracted.
    rng = unpredictable() if test_seed is None else stream(test_seed, "merf/release")
    scale = noise_multiplier * 2.0 / len(labels)
    # In float64, and rounded only after the noise: rounding then is post-processing, too.
    noisy = (exact + scale * torch.randn(exact.shape, generator=rng, dtype=torch.float64)).float()
    insecure = test_seed is not None
    sums, shares = noisy[:, :-1].contiguous(), noisy[:, -1].contiguous()
    return Embedding(sums, shares, fourier, len(labels), noise_multiplier, ADJACENCY, insecure)


def squared_discrepancy(features: Tensor, means: Tensor) -> Tensor:
    """Unbiased estimate of the mean over classes of `|E phi(x) - mean|^2`, a scalar that may be below 0.

    The squared length of the mean of n features is too large by their variance over n; as a loss it would reward images
    that are all alike. So the estimate is a U-statistic, without the pairs of an image with itself (Gretton et al.
    2012, lemma 6).

    Args:
        features: `[K, n, D]` of n images of each class, n at least 2, each of norm SHRINK.
        means: `[K, D]`.
    """
    count = features.shape[1]
    average = features.mean(dim=1)
    # |sum phi_i|^2 is n^2 |average|^2; the n pairs of an image with itself add n SHRINK^2, since every norm is SHRINK.
    squared = (count * average.square().sum(dim=1) - SHRINK**2) / (count - 1)
    return (squared - 2.0 * (average * means).sum(dim=1) + means.square().sum(dim=1)).mean()
