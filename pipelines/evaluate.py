"""Score generated images against real ones: one pass of a feature network, then every score that the images allow."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.sample_set import Samples
from synthkd.errors import ConfigError, DataError
from synthkd.metrics.feature_cache import require_replaceable, save_set
from synthkd.metrics.features import FeatureExtractor
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.neighbours import nearest, points
from synthkd.metrics.resize import resize
from synthkd.metrics.score import Score, ScoredSet
from synthkd.metrics.suite import SuiteResult, measure
from synthkd.pipelines.config import EvaluateConfig
from synthkd.pipelines.run.device import choose_device
from synthkd.pipelines.run.directory import REPORT, run_directory
from synthkd.pipelines.run.memory import memory_lines
from synthkd.pipelines.run.result import Plan, Result, finished_result, read_result
from synthkd.pipelines.run.shared_work import alone, joined, shared_directory
from synthkd.pipelines.run.timing import Timed, measured, planned_time
from synthkd.pipelines.run.trust import trusting
from synthkd.pipelines.scores.cas import classification_accuracy_scores
from synthkd.pipelines.scores.cost import evaluation_memory, evaluation_works, network_memory, network_works
from synthkd.pipelines.scores.image_sets import (
    Networks,
    OpenedSet,
    agree,
    build_networks,
    check_saved,
    generated_keys,
    open_sets,
    take_features,
    to_save,
)
from synthkd.pipelines.scores.network import evaluate_network, network_inputs, network_lines
from synthkd.pipelines.scores.table import score_lines
from synthkd.reports.grids import MOST_CLASSES, ROWS, save_grid
from synthkd.reports.report import write_report
from synthkd.reports.results import (
    EvaluateResult,
    GeneratedSet,
    NetworkName,
    NetworkResult,
    RunCost,
    SetName,
    write_result,
)
from synthkd.system.shares import Shares, together

COLUMNS = 10
PIPE_WIDTH = 100
"""Characters to a line where no terminal says how many it has."""


@trusting
def evaluate(config: EvaluateConfig, *, dry_run: bool = False) -> Result[EvaluateResult] | Result[NetworkResult] | Plan:
    """Score the generated sets, or measure a network, and write `result.json` and `report.html`.

    A finished evaluation is shown again, once its sets and networks have been found to be what they were.

    Args:
        config: the sets, the teacher and the feature network.
        dry_run: read and judge every file, build the networks, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    shares = joined(config)
    device = choose_device(config)
    if config.model is not None:
        return shares.first(lambda: _network_evaluated(config, device, dry_run))
    if dry_run:
        inputs = _prepare(config, device, shares)
        return shares.first(lambda: _dry(config, inputs, shares.world))
    with shared_directory("evaluate", config) as directory:
        finished = shares.first(lambda: read_result(directory, EvaluateResult))
        inputs = _prepare(config, device, shares)
        if finished is None:
            finished = _evaluate(config, directory, inputs, shares)
        else:
            _shown_again(config, directory, finished, inputs, shares)
        shares.first(lambda: None if (directory / REPORT).exists() else write_report(directory))
        return Result(directory, finished, _summary(directory, finished))


def _network_evaluated(config: EvaluateConfig, device: torch.device, dry_run: bool) -> Result[NetworkResult] | Plan:
    """The evaluation of a network; a finished one is shown again, if the networks are still the same."""
    inputs = network_inputs(config, device)
    if dry_run:
        with alone():
            time = planned_time(lambda: measured(network_works(inputs)))
        return Plan((*inputs.plan(), time.line, *network_memory(inputs, device).lines), time)
    with run_directory("evaluate", config) as directory:
        finished = read_result(directory, NetworkResult)
        if finished is None:
            finished = finished_result(evaluate_network(inputs, config.skip_bad), config, directory, device)
            write_result(directory, finished)
        else:
            inputs.require_same(finished, directory)
        if not (directory / REPORT).exists():
            write_report(directory)
        return Result(directory, finished, (*network_lines(finished), f"report:      {directory / REPORT}"))


@dataclass(frozen=True)
class _Inputs:
    """Everything that is checked before anything is computed.

    Attributes:
        networks: built.
        opened: the sets as they were read.
        sets: the same with their classes in agreement.
        seconds: what reading them took.
    """

    networks: Networks
    opened: Mapping[str, OpenedSet]
    sets: Mapping[str, OpenedSet]
    seconds: float


