"""The configuration of `synthkd audit`."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from synthkd.pipelines.config.base import JobConfig
from synthkd.pipelines.config.evaluate import ImageSet, require_skipping, require_split
from synthkd.settings import Delta, Listed, LoadedModel, PathText, Settings, Whole


class ReferenceModels(Settings):
    """Models of the same images and classes, trained on neither list and otherwise as much like the audited one as
    possible."""

    teacher: Annotated[tuple[LoadedModel, ...], Listed] = ()
    """Compared with the teacher."""
    student: Annotated[tuple[LoadedModel, ...], Listed] = ()
    """Compared with the student."""


class AuditConfig(JobConfig):
    """Attack finished models with images that they were trained on and others: the average case."""

    teacher: LoadedModel | None = None
    """The model to attack."""
    student: LoadedModel | None = None
    """Attacked like the teacher, and compared with it if both are given."""
    references: ReferenceModels = ReferenceModels()
    """Models that show the outputs for images not learned from, which makes attacks stronger. Teachers are compared
    with the teacher, and students, of teachers that were trained on neither list, with the student."""
    members: PathText | ImageSet
    """Labelled images that the teacher was trained on (or the student, if there is no teacher)."""
    nonmembers: PathText | ImageSet
    """Labelled images that no audited model was trained on, drawn like the members."""
    population: PathText | ImageSet | None = None
    """At least 1,000 labelled images in no other role, for RMIA, which also needs references."""
    generated: PathText | ImageSet | None = None
    """Synthetic images, in which copies of members are searched, and copies of non-members for comparison."""
    delta: Delta = 1e-5
    """Delta of the estimated epsilon."""
    skip_bad: Whole = 0
    """Largest number of unreadable files of a set at a path that are skipped; the report has their number."""

    @model_validator(mode="after")
    def _consistent(self) -> AuditConfig:
        if self.teacher is None and self.student is None:
            raise ValueError("there is no model to attack: set teacher, student or both")
        for who in ("teacher", "student"):
            if getattr(self.references, who) and getattr(self, who) is None:
                raise ValueError(f"references.{who} are compared with a {who}: set {who}, or leave them out")
        if self.population is not None and not (self.references.teacher or self.references.student):
            raise ValueError("population is for RMIA, which needs references: set references, or leave population out")
        require_split(self, "members", "nonmembers", "population")
        sets = {key: getattr(self, key) for key in ("members", "nonmembers", "population", "generated")}
        require_skipping(self.skip_bad, sets)
        return self
