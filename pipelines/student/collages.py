"""Pictures that cost no gradient as a source of a transfer set: crops of an album that shows nothing of the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from synthkd.data.sources import RealImages, RealSource, Source
from synthkd.distillation.alarms import Alarm, class_imbalance
from synthkd.distillation.evaluation import HeldOut
from synthkd.models import Classifier
from synthkd.pipelines.student.held_out import Agreement, Labelling
from synthkd.pipelines.student.sources import TransferSource
from synthkd.rng import Rows
from synthkd.training.measuring import Watch, unwatched
from synthkd.types import WHOLE, Batch, Part, to_uint8

Pictured = Callable[[int, Rows], Tensor]
"""Makes so many images float32 `[N, C, H, W]` in [0, 1], image i a function of random row i alone."""
NAMES = {"procedural": "procedural images", "pictures": "unrelated pictures"}
"""What the images of each kind are, in words."""
CHUNK = 256
"""Images of a pool that are made at once."""


class CollageSource:
    """Fresh images of a collage at every step; image i of a step is a function of seed, step and i alone.

    Args:
        collage: makes the images.
        purpose: name of their random numbers.
        seed: the run's seed.
    """

    annotated = False

    def __init__(self, collage: Pictured, purpose: str, seed: int) -> None:
        self._collage, self._purpose, self._seed = collage, purpose, seed

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        """One batch on the CPU, without logits and with the labels -1."""
        wanted, first = part.size(count), part.of(count).start
        # One at least is made, since a process may have fewer images than others.
        images = self._collage(max(1, wanted), Rows(self._seed, f"{self._purpose}/{step}", first))[:wanted]
        return [Batch(images, torch.full((wanted,), -1))]

    def state_dict(self) -> dict[str, Any]:
        """Empty: batches follow from the step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing, since there is no state."""


class CollageImages(TransferSource):
    """Images of a collage, which the teacher labels.

    Args:
        kind: of the source in the configuration.
        collage: makes the images.
        pool: number of images that are made before the first step and labelled once; None: new ones at every step.
        pooled: the source of such images.
        labelling: labels held-out images; it has a teacher.
        seed: the run's seed.
        made_of: what the images are, in words.
        pictures: number of pictures that somebody took, 0 for drawn ones.

    Attributes:
        pictures: as given.
    """

    held_out_rank = 3
    without_teacher = "none"

    def __init__(
        self,
        kind: str,
        collage: Pictured,
        pool: int | None,
        pooled: Callable[[RealImages], RealSource],
        labelling: Labelling,
        seed: int,
        made_of: str,
        pictures: int,
    ) -> None:
        self._kind, self._collage, self._labelling, self._seed = kind, collage, labelling, seed
        self._pool = None if pool is None else pooled(self._made(pool, "pool"))
        self.source: Source = CollageSource(collage, kind, seed) if self._pool is None else self._pool
        self.state = {}
        self.pictures = pictures
        when = "new ones at every step" if pool is None else f"{pool:,}, labelled once"
        self._made_of, self._fresh = made_of, when

    @property
    def shown(self) -> str:
        """What its images are, in words."""
        return NAMES[self._kind]

    @property
    def words(self) -> str:
        """What the images are made of, in the words of the plan."""
        return f"{NAMES[self._kind]}: {self._made_of}, {self._fresh}"

    @property
    def can_hold_out(self) -> bool:
        """Whether the teacher may be asked about images that no student learns from."""
        return self._labelling.held_out_count > 0

    def label_ahead(self) -> None:
        """Label the held-out images, then those of the pool."""
        self.held_out()
        if self._pool is not None:
            self._pool.label_ahead()

    @cached_property
    def _held_out(self) -> HeldOut | None:
        # On first use, since it may cost queries, of which a dry run makes none.
        count = self._labelling.held_out_count
        return self._labelling.of_holdout(self._made(count, "held out"), self._seed) if count else None

    def held_out(self) -> HeldOut | None:
        """The same fresh images at every evaluation."""
        return self._held_out

    def agreements(self, networks: Sequence[Classifier], watch: Watch = unwatched) -> list[Agreement]:
        """On the held-out images."""
        on = f"fresh {NAMES[self._kind]}" if self._kind == "procedural" else "fresh crops of unrelated pictures"
        return self._labelling.on_held_out(networks, self.held_out(), on, watch)

    def alarms(self, watch: Watch = unwatched) -> list[Alarm | None]:
        """Whether the teacher finds a class much less often than the others."""
        held_out = self.held_out()
        if held_out is None or held_out.teacher_logits is None:
            return []
        other = (
            "mix in generated images" if self._kind == "procedural" else "take other pictures, or mix in generated ones"
        )
        return [class_imbalance(held_out.teacher_logits.cpu(), other)]

    def _made(self, count: int, purpose: str) -> RealImages:
        """So many images uint8 of a purpose of their own, without labels."""
        images: list[Tensor] = []
        for start in range(0, count, CHUNK):
            rows = Rows(self._seed, f"{self._kind}/{purpose}", start)
            images.append(to_uint8(self._collage(min(CHUNK, count - start), rows)))
        return RealImages(torch.cat(images), torch.full((count,), -1))
