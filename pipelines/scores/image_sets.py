"""The sets of an evaluation: opened and checked, their classes matched, and their features extracted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.classes import Aligned, align_labels
from synthkd.data.read.decode import some
from synthkd.data.read.sample_set import BLOCK, Samples
from synthkd.data.read.samples import open_samples, open_test
from synthkd.errors import ConfigError, DataError
from synthkd.metrics.feature_cache import FEATURES, SavedSet, cached_extract, load_set
from synthkd.metrics.features import FeatureExtractor, Features, build_extractor, extract
from synthkd.metrics.score import ScoredSet
from synthkd.metrics.suite import FEWEST
from synthkd.models import Classifier, load_model, probe
from synthkd.pipelines.config import AuditConfig, EvaluateConfig, ImageSet
from synthkd.reports.results import SetResult
from synthkd.settings import (
    DataSettings,
    EfficientNetExtractor,
    FolderData,
    FolderTest,
    NpzData,
    NpzTest,
    TeacherExtractor,
    UnlabelledData,
)
from synthkd.system.shares import ALONE, Shares, of_all


@dataclass(frozen=True)
class Networks:
    """The networks of an evaluation.

    Attributes:
        extractor: gives the features of the scores.
        teacher: gives the logits for scores of labels, or None; often the same object.
        classes: names of the teacher's classes, or their numbers if they have no names; empty without a teacher.
        unnamed: whether the teacher's classes have no names.
    """

    extractor: FeatureExtractor
    teacher: FeatureExtractor | None
    classes: tuple[str, ...]
    unnamed: bool


@dataclass(frozen=True)
class OpenedSet:
    """A set of images that was read and checked, or the saved features of one.

    Attributes:
        name: in tables.
        count: number of images, also of those of which only the moments of the features were saved.
        digest: of images and labels as they were read; empty where saved features have none.
        labels: int64 `[count]`, indices into `class_names`; None where unknown.
        class_names: one for each class; empty without labels.
        notes: conversions, files that were left out, and assumptions, one line each.
        samples: the images; None for saved features.
        saved: the features; None for images.
    """

    name: str
    count: int
    digest: str
    labels: Tensor | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    samples: Samples | None = None
    saved: SavedSet | None = None

    @property
    def kept(self) -> int:
        """Number of images whose features there are, or will be."""
        return self.count if self.saved is None else self.saved.features.n

    def result(self) -> SetResult:
        """The set's entry in `result.json`."""
        skipped = () if self.samples is None else tuple(self.samples.bad)
        return SetResult(self.name, self.count, self.digest, self.notes, skipped)

    def relabelled(self, aligned: Aligned) -> OpenedSet:
        """The same images with labels in terms of other classes."""
        samples = self.samples
        if samples is not None:
            samples = replace(samples, labels=aligned.labels, class_names=aligned.class_names)
        notes = (*self.notes, aligned.note) if aligned.note else self.notes
        return replace(self, labels=aligned.labels, class_names=aligned.class_names, notes=notes, samples=samples)


def build_networks(config: EvaluateConfig, device: torch.device) -> Networks:
    """The feature network and the teacher; without `features` in the configuration they are one network.

    Raises:
        ConfigError, MissingExtraError: as `load_model` and `build_extractor`.
        ModelError: as these, or a teacher that `probe` refuses.
    """
    teacher: Classifier | None = None if config.teacher is None else load_model(config.teacher)
    if teacher is not None:
        probe(teacher)
    classes: tuple[str, ...] = ()
    unnamed = teacher is not None and not teacher.class_names
    if teacher is not None:
        classes = tuple(teacher.class_names) or tuple(map(str, range(teacher.spec.classes)))
    of_teacher = TeacherExtractor(kind="teacher", resize="antialias")
    settings = config.features
    if settings is None:
        settings = EfficientNetExtractor(kind="efficientnet_lite0") if teacher is None else of_teacher
    extractor = build_extractor(settings, device, teacher)
    # One object where both are the same network: one pass over the images serves both.
    if isinstance(settings, TeacherExtractor):
        return Networks(extractor, extractor, classes, unnamed)
    judge = None if teacher is None else build_extractor(of_teacher, device, teacher)
    return Networks(extractor, judge, classes, unnamed)


def generated_keys(config: EvaluateConfig) -> list[str]:
    """The keys of the generated sets."""
    return [f"generated.{index}" for index in range(len(config.generated))]


