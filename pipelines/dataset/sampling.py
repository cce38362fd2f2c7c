"""From a generator to numbered, labelled images on disk, the same bytes however the work is cut up.

Image i is made from random row i, together with the others of its chunk of `CHUNK` numbers and never with any others:
the last bits of batched arithmetic can depend on the batch, so the batch is fixed. Chunks are shared out among
processes and committed in parts, which is all that a resumed run needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.written.filters import Sieve, as_points, nearest_real
from synthkd.data.written.unfinished import Part, PartStore
from synthkd.data.written.writers import Records
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.training.display import Display
from synthkd.types import SampleGenerator, balanced_labels, to_float, to_uint8

CHUNK = 32
"""Images that are always made together."""
SLACK = 1.1
"""How many more images than the acceptance so far suggests are asked for when filters rejected some."""
PATIENCE = 20
"""Images tried for each one wanted, at most."""


@dataclass(frozen=True)
class Batchwise:
    """How images are made.

    Attributes:
        generator: makes them.
        teacher: answers them.
        difficulty: at which they are made.
        seed: the run's seed.
        real: real images uint8 `[M, C, H, W]` whose distance is kept beside each image, or None.
    """

    generator: SampleGenerator
    teacher: FrozenTeacher
    difficulty: float
    seed: int
    real: Tensor | None = None

    def chunk(self, number: int, labels: Tensor) -> Part:
        """Chunk `number`, of at most `CHUNK` labels; a shorter one is filled up, and what fills it is dropped.

        It is filled with what would come next in balanced order, so the images of a small balanced dataset are the
        first of a larger one.
        """
        first = number * CHUNK
        filling = balanced_labels(CHUNK - len(labels), first + len(labels), self.teacher.spec.classes)
        asked = torch.cat([labels, filling])
        images = to_uint8(self.generator.sample(asked, self.difficulty, Rows(self.seed, "generate", first))).cpu()
        device = next(self.teacher.model.parameters()).device
        logits = self.teacher.logits(to_float(images).to(device)).cpu()  # of the image as it will be stored
        kept = len(labels)
        return Part(first, images[:kept], labels, logits[:kept].contiguous())


def in_turns(counts: Sequence[int]) -> Tensor:
    """Labels int64, each class as often as asked: the classes take turns until each has had its share."""
    turns = torch.cat([torch.arange(count) for count in counts])
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
    return labels[turns.argsort(stable=True)]


class Sampling:
    """Makes what is missing of the images wanted, filters them, and gives those that stay.

    Args:
        how: generator, teacher, difficulty.
        store: the parts.
        sieve: the filters, with the counts wanted.
        class_names: for messages.
        commit: images between commits.
        accelerator: processes; this one makes its share, and all of them read everything.
    """

    def __init__(
        self,
        how: Batchwise,
        store: PartStore,
        sieve: Sieve,
        class_names: Sequence[str],
        commit: int,
        accelerator: Accelerator,
    ) -> None:
        self._how = how
        self._store = store
        self._sieve = sieve
        self._names = class_names
        self._chunks = -(-commit // CHUNK)
        self._accelerator = accelerator
        self._real = None if how.real is None else as_points(how.real)
        self._kept: dict[int, Tensor] = {}
        self._spans: list[tuple[int, int]] = []
        self.made = 0

    def run(self, title: str) -> None:
        """Make images, in several passes where filters reject some, until every class has what is wanted.

        Raises:
            DataError: a class that the filters leave unfilled.
        """
        wanted = self._sieve.lacking.tolist()
        number, ask = 0, wanted
        while any(ask):
            labels = in_turns(ask)
            first, stop = number * CHUNK, number * CHUNK + len(labels)
            self._fill(number, labels, title)
            self._spans.append((first, stop))
            for part in self._store.read(first, stop):
                self._kept[part.first] = self._sieve.keep(part)
            number = -(-stop // CHUNK)
            ask = self._missing(wanted)

    def records(self) -> Iterator[Records]:
        """The images that stay, in the order of their numbers."""
        for first, stop in self._spans:
            for part in self._store.read(first, stop):
                yield Records.of(part, self._kept[part.first])

    def _missing(self, wanted: Sequence[int]) -> list[int]:
        """How many more images of each class to try."""
        sieve = self._sieve
        ask: list[int] = []
        for label, lacking in enumerate(sieve.lacking.tolist()):
            tried, passed = int(sieve.tried[label]), int(sieve.passed[label])
            room = PATIENCE * wanted[label] + CHUNK - tried
            if lacking and room <= 0:
                raise DataError(
                    f"class {self._names[label]!r}: {passed:,} of {tried:,} images passed the filters "
                    f"({passed / tried:.1%}), {wanted[label]:,} are wanted; loosen filters, or ask for fewer"
                )
            rate = max(passed / tried, 1 / PATIENCE) if tried else 1.0
            ask.append(min(room, int(SLACK * lacking / rate) + 1) if lacking else 0)
        return ask

    def _fill(self, number: int, labels: Tensor, title: str) -> None:
        """This process's share of the chunks from `number` on that no part holds; afterwards all parts are there."""
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
                made: list[Part] = []
                for index in range(group, min(group + self._chunks, len(chunks))):
                    if number + index in done:
                        self._commit(made)
                        made = []
                    else:
                        made.append(self._how.chunk(number + index, chunks[index]))
                present += world * self._commit(made)
                display.update(min(present, total), "sampling", {})
        self._accelerator.wait_for_everyone()

    def _commit(self, made: Sequence[Part]) -> int:
        """Write neighbouring chunks as one part; how many images that is."""
        if not made:
            return 0
        images, labels, logits = (
            torch.cat([getattr(chunk, name) for chunk in made]) for name in ("images", "labels", "logits")
        )
        distance = None if self._real is None else nearest_real(images, self._real)
        self._store.write(Part(made[0].first, images, labels, logits, distance))
        self.made += len(labels)
        return len(labels)
