"""What an evaluation costs before it is made: its works, whose time a dry run measures, and its memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import torch

from synthkd.data.read.fitted import BATCH
from synthkd.data.read.sample_set import Samples
from synthkd.metrics import named_scores
from synthkd.metrics.feature_cache import cached_file
from synthkd.metrics.features import FeatureExtractor, Features
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.score import ScoredSet
from synthkd.metrics.suite import FEWEST
from synthkd.pipelines.config import EvaluateConfig
from synthkd.pipelines.run.answers import FEW, MANY
from synthkd.pipelines.run.memory import Memory, memory_of, taken_bytes
from synthkd.pipelines.run.timing import LIMIT, Work, seconds_of
from synthkd.pipelines.scores.cas import classifier_works
from synthkd.pipelines.scores.image_sets import Networks, OpenedSet, generated_keys
from synthkd.pipelines.scores.network import Network, NetworkInputs
from synthkd.rng import stream
from synthkd.training.memory import Need, need_of

SAMPLED = 512
"""Most images of a set on whose features the scores are measured."""
BELOW, KNEE, BEYOND = 1.7, 1.6, 1 / 3
"""How the time of the scores with covariances grows: with this power of the images up to so many times the dimension,
where decompositions of matrices `[D, D]` are the most of it; beyond, this share of it grows with the images."""
PASS = 128
"""Images of a pass of a feature network."""
COPIES = 6
"""Float64 copies of the features of a pair of sets, beside `SQUARES` matrices `[D, D]`, while scores are computed."""
SQUARES = 12


def evaluation_works(
    config: EvaluateConfig, sets: Mapping[str, OpenedSet], networks: Networks, processes: int = 1
) -> list[Work]:
    """What is done after the sets have been read: features, scores of each pair of sets, and classifiers.

    Args:
        config: of the evaluation.
        sets: opened.
        networks: built.
        processes: that share features and scores.
    """
    shared = [*_features(config, sets, networks), *_scores(config, sets, networks)]
    return [*(replace(one, scale=one.scale / processes) for one in shared), *_classifiers(config, sets)]


def _distinct(networks: Networks) -> list[FeatureExtractor]:
    extractor, teacher = networks.extractor, networks.teacher
    return [extractor] if teacher is None or teacher is extractor else [extractor, teacher]


def _features(config: EvaluateConfig, sets: Mapping[str, OpenedSet], networks: Networks) -> Iterator[Work]:
    """The passes of the networks over the sets whose features are not in the cache."""
    for extractor in _distinct(networks):
        wanted = [one.samples for one in sets.values() if one.samples is not None]
        samples = [
            one
            for one in wanted
            if config.cache is None or not cached_file(one.digest, extractor, config.cache).is_file()
        ]
        if samples:
            yield _passes(extractor, samples[0], sum(one.count for one in samples))


def _passes(extractor: FeatureExtractor, samples: Samples, count: int) -> Work:
    few = next(samples.batches(FEW))
    per_image = seconds_of(lambda _: extractor(few), 0.0) / len(few)
    images = next(samples.batches(PASS if per_image * MANY < LIMIT else FEW))
    return Work(f"features of {extractor.name}", count, lambda _: extractor(images), 1 / len(images))


def _scores(config: EvaluateConfig, sets: Mapping[str, OpenedSet], networks: Networks) -> Iterator[Work]:
    """The scores of each generated set, in parts that grow differently with the images, on random features."""
    options = SuiteOptions(config.k, config.subsets, config.subset_size, config.splits, config.seed)
    real, width = sets["real"], _width(networks)
    for key in generated_keys(config):
        if min(sets[key].kept, real.kept) < FEWEST:  # moments give one score, at once
            continue
        counts = [sets[key].kept, real.kept]
        ours, theirs = (_random_set(min(count, SAMPLED), width, side) for side, count in enumerate(counts))
        pairs = (sum(counts) / (len(ours) + len(theirs))) ** 2
        growth = _growth(sum(counts) / 2, (len(ours) + len(theirs)) / 2, width)
        yield Work("scores", 1, functools.partial(_with_covariances, ours, theirs, options), growth, listed=False)
        yield Work("scores", 1, functools.partial(_of_pairs, ours, theirs, options), pairs, listed=False)
        if "train" in sets and "holdout" in sets:
            counts = [sets[name].kept for name in (key, "train", "holdout")]
            ours, train, holdout = (_random_set(min(count, SAMPLED), width, side) for side, count in enumerate(counts))
            growth = _distances(*counts) / _distances(len(ours), len(train), len(holdout))
            yield Work("scores", 1, functools.partial(_of_copies, ours, train, holdout, options), growth, listed=False)


def _width(networks: Networks) -> int:
    """Number of features of an image."""
    spec = networks.extractor.network.spec
    return networks.extractor(torch.zeros(2, *spec.shape, dtype=torch.uint8)).features.shape[1]


def _random_set(count: int, width: int, seed: int) -> ScoredSet:
    """Features of two classes."""
    values = torch.randn(count, width, generator=stream(seed, "timing")).relu()
    return ScoredSet("", Features(values, None, "", "", ""), torch.arange(count) % 2)


def _growth(images: float, measured: float, width: int) -> float:
    """The time of the scores with covariances over that for the measured number of images."""
    knee = min(images, max(measured, KNEE * width))
    return float((knee / measured) ** BELOW * (1 + BEYOND * (images / knee - 1)))


def _with_covariances(ours: ScoredSet, theirs: ScoredSet, options: SuiteOptions, _: float) -> None:
    named_scores.per_class(ours, theirs)
    named_scores.distance(ours, theirs)
    named_scores.extrapolated_distance(ours, theirs, options)
    named_scores.vendi(ours, theirs, options)


def _distances(generated: int, train: int, holdout: int) -> int:
    """Number of distances that the scores of copies need of so many images, at most."""
    searched = generated + holdout
    return train * (searched + min(searched, train)) + 2 * generated * min(train, holdout)


def _of_pairs(ours: ScoredSet, theirs: ScoredSet, options: SuiteOptions, _: float) -> None:
    """The scores that compare every image with every other."""
    named_scores.kernel_distance(ours, theirs, options)
    list(named_scores.precision_and_recall(ours, theirs, options))


def _of_copies(ours: ScoredSet, train: ScoredSet, holdout: ScoredSet, options: SuiteOptions, _: float) -> None:
    list(named_scores.copies(ours, train, holdout, options))


def _classifiers(config: EvaluateConfig, sets: Mapping[str, OpenedSet]) -> list[Work]:
    real = sets["real"].samples
    return [] if real is None or not config.cas else classifier_works(config, real, 1 + len(config.generated))


def evaluation_memory(config: EvaluateConfig, sets: Mapping[str, OpenedSet], networks: Networks) -> Memory:
    """The memory of an evaluation: the features of all sets, and the largest pass or pair of sets beside them."""
    device = networks.extractor.device
    taken = taken_bytes(device)
    passes = [_pass_need(extractor) for extractor in _distinct(networks)]
    width, bytes_of_float64 = _width(networks), 8
    largest = sets["real"].kept + max(sets[key].kept for key in generated_keys(config))
    scores = bytes_of_float64 * (COPIES * largest * width + SQUARES * width**2)
    classes = networks.extractor.classes or 0
    features = sum(4 * one.kept * (width + classes) for one in sets.values())
    parts = [*(("features.size", need) for need in passes), ("the sets", Need(0, scores))]
    return memory_of(device, taken, parts, {"the sets": features})


def _pass_need(extractor: FeatureExtractor) -> Need:
    shape = extractor.network.spec.shape

    def prepare(count: int) -> Callable[[], object]:
        images = torch.zeros(count, *shape, dtype=torch.uint8)
        return lambda: extractor(images)

    prepare(FEW)()  # the first pass of all has operations of its own
    return need_of(prepare, PASS, extractor.device)


def network_works(inputs: NetworkInputs) -> list[Work]:
    """What the evaluation of a network does: it reads the images, and passes them through one network or two."""
    count = inputs.images.count
    some = min(count, BATCH)

    def read(_: float) -> None:
        for _image in islice(inputs.images.images(), some):
            pass

    works = [Work("reading", 1, read, count / some, listed=False)]
    for network, name in ((inputs.model, "images"), (inputs.other, "images of the other network")):
        if network is not None:
            once = functools.partial(_answer, network)
            per_image = seconds_of(functools.partial(once, FEW), 0.0) / FEW
            images = BATCH if per_image * MANY < LIMIT else FEW
            works.append(Work(name, count, functools.partial(once, images), 1 / images))
    return works


def network_memory(inputs: NetworkInputs, device: torch.device) -> Memory:
    """The memory of the evaluation of a network: of a pass. What ONNX Runtime takes is seen only if it ran before."""
    taken = taken_bytes(device)
    networks = [one for one in (inputs.model, inputs.other) if one is not None]
    return memory_of(device, taken, [("the network", _answer_need(one, device)) for one in networks])


def _answer_need(network: Network, device: torch.device) -> Need:
    def prepare(count: int) -> Callable[[], object]:
        return functools.partial(_answer, network, count, 0.0)

    return need_of(prepare, BATCH, device)


def _answer(network: Network, count: int, _: float) -> None:
    """Pass images of noise through a network."""
    images = torch.rand(count, *network.spec.shape, generator=stream(0, "timing"))
    with torch.no_grad():
        network.logits(images)
