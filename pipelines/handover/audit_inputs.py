"""The models and the image lists that an audit is given, read and checked before anything is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor

from synthkd.data.read.classes import align_labels
from synthkd.data.read.sample_set import Samples
from synthkd.errors import ConfigError, DataError
from synthkd.models import Classifier, load_model
from synthkd.models.weights import serialised
from synthkd.pipelines.config import AuditConfig, ImageSet
from synthkd.pipelines.scores.image_sets import open_images
from synthkd.privacy.audit import WHOS
from synthkd.privacy.membership import POPULATION
from synthkd.types import ImageSpec, alike_in_channels

LEAST = {"members": 20, "nonmembers": 20, "population": POPULATION}
"""Lists that carry labels -> fewest images: what the blind baseline and RMIA need."""
BATCH = 256
"""Images that are read at a time."""


@dataclass(frozen=True)
class ListedImages:
    """The images of lists, one list after the other, of which at most some blocks are in memory at a time.

    Attributes:
        lists: the sets that were read; each tells what of it stays in memory.
        channels: of the images as models take them.
    """

    lists: tuple[Samples, ...]
    channels: int

    def __len__(self) -> int:
        return sum(one.count for one in self.lists)

    def split(self, count: int, /) -> Iterator[Tensor]:
        """All images in order, uint8 `[n, C, H, W]`, in blocks of `count`, the last of fewer."""
        blocks = (alike_in_channels(block, self.channels) for one in self.lists for block in one.batches(BATCH))
        images = chain.from_iterable(blocks)
        while block := list(islice(images, count)):
            yield torch.stack(block)


@dataclass(frozen=True)
class ImageList:
    """A list of images, of the shape that the models take.

    Attributes:
        name: of its source, for the summary.
        images: uint8 `[N, C, H, W]`, read block by block at each pass.
        labels: int64 `[N]`, numbered as the models' classes; None for synthetic images, whose labels are not needed.
        digest: SHA-256 of the images and labels as they were read.
        notes: conversions, files that were left out and assumptions, one line each.
        skipped: number of unreadable files that were left out.
    """

    name: str
    images: ListedImages
    labels: Tensor | None
    digest: str
    notes: tuple[str, ...]
    skipped: int


@dataclass(frozen=True)
class AuditInputs:
    """The models and the lists of an audit.

    Attributes:
        models: teacher, student -> the audited model.
        references: teacher, student -> the models that it is compared with.
        lists: members, nonmembers and, where they are given, population and generated -> the images.
        digests: key of the configuration -> SHA-256 of the weights, or of the images and labels.
    """

    models: Mapping[str, Classifier]
    references: Mapping[str, tuple[Classifier, ...]]
    lists: Mapping[str, ImageList]
    digests: Mapping[str, str]

    @property
    def reference_counts(self) -> dict[str, int]:
        """teacher, student -> number of references."""
        return {who: len(several) for who, several in self.references.items()}

    def images(self, *keys: str) -> ListedImages:
        """The images of these lists together, uint8 `[N, C, H, W]`."""
        parts = [self.lists[key].images for key in keys]
        return ListedImages(tuple(one for part in parts for one in part.lists), parts[0].channels)

    def labels(self, *keys: str) -> Tensor:
        """The labels of these lists together, int64 `[N]`."""
        return torch.cat([labels for key in keys if (labels := self.lists[key].labels) is not None])


def read_inputs(config: AuditConfig) -> AuditInputs:
    """Read all models and lists.

    Raises:
        ConfigError: models of different images or classes, or the same model twice.
        DataError: a list that cannot be read, is too short, or does not fit the models.
        ModelError: a model that cannot be read.
    """
    models = {who: load_model(source) for who in WHOS if (source := getattr(config, who)) is not None}
    references = {who: tuple(map(load_model, getattr(config.references, who))) for who in models}
    others = {f"references.{who}.{k}": one for who, several in references.items() for k, one in enumerate(several)}
    classes, digests = _check_models({**models, **others})
    first, spec = next((who, model.spec) for who, model in models.items())
    unnamed = not any(model.class_names for model in (*models.values(), *others.values()))
    lists = {
        key: _read_list(key, source, config, spec, classes, unnamed, first)
        for key in (*LEAST, "generated")
        if (source := getattr(config, key)) is not None
    }
    return AuditInputs(models, references, lists, digests | {key: one.digest for key, one in lists.items()})


def _check_models(models: Mapping[str, Classifier]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Check that all models take the same images and classes, and that no two have the same weights.

    Returns:
        Names of the classes, which are their numbers where no model names them; key -> SHA-256 of the weights.
    """
    who, spec = next((key, model.spec) for key, model in models.items())
    classes: tuple[str, ...] = ()
    digests: dict[str, str] = {}
    for key, model in models.items():
        if model.spec != spec:
            raise ConfigError(f"{key}: it takes {model.spec}, the {who} {spec}; they must be the same")
        if classes and model.class_names and model.class_names != classes:
            raise ConfigError(f"{key}: its classes have other names, or another order, than those of the models before")
        classes = classes or model.class_names
        # A reference with the weights of the audited model would hide whatever the model memorised.
        digest = hashlib.sha256(serialised(model)).hexdigest()
        if twin := next((other for other, of_other in digests.items() if of_other == digest), None):
            raise ConfigError(
                f"{key}: its weights are those of {twin}; give each model once, by its own directory (that of a run "
                "stands for its student, where it has one)"
            )
        digests[key] = digest
    return classes or tuple(map(str, range(spec.classes))), digests


def _read_list(
    key: str,
    source: str | ImageSet,
    config: AuditConfig,
    spec: ImageSpec,
    classes: tuple[str, ...],
    unnamed: bool,
    who: str,
) -> ImageList:
    """The list `key` of the configuration, checked against the model `who`."""
    samples = open_images(source, config)
    where, labels, notes = f"{key} ({samples.name})", None, samples.notes
    if samples.count < LEAST.get(key, 1):
        raise DataError(f"{where}: {LEAST[key]:,} images or more are needed, got {samples.count:,}; give more of them")
    if key in LEAST:
        if samples.labels is None:
            raise DataError(
                f"{where}: its images carry no labels, and attacks ask how sure a model is of an image's own; give a "
                "directory per class, or labels in the .npz"
            )
        aligned = align_labels(samples.labels, samples.class_names, classes, where, f"the {who}", unnamed)
        labels, notes = aligned.labels, (*notes, *filter(None, [aligned.note]))
    _check_images(samples, spec, where, who)
    images = ListedImages((samples,), spec.channels)
    return ImageList(samples.name, images, labels, samples.digest, notes, len(samples.bad))


def _check_images(samples: Samples, spec: ImageSpec, where: str, who: str) -> None:
    """Raise `DataError` for an image that the model `who` does not take."""
    # Images of another size are refused and not resized: an attack on resized images would find less than there is.
    for read in samples.batches(BATCH):
        block = alike_in_channels(read, spec.channels)
        if tuple(block.shape[1:]) != spec.shape:
            shape, needed = ("x".join(map(str, each)) for each in (block.shape[1:], spec.shape))
            raise DataError(
                f"{where}: it has images of {shape} (channels x height x width), the {who} takes {needed}; give them "
                "as training saw them: with channels, or as a dataset (data.kind=folder) with its size and channels"
            )
