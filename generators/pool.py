"""Images of earlier rounds by class, from which a generator that optimises whole batches gives its samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.models.weights import WEIGHTS, read_weights, save_weights
from synthkd.rng import Rows
from synthkd.types import ImageSpec, balanced_labels, to_float, to_uint8

MOST_IMAGES, MOST_BYTES = 4096, 64 * 2**20
"""Images that are kept, and the bytes that they may take; one of each class is kept in any case."""
GOLDEN_RATIO = (math.sqrt(5.0) - 1.0) / 2.0


class Pool:
    """The newest images of each class, as uint8 on the CPU.

    Args:
        spec: of the images.
    """

    def __init__(self, spec: ImageSpec) -> None:
        self.spec = spec
        self._capacity = max(spec.classes, min(MOST_IMAGES, MOST_BYTES // math.prod(spec.shape)))
        self._images = torch.empty(0, *spec.shape, dtype=torch.uint8)
        self._labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def most_bytes(self) -> int:
        """Bytes of the images of a full pool."""
        return self._capacity * math.prod(self.spec.shape)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch of float images `[N, C, H, W]` in [0, 1] with labels int64 `[N]`.

        Of a full pool the oldest images of the classes with most images leave.
        """
        images, labels = torch.cat([self._images, to_uint8(images).cpu()]), torch.cat([self._labels, labels.cpu()])
        newest_first = labels.flip(0)
        # The place of each image among those of its class, 0 for the newest.
        places = F.one_hot(newest_first, self.spec.classes).cumsum(0).gather(1, newest_first[:, None])[:, 0]
        newest = places.argsort(stable=True)[: self._capacity]
        rows = (len(labels) - 1 - newest).sort().values
        self._images, self._labels = images[rows], labels[rows]

    def sample(self, labels: Tensor, rng: Rows) -> Tensor:
        """Images of the labels, float32 `[N, C, H, W]` in [0, 1]; noise for a class without an image.

        Image i is a function of its label and of row `rng.start + i`. Of labels in turn, whichever comes first, the
        samples of a class are different images until all of that class have been given.
        """
        labels, classes = labels.cpu(), self.spec.classes
        images = rng.uniform(len(labels), math.prod(self.spec.shape)).reshape(-1, *self.spec.shape)
        turns = (torch.arange(len(labels)) + rng.start) // classes
        # Of other labels a class has several rows of a turn. Each begins elsewhere among its images, by the golden
        # ratio, so that they do not meet soon.
        offsets = (balanced_labels(len(labels), rng.start, classes) - labels) % classes
        begins = offsets.double() * GOLDEN_RATIO % 1.0
        for label in labels.unique().tolist():
            of_class = (self._labels == label).nonzero().flatten()
            if len(of_class):
                rows = labels == label
                numbers = turns[rows] + (begins[rows] * len(of_class)).long()
                images[rows] = to_float(self._images[of_class[numbers % len(of_class)]])
        return images

    def save(self, directory: Path) -> None:
        """Write images and labels to `model.safetensors`."""
        module = nn.Module()
        for name, values in self.state_dict().items():
            module.register_buffer(name, values)
        save_weights(module, directory / WEIGHTS)

    def restore(self, directory: Path) -> None:
        """Read them back.

        Raises:
            ModelError: the file is missing, damaged or of other images.
        """
        state = read_weights(directory / WEIGHTS)
        images, labels = state.get("images"), state.get("labels")
        if images is None or labels is None or images.shape != (len(labels), *self.spec.shape):
            raise ModelError(f"{directory / WEIGHTS} does not hold labelled {self.spec}; copy the generator again")
        self.load_state_dict({"images": images.to(torch.uint8), "labels": labels.long()})

    def state_dict(self) -> dict[str, Any]:
        """`images` uint8 `[M, C, H, W]` and `labels` int64 `[M]`, the oldest first."""
        return {"images": self._images.clone(), "labels": self._labels.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._images, self._labels = state["images"].clone(), state["labels"].clone()


class PoolSamples:
    """Samples that are images of earlier rounds: alone, those of a saved generator, whose rounds are over.

    Args:
        spec: of the images.
        device: of the samples.

    Attributes:
        repeats: True: the samples are no new images.
    """

    repeats: ClassVar = True

    def __init__(self, spec: ImageSpec, device: torch.device) -> None:
        self.spec = spec
        self._device = device

    @cached_property
    def _pool(self) -> Pool:
        return Pool(self.spec)

    @property
    def earlier_bytes(self) -> int:
        """Most bytes of the images of earlier rounds."""
        return self._pool.most_bytes

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of earlier rounds; image i is a function of its label and of row `rng.start + i`.

        Args:
            labels: int64 `[N]`.
            difficulty: in [0, 1]; it changes nothing.
            rng: random rows.

        Returns:
            float32 `[N, C, H, W]` in [0, 1]; noise for a class of which there is no image yet.
        """
        return self._pool.sample(labels, rng).to(self._device)

    def save(self, directory: Path) -> None:
        """Write the images of earlier rounds, from which samples are taken."""
        self._pool.save(directory)

    def restore(self, directory: Path) -> None:
        """Read them back.

        Raises:
            ModelError: the file is missing, damaged or of other images.
        """
        self._pool.restore(directory)
