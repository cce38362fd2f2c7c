"""The configuration of `synthkd evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.pipelines.config.base import JobConfig
from synthkd.settings import (
    MOST_ITEMS,
    DataSettings,
    ExtractorSettings,
    FolderData,
    Images,
    LoadedModel,
    PathText,
    Settings,
    Whole,
)
from synthkd.settings.data import require_whole


class ImageSet(Settings):
    """A set of images: a path, or a split of a real dataset. A plain path may be written in place of the section."""

    path: PathText | None = None
    """An image folder (flat, or a directory per class), .zip, .tar, .csv, .parquet, .npz, a run, or the features that
    an earlier evaluation saved (.safetensors)."""
    data: DataSettings | None = None
    """A real dataset, in place of a path."""
    split: str | None = None
    """Which part of it: train, holdout or test of a dataset (None: its own test part if it has one, else all images); a
    directory of that name in a folder."""
    channels: Literal[1, 3] | None = None
    """Convert the images to grey (1) or RGB (3); None: as each file has. Grey images fit a network of either number."""

    @model_validator(mode="after")
    def _one(self) -> ImageSet:
        if (self.path is None) == (self.data is None):
            raise ValueError("give a path or a dataset (data), one of the two")
        if self.data is not None and self.split in (None, "test"):
            require_whole(self.data)
        return self


def require_split(config: JobConfig, *keys: str) -> None:
    """Refuse a dataset without a split, which would be its test images, where only the user knows which part is meant.

    Args:
        config: of a job.
        keys: of its sets.

    Raises:
        ValueError: no split, with the key.
    """
    for key in keys:
        one = getattr(config, key)
        if isinstance(one, ImageSet) and one.data is not None and one.split is None:
            raise ValueError(f"{key}.split: say which part of the dataset it is: train, holdout or test")


def require_skipping(skip_bad: int, sets: Mapping[str, str | ImageSet | None]) -> None:
    """Refuse a limit of unreadable files for a dataset of kind folder, which has a key of its own for them.

    Args:
        skip_bad: the limit.
        sets: by their keys.

    Raises:
        ValueError: the limit does not reach a set, with the key that does.
    """
    for key, one in sets.items():
        data = one.data if isinstance(one, ImageSet) else None
        if skip_bad and isinstance(data, FolderData) and not data.skip_bad:
            raise ValueError(
                f"skip_bad is for sets that are a path, and {key} is a dataset: set {key}.data.skip_bad=true, or give "
                f"{key} as a path"
            )


class EvaluateConfig(JobConfig):
    """Score generated images against real ones, or measure how good a network is (`model`)."""

    generated: Annotated[tuple[PathText | ImageSet, ...], Field(max_length=MOST_ITEMS)] = ()
    """One set or several, which are compared in one table."""
    real: PathText | ImageSet | None = None
    """The real images that they are compared with."""
    model: PathText | LoadedModel | None = None
    """Measure this network on `data` instead: a run, a directory of synthkd, an exported .onnx or .pt2 file, or a
    section as of a teacher."""
    data: PathText | ImageSet | None = None
    """The images that `model` is measured on; with labels, unless `against` is set."""
    against: PathText | LoadedModel | None = None
    """Another network, as `model`: how often both give the same class, and how good it is on the same images."""
    train: PathText | ImageSet | None = None
    """Real images that the generator or its teacher learned from; copies of them are searched."""
    holdout: PathText | ImageSet | None = None
    """Real images that were not learned from; they show how near generated images are without copying."""
    teacher: LoadedModel | None = None
    """Predicts labels, and gives the features unless `features` is set."""
    features: ExtractorSettings | None = None
    """The feature network; None: the teacher if set, else efficientnet_lite0."""
    k: Annotated[int, Field(ge=1, le=1000)] = 5
    """Number of neighbours for precision, recall, density and coverage."""
    subsets: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of random subsets, over which the spread of the kernel distance is taken."""
    subset_size: Annotated[Images, Field(ge=2)] = 1000
    """Images of each subset."""
    splits: Annotated[int, Field(ge=1, le=1000)] = 10
    """Number of parts over which the spread of the Inception score is taken."""
    cas: bool = False
    """Also train a small classifier on each generated set and test it on real images (minutes each)."""
    skip_bad: Whole = 0
    """Largest number of unreadable files of a set at a path that are skipped; they are listed."""
    cache: PathText | None = "~/.cache/synthkd/features"
    """Folder that keeps features between evaluations; None: they are not kept."""
    save_features: PathText | None = None
    """A .safetensors file for the features of the real set. A later evaluation can take it in place of the images."""
    save_generated: PathText | None = None
    """A .safetensors file for the features of the generated set, to join with those of other machines
    (`synthkd statistics`)."""
    show_real: bool = True
    """Show real images in the report, beside the generated ones."""
    pairs: Annotated[int, Field(ge=0, le=1000)] = 0
    """Number of closest pairs of generated and training images in the report. The default is 0, because real images may
    be private."""

    @model_validator(mode="after")
    def _skipping(self) -> EvaluateConfig:
        sets = {key: getattr(self, key) for key in ("real", "data", "train", "holdout")}
        require_skipping(self.skip_bad, sets | {f"generated.{i}": one for i, one in enumerate(self.generated)})
        return self

    @model_validator(mode="after")
    def _one_of_two(self) -> EvaluateConfig:
        """Either generated images are scored, or a network is measured."""
        if self.model is None:
            if self.data is not None or self.against is not None:
                raise ValueError("model is missing: data and against are for a network; set model, or leave them out")
            if not self.generated or self.real is None:
                raise ValueError("set generated and real, to score images; or model and data, to measure a network")
            require_split(self, "train", "holdout")
            if self.save_generated is not None and len(self.generated) > 1:
                raise ValueError("save_generated: one file has the features of one set; give one generated set")
            return self
        if self.data is None:
            raise ValueError("data is missing: set data to the images that the model is measured on")
        fields = type(self).model_fields
        sets, report = ("generated", "real", "train", "holdout"), ("show_real", "pairs")
        scores = ("teacher", "features", "k", "subsets", "subset_size", "splits", "cas")
        for key in (*sets, *scores, *report, "save_features", "save_generated"):
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"{key}: it is for scores of images, not for a network: leave it or model out")
        return self
