"""The configuration of `synthkd generate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import (
    GeneratorSettings,
    InversionSettings,
    MerfSettings,
)
from synthkd.pipelines.config.base import TrainingConfig, require_terms
from synthkd.settings import (
    Batch,
    DataSettings,
    Fraction,
    Images,
    PerClass,
    Settings,
    TeacherSettings,
    Threads,
    Whole,
)


class FilterSettings(Settings):
    """Which generated images are left out; others of their class are made in their place."""

    confidence: Fraction | None = None
    """Least probability that the teacher gives the asked label."""
    near_duplicates: Fraction | None = None
    """An image is left out when it differs from an earlier one of its class by at most this, as the root mean square
    of the pixels' differences; 0 leaves out exact duplicates."""
    copies: Fraction | None = None
    """The same against the training images of `data`: what is that near to a real image is left out."""


class GenerateConfig(TrainingConfig):
    """Make a labelled synthetic dataset from a recipe, a finished run or a saved generator."""

    threads: Threads | None = 1
    """CPU threads of torch. The files are the same bytes whatever the number of processes as long as this is; take
    more processes rather than more threads, or set it for a long training. None leaves torch's own choice."""
    teacher: TeacherSettings | None = None
    """Labels the images; None takes the teacher of `run`."""
    generator: GeneratorSettings = InversionSettings()
    """What makes the images, unless `run` has it."""
    data: DataSettings | None = None
    """Real images: generators that learn from them do, and `filters.copies` compares with them. None: data-free."""
    rounds: Whole = 0
    """Rounds that the generator is trained before it is sampled; 0 when it comes from `run`."""
    run: str | None = None
    """A run that saved a generator, or the directory of a saved generator; it is sampled as it is."""
    per_class: Images | Annotated[dict[str, Annotated[int, Field(ge=0, le=10**8)]], PerClass]
    """Images of each class: one number for all, or class name (or number) to how many."""
    difficulty: Fraction = 0.3
    """Difficulty at which the generator is trained and sampled."""
    format: Literal["folder", "webdataset", "parquet"] = "folder"
    shard_size: Images = 10_000
    """Images of a shard (webdataset, parquet)."""
    batch_size: Batch = 512
    """Images between commits to disk, in steps of 32; it changes nothing but how much a kill loses."""
    filters: FilterSettings = FilterSettings()

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if self.teacher is None and self.run is None:
            raise ValueError("there is nothing to label the images: set teacher, or a run that has one")
        if self.run is not None and self.rounds:
            raise ValueError("the generator of a run is sampled as it is: leave rounds out, or run")
        require_terms(self.generator, "rounds" if self.rounds else "")
        if self.filters.copies is not None and isinstance(self.generator, MerfSettings):
            raise ValueError("filters.copies looks at every private image, which no noise covers: leave it out")
        if self.filters.copies is not None and self.data is None:
            raise ValueError("filters.copies compares with real images: set data to those it must not copy")
        if isinstance(self.per_class, dict) and not any(self.per_class.values()):
            raise ValueError("per_class asks for no image at all")
        return self
