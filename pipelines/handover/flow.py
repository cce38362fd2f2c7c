"""From private images to teacher and student, in the way that a flow of `synthkd compress` says.

An audit runs the same on other images, so all that depends on them is here and takes them as an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import CheckpointError
from synthkd.generators.files import INSIDE_A_RUN
from synthkd.generators.merf import Merf
from synthkd.generators.settings import GeneratorSettings, MerfSettings, SavedSettings
from synthkd.models import Classifier, load, load_model
from synthkd.pipelines.config import CompressConfig, DistillConfig, TeachConfig
from synthkd.pipelines.distill import distill
from synthkd.pipelines.handover.private_generator import WIDEST, ReleaseConfig, load_released, release
from synthkd.pipelines.handover.search import Choice, choose_student
from synthkd.pipelines.run.directory import Result
from synthkd.pipelines.student.teachers import teach_config
from synthkd.pipelines.teach import load_taught, teach
from synthkd.privacy.accounting import ledger_of
from synthkd.privacy.journal import JOURNAL, Journal
from synthkd.reports.results import RESULT, DistillResult, ReleaseResult, TeachResult
from synthkd.rng import Rows
from synthkd.settings import DPSettings, LoadedModel, TrainedTeacher, ZooModel
from synthkd.types import SampleGenerator, balanced_labels, to_uint8

RELEASE, TEACH, SEARCH, DISTILL = "release", "teach", "search", "distill"
"""Runs and searches inside the run of a flow."""
CHUNK = 100


@dataclass(frozen=True)
class Flowed:
    """What a flow made.

    Attributes:
        directory: of its runs.
        teacher, student: in eval mode.
        generator: whose images the student learned from.
        choice: of the student, where it was searched.
        dp: what its noisy parts may claim, as `synthkd.privacy.dpsgd.statement` has it.
        distilled: what the distillation measured.
    """

    directory: Path
    teacher: Classifier
    student: Classifier
    generator: GeneratorSettings
    choice: Choice | None
    dp: tuple[Mapping[str, Any], ...]
    distilled: DistillResult


def run_flow(config: CompressConfig, directory: Path, private: Splits | None, seed: int) -> Flowed:
    """Run a flow, or read what is finished of it.

    Args:
        config: the flow; its seed and directory are not used.
        directory: where its runs are.
        private: the images it may touch; None where the teacher is given.
        seed: of all its parts.

    Raises:
        SynthkdError: what `release`, `teach` and `distill` raise.
    """
    claims: list[Mapping[str, Any]] = []
    settings, generator = config.teacher, config.generator
    assert settings is not None
    shown = private
    journal = Journal(directory)
    dp = settings.training.dp if isinstance(settings, TrainedTeacher) else None
    counted = {RELEASE: isinstance(generator, MerfSettings), TEACH: dp is not None}
    for name, counts in counted.items():
        if not counts and (directory / name / JOURNAL).exists():
            raise CheckpointError(
                f"{directory / name} has looked at the private images, which flow {config.flow} would not count; "
                "choose another out=, or run the flow that it is of"
            )
    journal.require_parts()
    if isinstance(generator, MerfSettings):
        assert private is not None
        releasing = _releasing(config, generator, directory / RELEASE, seed)
        released = release(releasing, private.train)
        claims.append(_proven(released, generator))
        journal.keep_part(RELEASE)
        generator = SavedSettings(kind="saved", path=str(released.directory))
        if config.flow == "dp_generator":
            shown = _in_their_place(private, load_released(releasing, released), config.synthetic.per_class, seed)
    if isinstance(settings, TrainedTeacher):
        taught = teach(_teaching(config, settings, directory / TEACH, seed), splits=shown)
        assert isinstance(taught, Result)
        if dp is not None:
            claims.append(_proven(taught, dp))
            journal.keep_part(TEACH)
        teacher = load_taught(taught)
        settings = LoadedModel(kind="load", model=str(taught.directory))
    else:
        teacher = load_model(settings)
    distilling = _distilling(config, settings, generator, directory / DISTILL, seed)
    choice = None
    if config.search is not None:
        choice = choose_student(distilling, config.search, teacher, directory / SEARCH)
        distilling = distilling.model_copy(update={"student": choice.model})
    distilled = distill(distilling)
    assert isinstance(distilled, Result)
    if (distilled.directory / INSIDE_A_RUN).is_dir():  # one that was finished before is not saved again
        generator = SavedSettings(kind="saved", path=str(distilled.directory))
    student = load(distilled.directory)
    return Flowed(directory, teacher.eval(), student.eval(), generator, choice, tuple(claims), distilled.content)


def sample(
    generator: SampleGenerator, count: int, classes: int, difficulty: float, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Images uint8 `[count, C, H, W]` of balanced labels, int64 `[count]`, a function of seed and purpose.

    Args:
        generator: what makes them.
        count: how many.
        classes: of the labels.
        difficulty: in [0, 1].
        seed, purpose: of the random rows.
    """
    images, labels = [], balanced_labels(count, 0, classes)
    for first in range(0, count, CHUNK):
        made = generator.sample(labels[first : first + CHUNK], difficulty, Rows(seed, purpose, first))
        images.append(to_uint8(made).cpu())
    return torch.cat(images), labels