def _prepare(config: EvaluateConfig, device: torch.device, shares: Shares) -> _Inputs:
    started = time.perf_counter()
    with shares.agreed():
        if shares.is_first:
            for key, path in _to_save(config).items():
                require_replaceable(path, "save_features" if key == "real" else "save_generated")
        networks = build_networks(config, device)
    with together(shares):
        opened = open_sets(config)
    with shares.agreed():
        check_saved(opened, networks)
        sets = agree(opened, networks)
    digests = [one.digest for one in opened.values()]
    with shares.agreed():
        if digests != shares.first(lambda: digests):
            raise DataError("the sets are not those of the first process: give all machines the same files")
    return _Inputs(networks, opened, sets, time.perf_counter() - started)


def _shown_again(
    config: EvaluateConfig, directory: Path, finished: EvaluateResult, inputs: _Inputs, shares: Shares
) -> None:
    """Check a finished evaluation, and save the features if their file is gone."""
    with shares.agreed():
        _check_unchanged(directory, finished, inputs)
    gone = shares.first(lambda: [key for key, path in _to_save(config).items() if not path.exists()])
    taken = {key: take_features(inputs.sets[key], inputs.networks, config.cache, shares) for key in gone}
    shares.first(lambda: _save_features(config, inputs, taken))


def _check_unchanged(directory: Path, finished: EvaluateResult, inputs: _Inputs) -> None:
    """Refuse to show a result for other images or weights than it was made of."""
    remedy = "choose another out= to score what is there now"
    for key, one in inputs.opened.items():
        if finished.sets[key].digest not in (None, one.digest):
            raise ConfigError(f"{directory} is finished, and {key} ({one.name}) has changed since; {remedy}")
    networks = inputs.networks
    roles = {"extractor": (finished.extractor, networks.extractor), "teacher": (finished.teacher, networks.teacher)}
    for role, (before, network) in roles.items():
        if network is not None and before is not None and before.digest != network.digest:
            raise ConfigError(f"{directory} is finished, and the {role} ({network.name}) has changed since; {remedy}")


def _evaluate(config: EvaluateConfig, directory: Path, inputs: _Inputs, shares: Shares) -> EvaluateResult:
    """The evaluation: the processes share features and scores, and the first one does and writes the rest."""
    started = time.perf_counter()
    sets, networks = inputs.sets, inputs.networks
    taken = {key: take_features(one, networks, config.cache, shares) for key, one in sets.items()}
    extracted = time.perf_counter()
    options = SuiteOptions(config.k, config.subsets, config.subset_size, config.splits, config.seed)
    real, train, holdout = taken["real"], taken.get("train"), taken.get("holdout")
    shares.first(lambda: _save_features(config, inputs, taken))
    measured = [measure(taken[key], real, options, train, holdout, shares) for key in generated_keys(config)]
    seconds = {"read": inputs.seconds, "features": extracted - started, "scores": time.perf_counter() - extracted}

    def written() -> EvaluateResult:
        device = networks.extractor.device
        result = finished_result(
            _result(config, directory, inputs, taken, measured, seconds), config, directory, device
        )
        write_result(directory, result)
        return result

    return shares.first(written)


def _result(
    config: EvaluateConfig,
    directory: Path,
    inputs: _Inputs,
    taken: Mapping[str, ScoredSet],
    measured: Sequence[SuiteResult],
    seconds: Mapping[str, float],
) -> EvaluateResult:
    """The classifiers and pictures, and the result of everything."""
    sets, networks, keys, real = inputs.sets, inputs.networks, generated_keys(config), taken["real"]
    started = time.perf_counter()
    trained = _trained(config, directory, sets)
    spent = {**seconds, "classifiers": time.perf_counter() - started} if config.cas else seconds
    _pictures(config, directory, sets, taken)
    further = [[score] for score in trained] or [[]] * len(keys)
    return EvaluateResult(
        seconds=round(sum(spent.values()), 3),
        real=SetName(real.name, real.count),
        sets={key: one.result() for key, one in sets.items()},
        extractor=_network(networks.extractor),
        teacher=None if networks.teacher is None else _network(networks.teacher),
        class_names=tuple(_class_names(sets)),
        generated=tuple(
            GeneratedSet(taken[key].name, taken[key].count, (*one.scores, *more), one.classes)
            for key, one, more in zip(keys, measured, further, strict=True)
        ),
        cost=RunCost({stage: round(value, 3) for stage, value in spent.items()}),
    )


def _to_save(config: EvaluateConfig) -> dict[str, Path]:
    """Key of a set -> the file of its features."""
    files = {"real": config.save_features, generated_keys(config)[0]: config.save_generated}
    return {key: Path(file).expanduser() for key, file in files.items() if file is not None}


def _save_features(config: EvaluateConfig, inputs: _Inputs, taken: Mapping[str, ScoredSet]) -> None:
    for key, path in _to_save(config).items():
        if key in taken:
            save_set(to_save(inputs.opened[key], taken[key]), path)


