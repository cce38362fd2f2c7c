"""Parts of an unfinished dataset: numbered images with their logits, each part in a file that is written atomically.

The parts are the checkpoint of the sampling. A part has images with consecutive numbers, and its file name has the
number of its first image and the number after its last, so a listing tells which images exist.
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
    """Images with consecutive numbers.

    Attributes:
        first: the number of the first image.
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`, the labels that the images were generated for.
        logits: float32 `[N, K]`, the teacher's, of these very images.
        real_distance: float32 `[N]`, root mean square difference in [0, 1] to the nearest real image; None if there
            are no real images to compare with.
    """

    first: int
    images: Tensor
    labels: Tensor
    logits: Tensor
    real_distance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PartStore:
    """The parts in a directory; several processes may write different parts.

    Attributes:
        directory: of the files; the first write creates it.
    """

    directory: Path

    def write(self, part: Part) -> None:
        """Write one part, atomically."""
        tensors = {"images": part.images, "labels": part.labels, "logits": part.logits}
        if part.real_distance is not None:
            tensors["real_distance"] = part.real_distance
        name = f"{part.first:09d}-{part.first + len(part):09d}.safetensors"
        write_atomically(self.directory / name, sealed_tensors(tensors, {"first": str(part.first)}))

    def spans(self) -> list[tuple[int, int]]:
        """`(first, stop)` of every part, in order."""
        # By the names alone, so that no large file is read only to be listed.
        names = (_NAME.fullmatch(path.name) for path in self.directory.glob("*.safetensors"))
        return sorted((int(name[1]), int(name[2])) for name in names if name)

    def read(self, first: int, stop: int) -> Iterator[Part]:
        """The parts with the numbers `first` to `stop - 1`, in order; no part may reach over either end.

        Raises:
            CheckpointError: a part that cannot be read, or numbers that no part holds.
        """
        expected = first
        for begin, end in self.spans():
            if begin < first or begin >= stop:
                continue
            path = self.directory / f"{begin:09d}-{end:09d}.safetensors"
            if begin != expected:
                break  # a gap; the error below names it
            try:
                tensors, about = unsealed_tensors(path)
                part = Part(
                    begin, tensors["images"], tensors["labels"], tensors["logits"], tensors.get("real_distance")
                )
                # The checksum covers the content, not the name, which somebody may have changed.
                if int(about.get("first", begin)) != begin or len(part) != end - begin:
                    raise ValueError("its name is that of other images")
            except (ValueError, KeyError) as error:
                raise CheckpointError(f"{path} is damaged; delete it and run the same command again") from error
            yield part
            expected = end
        if expected != stop:
            raise CheckpointError(f"{self.directory} lacks images {expected} to {stop}; run the same command again")
