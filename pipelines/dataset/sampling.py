"""Sampling of numbered, labelled images to disk, with the same bytes for any batch size and number of processes.

Image i comes from random row i, and always in one batch with the other images of its chunk of `CHUNK` numbers, since
the last bits of batched arithmetic can depend on the batch. Processes share the chunks and commit them in parts; a
resumed run needs nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.read.on_disk import Pixels
from synthkd.data.written.filters import Sieve, nearest_real
from synthkd.data.written.unfinished import Part, PartStore
from synthkd.data.written.writers import Records
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.errors import DataError
from synthkd.passes import in_chunks
from synthkd.pipelines.run.shared_work import shares
from synthkd.rng import Rows
from synthkd.training.display import Display
from synthkd.types import SampleGenerator, balanced_labels, to_float, to_uint8

CHUNK = 32
"""Images that are always sampled in one batch."""
SLACK = 1.1
"""Factor on the images that the acceptance rate so far suggests, where filters rejected some."""
PATIENCE = 20
"""Most images that are tried for each image in the dataset."""


@dataclass(frozen=True)
class ChunkSampler:
    """Samples a chunk of images with the teacher's logits.

    Attributes:
        generator: makes the images.
        teacher: gives their logits.
        difficulty: of the images, in [0, 1].
        seed: the run's seed.
        real: real images uint8 `[M, C, H, W]`; the distance of each image to the nearest of them is stored. Or None.
        batch_size: largest number of images of a pass of the teacher.
    """

    generator: SampleGenerator
    teacher: FrozenTeacher
    difficulty: float
    seed: int
    real: Pixels | None = None
    batch_size: int = CHUNK

    def chunk(self, number: int, labels: Tensor) -> Part:
        """The images of chunk `number` with at most `CHUNK` labels int64 `[N]`.

        A shorter chunk is filled up with the labels that come next in balanced order, and the additional images are
        dropped. So the images of a small balanced dataset are the first of a larger one.
        """
        first = number * CHUNK
        filling = balanced_labels(CHUNK - len(labels), first + len(labels), self.teacher.spec.classes)
        whole = torch.cat([labels, filling])
        images = to_uint8(self.generator.sample(whole, self.difficulty, Rows(self.seed, "generate", first))).cpu()
        device = self.teacher.model.normalize.mean.device  # a network may have no parameters
        # of the image as it is stored
        logits = in_chunks(self.teacher.logits, self.batch_size, to_float(images).to(device)).cpu()
        return Part(first, images[: len(labels)], labels, logits[: len(labels)].contiguous())


def in_turns(counts: Sequence[int]) -> Tensor:
    """Labels int64 `[sum(counts)]`, `counts[k]` of class k: the classes take turns until each has its count.

    Their order is that of `balanced_labels`.
    """
    order = balanced_labels(len(counts), 0, len(counts))
    turns = torch.cat([torch.arange(counts[label]) for label in order.tolist()])
    labels = torch.repeat_interleave(order, torch.tensor(list(counts))[order])
    return labels[turns.argsort(stable=True)]


class Sampling:
    """Samples the images that are not on disk yet, filters all, and gives those that stay.

    Args:
        sampler: samples a chunk.
        store: the parts on disk.
        sieve: the filters, with the number of images of each class.
        class_names: for messages.
        commit: images between commits.
        accelerator: processes; each samples its share of the chunks, and all of them read everything.

    Attributes:
        made: number of images that this process has sampled.
    """

    def __init__(
        self,
        sampler: ChunkSampler,
        store: PartStore,
        sieve: Sieve,
        class_names: Sequence[str],
        commit: int,
        accelerator: Accelerator,
    ) -> None:
        self._sampler = sampler
        self._store = store
        self._sieve = sieve
        self._names = class_names
        self._chunks = -(-commit // CHUNK)
        self._accelerator = accelerator
        self._stays: dict[int, Tensor] = {}  # first number of a part -> which of its images stay
        self._spans: list[tuple[int, int]] = []
        self.made = 0

    def run(self, title: str) -> None:
        """Sample images, in several passes where filters reject some, until every class is full.

        Args:
            title: of the display.

        Raises:
            DataError: the filters reject too many images of a class.
        """
        wanted = self._sieve.lacking.tolist()
        number, counts = 0, wanted
        while any(counts):
            labels = in_turns(counts)
            first, stop = number * CHUNK, number * CHUNK + len(labels)
            self._fill(number, labels, title)
            self._spans.append((first, stop))
            for part in self._store.read(first, stop):
                self._stays[part.first] = self._sieve.keep(part)
            number = -(-stop // CHUNK)
            counts = self._missing(wanted)

    def records(self) -> Iterator[Records]:
        """The images that stay, in the order of their numbers, in blocks."""
        for first, stop in self._spans:
            for part in self._store.read(first, stop):
                yield Records.of(part, self._stays[part.first])

    def _missing(self, wanted: Sequence[int]) -> list[int]:
        """The number of images of each class to try next."""
        sieve = self._sieve
        counts: list[int] = []
        for label, lacking in enumerate(sieve.lacking.tolist()):
            tried, passed = int(sieve.tried[label]), int(sieve.passed[label])
            room = PATIENCE * wanted[label] + CHUNK - tried
            if lacking and room <= 0:
                raise DataError(
                    f"class {self._names[label]!r}: {passed:,} of {tried:,} images passed the filters "
                    f"({passed / tried:.1%}), {wanted[label]:,} are wanted; loosen filters, or ask for fewer"
                )
            rate = max(passed / tried, 1 / PATIENCE) if tried else 1.0
            counts.append(min(room, int(SLACK * lacking / rate) + 1) if lacking else 0)
        return counts

    def _fill(self, number: int, labels: Tensor, title: str) -> None:
        """Sample this process's share of the chunks from `number` on that no part holds, then wait for the others."""
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        done = {chunk for first, stop in self._store.spans() for chunk in range(first // CHUNK, -(-stop // CHUNK))}
        chunks = labels.split(CHUNK)
        total = len(labels)
        with Display(total, title, enabled=self._accelerator.is_main_process) as display:
            present = sum(len(chunk) for index, chunk in enumerate(chunks) if number + index in done)
            display.update(present, "sampling", {})
            if present:
                display.message(f"{present:,} of {total:,} images are there already")
            for group in range(rank * self._chunks, len(chunks), world * self._chunks):
                batch: list[Part] = []
                for index in range(group, min(group + self._chunks, len(chunks))):
                    if number + index in done:
                        self._commit(batch)
                        batch = []
                    else:
                        batch.append(self._sampler.chunk(number + index, chunks[index]))
                present += world * self._commit(batch)
                display.update(min(present, total), "sampling", {})
        shares().values(None)  # however long the others take

    def _commit(self, chunks: Sequence[Part]) -> int:
        """Write neighbouring chunks as one part and return the number of its images."""
        if not chunks:
            return 0
        images, labels, logits = (
            torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("images", "labels", "logits")
        )
        real = self._sampler.real
        distance = None if real is None else nearest_real(images, real)
        self._store.write(Part(chunks[0].first, images, labels, logits, distance))
        self.made += len(labels)
        return len(labels)
