"""The sets of an evaluation: opened and judged, their classes made to agree, and turned into features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.classes import Aligned, align_labels
from synthkd.data.read.decode import some
from synthkd.data.read.sample_set import Samples
from synthkd.data.read.samples import open_samples
from synthkd.errors import ConfigError, DataError
from synthkd.metrics.feature_cache import FEATURES, SavedSet, cached_extract, load_set
from synthkd.metrics.features import FeatureExtractor, Features, build_extractor, extract
from synthkd.metrics.score import ScoredSet
from synthkd.models import Classifier, load_model
from synthkd.pipelines.config import EvaluateConfig, ImageSet
from synthkd.reports.results import SetResult
from synthkd.settings import EfficientNetExtractor, TeacherExtractor

BATCH = 256


@dataclass(frozen=True)
class Networks:
    """The networks of an evaluation.

    Attributes:
        extractor: gives the features that scores are called by.
        teacher: judges labels, where there is one; often the same object.
        classes: names of the teacher's classes, their numbers where it has none; empty without a teacher.
    """

    extractor: FeatureExtractor
    teacher: FeatureExtractor | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class OpenedSet:
    """A set whose files have been read and judged, or the saved features of one.

    Attributes:
        name: as shown in tables.
        count: images in it.
        digest: of images and labels as they were read; empty where saved features do not know it.
        labels: int64 `[count]`, indices into `class_names`; None where unknown.
        class_names: one for each class; empty without labels.
        notes: what was converted, left out or assumed.
        samples: the images, or None.
        saved: the features, or None.
    """

    name: str
    count: int
    digest: str
    labels: Tensor | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    samples: Samples | None = None
    saved: SavedSet | None = None

    def result(self) -> SetResult:
        """What `result.json` says of the set."""
        skipped = () if self.samples is None else tuple(self.samples.bad)
        return SetResult(self.name, self.count, self.digest, self.notes, skipped)

    def relabelled(self, found: Aligned) -> OpenedSet:
        """The same images with labels in terms of other classes."""
        samples = self.samples
        if samples is not None:
            samples = replace(samples, labels=found.labels, class_names=found.class_names)
        notes = (*self.notes, found.note) if found.note else self.notes
        return replace(self, labels=found.labels, class_names=found.class_names, notes=notes, samples=samples)


def build_networks(config: EvaluateConfig, device: torch.device) -> Networks:
    """The feature network, and the teacher's where there is one."""
    teacher: Classifier | None = None if config.teacher is None else load_model(config.teacher)
    classes: tuple[str, ...] = ()
    if teacher is not None:
        classes = tuple(teacher.class_names) or tuple(map(str, range(teacher.spec.classes)))
    of_teacher = TeacherExtractor(kind="teacher", resize="antialias")
    settings = config.features
    if settings is None:
        settings = EfficientNetExtractor(kind="efficientnet_lite0") if teacher is None else of_teacher
    extractor = build_extractor(settings, device, teacher)
    if isinstance(settings, TeacherExtractor):
        return Networks(extractor, extractor, classes)
    return Networks(extractor, None if teacher is None else build_extractor(of_teacher, device, teacher), classes)


def generated_keys(config: EvaluateConfig) -> list[str]:
    """By what the generated sets are called among all sets."""
    return [f"generated.{index}" for index in range(len(config.generated))]


def open_sets(config: EvaluateConfig) -> dict[str, OpenedSet]:
    """Every set by its key, read and judged, with labels and class names as they were found."""
    asked: dict[str, str | ImageSet | None] = dict(zip(generated_keys(config), config.generated, strict=True))
    asked |= {"real": config.real, "train": config.train, "holdout": config.holdout}
    return {key: _open(key, one, config) for key, one in asked.items() if one is not None}


def _open(key: str, asked: str | ImageSet, config: EvaluateConfig) -> OpenedSet:
    image_set = ImageSet(path=asked) if isinstance(asked, str) else asked
    if image_set.path is not None and image_set.path.endswith(FEATURES):
        if key != "real":
            raise ConfigError(f"{key}: saved features stand for the real set only; give images")
        saved = load_set(Path(image_set.path).expanduser())
        notes = ("saved features" + (f" of {saved.name}" if saved.name else ""),)
        count = saved.features.n
        return OpenedSet(image_set.path, count, saved.content, saved.labels, saved.class_names, notes, saved=saved)
    source = image_set.path if image_set.data is None else image_set.data
    split = image_set.split or (None if image_set.data is None else "test")
    assert source is not None
    found = open_samples(source, split=split, skip_bad=config.skip_bad, seed=config.seed)
    return OpenedSet(found.name, found.count, found.digest, found.labels, found.class_names, found.notes, found)


