"""The transfer set of a run: the images that the student learns from, and what the run asks of them.

A transfer set (Hinton et al. 2015) is made of sources: images of a generator, images of a dataset that `synthkd
generate` wrote, and real images, fixed or arriving. The rest of a run asks the transfer set, and never which sources it
has.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from synthkd.data.hybrid import HybridDataset
from synthkd.distillation.alarms import Alarm
from synthkd.distillation.evaluation import HeldOut
from synthkd.models import Classifier
from synthkd.pipelines.student.sources import Agreement, GeneratedImages, TransferSource


class TransferSet:
    """The sources of a run and the batches that are drawn from them.

    Args:
        sources: at least one.
        dataset: draws batches from all of them.

    Attributes:
        sources, dataset: as given.
        generated: the source whose images are made while the student learns, or None.
        banks: the memory banks of all sources.
        state: what goes into checkpoints, by name.
    """

    def __init__(self, sources: Sequence[TransferSource], dataset: HybridDataset) -> None:
        self.sources, self.dataset = tuple(sources), dataset
        self.generated = next((source for source in sources if isinstance(source, GeneratedImages)), None)
        self.banks = tuple(source.bank for source in sources if source.bank is not None)
        self.state = {name: part for source in sources for name, part in source.state.items()}
        self._by_rank = sorted(sources, key=lambda source: source.held_out_rank)

    @property
    def real_images_used(self) -> int | None:
        """Real images that the student or its generator has seen; None where nobody can say.

        What a generator learned from and what is mixed in are images of the same dataset, so the larger number counts.
        """
        counts = [source.real_images_used for source in self.sources]
        known = [count for count in counts if count is not None]
        return max(known) if len(known) == len(counts) else None

    @property
    def images_generated(self) -> int:
        """Images that were put into memory banks so far."""
        return sum(bank.added for bank in self.banks)

    @property
    def can_hold_out(self) -> bool:
        """Whether there are, or will be, images to evaluate the students on."""
        return any(source.can_hold_out for source in self.sources)

    def held_out(self) -> HeldOut | None:
        """Images that the students are evaluated on: real ones before stored ones before the newest of a bank."""
        return next((images for source in self._by_rank if (images := source.held_out()) is not None), None)

    def agreement(self, student: Classifier) -> Agreement | None:
        """Agreement with the teacher without test data: on fresh samples before stored ones before held-out ones."""
        found = (source.agreement(student) for source in reversed(self._by_rank))
        return next((agreement for agreement in found if agreement is not None), None)

    def alarms(self) -> list[Alarm]:
        """Signs of a failing distillation in the images of any source."""
        return [alarm for source in self.sources for alarm in source.alarms() if alarm is not None]

    def sample(self, last_step: int) -> tuple[Tensor, Tensor, str]:
        """Images, labels and what they are, to see whether a student gives one answer whatever it is shown.

        The newest images of a bank, else held-out real images, else the batch of the last step.
        """
        newest = next((batch for source in self.sources if (batch := source.newest()) is not None), None)
        if newest is not None:
            return newest.images, newest.labels, "of the newest images"
        held_out = self.held_out()
        if held_out is not None:
            return held_out.images, held_out.targets, "real images"
        batch = self.dataset.batch(last_step)
        labels = batch.labels
        if bool((labels < 0).any()):
            assert batch.teacher_logits is not None
            labels = batch.teacher_logits.argmax(1)
        return batch.images, labels, "real images"

    def uses(self) -> list[str]:
        """What real images are used for, for the plan."""
        return [use for source in self.sources for use in source.uses(alone=len(self.sources) == 1)]
