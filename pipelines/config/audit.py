"""The configuration of `synthkd audit`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from synthkd.pipelines.config.base import JobConfig
from synthkd.pipelines.config.evaluate import ImageSet
from synthkd.settings import (
    Listed,
    LoadedModel,
    Settings,
    Whole,
)


class ReferenceModels(Settings):
    """Models for the same images and classes that were trained on neither list, best made as the audited one was."""

    teacher: Annotated[tuple[LoadedModel, ...], Listed] = ()
    student: Annotated[tuple[LoadedModel, ...], Listed] = ()


class AuditConfig(JobConfig):
    """Attack finished models with lists of images that they were trained on and of others: the average case."""

    teacher: LoadedModel | None = None
    student: LoadedModel | None = None
    """Attacked as the teacher is, and compared with it where both are given."""
    references: ReferenceModels = ReferenceModels()
    """Tell how a model that never saw an image answers it, and make attacks sharper. Each is compared with its own
    kind: teachers with the teacher, students, from teachers that saw neither list, with the student."""
    members: str | ImageSet
    """Labelled images that the teacher was trained on (or the student, where it comes alone)."""
    nonmembers: str | ImageSet
    """Labelled images that no audited model was trained on, drawn as the members were."""
    population: str | ImageSet | None = None
    """1,000 labelled images or more in no other role, for RMIA, which needs references too."""
    generated: str | ImageSet | None = None
    """Synthetic images, in which copies of members are looked for, with non-members as the yardstick."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """At which epsilon is estimated."""
    skip_bad: Whole = 0
    """Unreadable files of a set that may be left out; they are counted in the report."""

    @model_validator(mode="after")
    def _consistent(self) -> AuditConfig:
        if self.teacher is None and self.student is None:
            raise ValueError("there is no model to attack: set teacher, student or both")
        for who in ("teacher", "student"):
            if getattr(self.references, who) and getattr(self, who) is None:
                raise ValueError(f"references.{who} are compared with a {who}: set {who}, or leave them out")
        if self.population is not None and not (self.references.teacher or self.references.student):
            raise ValueError("population is for RMIA, which needs references: set references, or leave population out")
        for key in ("members", "nonmembers", "population"):
            one = getattr(self, key)
            if isinstance(one, ImageSet) and one.data is not None and one.split is None:
                raise ValueError(f"{key}.split: say which part of the dataset it is: train, holdout or test")
        return self
