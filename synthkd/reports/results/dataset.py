"""The result of `generate`: the description of its dataset, which also stands in the dataset's `dataset.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from synthkd.reports.results.base import JobResult, RunCost
from synthkd.reports.results.codec import OMITTED
from synthkd.reports.results.training import RunningScoresResult
from synthkd.types import ImageSpec


@dataclass(frozen=True)
class DatasetTeacher:
    """The teacher that labelled a dataset.

    Attributes:
        sha256: of its serialised weights.
        arch: architecture.
        parameters: number of parameters.
        trained_on: kind of its training data, where the job trained it; else None.
    """

    sha256: str
    arch: str
    parameters: int
    trained_on: str | None


@dataclass(frozen=True)
class DatasetScores:
    """How good the images are, judged by the teacher alone.

    Attributes:
        agreement: share of images to which the teacher gives the requested label, in [0, 1].
        agreement_interval: 95 % Wilson interval of it, low and high.
        agreement_per_class: the share for each class; None for a class without images.
        confidence: mean probability of the requested label.
        vendi: Vendi score, an effective number of different images; None where features have no directions, or
            the teacher has no features, since no last layer of it is found.
        vendi_n: images it was measured on.
        exact_duplicates: images with exactly the pixels of an earlier one.
        tried: images that were sampled.
        rejected: filter -> images that it rejected.
    """

    agreement: float
    agreement_interval: tuple[float, float]
    agreement_per_class: tuple[float | None, ...]
    confidence: float
    vendi: float | None
    vendi_n: int
    exact_duplicates: int
    tried: int
    rejected: Mapping[str, int]


@dataclass(frozen=True)
class DatasetDescription:
    """The content of `dataset.json`.

    Attributes:
        version: of the format.
        synthkd: version that wrote it.
        name: of the run.
        synthetic: always True.
        format: folder, webdataset or parquet.
        files: files to read, relative to the dataset.
        count: number of images.
        content: sha256 of all records, independent of the format.
        spec: of the images.
        class_names, counts: name and number of images of each class.
        mean, std: per channel, as the teacher normalises.
        seed, difficulty: of the images.
        teacher: who labelled them.
        generator: its settings.
        rounds: training rounds of the generator in this job.
        real_images_used: real images that the generator was trained on; None where nobody can say.
        real_images_compared: real images that copies were looked for among; None without that filter.
        filters: their settings.
        scores: how good the images are.
    """

    version: int
    synthkd: str
    name: str
    synthetic: bool
    format: str
    files: tuple[str, ...]
    count: int
    content: str
    spec: ImageSpec
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    difficulty: float
    teacher: DatasetTeacher
    generator: Mapping[str, Any]
    rounds: int
    real_images_used: int | None
    real_images_compared: int | None
    filters: Mapping[str, Any]
    scores: DatasetScores


@dataclass(frozen=True, kw_only=True)
class GenerateResult(JobResult):
    """The result of `generate`.

    Attributes:
        dataset: its description.
        real_images_used: real images that the generator was trained on; None where nobody can say.
        cost: what it took.
        seconds: wall time of all stages.
        scores: of the generator while it was trained, if the run measured them.
    """

    job: str = "generate"
    dataset: DatasetDescription
    real_images_used: int | None = None
    cost: RunCost
    seconds: float
    scores: RunningScoresResult | None = field(default=None, metadata=OMITTED)
