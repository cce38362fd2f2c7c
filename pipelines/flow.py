"""From private images to teacher and student, in the way that a flow of `synthkd compress` says.

An audit runs the same on other images, so all that depends on them is here and takes them as an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthkd.data.splits import Splits
from synthkd.models import Classifier, load, load_model
from synthkd.pipelines.config import CompressConfig, DistillConfig, TeachConfig
from synthkd.pipelines.distill import distill
from synthkd.pipelines.run import Result
from synthkd.pipelines.teach import load_taught, teach
from synthkd.pipelines.teachers import teach_config
from synthkd.settings import LoadedModel, TrainedTeacher

TEACH, DISTILL = "teach", "distill"
"""Runs inside the run of a flow."""


@dataclass(frozen=True)
class Flowed:
    """What a flow made.

    Attributes:
        directory: of its runs.
        teacher, student: in eval mode.
        dp: what its noisy parts may claim, as `synthkd.privacy.dpsgd.statement` has it.
        distilled: the content of result.json of the distillation.
    """

    directory: Path
    teacher: Classifier
    student: Classifier
    dp: tuple[Mapping[str, Any], ...]
    distilled: Mapping[str, Any]


def run_flow(config: CompressConfig, directory: Path, private: Splits | None, seed: int) -> Flowed:
    """Run a flow, or read what is finished of it.

    Args:
        config: the flow; its seed and directory are not used.
        directory: where its runs are.
        private: the images it may touch; None where the teacher is given.
        seed: of all its parts.

    Raises:
        SynthkdError: what `teach` and `distill` raise.
    """
    claims: list[Mapping[str, Any]] = []
    settings = config.teacher
    assert settings is not None
    if isinstance(settings, TrainedTeacher):
        taught = teach(_teaching(config, settings, directory / TEACH, seed), splits=private)
        assert isinstance(taught, Result)
        if taught.values["dp"] is not None:
            claims.append(taught.values["dp"])
        teacher = load_taught(taught)
        settings = LoadedModel(kind="load", model=str(taught.directory))
    else:
        teacher = load_model(settings)
    distilled = distill(_distilling(config, settings, directory / DISTILL, seed))
    assert isinstance(distilled, Result)
    student = load(distilled.directory, trust=True)
    return Flowed(directory, teacher.eval(), student.eval(), tuple(claims), distilled.values)


def _teaching(config: CompressConfig, settings: TrainedTeacher, out: Path, seed: int) -> TeachConfig:
    return teach_config(settings, config, str(out)).model_copy(update={"seed": seed})


def _distilling(config: CompressConfig, teacher: LoadedModel, out: Path, seed: int) -> DistillConfig:
    inherited = {name: getattr(config, name) for name in DistillConfig.model_fields}
    return DistillConfig(**{**inherited, "out": str(out), "teacher": teacher, "seed": seed, "data": None})
