"""Who learns and who teaches in a distillation, built from its configuration."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.read.splits import Splits, channel_statistics
from synthkd.data.stream import ImageStream
from synthkd.data.written.stored import StoredDataset
from synthkd.distillation import phases
from synthkd.distillation.adaptation import CHUNK, Adaptation, Probe
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.student import Pupil, make_pupil
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.distillation.team import TeacherTeam
from synthkd.errors import ConfigError
from synthkd.generators.settings import MerfSettings
from synthkd.generators.stored import StoredImages
from synthkd.models import Classifier, build_model
from synthkd.models.slimmable import Slimmable, slice_out
from synthkd.pipelines.config import DistillConfig
from synthkd.rng import derive, stream
from synthkd.settings import PeerSettings, ZooModel
from synthkd.types import Batch, ImageSpec, to_float


@dataclass(frozen=True)
class Subject:
    """What is to be learned, said by the teacher or by the dataset in its place.

    Attributes:
        spec: images and classes.
        mean, std: by which the student normalises.
        class_names: one per class, or empty.
    """

    spec: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


def subject_of(teacher: Classifier | None, dataset: StoredDataset | None, splits: Splits | None) -> Subject:
    """What the teacher, the dataset or the real images say is to be learned."""
    if teacher is not None:
        if dataset is not None and dataset.spec != teacher.spec:
            raise ConfigError(
                f"generator.path: the dataset has {dataset.spec}, the teacher takes {teacher.spec}; they must be the "
                "same"
            )
        mean, std = (tuple(v.flatten().tolist()) for v in (teacher.normalize.mean, teacher.normalize.std))
        return Subject(teacher.spec, mean, std, tuple(teacher.class_names))
    if dataset is not None:
        return Subject(dataset.spec, dataset.mean, dataset.std, dataset.class_names)
    assert splits is not None
    mean, std = channel_statistics(splits.train.images)
    return Subject(splits.train.spec, mean, std, splits.train.class_names)


def untrained_student(config: DistillConfig, subject: Subject) -> Classifier | Slimmable:
    """The student before its first step, with the first weights of the run's seed."""
    torch.manual_seed(derive(config.seed, "student/init"))
    if config.width is not None:
        if not isinstance(config.student, ZooModel):
            raise ConfigError("width: only networks of the zoo change their width: set student.kind to zoo")
        names = (subject.mean, subject.std, subject.class_names)
        return Slimmable(config.width, config.student, subject.spec, *names)
    student = build_model(config.student, subject.spec, subject.mean, subject.std, subject.class_names)
    if student.spec != subject.spec:
        raise ConfigError(f"student: it takes {student.spec}, its teacher {subject.spec}; they must be the same")
    return student


def build_pupils(
    config: DistillConfig,
    student: Classifier | Slimmable,
    subject: Subject,
    teacher: Classifier | None,
    total: int,
    accelerator: Accelerator,
    bank: MemoryBank,
) -> tuple[Pupil, ...]:
    """The student and those that learn beside it, each with an optimiser and layers of its own."""
    if config.online is not None and accelerator.num_processes > 1:
        raise ConfigError("online: peers learn together in one process only; leave torchrun out, or online")
    names, networks, optimizers = ["student"], [student], [config.distill.optimizer]
    for number, peer in enumerate(() if config.online is None else config.online.peers, start=1):
        names.append(f"peer {number}")
        networks.append(_peer(peer, number, config, subject, teacher))
        optimizers.append(config.distill.optimizer if peer.optimizer is None else peer.optimizer)
    return tuple(
        make_pupil(
            name,
            network,
            config.distill,
            optimizer,
            total,
            accelerator,
            teacher,
            config.seed,
            network if isinstance(network, Slimmable) else None,
            config.online,
            bank=bank,
        )
        for name, network, optimizer in zip(names, networks, optimizers, strict=True)
    )


def _peer(
    peer: PeerSettings, number: int, config: DistillConfig, subject: Subject, teacher: Classifier | None
) -> Classifier:
    if peer.model is None:
        assert teacher is not None
        return copy.deepcopy(teacher).requires_grad_(True)
    torch.manual_seed(derive(config.seed, "peer/init", number))
    return build_model(peer.model, subject.spec, subject.mean, subject.std, subject.class_names)


