"""One noisy look at private images: the mean of their random Fourier features, class by class (DP-MERF).

Harder, Adamczewski and Park (2021). The features and their bandwidths are public: they are drawn from a seed and
measured in units of pixels, never chosen by looking at the data. What is taken as public besides: how many images there
are, their size and the names of the classes. How many images a class has is not: the release tells it, with noise, and
that costs nothing (see `Embedding`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.privacy.accounting import Adjacency, Ledger, Release, claimed, epsilon
from synthkd.rng import stream
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed_tensors, unsealed_tensors
from synthkd.system.text import parse_json
from synthkd.types import ImageSpec, to_float

HALVED_FROM = 16
"""Sides from which on features see images of half the size; noise and grain beyond that do not reach them."""
WINDOWS = (1, 2)
"""Features see whole images, or windows with sides of this part."""
CHUNK = 1000
ADJACENCY: Adjacency = "replace_one"
"""Between which sets the sensitivity of a release is the largest distance."""
SHRINK = 1.0 - 1e-6
"""Norm of a feature vector; rounding cannot take it past 1."""
FEWEST = 0.1
"""Least share of images that a class is taken to have, in fractions of an equal one: noise may say less than none."""


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features (Rahimi and Recht 2007) of images, a public function of these values.

    The kernel that they approximate is a mean of Gaussian kernels `exp(-r^2 / 2 b^2)`, where r is the root mean square
    difference of two images: half of it for whole images, half for random windows of half their sides, and each of
    these in equal parts for every bandwidth b.

    Attributes:
        spec: the images.
        count: features of an image, rounded up to so many for each part.
        bandwidths: b, on the scale [0, 1] of pixels.
        seed: of the frequencies.
    """

    spec: ImageSpec
    count: int
    bandwidths: tuple[float, ...]
    seed: int

    def frequencies(self) -> Tensor:
        """float32 `[values, M]` for half as many frequencies as features."""
        halved = min(self.spec.height, self.spec.width) >= HALVED_FROM
        height, width = (side // 2 if halved else side for side in (self.spec.height, self.spec.width))
        rng = stream(self.seed, "merf/frequencies")
        each = -(-self.count // (2 * len(WINDOWS) * len(self.bandwidths)))
        parts = []
        for bandwidth in self.bandwidths:
            for part in WINDOWS:
                high, wide = -(-height // part), -(-width // part)
                rows = _inside(height, high, torch.randint(height - high + 1, (each, 1), generator=rng))
                columns = _inside(width, wide, torch.randint(width - wide + 1, (each, 1), generator=rng))
                drawn = torch.randn(each, self.spec.channels, height, width, generator=rng)
                drawn = drawn * rows[:, None, :, None] * columns[:, None, None, :]
                parts.append(drawn.flatten(1) / (bandwidth * math.sqrt(self.spec.channels * high * wide)))
        return torch.cat(parts).T.contiguous()


def _inside(length: int, window: int, first: Tensor) -> Tensor:
    """Which of `length` places are in a window that begins at `first` int64 `[N, 1]`; `[N, length]`."""
    place = torch.arange(length)
    return (place >= first) & (place < first + window)


def fourier_features(images: Tensor, frequencies: Tensor) -> Tensor:
    """`sqrt(2 / D) [cos(w x), sin(w x)]`, float32 `[N, D]`, each of norm 1 or a millionth less.

    Args:
        images: float32 `[N, C, H, W]` in [0, 1].
        frequencies: of `Fourier.frequencies`.
    """
    if min(images.shape[-2:]) >= HALVED_FROM:
        images = F.avg_pool2d(images, 2)
    angles = images.flatten(1) @ frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1) * (SHRINK / math.sqrt(frequencies.shape[1]))


def embed(images: Tensor, labels: Tensor, fourier: Fourier, device: torch.device | None = None) -> Tensor:
    """The mean embedding without noise, PRIVATE: `1/m sum_i (phi(x_i), 1) onehot(y_i)`, float64 `[K, D + 1]`.

    Its sensitivity is 2/m between sets in which one image with its label is another: with the same label `phi(x) -
    phi(x')` is at most 2 long, and the 1 of the last column, which counts the class, stays; with another label two rows
    change by a vector of length `sqrt(2)` each.

    Args:
        images: uint8 `[m, C, H, W]`.
        labels: int64 `[m]`.
        fourier: the features.
        device: to compute on; None is the CPU.
    """
    frequencies = fourier.frequencies().to(device)
    sums = torch.zeros(fourier.spec.classes, 2 * frequencies.shape[1] + 1, dtype=torch.float64)
    for chunk, own in zip(images.split(CHUNK), labels.split(CHUNK), strict=True):
        features = fourier_features(to_float(chunk).to(device), frequencies).double().cpu()
        sums.index_add_(0, own, F.pad(features, (0, 1), value=1.0))
    return sums / len(labels)


@dataclass(frozen=True)
class Embedding:
    """A released mean embedding, all that was ever learned from the private images.

    Attributes:
        sums: float32 `[K, D]`, `1/m sum_i phi(x_i)` over the images of each class, with noise.
        shares: float32 `[K]`, share of the images that are of each class, with noise; may be negative.
        fourier: the features phi.
        examples: m, taken as public.
        noise_multiplier: standard deviation of the noise in each number over `sensitivity`.
        adjacency: of the data sets between which the sensitivity is the largest distance.
        insecure: the noise can be drawn again from a seed, so that this is NOT DP.
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
        """Largest distance of the embeddings, without noise, of neighbouring sets."""
        return 2.0 / self.examples

    @property
    def ledger(self) -> Ledger:
        """What it cost; nothing that is made of it costs more."""
        return Ledger((Release(self.noise_multiplier, self.adjacency),))

    def statement(self, delta: float, ledger: Ledger | None = None) -> dict[str, Any]:
        """What it may claim, see `synthkd.privacy.accounting.claimed`; `insecure` claims nothing.

        Args:
            delta: of the claim.
            ledger: all looks of the run that made it, those that were lost included; None: this one.
        """
        ledger = ledger or self.ledger
        spent = epsilon(ledger, delta, self.adjacency)
        how = {"noise_multiplier": self.noise_multiplier, "sensitivity": self.sensitivity}
        return claimed(ledger, spent, self.examples, self.insecure, **how)

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean features of an image of each class, `[K, D]`, and the variance of the noise in them, `[K]`."""
        shares = self.shares.clamp(min=FEWEST / len(self.shares))
        return self.sums / shares[:, None], (self.noise_multiplier * self.sensitivity / shares).square()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, and the rest as JSON."""
        facts = {name: getattr(self, name) for name in ("examples", "noise_multiplier", "adjacency", "insecure")}
        facts["fourier"] = asdict(self.fourier)
        return {"sums": self.sums, "shares": self.shares, "facts": json.dumps(facts)}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Embedding:
        """What `state_dict` gave."""
        facts = parse_json(state["facts"])
        fourier = facts.pop("fourier")
        spec, bandwidths = ImageSpec(**fourier.pop("spec")), tuple(fourier.pop("bandwidths"))
        return Embedding(state["sums"], state["shares"], Fourier(spec, bandwidths=bandwidths, **fourier), **facts)

    def save(self, path: Path) -> None:
        """Write it to a .safetensors file with its own checksum, atomically; the JSON is in the file's metadata."""
        state = self.state_dict()
        facts = {"facts": state.pop("facts")}
        write_atomically(path, sealed_tensors(state, facts))

    @staticmethod
    def load(path: Path) -> Embedding:
        """What `save` wrote.

        Raises:
            ModelError: no such file, or a damaged one.
        """
        try:
            tensors, facts = unsealed_tensors(path)
            return Embedding.from_state({**tensors, **facts})
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{path} holds no readable release ({str(error)[:120]}); copy it again: another look at the private "
                "images costs its budget a second time"
            ) from error


def release(
    images: Tensor,
    labels: Tensor,
    fourier: Fourier,
    noise_multiplier: float,
    device: torch.device | None = None,
    test_seed: int | None = None,
) -> Embedding:
    """The one look at private images: their mean embedding, with Gaussian noise in every number.

    Args:
        images: uint8 `[m, C, H, W]`.
        labels: int64 `[m]`.
        fourier: the features.
        noise_multiplier: standard deviation of the noise over the sensitivity, 2/m.
        device: to compute on; None is the CPU.
        test_seed: of the noise, for tests; None seeds it from the operating system, once, and keeps no seed.
    """
    exact = embed(images, labels, fourier, device)
    if test_seed is None:
        rng = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    else:
        rng = stream(test_seed, "merf/release")
    scale = noise_multiplier * 2.0 / len(labels)
    noisy = (exact + scale * torch.randn(exact.shape, generator=rng, dtype=torch.float64)).float()
    insecure = test_seed is not None
    sums, shares = noisy[:, :-1].contiguous(), noisy[:, -1].contiguous()
    return Embedding(sums, shares, fourier, len(labels), noise_multiplier, ADJACENCY, insecure)


def squared_discrepancy(features: Tensor, means: Tensor) -> Tensor:
    """Mean over classes of `|E phi(x) - mean|^2`, unbiased for the expectation over x, a scalar that may be below 0.

    The squared length of a mean of n features is too long by the variance of one over n, which would reward images that
    are all alike; the U-statistic leaves the pairs of an image with itself out (Gretton et al. 2012, lemma 6).

    Args:
        features: `[K, n, D]` of n images of each class, n at least 2, each of norm SHRINK.
        means: `[K, D]`.
    """
    count = features.shape[1]
    own = features.mean(dim=1)
    squared = (count * own.square().sum(dim=1) - SHRINK**2) / (count - 1)
    return (squared - 2.0 * (own * means).sum(dim=1) + means.square().sum(dim=1)).mean()
