"""A flow of `synthkd compress`: from private images to a teacher, a generator and a student.

An audit runs the same flow on other images, so everything that uses the images is here and takes them as an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.compression.space import space_of
from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import CheckpointError
from synthkd.generators.files import INSIDE_A_RUN
from synthkd.generators.merf import Merf
from synthkd.generators.settings import (
    ChosenByTeacher,
    GeneratorOrAuto,
    GeneratorSettings,
    MerfSettings,
    SavedSettings,
)
from synthkd.models import Classifier, load, load_model, parameters
from synthkd.passes import sample_in_chunks
from synthkd.pipelines.config import NOISY_GENERATOR, CompressConfig, Distillation, DistillConfig, TrainingConfig
from synthkd.pipelines.distill import Distilled, distill
from synthkd.pipelines.handover.private_generator import WIDEST, ReleaseConfig, load_released, release
from synthkd.pipelines.handover.search import SHARE, Choice, choose_student
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.run.shared_work import on_main
from synthkd.pipelines.run.tested import read_test
from synthkd.pipelines.student.assembly import assemble
from synthkd.pipelines.student.teachers import is_taught, teach_config, untrained_teacher
from synthkd.pipelines.teach import teach
from synthkd.privacy.claims import ledger_of
from synthkd.privacy.journal import JOURNAL, Journal
from synthkd.reports.results import RESULT, DistillResult, ReleaseResult, TeachResult
from synthkd.rng import Rows
from synthkd.settings import DataSettings, LoadedModel, PrivacySettings, TeacherSettings, TrainedTeacher, ZooModel
from synthkd.types import SampleGenerator, balanced_labels, to_uint8

RELEASE, TEACH, SEARCH, DISTILL = "release", "teach", "search", "distill"
"""Directories inside that of a flow: three runs and the search of a student."""
CHUNK = 100
"""Images that are sampled at a time."""


@dataclass(frozen=True)
class FlowResult:
    """Networks and claims of a flow.

    Attributes:
        directory: of its runs.
        teacher, student: in eval mode.
        generator: of the images that the student learned from.
        choice: of the student, where it was searched.
        dp: claims of its differentially private parts, see `synthkd.privacy.claims.dp_statement`.
        distilled: the result of the distillation.
    """

    directory: Path
    teacher: Classifier
    student: Classifier
    generator: GeneratorSettings
    choice: Choice | None
    dp: tuple[Mapping[str, Any], ...]
    distilled: DistillResult


def require_fitting(config: CompressConfig, directory: Path) -> None:
    """Check that test data, student and generator fit the teacher, before it is trained and a budget is spent.

    Args:
        config: the flow.
        directory: of its runs; where the distillation comes next, that checks the same.

    Raises:
        SynthkdError: what reading the test data and building a distillation raise.
    """
    settings = config.teacher
    assert settings is not None  # a finished student has no flow
    is_chosen = config.search is None or (directory / DISTILL).exists()
    if is_chosen and is_taught(settings, directory):
        return
    test = read_test(config)
    # The parts are dropped, and torch's generator is as before: the run is the same as without this check.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        teacher = untrained_teacher(settings, config)
        if config.search is not None:
            space_of(config.search, teacher.spec, parameters(teacher) // SHARE)
        assemble(planned_distillation(config), [teacher], make_accelerator(config), None).fitted_test(test)


def run_flow(config: CompressConfig, directory: Path, private: Splits | None, seed: int) -> FlowResult:
    """Run a flow, or read the parts of it that are finished.

    Several processes share the search; the main one does the rest alone, so the result is that of one process.

    Args:
        config: the flow; its seed and its directory are not used.
        directory: of its runs.
        private: the images it may use; None where the teacher is given.
        seed: of all its parts.

    Raises:
        CheckpointError: a part queried private images and the flow would not count it, or its claim is not proven.
        SynthkdError: as `release`, `teach` and `distill` raise.
    """
    settings, generator, statements = on_main(lambda: _taught(config, directory, private, seed))
    teacher = load_model(settings)
    # What follows sees no private image; computed from the results of private parts alone, it costs no privacy.
    distilling = distill_config(config, settings, generator, out=directory / DISTILL, seed=seed)
    choice = None
    if config.search is not None:
        choice = choose_student(distilling, config.search, teacher, directory / SEARCH)
        distilling = distilling.model_copy(update={"student": choice.model})
    out, distilled = on_main(lambda: _distilled(distilling))
    # The distillation saves the generator that it trained, but not one that was saved already, as by the release.
    if (out / INSIDE_A_RUN).is_dir():
        generator = SavedSettings(kind="saved", path=str(out))
    assert not isinstance(generator, ChosenByTeacher)  # those that a teacher chooses are saved
    return FlowResult(directory, teacher.eval(), load(out).eval(), generator, choice, statements, distilled)


def _distilled(config: DistillConfig) -> tuple[Path, DistillResult]:
    """The run directory of the distillation, and its result."""
    result = distill(config)
    assert isinstance(result, Distilled)
    return result.directory, result.content


def _taught(
    config: CompressConfig, directory: Path, private: Splits | None, seed: int
) -> tuple[LoadedModel, GeneratorOrAuto, tuple[Mapping[str, Any], ...]]:
    """The teacher and the generator that the student learns from, and the claims of the private parts behind them."""
    settings, generator, images = config.teacher, config.generated.generator, private
    assert settings is not None  # a finished student has no flow
    dp = settings.training.dp if isinstance(settings, TrainedTeacher) else None
    journal = Journal(directory)
    statements: list[Mapping[str, Any]] = []
    # Both before anything runs: a directory in which budget was spent that this flow would not report is refused.
    _require_counted(config, directory, {RELEASE: isinstance(generator, MerfSettings), TEACH: dp is not None})
    journal.require_parts()

    if isinstance(generator, MerfSettings):
        assert private is not None
        release_config = _release_config(config, generator, directory / RELEASE, seed)
        release_result = release(release_config, private.train)
        statements.append(_proven_statement(release_result, generator))
        journal.keep_part(RELEASE)
        generator = SavedSettings(kind="saved", path=str(release_result.directory))
        if config.flow == "dp_generator":
            # The teacher must not train on the private images, whose budget is spent on the release.
            merf = load_released(release_config, release_result)
            images = _with_synthetic_train(private, merf, config.synthetic.per_class, seed)

    if isinstance(settings, TrainedTeacher):
        teaching = teach_config(settings, config, str(directory / TEACH)).model_copy(update={"seed": seed})
        teach_result = teach(teaching, splits=images)
        assert isinstance(teach_result, Result)
        if dp is not None:
            statements.append(_proven_statement(teach_result, dp))
            journal.keep_part(TEACH)
        settings = LoadedModel(kind="load", model=str(teach_result.directory))
    return settings, generator, tuple(statements)


def sample(
    generator: SampleGenerator, count: int, classes: int, difficulty: float, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Images uint8 `[count, C, H, W]` on the CPU and their balanced labels int64 `[count]`.

    Args:
        generator: draws the images.
        count: number of images.
        classes: number of classes.
        difficulty: in [0, 1].
        seed, purpose: of the random numbers; the same two give the same images.
    """

    def made(part: Tensor, rng: Rows) -> Tensor:
        return to_uint8(generator.sample(part, difficulty, rng)).cpu()

    labels = balanced_labels(count, 0, classes)
    return sample_in_chunks(made, CHUNK, labels, Rows(seed, purpose)), labels


