"""Real images as a source of a transfer set: a dataset, or a stream."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from synthkd.data.sources import RealImages, RealSource
from synthkd.data.stream import ImageStream
from synthkd.distillation.evaluation import HeldOut
from synthkd.models import Classifier
from synthkd.pipelines.student.held_out import Agreement, Labelling
from synthkd.pipelines.student.sources import TransferSource
from synthkd.training.measuring import Watch, unwatched


class RealTransferImages(TransferSource):
    """Real images: those of a dataset, or a stream of them that arrives while the student learns.

    Args:
        source: draws from them.
        holdout: real images that no student learns from; None for a stream, or if they are private.
        stream: the stream, or None for a dataset. Its newest held-out images take the place of `holdout`.
        labelling: labels held-out images.
        seed: of the choice among the held-out images, if an evaluation does not take all of them.
    """

    held_out_rank = 0
    without_teacher = "none; labels of the real images"

    def __init__(
        self,
        source: RealSource,
        holdout: RealImages | None,
        stream: ImageStream | None,
        labelling: Labelling,
        seed: int,
    ) -> None:
        self.source = self._images = source
        self.state = {"source": source} | ({} if stream is None else {"stream": stream})
        self._stream = stream if stream is not None and stream.holds_out else None
        self._labelling, self._holdout, self._seed = labelling, holdout, seed

    @cached_property
    def _held_out(self) -> HeldOut | None:
        # On first use, since it may cost queries, of which a dry run makes none.
        return None if self._holdout is None else self._labelling.of_holdout(self._holdout, self._seed)

    @property
    def real_images_used(self) -> int:
        """Number of real images that batches have drawn so far."""
        return len(self._images.used)

    @property
    def can_hold_out(self) -> bool:
        """Whether the dataset has a holdout, or the stream may still get held-out images."""
        return self._stream is not None or bool(self._holdout and self._labelling.held_out_count)

    def label_ahead(self) -> None:
        """Label the held-out images, then those that batches draw from."""
        self.held_out()
        self._images.label_ahead()

    def held_out(self) -> HeldOut | None:
        """The same images of a dataset at every evaluation, or the newest held-out images of a stream."""
        if self._stream is not None and len(self._stream.holdout):
            images, count = self._stream.holdout, self._labelling.count
            return self._labelling.of_real(images.images[-count:], images.labels[-count:])
        return self._held_out

    def agreements(self, networks: Sequence[Classifier], watch: Watch = unwatched) -> list[Agreement]:
        """On the held-out images."""
        return self._labelling.on_held_out(networks, self.held_out(), "held-out images", watch)

    def uses(self, alone: bool) -> list[str]:
        """The student learns from them, alone or mixed with others."""
        return [("learned from" if alone else "mixed in") + self._images.kept]
