"""The transfer set of a run: the images that the student learns from.

A transfer set (Hinton et al. 2015) consists of sources: images of a generator, images of a dataset that `synthkd
generate` wrote, and real images, fixed or arriving. The rest of the run uses the transfer set as a whole, whatever its
sources are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from synthkd.data.hybrid import HybridDataset
from synthkd.distillation.alarms import Alarm
from synthkd.distillation.evaluation import HeldOut
from synthkd.metrics.untested import LEAST_STEPS, Calibration, Range, estimated_agreement
from synthkd.models import Classifier
from synthkd.pipelines.student.collages import CollageImages
from synthkd.pipelines.student.held_out import Agreement
from synthkd.pipelines.student.sources import GeneratedImages, TransferSource
from synthkd.pipelines.student.unlabelled import UnlabelledImages
from synthkd.training.measuring import Watch, unwatched


class TransferSet:
    """The sources of a run and the batches that are drawn from them.

    Args:
        sources: at least one.
        dataset: draws batches from all of them.

    Attributes:
        sources, dataset: as given.
        generated: the source whose images are generated while the student learns, or None.
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
        """Number of real images that the student or its generator has used; None if it is unknown.

        Where the generator learns from the images of another source, the larger number counts.
        """
        counts = []
        for source in self.sources:
            if source.real_images_used is None:
                return None
            counts.append(source.real_images_used)
        return max(counts) if self.generated is not None and self.generated.learns_from_another else sum(counts)

    @property
    def unrelated_pictures(self) -> int:
        """Number of pictures that have nothing to do with the task and whose crops the student learns from."""
        return sum(source.pictures for source in self.sources if isinstance(source, CollageImages))

    @property
    def collages(self) -> list[str]:
        """What pictures that cost no gradient are made of, in the words of the plan."""
        return [source.words for source in self.sources if isinstance(source, CollageImages)]

    @property
    def images_generated(self) -> int:
        """Number of images that were added to memory banks so far."""
        return sum(bank.added for bank in self.banks)

    @property
    def can_hold_out(self) -> bool:
        """Whether there are, or will be, images on which the students are evaluated."""
        return any(source.can_hold_out for source in self.sources)

    def held_out(self) -> HeldOut | None:
        """The images for evaluations, or None while there are none.

        Held-out real images are taken first, then held-out stored ones, then the newest of a bank.
        """
        return next((images for source in self._by_rank if (images := source.held_out()) is not None), None)

    def agreements(self, networks: Sequence[Classifier], watch: Watch = unwatched) -> list[Agreement]:
        """Agreement of each network with the teacher without test data; none if it cannot be measured.

        Fresh samples of a generator are taken first, then held-out stored images, then held-out real ones.
        """
        measured = (source.agreements(networks, watch) for source in reversed(self._by_rank))
        return next((agreements for agreements in measured if agreements), [])

    def estimate(self, student: Classifier, fresh: Agreement | None, steps: int) -> tuple[Range, Calibration] | None:
        """The estimated agreement on images of the task, and by what; None unless all images come of the teacher alone.

        Nor is there one after fewer steps than in the runs that the rules come from.

        Args:
            student: the finished student.
            fresh: its agreement on fresh samples.
            steps: that it took.
        """
        generated = self.generated
        if fresh is None or fresh.logits is None or generated is None or len(self.sources) > 1 or steps < LEAST_STEPS:
            return None
        if (calibration := generated.calibration) is None:
            return None
        learned = generated.agreement_on_learned(student)
        return None if learned is None else (estimated_agreement(fresh.logits, learned, calibration), calibration)

    def alarms(self, watch: Watch = unwatched) -> list[Alarm]:
        """Signs of a failing distillation in the images of any source."""
        return [alarm for source in self.sources for alarm in source.alarms(watch) if alarm is not None]

    def sample(self, last_step: int) -> tuple[Tensor, Tensor, str]:
        """Images on which a student that always predicts one class is noticed.

        They are the newest images of a bank, else held-out images of a source, else the batch of the last step.

        Args:
            last_step: the student's last step.

        Returns:
            Images `[N, C, H, W]`, labels int64 `[N]`, and what the images are, in words.
        """
        newest = next((batch for source in self.sources if (batch := source.newest()) is not None), None)
        if newest is not None:
            return newest.images, newest.labels, "of the newest images"
        for source in self._by_rank:
            if (held_out := source.held_out()) is not None:
                return held_out.images, held_out.targets, source.shown
        batch = self.dataset.batch(last_step)
        labels = batch.labels
        if bool((labels < 0).any()):
            assert batch.teacher_logits is not None
            labels = batch.teacher_logits.argmax(1)
        return batch.images, labels, " and ".join(source.shown for source in self.sources)

    def label_ahead(self) -> None:
        """Let the teacher label the images that it labels once, before the first step."""
        for source in self.sources:
            source.label_ahead()

    @property
    def labelled_by_teacher(self) -> str:
        """How the teacher labels unlabelled images, in the words of the plan; empty without such images."""
        return next((one.labelled for one in self.sources if isinstance(one, UnlabelledImages)), "")

    def uses(self) -> list[str]:
        """What real images are used for, in the words of the plan."""
        return [use for source in self.sources for use in source.uses(alone=len(self.sources) == 1)]