def _network(extractor: FeatureExtractor) -> NetworkName:
    return NetworkName(extractor.name, extractor.digest, extractor.resize)


def _class_names(sets: Mapping[str, OpenedSet]) -> Sequence[str]:
    return next((sets[key].class_names for key in ("real", *sets) if sets[key].class_names), ())


def _trained(config: EvaluateConfig, directory: Path, sets: Mapping[str, OpenedSet]) -> list[Score]:
    if not config.cas:
        return []
    real, keys = sets["real"].samples, generated_keys(config)
    generated = [one for key in keys if (one := sets[key].samples) is not None]
    if real is None or len(generated) < len(keys):
        why = "needs the images of all sets, not their features"
        return [Score("CAS", None, "higher", (sets[key].count,), note=why) for key in keys]
    with alone():
        return classification_accuracy_scores(config, generated, real, directory / "cas")


def _pictures(
    config: EvaluateConfig, directory: Path, sets: Mapping[str, OpenedSet], taken: Mapping[str, ScoredSet]
) -> None:
    keys = [*(["real"] if config.show_real else []), *generated_keys(config)]
    for key in keys:
        samples = sets[key].samples
        if samples is not None:
            rows, columns, names = _chosen(samples)
            save_grid(_stack(samples.images(rows)), columns, directory / "samples" / f"{key}.png", names)
    among = "train" if "train" in sets else "real"
    real = sets[among].samples
    if not config.pairs or real is None:
        return
    for key in generated_keys(config):
        ours = sets[key].samples
        if ours is None:
            continue
        nearest_real = nearest(points(taken[key].features.values, key), points(taken[among].features.values, among), 1)
        closest = nearest_real.squared[:, 0].argsort(stable=True)[: config.pairs]
        pairs = ours.images(closest.tolist()) + real.images(nearest_real.indices[closest, 0].tolist())
        labels = [f"{distance:.3g}" for distance in nearest_real.squared[closest, 0].sqrt().tolist()]
        save_grid(_stack(pairs), len(labels), directory / "samples" / f"pairs.{key}.png", labels)


def _chosen(samples: Samples) -> tuple[list[int], int, tuple[str, ...] | None]:
    """Rows of a grid: a column for each class where there are labels and not too many, else evenly spaced."""
    if samples.labels is not None and 1 < len(present := samples.labels.unique().tolist()) <= MOST_CLASSES:
        members = [(samples.labels == label).nonzero().flatten().tolist() for label in present]
        deep = min(ROWS, min(map(len, members)))
        rows = [of_class[row] for row in range(deep) for of_class in members]
        return rows, len(present), tuple(samples.class_names[label] for label in present)
    columns = min(COLUMNS, samples.count)
    deep = min(ROWS, samples.count // columns)
    return [i * samples.count // (deep * columns) for i in range(deep * columns)], columns, None


def _stack(images: Sequence[Tensor]) -> Tensor:
    """One size and channel count for all, those of the first with the channels of the richest."""
    size, channels = images[0].shape[1:], max(len(image) for image in images)
    return torch.cat([resize(image[None], (channels, *size), "antialias") for image in images])


def _dry(config: EvaluateConfig, inputs: _Inputs, processes: int) -> Plan:
    """What the evaluation would do, and the time and memory that it needs by a few passes and scores."""
    sets, networks = inputs.sets, inputs.networks
    read = Timed("reading", 1, inputs.seconds, listed=False)
    with alone():
        memory = memory_lines(lambda: evaluation_memory(config, sets, networks))
        time = planned_time(lambda: [read, *measured(evaluation_works(config, sets, networks, processes))])
    return Plan((*_plan(sets, networks), time.line, *memory), time)


def _plan(sets: Mapping[str, OpenedSet], networks: Networks) -> tuple[str, ...]:
    extractor, teacher = networks.extractor, networks.teacher
    judge = "" if teacher is None else f", labels judged by {teacher.name}"
    lines = [f"  {key}: {one.count:,} images of {one.name}" for key, one in sets.items()]
    return ("evaluate", *lines, f"  features: {extractor.name}, resize {extractor.resize}{judge}")


def _summary(directory: Path, content: EvaluateResult) -> tuple[str, ...]:
    sets, extractor = content.generated, content.extractor
    counts = ", ".join(f"{one.n:,}" for one in sets)
    return (
        *score_lines(sets, shutil.get_terminal_size((PIPE_WIDTH, 24)).columns),
        *dict.fromkeys(f"note: {one.name}: {note}" for one in content.sets.values() for note in one.notes),
        f"{counts} generated against {content.real.n:,} real images, features of {extractor.name} "
        f"(resize {extractor.resize})",
        "arrows point to better, or to what faultless images have; -: not measured, the report says why",
        f"report:  {directory / REPORT}",
    )
