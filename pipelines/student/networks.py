"""The networks of a distillation: students with their auxiliary layers, teachers, and the controllers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from synthkd.data.bank import MemoryBank
from synthkd.data.read.splits import Splits, channel_statistics
from synthkd.data.written.stored import StoredDataset
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.control.width import WidthRegulator
from synthkd.distillation.student import Student, build_student
from synthkd.distillation.teachers import FrozenTeacher, TeacherTeam
from synthkd.distillation.terms.auxiliary import AuxiliaryLayers, auxiliary_layers
from synthkd.errors import ConfigError
from synthkd.models import Classifier, build_model
from synthkd.models.black_box import black_box_of
from synthkd.models.classifier import copied
from synthkd.models.slimmable import Slimmable, slice_out
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.device import sharing
from synthkd.rng import derive
from synthkd.settings import GivenModel, OptimizerSettings, PeerSettings, ZooModel
from synthkd.types import ImageSpec


@dataclass(frozen=True)
class Subject:
    """The images and classes of a run, as the teacher has them, or the dataset if there is no teacher.

    Attributes:
        spec: sizes of the images and number of classes.
        mean, std: per channel of images in [0, 1]; the student normalises by them.
        class_names: one per class, or empty.
    """

    spec: ImageSpec
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


def subject_of(teacher: Classifier | None, dataset: StoredDataset | None, splits: Splits | None) -> Subject:
    """Images and classes of the teacher, else of the stored dataset, else of the real images.

    Args:
        teacher: the first teacher, or None.
        dataset: the stored dataset, or None.
        splits: the real images; not None without teacher and stored dataset.

    Raises:
        ConfigError: teacher and stored dataset differ.
    """
    if teacher is not None:
        if dataset is not None and dataset.spec != teacher.spec:
            raise ConfigError(
                f"transfer_set.path: the dataset has {dataset.spec}, the teacher takes {teacher.spec}; they must be "
                "the same"
            )
        mean, std = (tuple(v.flatten().tolist()) for v in (teacher.normalize.mean, teacher.normalize.std))
        if splits is not None and black_box_of(teacher) is not None:  # which does not tell how it normalises
            mean, std = channel_statistics(splits.train.images)
        return Subject(teacher.spec, mean, std, tuple(teacher.class_names))
    if dataset is not None:
        return Subject(dataset.spec, dataset.mean, dataset.std, dataset.class_names)
    assert splits is not None
    mean, std = channel_statistics(splits.train.images)
    return Subject(splits.train.spec, mean, std, splits.train.class_names)


def untrained_student(
    config: DistillConfig, subject: Subject, given: Classifier | None = None
) -> Classifier | Slimmable:
    """The student with the initial weights of the run's seed, or a copy of the one that was given in memory.

    Raises:
        ConfigError: it takes other images or classes than the teacher, or cannot change its width.
    """
    torch.manual_seed(derive(config.seed, "student/init"))
    if config.width is not None:
        if not isinstance(config.student, ZooModel):
            raise ConfigError("width: only networks of the zoo change their width: set student.kind to zoo")
        names = (subject.mean, subject.std, subject.class_names)
        return Slimmable(config.width, config.student, subject.spec, *names)
    if isinstance(config.student, GivenModel):
        assert given is not None  # `GivenNetworks.require`
        student = copied(given).train()
        student.class_names = student.class_names or subject.class_names
    else:
        student = build_model(config.student, subject.spec, subject.mean, subject.std, subject.class_names)
    if student.spec != subject.spec:
        raise ConfigError(f"student: it takes {student.spec}, its teacher {subject.spec}; they must be the same")
    return student


@dataclass(frozen=True)
class Network:
    """The student or a peer, before it has a learner.

    Attributes:
        name: in logs and errors: "student", "peer 1", ...
        module: untrained, or a copy of the teacher.
        optimizer: of the module and the auxiliary layers.
        auxiliary: layers of the feature, contrastive and exit losses, or None.
        regulator: moves the width of a module that changes it, else None.
    """

    name: str
    module: Classifier | Slimmable
    optimizer: OptimizerSettings
    auxiliary: AuxiliaryLayers | None
    regulator: WidthRegulator | None


def build_networks(
    config: DistillConfig, student: Classifier | Slimmable, subject: Subject, teacher: Classifier | None
) -> list[Network]:
    """The student and its peers, each with auxiliary layers of its own.

    Raises:
        ConfigError, ModelError: features that cannot be compared.
    """
    modules, optimizers = {"student": student}, [config.distill.optimizer]
    for number, peer in enumerate(() if config.online is None else config.online.peers, start=1):
        modules[f"peer {number}"] = _peer(peer, number, config, subject, teacher)
        optimizers.append(config.distill.optimizer if peer.optimizer is None else peer.optimizer)
    return [
        Network(
            name,
            module,
            optimizer,
            auxiliary_layers(config.distill, teacher, module, config.seed, name),
            WidthRegulator(module, teacher) if isinstance(module, Slimmable) else None,
        )
        for (name, module), optimizer in zip(modules.items(), optimizers, strict=True)
    ]


def _peer(
    peer: PeerSettings, number: int, config: DistillConfig, subject: Subject, teacher: Classifier | None
) -> Classifier:
    if peer.model is None:
        assert teacher is not None  # the configuration refuses a peer without a model if there is no teacher
        return copied(teacher).requires_grad_(True)
    torch.manual_seed(derive(config.seed, "peer/init", number))
    return build_model(peer.model, subject.spec, subject.mean, subject.std, subject.class_names)


def build_team(
    config: DistillConfig,
    teachers: Sequence[Classifier],
    networks: Sequence[Network],
    accelerator: Accelerator,
    selection: TeacherSelection | None,
) -> TeacherTeam | None:
    """The frozen teachers as one, or None without teachers.

    Args:
        config: of the run.
        teachers: the teacher and further ones.
        networks: the first teacher returns the features that their auxiliary layers and regulators compare.
        accelerator: device and precision.
        selection: selects the teacher that labels, or None.
    """
    if not teachers:
        return None
    compare = [one for network in networks for one in (network.auxiliary, network.regulator) if one is not None]
    places = [place for one in compare for place in one.teacher_places]
    first = FrozenTeacher(teachers[0], accelerator, tuple(dict.fromkeys(places)))
    others = [
        FrozenTeacher(other, accelerator, name=teacher_name(number))
        for number, other in enumerate(teachers[1:], start=1)
    ]
    return TeacherTeam([first, *others], config.team, selection)


def teacher_name(number: int) -> str:
    """Name of a teacher in errors, by its number from 0."""
    return f"teacher {number + 1}" if number else "the teacher"


def build_controllers(config: DistillConfig) -> Controllers:
    """The controllers of temperature and weights, of the role swap, and of the selection of a teacher."""
    online, selected = config.online, config.team.weighting == "selected"
    roles = None if online is None or online.swap is None else Roles(online.swap, teaching=1)
    selection = TeacherSelection(1 + len(config.teachers), config.team.selection) if selected else None
    return Controllers(config.distill.adapt, roles, selection)


def build_students(
    config: DistillConfig,
    networks: Sequence[Network],
    total: int,
    accelerator: Accelerator,
    team: TeacherTeam | None,
    bank: MemoryBank | None,
    controllers: Controllers,
) -> tuple[Student, ...]:
    """The student and its peers with their learners and losses.

    Args:
        config: of the run.
        networks: the student, then its peers.
        total: steps of the student before any extension.
        accelerator: device, precision, processes.
        team: the teachers, or None.
        bank: negatives of contrastive losses are drawn from it, if any.
        controllers: move the temperature and the weights of the student, not those of peers.
    """
    return tuple(
        build_student(
            network.name,
            network.module,
            config.distill,
            network.optimizer,
            total,
            accelerator,
            network.auxiliary,
            regulator=network.regulator,
            online=config.online,
            controllers=controllers if number == 0 else None,
            teacher=team,
            bank=bank,
            extensions=config.extended,
            processes=sharing(config, accelerator),
        )
        for number, network in enumerate(networks)
    )


def finished(student: Student) -> Classifier:
    """The finished network: the average of its weights if there is one, cut to its present width."""
    network = student.learner.evaluated
    if isinstance(network, Slimmable):
        network = slice_out(network)
    assert isinstance(network, Classifier)
    return network
