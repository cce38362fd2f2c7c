"""The configuration of each job: one frozen model, `kind:` choosing among generators, data and phases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import GeneratorSettings, InversionSettings
from synthkd.settings import (
    BankSettings,
    Count,
    DataSettings,
    DifficultySettings,
    DistillSettings,
    Joint,
    MixSettings,
    ModelSettings,
    PhaseSettings,
    Refine,
    Settings,
    TeacherSettings,
    TeachTraining,
)


class JobConfig(Settings):
    """What every job has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run directory `runs/<job>/<name>`."""
    out: str | None = None
    """The run directory itself; the same command on it resumes. None: `runs/<job>/<name>`, numbered when taken."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; bf16 made small convolutional networks slower on CPUs where it was measured."""
    threads: Count | None = None
    """CPU threads of torch; None leaves torch's own choice."""
    adapt_batch_size: bool = False
    """Reduce the batch size until a training step fits the memory, instead of failing."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    log_every: Count = 20
    """Steps between log rows."""
    track: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Experiment trackers beside the JSON lines that are always written."""


class TeachConfig(JobConfig):
    """Train a teacher on real data."""

    data: DataSettings
    model: ModelSettings
    training: TeachTraining = TeachTraining()
    evaluate_every: Count = 500
    """Steps between evaluations on the test split, which are only reported."""


class DistillConfig(JobConfig):
    """Distill a student from a teacher without its data, or with a little of it."""

    teacher: TeacherSettings
    student: ModelSettings
    inherit: bool = True
    """Start a fresh student from the part of the teacher's weights that fits it, where the architectures agree."""
    generator: GeneratorSettings = InversionSettings()
    data: DataSettings | None = None
    """Real images that may be mixed in (`mix.real`); None: the run is data-free."""
    test: DataSettings | None = None
    """Real test data to report on; it never selects anything."""
    difficulty: DifficultySettings = DifficultySettings()
    bank: BankSettings = BankSettings()
    mix: MixSettings = MixSettings()
    distill: DistillSettings = DistillSettings()
    phases: tuple[PhaseSettings, ...] = (Joint(kind="joint", steps=4000, every=15), Refine(kind="refine", steps=500))
    evaluate_every: Count = 250
    """Steps between evaluations on `test`, where there is one."""
    grid_every: Count = 50
    """Generator rounds between sample grids; 1 draws one a round, and costs about as much as two rounds."""

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        if self.data is None and self.mix.real != 0.0:
            raise ValueError("mix.real needs real images: set data, or mix.real to 0")
        if self.data is not None and self.mix.real == 0.0:
            raise ValueError("data is set but mix.real is 0, so no real image would be used: set mix.real, or no data")
        if self.distill.hint != 0.0 and self.mix.logits == "stored":
            raise ValueError("distill.hint compares features of the images at hand: set mix.logits to fresh")
        return self
