"""Score generated images against real ones: one pass of a feature network, then every score that the images allow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.data.samples import Samples, open_samples
from synthkd.errors import ConfigError, DataError
from synthkd.evaluation_report import direction, write_evaluation
from synthkd.extractors import EfficientNetExtractor, TeacherExtractor
from synthkd.grids import save_grid
from synthkd.metrics.feature_cache import cached_extract, load_features, save_features
from synthkd.metrics.features import FeatureExtractor, Features, build_extractor, extract
from synthkd.metrics.neighbours import nearest, points
from synthkd.metrics.resize import resize
from synthkd.metrics.suite import Score, ScoredSet, SuiteOptions, measure
from synthkd.models import Classifier, load_model
from synthkd.pipelines.cas import classification_accuracy_scores
from synthkd.pipelines.config import EvaluateConfig, ImageSet
from synthkd.pipelines.run import (
    REPORT,
    Plan,
    Result,
    choose_device,
    complete_result,
    read_result,
    run_directory,
    write_result,
)

BATCH = 256
GRID_ROWS = 6
COLUMNS = 10
MOST_COLUMNS = 20


@dataclass(frozen=True)
class _Opened:
    """A set whose files have been read and judged, or the saved features of one."""

    name: str
    samples: Samples | None
    saved: Features | None

    @property
    def count(self) -> int:
        if self.samples is not None:
            return self.samples.count
        assert self.saved is not None
        return self.saved.n


def evaluate(config: EvaluateConfig, *, dry_run: bool = False) -> Result | Plan:
    """Score the generated sets and write `result.json` and `report.html`.

    Args:
        config: the sets, the teacher and the feature network.
        dry_run: read and judge every file, build the networks, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    device = choose_device(config)
    if dry_run:
        networks = _networks(config, device)
        return Plan(_plan(_open_all(config), networks))
    with run_directory("evaluate", config) as directory:
        if read_result(directory) is None:
            write_result(directory, complete_result("evaluate", config, _evaluate(config, directory, device), device))
        finished = read_result(directory)
        assert finished is not None
        if not (directory / REPORT).exists():
            write_evaluation(directory)
        return Result(directory, finished, _summary(directory, finished))


def _evaluate(config: EvaluateConfig, directory: Path, device: torch.device) -> dict[str, Any]:
    started = time.perf_counter()
    networks = _networks(config, device)
    sets = _open_all(config)
    opened = time.perf_counter()
    taken = {key: _features(one, networks, config.cache) for key, one in sets.items()}
    extracted = time.perf_counter()
    options = SuiteOptions(config.k, config.subsets, config.subset_size, config.splits, config.seed)
    real, train, holdout = taken["real"], taken.get("train"), taken.get("holdout")
    if config.save_features is not None:
        save_features(real.features, config.save_features, _digest(sets["real"]))
    scored: list[dict[str, Any]] = []
    for key in _generated_keys(config):
        found = measure(taken[key], real, options, train, holdout)
        scored.append(
            {
                "name": taken[key].name,
                "n": len(taken[key]),
                "scores": [asdict(score) for score in found.scores],
                "per_class": None if found.classes is None else asdict(found.classes),
            }
        )
    done = time.perf_counter()
    trained = _trained(config, directory, sets)
    for one, score in zip(scored, trained, strict=bool(trained)):
        one["scores"].append(asdict(score))
    finished = time.perf_counter()
    _pictures(config, directory, sets, taken)
    extractor = networks[0]
    return {
        "seconds": round(finished - started, 3),
        "real": {"name": real.name, "n": len(real)},
        "sets": {key: _about(one) for key, one in sets.items()},
        "extractor": {"name": extractor.name, "digest": extractor.digest, "resize": extractor.resize},
        "class_names": list(_class_names(sets)),
        "generated": scored,
        "cost": {
            "seconds": {
                "read": round(opened - started, 3),
                "features": round(extracted - opened, 3),
                "scores": round(done - extracted, 3),
                **({"classifiers": round(finished - done, 3)} if config.cas else {}),
            }
        },
    }


