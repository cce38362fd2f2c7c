"""Networks that a caller gives in memory, where a recipe names networks to load or to build.

The configuration records the class of each and a digest of its weights, so that a run goes on with the same networks or
not at all. The networks are copied, into float32: training changes nothing of the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError
from synthkd.models import Classifier, as_classifier
from synthkd.models.classifier import copied, in_float32
from synthkd.models.programs import Script, opened
from synthkd.pipelines.config import DistillConfig
from synthkd.settings import GivenModel
from synthkd.settings.load import load_config
from synthkd.system.sealed import tensor_digest
from synthkd.types import ImageSpec

Given = nn.Module | Mapping[str, object] | None
"""A network, or a section of a recipe that names one."""


@dataclass(frozen=True)
class GivenNetworks:
    """The networks of a distillation that were given in memory, each None if the configuration names it.

    Attributes:
        teacher: a copy of the caller's.
        student: a copy of the caller's, with its initial weights.
    """

    teacher: Classifier | None = None
    student: Classifier | None = None

    @property
    def given_teacher(self) -> Classifier:
        """The teacher, of a configuration that does not name one."""
        assert self.teacher is not None  # `require`
        return self.teacher

    def require(self, config: DistillConfig) -> None:
        """Check that each network which the configuration does not name was given.

        Raises:
            ConfigError: it was not, since somebody runs the recorded configuration of a run.
        """
        for who in ("teacher", "student"):
            settings = getattr(config, who)
            if isinstance(settings, GivenModel) and getattr(self, who) is None:
                raise ConfigError(
                    f"{who}: a network in memory ({settings.model}), which no recipe can name: call "
                    "synthkd.pipelines.distill(teacher=..., student=..., ...) from Python with the networks themselves"
                )


def record(network: Classifier) -> GivenModel:
    """What a configuration says of a network in memory."""
    state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    normalize = {"mean": network.normalize.mean, "std": network.normalize.std}
    about = json.dumps([str(network.spec), *network.class_names])
    digest = tensor_digest(about, {**state, **{f"normalize.{name}": value for name, value in normalize.items()}})
    return GivenModel(kind="given", model=type(network.body).__name__, sha256=digest)


def from_memory(
    teacher: Given, student: Given, spec: ImageSpec | None, recipe: Mapping[str, object]
) -> tuple[DistillConfig, GivenNetworks]:
    """The configuration of a distillation whose networks are given in memory, and copies of them.

    Args:
        teacher: a network, a section of a recipe, or None.
        student: likewise.
        spec: images and classes of networks that are no `Classifier`; None: those of the teacher.
        recipe: the other sections.

    Raises:
        ConfigError: as `load_config`.
        ModelError: a network without a spec, or one that cannot be copied.
    """
    own_teacher = _copied(teacher, spec, "the teacher") if isinstance(teacher, nn.Module) else None
    if spec is None and own_teacher is not None:
        spec = own_teacher.spec
    own_student = _copied(student, spec, "the student") if isinstance(student, nn.Module) else None
    if own_student is not None and not own_student.recipe:  # without a recipe it could not be saved
        own_student.recipe = record(own_student).model_dump()
    networks = GivenNetworks(own_teacher, own_student)
    sections = {
        "teacher": teacher if own_teacher is None else _with_images(own_teacher),
        "student": student if own_student is None else record(own_student),
    }
    written = {key: value for key, value in sections.items() if value is not None}
    return load_config(DistillConfig, {**recipe, **written}, []), networks


def _with_images(network: Classifier) -> dict[str, object]:
    """The section of a network, with the images by which defaults go."""
    spec = network.spec
    return {**record(network).model_dump(), "channels": spec.channels, "size": [spec.height, spec.width]}


def _copied(network: nn.Module, spec: ImageSpec | None, who: str) -> Classifier:
    try:
        own = copied(network)
    except Exception as error:  # other people's code may fail in any way
        raise ModelError(f"{who} cannot be copied: {error}; give a network that copy.deepcopy takes") from error
    classifier = as_classifier(own, spec, who)
    classifier.body = opened(classifier.body, classifier.spec.shape, who)
    if who == "the student" and isinstance(classifier.body, Script):
        raise ModelError("the student is a TorchScript program whose layers cannot be seen; give the network itself")
    return in_float32(classifier)