def _proven(
    result: Result[ReleaseResult] | Result[TeachResult], settings: MerfSettings | DPSettings
) -> Mapping[str, Any]:
    """What a finished run may claim, if it counts the very looks that its journal has, on the terms of its settings."""
    claim = result.content.dp
    counted, written = ledger_of(claim), Journal(result.directory).ledger
    terms = settings.delta, settings.test_seed is not None
    if claim is None or written != counted or (claim["delta"], claim["insecure"]) != terms:
        raise CheckpointError(
            f"{result.directory / RESULT} counts other looks at the private images than {JOURNAL} beside it, or on "
            "other terms; restore it from a copy, or choose another out=, which spends the budget anew"
        )
    return claim


def _in_their_place(private: Splits, generator: Merf, per_class: int, seed: int) -> Splits:
    """Training images of the generator in the place of private ones; test images are reported on as before."""
    spec, names = private.train.spec, private.train.class_names
    images, labels = sample(generator, per_class * spec.classes, spec.classes, WIDEST, seed, "teacher")
    train = RealData(images, labels, spec, names, "synthetic images")
    none = dataclasses.replace(train, images=images[:0], labels=labels[:0])
    return Splits(train, none, private.test)


def _releasing(config: CompressConfig, generator: MerfSettings, out: Path, seed: int) -> ReleaseConfig:
    inherited = {name: getattr(config, name) for name in ReleaseConfig.model_fields if name != "rounds"}
    changed = {"out": str(out), "generator": generator, "seed": seed, "rounds": config.synthetic.rounds}
    return ReleaseConfig(**{**inherited, **changed})


def _teaching(config: CompressConfig, settings: TrainedTeacher, out: Path, seed: int) -> TeachConfig:
    return teach_config(settings, config, str(out)).model_copy(update={"seed": seed})


def _distilling(
    config: CompressConfig, teacher: LoadedModel, generator: GeneratorSettings, out: Path, seed: int
) -> DistillConfig:
    inherited = {name: getattr(config, name) for name in DistillConfig.model_fields}
    changed = {"out": str(out), "teacher": teacher, "generator": generator, "seed": seed, "data": None}
    if config.student is None:
        changed["student"] = stand_in(config)
    return DistillConfig(**{**inherited, **changed})


def stand_in(config: CompressConfig) -> ZooModel:
    """The smallest student of the first family, in the place of one that is not chosen yet."""
    assert config.search is not None
    family = config.search.families[0]
    return ZooModel(arch=family.arch, width=family.width[0], depth=min(family.depth, default=None))