def _require_counted(config: CompressConfig, directory: Path, counts: Mapping[str, bool]) -> None:
    """Raise `CheckpointError` for a run inside that queried private images if the flow does not count its queries."""
    for name, is_counted in counts.items():
        if not is_counted and (directory / name / JOURNAL).exists():
            raise CheckpointError(
                f"{directory / name} has used the private images, which flow {config.flow} would not count; choose "
                "another out=, or run the flow that it is of"
            )


def _proven_statement(
    result: Result[ReleaseResult] | Result[TeachResult], settings: PrivacySettings
) -> Mapping[str, Any]:
    """The claim of a finished run, after a check that it counts the queries in the run's journal, on these settings."""
    # result.json can be edited or copied from another run; the journal is chained and written before each query.
    statement = result.content.dp
    claim_ledger, ledger = ledger_of(statement), Journal(result.directory).ledger
    terms = settings.delta, settings.test_seed is not None
    if statement is None or claim_ledger != ledger or (statement["delta"], statement["insecure"]) != terms:
        raise CheckpointError(
            f"{result.directory / RESULT} counts other queries of the private images than {JOURNAL} beside it, or on "
            "other terms; restore it from a copy, or choose another out=, which spends the budget anew"
        )
    return statement


def _with_synthetic_train(private: Splits, generator: Merf, per_class: int, seed: int) -> Splits:
    """The splits with generated training images and without a holdout; the test images stay, to be evaluated on."""
    spec, names = private.train.spec, private.train.class_names
    images, labels = sample(generator, per_class * spec.classes, spec.classes, WIDEST, seed, "teacher")
    train = RealData(images, labels, spec, names, "synthetic images")
    none = dataclasses.replace(train, images=images[:0], labels=labels[:0])
    return Splits(train, none, private.test)