def _networks(config: EvaluateConfig, device: torch.device) -> tuple[FeatureExtractor, FeatureExtractor | None]:
    """The feature network, and the teacher's where there is one."""
    teacher: Classifier | None = None if config.teacher is None else load_model(config.teacher)
    of_teacher = TeacherExtractor(kind="teacher", resize="antialias")
    settings = config.features
    if settings is None:
        settings = EfficientNetExtractor(kind="efficientnet_lite0") if teacher is None else of_teacher
    if isinstance(settings, TeacherExtractor):
        both = build_extractor(settings, device, teacher)
        return both, both
    return build_extractor(settings, device), None if teacher is None else build_extractor(of_teacher, device, teacher)


def _generated_keys(config: EvaluateConfig) -> list[str]:
    return [f"generated.{index}" for index in range(len(config.generated))]


def _open_all(config: EvaluateConfig) -> dict[str, _Opened]:
    asked: dict[str, str | ImageSet | None] = dict(zip(_generated_keys(config), config.generated, strict=True))
    asked |= {"real": config.real, "train": config.train, "holdout": config.holdout}
    return {key: _open(key, one, config) for key, one in asked.items() if one is not None}


def _open(key: str, asked: str | ImageSet, config: EvaluateConfig) -> _Opened:
    image_set = ImageSet(path=asked) if isinstance(asked, str) else asked
    if image_set.path is not None and image_set.path.endswith(".safetensors"):
        if key != "real":
            raise ConfigError(f"{key}: saved features stand for the real set only; give images")
        return _Opened(image_set.path, None, load_features(Path(image_set.path).expanduser()))
    source = image_set.path if image_set.data is None else image_set.data
    split = image_set.split or (None if image_set.data is None else "test")
    assert source is not None
    samples = open_samples(source, split=split, skip_bad=config.skip_bad, seed=config.seed)
    return _Opened(samples.name, samples, None)


def _features(
    opened: _Opened, networks: tuple[FeatureExtractor, FeatureExtractor | None], cache: str | None
) -> ScoredSet:
    extractor, teacher = networks
    if opened.samples is None:
        assert opened.saved is not None
        saved = opened.saved
        if (saved.digest, saved.resize) != (extractor.digest, extractor.resize):
            raise DataError(
                f"{opened.name} holds features of {saved.extractor} (resize {saved.resize}), this evaluation uses "
                f"{extractor.name} (resize {extractor.resize}) or other weights; take both with the same settings"
            )
        return ScoredSet(opened.name, saved, None, saved if teacher is extractor else None)
    samples = opened.samples

    def taken(by: FeatureExtractor) -> Features:
        if cache is None:
            return extract(samples.batches(BATCH), by)
        return cached_extract(samples.digest, lambda: samples.batches(BATCH), by, Path(cache).expanduser())

    features = taken(extractor)
    judged = None if teacher is None else features if teacher is extractor else taken(teacher)
    return ScoredSet(samples.name, features, samples.labels, judged)


def _digest(opened: _Opened) -> str:
    return "" if opened.samples is None else opened.samples.digest


def _about(opened: _Opened) -> dict[str, Any]:
    samples = opened.samples
    if samples is None:
        return {"name": opened.name, "n": opened.count, "notes": ["saved features"], "skipped": []}
    return {
        "name": samples.name,
        "n": samples.count,
        "digest": samples.digest,
        "notes": list(samples.notes),
        "skipped": [list(bad) for bad in samples.bad],
    }


def _class_names(sets: Mapping[str, _Opened]) -> Sequence[str]:
    for key in ("real", *sets):
        samples = sets[key].samples
        if samples is not None and samples.class_names:
            return samples.class_names
    return ()


def _trained(config: EvaluateConfig, directory: Path, sets: Mapping[str, _Opened]) -> list[Score]:
    if not config.cas:
        return []
    real = sets["real"].samples
    generated = [one for key in _generated_keys(config) if (one := sets[key].samples) is not None]
    if real is None:
        why = "needs the real images, not their features"
        return [Score("CAS", None, "higher", (one.count,), note=why) for one in generated]
    return classification_accuracy_scores(config, generated, real, directory / "cas")