def open_sets(config: EvaluateConfig) -> dict[str, OpenedSet]:
    """Every set of the configuration by its key, read and checked, with its own labels and class names.

    Several processes (`of_all`) share the reading.

    Raises:
        ConfigError: saved features in place of training or held-out images.
        DataError: images or features that cannot be read.
    """
    sets: dict[str, str | ImageSet | None] = dict(zip(generated_keys(config), config.generated, strict=True))
    sets |= {"real": config.real, "train": config.train, "holdout": config.holdout}
    return {key: _open(key, one, config) for key, one in sets.items() if one is not None}


def _open(key: str, configured: str | ImageSet, config: EvaluateConfig) -> OpenedSet:
    path = configured if isinstance(configured, str) else configured.path
    if path is not None and path.endswith(FEATURES):
        if key in ("train", "holdout"):
            raise ConfigError(f"{key}: saved features stand for the real and the generated sets only; give images")
        with of_all().agreed():
            return _opened_features(path, load_set(Path(path).expanduser()))
    opened = open_images(configured, config)
    return OpenedSet(
        opened.name, opened.count, opened.digest, opened.labels, opened.class_names, opened.notes, samples=opened
    )


def _opened_features(path: str, saved: SavedSet) -> OpenedSet:
    of, rows = f" of {saved.name}" if saved.name else "", saved.features.n
    if saved.whole is None:
        note, count = f"saved features{of}", rows
    else:
        count = saved.whole.moments.n
        rest = f"features of a uniform sample of {rows:,}: FD is of all, the other scores are of the sample"
        rest = "features of all" if rows == count else rest if rows >= FEWEST else "too few features for a score but FD"
        note = f"moments of {count:,} images{of}, and {rest}"
    return OpenedSet(path, count, saved.content, saved.labels, saved.class_names, (note,), saved=saved)


def open_images(configured: str | ImageSet, config: EvaluateConfig | AuditConfig) -> Samples:
    """The images of a set of the configuration, listed and checked.

    Args:
        configured: a path, or the section of a set.
        config: number of unreadable files that are no error, and seed of the splits.

    Raises:
        DataError: images that cannot be read.
    """
    image_set = ImageSet(path=configured) if isinstance(configured, str) else configured
    if image_set.data is not None:
        train = config.train if isinstance(config, EvaluateConfig) else None
        training = [train.data] if isinstance(train, ImageSet) and train.data is not None else []
        return open_dataset(image_set.data, image_set.split, image_set.channels, training)
    assert image_set.path is not None
    return open_samples(
        image_set.path, split=image_set.split, skip_bad=config.skip_bad, channels=image_set.channels, seed=config.seed
    )


def open_dataset(
    data: DataSettings,
    split: str | None,
    channels: int | None,
    training: Iterable[DataSettings | UnlabelledData] = (),
) -> Samples:
    """The images of a dataset: a part of it, or without `split` its own test part if it has one, else all.

    Args:
        data, split, channels: of the set.
        training: datasets that are trained on; of one of them the test split that its training leaves out.

    Raises:
        DataError: images that cannot be read.
    """
    if split is None and isinstance(data, FolderData | NpzData):
        tested = FolderTest if isinstance(data, FolderData) else NpzTest
        labelled = [one for one in training if not isinstance(one, UnlabelledData)]
        # Its own share `test` is that of a training.
        return open_test(tested(**data.model_dump(exclude={"test"})), labelled, channels)
    return open_samples(data, split=split or "test", channels=channels)


def agree(sets: Mapping[str, OpenedSet], networks: Networks) -> dict[str, OpenedSet]:
    """The sets with labels in terms of the same classes, those of the teacher where there is one.

    Raises:
        DataError: images of a class that neither the real set nor the teacher has.
    """
    # The real set's classes are matched with the teacher's, and the generated sets' with the result. The train and
    # holdout sets stay as they are, since no score uses their labels.
    real, agreed = sets["real"], dict(sets)
    targets, among, unnamed = networks.classes, "the teacher", networks.unnamed
    if real.labels is not None:
        if targets:
            try:
                real = agreed["real"] = real.relabelled(
                    align_labels(real.labels, real.class_names, targets, f"real ({real.name})", among, unnamed)
                )
            except DataError as error:
                raise DataError(
                    f"{error}; to use the network for features only, give it as features.kind=load"
                ) from error
        targets, among, unnamed = real.class_names, f"the real set ({real.name})", False
    for key, one in sets.items():
        if key.startswith("generated."):
            if targets and one.labels is not None:
                aligned = align_labels(one.labels, one.class_names, targets, f"{key} ({one.name})", among, unnamed)
                agreed[key] = _note_missing_classes(one.relabelled(aligned), real)
            agreed[key] = _note_other_shape(agreed[key], real)
    return agreed