def _release_config(config: CompressConfig, generator: MerfSettings, out: Path, seed: int) -> ReleaseConfig:
    inherited = {name: getattr(config, name) for name in TrainingConfig.model_fields}
    changed = {"out": str(out), "generator": generator, "seed": seed, "rounds": config.synthetic.rounds}
    return ReleaseConfig(**{**inherited, **changed})


def planned_distillation(config: CompressConfig) -> DistillConfig:
    """The distillation inside a compression as it is before a teacher or a private generator is trained."""
    teacher = config.teacher
    assert teacher is not None  # a finished student is not distilled
    private = teacher.data if isinstance(teacher, TrainedTeacher) and config.flow in NOISY_GENERATOR else None
    return distill_config(config, teacher, config.generated.generator, private)


def distill_config(
    config: CompressConfig,
    teacher: TeacherSettings,
    generator: GeneratorOrAuto,
    data: DataSettings | None = None,
    out: Path | None = None,
    seed: int | None = None,
) -> DistillConfig:
    """The distillation inside a compression.

    Args:
        config: of the compression.
        teacher: labels the images.
        generator: makes the images.
        data: real images that the generator learns from.
        out: the run directory; None: that of the compression.
        seed: of the run; None: that of the compression.
    """
    distillation = config.distillation
    settings = {name: getattr(config, name) for name in TrainingConfig.model_fields}
    settings |= {name: getattr(distillation, name) for name in Distillation.model_fields}
    generated = config.generated.model_copy(update={"generator": generator, "data": data})
    sources = (generated if source is config.generated else source for source in distillation.sources)
    settings["transfer_set"] = tuple(sources)
    # By default no weights are copied: they may carry what the teacher memorised.
    settings["inherit"] = distillation.inherit or False
    settings |= {} if out is None else {"out": str(out)}
    settings |= {} if seed is None else {"seed": seed}
    student = config.student
    # A distillation needs a student. Until the search has chosen one, the smallest of the first family stands in.
    if student is None:
        assert config.search is not None
        family = config.search.families[0]
        student = ZooModel(arch=family.arch, width=family.width[0], depth=min(family.depth, default=None))
    # Only what is handed over leaves the run, and images are not handed over. Its report has no place for a baseline.
    return DistillConfig(**settings, teacher=teacher, student=student, test=config.test, keep_images=0, baseline=False)