def _pictures(
    config: EvaluateConfig, directory: Path, sets: Mapping[str, _Opened], taken: Mapping[str, ScoredSet]
) -> None:
    shown = [*(["real"] if config.show_real else []), *_generated_keys(config)]
    for key in shown:
        samples = sets[key].samples
        if samples is not None:
            rows, columns, names = _chosen(samples)
            save_grid(_stack(samples.images(rows)), columns, directory / "samples" / f"{key}.png", names)
    among = "train" if "train" in sets else "real"
    real = sets[among].samples
    if not config.pairs or real is None:
        return
    for key in _generated_keys(config):
        ours = sets[key].samples
        assert ours is not None
        found = nearest(points(taken[key].features.values, key), points(taken[among].features.values, among), 1)
        closest = found.squared[:, 0].argsort(stable=True)[: config.pairs]
        pairs = ours.images(closest.tolist()) + real.images(found.indices[closest, 0].tolist())
        labels = [f"{distance:.3g}" for distance in found.squared[closest, 0].sqrt().tolist()]
        save_grid(_stack(pairs), len(labels), directory / "samples" / f"pairs.{key}.png", labels)


def _chosen(samples: Samples) -> tuple[list[int], int, tuple[str, ...] | None]:
    """Rows of a grid: a column for each class where there are labels and not too many, else evenly spaced."""
    if samples.labels is not None and 1 < len(samples.class_names) <= MOST_COLUMNS:
        members = [(samples.labels == label).nonzero().flatten().tolist() for label in range(len(samples.class_names))]
        present = [label for label, rows in enumerate(members) if rows]
        deep = min(GRID_ROWS, min(len(members[label]) for label in present))
        rows = [members[label][row] for row in range(deep) for label in present]
        return rows, len(present), tuple(samples.class_names[label] for label in present)
    columns = min(COLUMNS, samples.count)
    deep = min(GRID_ROWS, samples.count // columns)
    return [i * samples.count // (deep * columns) for i in range(deep * columns)], columns, None


def _stack(images: Sequence[Tensor]) -> Tensor:
    """One size and channel count for all, those of the first with the channels of the richest."""
    size, channels = images[0].shape[1:], max(len(image) for image in images)
    return torch.cat([resize(image[None], (channels, *size), "antialias") for image in images])


def _plan(sets: Mapping[str, _Opened], networks: tuple[FeatureExtractor, FeatureExtractor | None]) -> tuple[str, ...]:
    extractor, teacher = networks
    judge = "" if teacher is None else f", labels judged by {teacher.name}"
    lines = [f"  {key}: {one.count:,} images of {one.name}" for key, one in sets.items()]
    return ("evaluate", *lines, f"  features: {extractor.name}, resize {extractor.resize}{judge}")


def _summary(directory: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    """A table: a line for each score, a column for each generated set."""
    sets = values["generated"]
    rows = [["", *(one["name"] for one in sets)]]
    for number, first in enumerate(sets[0]["scores"]):
        cells = [_cell(one["scores"][number]) for one in sets]
        rows.append([f"{first['name']} {direction(first)}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = ", ".join(f"{one['n']:,}" for one in sets)
    return (
        *lines,
        f"{counts} generated against {values['real']['n']:,} real images, features of {values['extractor']['name']} "
        f"(resize {values['extractor']['resize']})",
        "arrows point to better, or to what faultless images have; -: not measured, the report says why",
        f"report:  {directory / REPORT}",
    )


def _cell(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "-"
    text = f"{score['value']:.4g}"
    if score["interval"] is not None:
        low, high = score["interval"]
        return f"{text} [{low:.3g}, {high:.3g}]"
    return text if score["uncertainty"] is None else f"{text} \N{PLUS-MINUS SIGN} {score['uncertainty']:.2g}"