def label_by(
    config: DistillConfig, teachers: Sequence[Classifier], pupils: Sequence[Pupil], accelerator: Accelerator
) -> TeacherTeam | None:
    """Whoever labels; the first teacher shows the features that any pupil's lessons compare."""
    if not teachers:
        return None
    tapped = [place for pupil in pupils if pupil.lessons is not None for place in pupil.lessons.teacher_places]
    first = FrozenTeacher(teachers[0], accelerator, tuple(dict.fromkeys(tapped)))
    others = [
        FrozenTeacher(other, accelerator, name=teacher_name(number))
        for number, other in enumerate(teachers[1:], start=1)
    ]
    return TeacherTeam([first, *others], config.team)


def teacher_name(number: int) -> str:
    """What errors call a teacher."""
    return f"teacher {number + 1}" if number else "the teacher"


def adapt(
    config: DistillConfig,
    pupils: Sequence[Pupil],
    frozen: TeacherTeam | None,
    asked: Probed,
    accelerator: Accelerator,
) -> Adaptation:
    online = config.online
    roles = None if online is None or online.swap is None else Roles(online.swap, teaching=1)
    team = frozen if config.team.weighting == "selected" else None
    selection = None if team is None else TeacherSelection(1 + len(config.teachers), config.team.selection)
    settings = config.distill.adapt
    steers = {
        "distill.adapt.temperature": settings.temperature,
        "distill.adapt.weights": settings.weights,
        "distill.adapt.strength": settings.strength,
        "online.swap": roles,
        "team.selection": selection,
    }
    steering = [name for name, part in steers.items() if part is not None]
    if steering and accelerator.num_processes > 1:
        raise ConfigError(f"{steering[0]} adapts in one process only; leave torchrun out, or {steering[0]}")
    if steering and not asked.possible:
        raise ConfigError(f"{steering[0]} goes by images that are held out, or a bank: set data.holdout above 0")
    return Adaptation(settings, lambda: [pupil.learner.evaluated for pupil in pupils], asked, roles, team, selection)


class Probed:
    """Images that pupils are asked about: held-out real ones, those a dataset held out, else the newest of the bank.

    Nobody learns from the former; of the newest of the bank the student has drawn most by the time of a look.
    """

    def __init__(
        self,
        config: DistillConfig,
        splits: Splits | None,
        arriving: ImageStream | None,
        generator: Any,
        bank: MemoryBank,
        frozen: TeacherTeam | None,
        device: torch.device,
    ) -> None:
        self._count = config.distill.adapt.images
        self._arriving = arriving if config.data is not None and config.data.holdout else None
        self._bank = bank
        self._frozen = frozen
        self._device = device
        self._kept: Probe | None = None
        # a private generator paid for its look at the training images, and nobody for one at these
        if splits is not None and len(splits.holdout) and not isinstance(config.generator, MerfSettings):
            order = torch.randperm(len(splits.holdout), generator=stream(config.seed, "look"))[: self._count]
            self._kept = self._asked(splits.holdout.images[order], splits.holdout.labels[order])
        elif isinstance(generator, StoredImages):
            self._kept = self._labelled(generator.held_out, fresh=config.mix.logits == "fresh")
        filled = generator is not None and phases.generator_rounds(config.phases) > 0
        self.possible = self._kept is not None or self._arriving is not None or filled

    def __call__(self) -> Probe | None:
        if self._arriving is not None and len(self._arriving.holdout):
            held = self._arriving.holdout
            return self._asked(held.images[-self._count :], held.labels[-self._count :])
        if self._kept is not None or not len(self._bank):
            return self._kept
        several = self._frozen is not None and len(self._frozen.models) > 1
        return self._labelled(self._bank.newest(self._count), fresh=several)

    def _asked(self, images: Tensor, labels: Tensor) -> Probe:
        """Real images, with what the teacher says of them."""
        shown = to_float(images).to(self._device)
        return Probe(shown, labels.to(self._device) if bool((labels >= 0).all()) else None, self._said(shown))

    def _labelled(self, batch: Batch, fresh: bool) -> Probe:
        """Images with stored logits, or what those who label now say of them: a bank has them of one teacher alone."""
        rows = slice(-self._count, None)
        shown, logits = batch.images[rows].to(self._device), batch.teacher_logits
        assert logits is not None
        said = self._said(shown) if fresh else None
        return Probe(shown, None, logits[rows].to(self._device) if said is None else said)

    def _said(self, images: Tensor) -> Tensor | None:
        if self._frozen is None:
            return None
        return torch.cat([self._frozen.consensus(part) for part in images.split(CHUNK)])


def finished(pupil: Pupil) -> Classifier:
    """The network of a pupil as it is handed over: its average where there is one, cut to the width it has."""
    network = pupil.learner.evaluated
    if isinstance(network, Slimmable):
        network = slice_out(network)
    assert isinstance(network, Classifier)
    return network
