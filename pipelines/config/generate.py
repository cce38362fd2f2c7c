"""The configuration of `synthkd generate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import GeneratorSettings, InversionSettings
from synthkd.pipelines.config.base import TrainingConfig, require_terms
from synthkd.settings import (
    Batch,
    DataSettings,
    Fraction,
    Images,
    PathText,
    PerClass,
    ScoreSettings,
    Settings,
    TeacherSettings,
    Threads,
    Whole,
)


class FilterSettings(Settings):
    """Which generated images are left out; others of the same class take their place."""

    confidence: Fraction | None = None
    """Leave out images whose class has a smaller probability than this in the teacher's prediction."""
    near_duplicates: Fraction | None = None
    """Leave out images that differ from an earlier one of their class by at most this, as the root mean square of the
    pixels' differences; 0 leaves out exact duplicates."""
    copies: Fraction | None = None
    """Leave out images that differ by at most this from a training image of `data`."""


class GenerateConfig(TrainingConfig):
    """Make a labelled synthetic dataset from a recipe, a finished run or a saved generator."""

    threads: Threads | None = 1
    """CPU threads of torch. With the same number of threads the files have the same bytes for any number of processes;
    use more processes rather than more threads, or set it for a long training. None: torch's default."""
    teacher: TeacherSettings | None = None
    """Labels the images; None: the teacher of `run`."""
    generator: GeneratorSettings = InversionSettings()
    """Generates the images, unless `run` has a generator."""
    data: DataSettings | None = None
    """Real images for generators that learn from them, and for `filters.copies`. None: data-free."""
    rounds: Whole = 0
    """Rounds of training of the generator before it is sampled; 0 if it comes from `run`."""
    run: PathText | None = None
    """A run that saved a generator, or the directory of a saved generator; it is not trained further."""
    per_class: Images | Annotated[dict[str, Annotated[int, Field(ge=0, le=10**8)]], PerClass]
    """Images of each class: one number for all classes, or class name (or number) -> number of images."""
    difficulty: Fraction = 0.3
    """Difficulty at which the generator is trained and sampled."""
    format: Literal["folder", "webdataset", "parquet"] = "folder"
    """folder: one PNG for each image; webdataset: .tar shards; parquet: tables, for Hugging Face datasets."""
    shard_size: Images = 10_000
    """Images of a shard (webdataset, parquet)."""
    batch_size: Batch = 512
    """Images between two writes to disk, in steps of 32; it only changes how much a kill loses."""
    filters: FilterSettings = FilterSettings()
    score: ScoreSettings | None = None
    """Score fresh images of the generator while it is trained; None: only at the end, by `synthkd evaluate`."""

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if self.teacher is None and self.run is None:
            raise ValueError("there is nothing to label the images: set teacher, or a run that has one")
        if self.run is not None and self.rounds:
            raise ValueError("the generator of a run is sampled as it is: leave rounds out, or run")
        if self.score is not None and not self.rounds:
            raise ValueError(
                "score follows a generator while it is trained, and with rounds 0 none is: set rounds, or leave score "
                "out and score the finished dataset by synthkd evaluate"
            )
        require_terms(self.generator, "rounds" if self.rounds else "")
        if self.filters.copies is not None and self.data is None:
            raise ValueError("filters.copies compares with real images: set data to those it must not copy")
        if isinstance(self.per_class, dict) and not any(self.per_class.values()):
            raise ValueError("per_class asks for no image: set it above 0 for one class at least")
        return self
