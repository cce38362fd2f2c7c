"""The student of a finished `synthkd distill`, handed over as it is."""

from __future__ import annotations

from pathlib import Path

from synthkd.errors import ConfigError
from synthkd.generators.files import INSIDE_A_RUN
from synthkd.generators.settings import GeneratorSettings, ProceduralSettings, SavedSettings
from synthkd.imports import allowing
from synthkd.models import load, load_model
from synthkd.pipelines.config import DistillConfig, ProceduralSet
from synthkd.pipelines.config.recipes import CONFIG, find_config
from synthkd.pipelines.handover.flow import FlowResult
from synthkd.pipelines.run.result import read_result
from synthkd.pipelines.student.teachers import FOLDER
from synthkd.reports.results import DistillResult
from synthkd.settings import LoadedModel, TrainedTeacher
from synthkd.settings.load import load_config
from synthkd.system.files import file_names, sha256


def read_finished(run: Path, trust: bool = False) -> FlowResult:
    """Teacher, student and generator of a finished distillation, in the form of a flow that has been run.

    Args:
        run: its directory.
        trust: also load a teacher that is a program.

    Raises:
        ConfigError: it is no run of `synthkd distill`, is not finished, or lacks what is measured beside the student.
        CheckpointError: a file of the run is damaged.
        ModelError: a network cannot be read.
    """
    config = recorded(run)
    if config.seeds is not None:
        raise ConfigError(f"finished: {run} has {config.seeds} seeds; name the run of one: {run}/seed-{config.seed}")
    result = read_result(run, DistillResult)
    if result is None:
        raise ConfigError(f"finished: {run} is not finished; finish it first: synthkd distill {run}")
    if result.teacher is None or config.teacher is None:
        raise ConfigError(
            f"finished: {run} had no teacher, with which its student is compared; take a run that has one"
        )
    if config.black_box is not None:
        raise ConfigError(
            f"finished: the teacher of {run} is a black box, whose size and speed are not known; export its student "
            "from Python with synthkd.compression"
        )
    generator = _generator(run, config)
    settings = config.teacher
    if isinstance(settings, TrainedTeacher):
        settings = LoadedModel(kind="load", model=str(run / FOLDER))
    if not isinstance(settings, LoadedModel):
        raise ConfigError(f"finished: the teacher of {run} was a network in memory; take a run whose teacher is a file")
    # The recipe names the run and no program, so `true` can only mean the program that the run names as its teacher.
    if trust and Path(settings.model).is_file():
        with allowing({"model": settings.model}, programs=True):
            teacher = load_model(settings)
    else:
        teacher = load_model(settings, run / CONFIG)
    return FlowResult(run, teacher.eval(), load(run), generator, None, (), result)


def _generator(run: Path, config: DistillConfig) -> GeneratorSettings:
    """Where the images come from that calibrate and compare the exports: those of the run, or drawn like them."""
    if (run / INSIDE_A_RUN).is_dir():
        return SavedSettings(kind="saved", path=str(run))
    generated = config.generated
    if generated is not None and isinstance(generated.generator, ProceduralSettings):
        return generated.generator  # it has no weights to save
    if any(isinstance(source, ProceduralSet) for source in config.sources):
        return ProceduralSettings(kind="procedural")
    raise ConfigError(
        f"finished: {run} saved no generator, whose images calibrate and compare the exports; take a run with a source "
        "of kind generated or procedural, or export from Python with synthkd.compression"
    )


def require_unchanged(run: Path, student: Path) -> None:
    """Refuse to show what was measured of a student that its run has replaced since.

    Args:
        run: the finished run; one that is gone has replaced nothing.
        student: the copy of its student that was measured.

    Raises:
        ConfigError: the run has another student now.
    """
    now = run / student.name
    files = [name for name in file_names(student) if (now / name).is_file()]
    if any(sha256(now / name) != sha256(student / name) for name in files):
        raise ConfigError(f"finished: the student of {run} has changed since; choose another out= to hand it over")


def recorded(run: Path) -> DistillConfig:
    """The configuration of a run of `synthkd distill`.

    Raises:
        ConfigError: it is none, or one of another version.
    """
    if not run.is_dir():
        raise ConfigError(f"finished: {run} is no directory; name a finished run of `synthkd distill`")
    try:
        return load_config(DistillConfig, find_config(str(run), "distill"), [], in_place=True)
    except ConfigError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"finished: {run} is no run of `synthkd distill` that can be read: {reason}") from error