def _note_other_shape(generated: OpenedSet, real: OpenedSet) -> OpenedSet:
    """The generated set, with a note where its first image has another shape than the real set's."""
    # Both are resized for the network, so nothing fails, but an enlarged set is scored as the blurred one it is.
    if generated.samples is None or real.samples is None:
        return generated
    ours, theirs = ("x".join(map(str, one.samples.shape)) for one in (generated, real) if one.samples)
    if ours == theirs:
        return generated
    note = f"images of {ours}, the real ones of {theirs} (channels x height x width): scores see the difference"
    return replace(generated, notes=(*generated.notes, note))


def _note_missing_classes(generated: OpenedSet, real: OpenedSet) -> OpenedSet:
    """The generated set, with notes on the classes of which only it or only the real set has images."""
    if generated.labels is None or real.labels is None:
        return generated
    if generated.kept < generated.count or real.kept < real.count:  # a sample may lack rare classes
        return generated
    own, others = set(generated.labels.unique().tolist()), set(real.labels.unique().tolist())
    notes = [
        f"{what} {some([generated.class_names[label] for label in sorted(absent)], 5)}"
        for what, absent in (("no real images of its classes", own - others), ("not generated: classes", others - own))
        if absent
    ]
    return replace(generated, notes=(*generated.notes, *notes))


def check_saved(sets: Mapping[str, OpenedSet], networks: Networks) -> None:
    """Raise `DataError` where saved features come from other networks than those of the evaluation."""
    for one in sets.values():
        if one.saved is not None:
            _saved(one, one.saved, networks)


def _saved(opened: OpenedSet, saved: SavedSet, networks: Networks) -> ScoredSet:
    """The scored set of saved features, after a check that they come from these networks."""
    extractor, teacher = networks.extractor, networks.teacher
    try:
        _empty_features(extractor).check_comparable(saved.features)
        if teacher is None or teacher is extractor:
            judged = None if teacher is None else saved.features
        elif saved.teacher is None:
            raise DataError(
                "it holds no features of a teacher; save them beside this teacher (save_features=), or leave it out"
            )
        else:
            judged = saved.teacher
            _empty_features(teacher).check_comparable(judged)
    except DataError as error:
        raise DataError(f"{opened.name}: {error}") from error
    return ScoredSet(opened.name, saved.features, opened.labels, judged, saved.whole)


def _empty_features(extractor: FeatureExtractor) -> Features:
    """Features of no image by an extractor, to check whether other features are comparable with its own."""
    return Features(torch.empty(0), None, extractor.name, extractor.digest, extractor.resize)


def take_features(opened: OpenedSet, networks: Networks, cache: str | None, shares: Shares = ALONE) -> ScoredSet:
    """The features of a set: saved ones, or those of each network from the cache or a pass over the images.

    Args:
        opened: the set, which every process has opened.
        networks: built.
        cache: folder of the cache, or None.
        shares: the processes, which share the passes and all get all features.
    """
    if opened.saved is not None:
        return _saved(opened, opened.saved, networks)
    samples = opened.samples
    assert samples is not None

    def batches() -> Iterator[Tensor]:
        return samples.batches(BLOCK, shares)

    def features_of(extractor: FeatureExtractor) -> Features:
        if cache is None:
            return extract(batches(), extractor, BLOCK, shares)
        folder = Path(cache).expanduser()
        return cached_extract(samples.digest, batches, extractor, folder, BLOCK, shares)

    features = features_of(networks.extractor)
    # Often the teacher is the extractor itself, and its features are there already.
    teacher = networks.teacher
    judged = None if teacher is None else features if teacher is networks.extractor else features_of(teacher)
    return ScoredSet(opened.name, features, opened.labels, judged)


def to_save(opened: OpenedSet, scored: ScoredSet) -> SavedSet:
    """The content of a file of features that can replace the images of a set.

    Args:
        opened: the set with its own classes, before `agree`.
        scored: its features.
    """
    # The same features would be stored twice.
    judged = None if scored.teacher is scored.features else scored.teacher
    name = opened.name if opened.saved is None else opened.saved.name
    return SavedSet(scored.features, opened.digest, name, opened.labels, opened.class_names, judged, scored.whole)
