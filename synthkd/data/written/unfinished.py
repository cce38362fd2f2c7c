"""Parts of a dataset that is being made: numbered images with their logits, each part whole on disk or not there.

They are the checkpoint of the sampling. Every image has a number, and images are made a chunk of numbers at a time, so
a part needs no more than its first number and its last to say what is done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed_tensors, unsealed_tensors

_NAME = re.compile(r"(\d+)-(\d+)\.safetensors")


@dataclass(frozen=True)
class Part:
    """Images with neighbouring numbers.

    Attributes:
        first: the number of the first image.
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`, the labels asked for.
        logits: float32 `[N, K]`, the teacher's, of these very images.
        real_distance: float32 `[N]`, root mean square difference in [0, 1] to the nearest real image, or None where
            no real images are at hand.
    """

    first: int
    images: Tensor
    labels: Tensor
    logits: Tensor
    real_distance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


class PartStore:
    """The parts in a directory; several processes may write different ones.

    Args:
        directory: where they are; made when the first is written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, part: Part) -> None:
        """Write one part, atomically."""
        tensors = {"images": part.images, "labels": part.labels, "logits": part.logits}
        if part.real_distance is not None:
            tensors["real_distance"] = part.real_distance
        name = f"{part.first:09d}-{part.first + len(part):09d}.safetensors"
        write_atomically(self.directory / name, sealed_tensors(tensors, {"first": str(part.first)}))

    def spans(self) -> list[tuple[int, int]]:
        """`(first, stop)` of every part, in order."""
        found = (_NAME.fullmatch(path.name) for path in self.directory.glob("*.safetensors"))
        return sorted((int(match[1]), int(match[2])) for match in found if match)

    def read(self, first: int, stop: int) -> Iterator[Part]:
        """The parts of the numbers `first` to `stop`, in order; no part reaches over either end.

        Raises:
            CheckpointError: a part that cannot be read, or numbers that none has.
        """
        expected = first
        for begin, end in self.spans():
            if begin < first or begin >= stop:
                continue
            path = self.directory / f"{begin:09d}-{end:09d}.safetensors"
            if begin != expected:
                break
            try:
                found, about = unsealed_tensors(path)
                part = Part(begin, found["images"], found["labels"], found["logits"], found.get("real_distance"))
                if int(about.get("first", begin)) != begin or len(part) != end - begin:
                    raise ValueError("its name is that of other images")
            except (ValueError, KeyError) as error:
                raise CheckpointError(f"{path} is damaged; delete it and run the same command again") from error
            yield part
            expected = end
        if expected != stop:
            raise CheckpointError(f"{self.directory} lacks images {expected} to {stop}; run the same command again")