def agree(sets: Mapping[str, OpenedSet], networks: Networks) -> dict[str, OpenedSet]:
    """The sets with their labels in terms of the same classes, those of the teacher where there is one.

    The real set's classes are found among the teacher's, and the generated sets' among those. The sets that copying
    is looked for with are left alone: no score asks for their labels.

    Raises:
        DataError: images of a class that neither the real set nor the teacher has.
    """
    real, agreed = sets["real"], dict(sets)
    known, among = networks.classes, "the teacher"
    if real.labels is not None:
        if known:
            try:
                real = agreed["real"] = real.relabelled(
                    align_labels(real.labels, real.class_names, known, f"real ({real.name})", among)
                )
            except DataError as error:
                raise DataError(
                    f"{error}; to use the network for features only, give it as features.kind=load"
                ) from error
        known, among = real.class_names, f"the real set ({real.name})"
    for key, one in sets.items():
        if key.startswith("generated."):
            if known and one.labels is not None:
                found = align_labels(one.labels, one.class_names, known, f"{key} ({one.name})", among)
                agreed[key] = _unmatched(one.relabelled(found), real)
            agreed[key] = _unlike(agreed[key], real)
    return agreed


def _unlike(generated: OpenedSet, real: OpenedSet) -> OpenedSet:
    """The generated set, with a note where its first image has another shape than the real set's."""
    if generated.samples is None or real.samples is None:
        return generated
    ours, theirs = ("x".join(map(str, one.samples.images([0])[0].shape)) for one in (generated, real) if one.samples)
    if ours == theirs:
        return generated
    note = f"images of {ours}, the real ones of {theirs} (channels x height x width): scores see the difference"
    return replace(generated, notes=(*generated.notes, note))


def _unmatched(generated: OpenedSet, real: OpenedSet) -> OpenedSet:
    """The generated set, with notes of the classes that only it or only the real set has images of."""
    if generated.labels is None or real.labels is None:
        return generated
    made, known = set(generated.labels.unique().tolist()), set(real.labels.unique().tolist())
    notes = [
        f"{what} {some([generated.class_names[label] for label in sorted(absent)], 5)}"
        for what, absent in (("no real images of its classes", made - known), ("not generated: classes", known - made))
        if absent
    ]
    return replace(generated, notes=(*generated.notes, *notes))


def check_saved(sets: Mapping[str, OpenedSet], networks: Networks) -> None:
    """Raise `DataError` where saved features are of other networks than those at hand."""
    for one in sets.values():
        if one.saved is not None:
            _saved(one, one.saved, networks)


def _saved(opened: OpenedSet, saved: SavedSet, networks: Networks) -> ScoredSet:
    extractor, teacher = networks.extractor, networks.teacher
    try:
        _by(extractor).check_comparable(saved.features)
        if teacher is None or teacher is extractor:
            judged = None if teacher is None else saved.features
        elif saved.teacher is None:
            raise DataError(
                "it holds no features of a teacher; save them beside this teacher (save_features=), or leave it out"
            )
        else:
            judged = saved.teacher
            _by(teacher).check_comparable(judged)
    except DataError as error:
        raise DataError(f"{opened.name}: {error}") from error
    return ScoredSet(opened.name, saved.features, opened.labels, judged)


def _by(extractor: FeatureExtractor) -> Features:
    """Features of no image, to compare by whom they were taken."""
    return Features(torch.empty(0), None, extractor.name, extractor.digest, extractor.resize)


def take_features(opened: OpenedSet, networks: Networks, cache: str | None) -> ScoredSet:
    """What the networks see in a set: saved, from the cache, or in one pass over its images each."""
    if opened.saved is not None:
        return _saved(opened, opened.saved, networks)
    samples = opened.samples
    assert samples is not None

    def taken(by: FeatureExtractor) -> Features:
        if cache is None:
            return extract(samples.batches(BATCH), by)
        return cached_extract(samples.digest, lambda: samples.batches(BATCH), by, Path(cache).expanduser())

    features = taken(networks.extractor)
    teacher = networks.teacher
    judged = None if teacher is None else features if teacher is networks.extractor else taken(teacher)
    return ScoredSet(opened.name, features, opened.labels, judged)


def to_save(opened: OpenedSet, scored: ScoredSet) -> SavedSet:
    """A set as a file that can stand for its images.

    Args:
        opened: as it was read, before its classes were made to agree with those of others.
        scored: its features.
    """
    beside = None if scored.teacher is scored.features else scored.teacher
    return SavedSet(scored.features, opened.digest, opened.name, opened.labels, opened.class_names, beside)
