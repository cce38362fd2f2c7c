"""How good a network is: any saved or exported one, on any images, batch by batch."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthkd.compression.export import load_program
from synthkd.compression.onnx_file import UndescribedError
from synthkd.compression.predict import OnnxModel
from synthkd.data.read.classes import align_labels
from synthkd.data.read.decode import refuse_bad
from synthkd.data.read.fitted import FittedArrays, FittedFiles, batches, fitted
from synthkd.data.read.listing import list_scored
from synthkd.errors import ConfigError, DataError
from synthkd.metrics.quality import QualityCounter
from synthkd.metrics.utility import proportion
from synthkd.models import Classifier, load_model
from synthkd.models.contract import finite_logits, probe
from synthkd.models.files import is_model_directory
from synthkd.models.onnx_session import OnnxNetwork
from synthkd.models.weights import serialised
from synthkd.pipelines.config import EvaluateConfig, ImageSet
from synthkd.pipelines.run.tested import taught_on
from synthkd.pipelines.scores.image_sets import open_dataset
from synthkd.reports.results import Against, EvaluatedNetwork, NetworkResult, RunCost, SetResult
from synthkd.settings import DataSettings, LoadedModel, UnlabelledData
from synthkd.system.files import sha256
from synthkd.types import ImageSpec, to_float


@dataclass(frozen=True)
class Network:
    """A network of any form, ready to run.

    Attributes:
        about: for the result.
        spec: images and classes.
        class_names: one per class; the numbers where the network has no names.
        unnamed: whether it has none.
        logits: images float32 `[N, C, H, W]` in [0, 1] on the CPU -> logits `[N, K]` on the CPU.
    """

    about: EvaluatedNetwork
    spec: ImageSpec
    class_names: tuple[str, ...]
    unnamed: bool
    logits: Callable[[Tensor], Tensor]


def open_network(key: str, configured: str | LoadedModel, device: torch.device) -> Network:
    """The network of a key of the configuration.

    Raises:
        ConfigError: a path that holds no network.
        ModelError: a network that cannot be read, or a program that is not trusted.
        MissingExtraError: an .onnx file without the packages to run it.
    """
    if isinstance(configured, LoadedModel):
        return _of_settings(key, configured, device)
    path = Path(configured).expanduser()
    try:
        if path.suffix.lower() == ".onnx":
            onnx = OnnxModel(path)
            about = onnx.description
            return _network(str(path), f"ONNX, {about.precision}", about.spec, about.class_names, sha256(path), onnx)
        if path.suffix.lower() == ".pt2" and path.is_file():
            module, about = load_program(path)
            return _network(str(path), "torch.export program", about.spec, about.class_names, sha256(path), module)
    except UndescribedError as error:
        raise ConfigError(f"{key}: {error}; say it: {error.section(key)}") from error
    if not is_model_directory(path):
        raise ConfigError(
            f"{key}: {path} {'is' if path.exists() else 'does not exist, so it is'} no network; give a run, a folder "
            "of synthkd, an exported .onnx or .pt2 file, or a section as of a teacher (kind: load)"
        )
    model = load_model(LoadedModel(kind="load", model=str(path)))
    return _of_classifier(str(path), "a directory of synthkd", model, device)


def _of_settings(key: str, configured: LoadedModel, device: torch.device) -> Network:
    """The network of a section, which passes the checks of a teacher."""
    model = load_model(configured, layers=False)
    probe(model, f"{key} ({configured.model})")
    if isinstance(model.body, OnnxNetwork):
        names, digest = tuple(model.class_names), sha256(Path(configured.model))
        return _network(configured.model, "ONNX, run by ONNX Runtime", model.spec, names, digest, model)
    return _of_classifier(configured.model, "a loaded network", model, device)


def _of_classifier(name: str, form: str, model: Classifier, device: torch.device) -> Network:
    digest = hashlib.sha256(serialised(model)).hexdigest()
    placed = model.to(device).eval()
    return _network(name, form, model.spec, tuple(model.class_names), digest, lambda x: placed(x.to(device)).cpu())


def _network(
    name: str, form: str, spec: ImageSpec, names: tuple[str, ...], digest: str, logits: Callable[[Tensor], Tensor]
) -> Network:
    about = EvaluatedNetwork(name, form, str(spec), digest)
    return Network(about, spec, names or tuple(map(str, range(spec.classes))), not names, logits)


@dataclass(frozen=True)
class NetworkInputs:
    """What is checked before anything is computed.

    Attributes:
        model: the network.
        other: the network of `against`, or None.
        images: of `data`.
        labels: label of the set -> class of the network; empty without labels.
        notes: assumptions about the classes, one line each.
    """

    model: Network
    other: Network | None
    images: FittedFiles | FittedArrays
    labels: dict[int, int]
    notes: tuple[str, ...]

    def require_same(self, finished: NetworkResult, directory: Path) -> None:
        """Refuse to show a result for other weights, or another number of images, than it was made of."""
        earlier = [finished.model, None if finished.against is None else finished.against.network]
        for before, now in zip(earlier, (self.model, self.other), strict=True):
            if before is not None and now is not None and before.digest != now.about.digest:
                raise ConfigError(
                    f"{directory} is finished, and {now.about.name} has changed since; choose another out="
                )
        if finished.images.n + len(finished.images.skipped) != self.images.count:
            raise ConfigError(f"{directory} is finished, and {self.images.top} has changed since; choose another out=")

    def plan(self) -> tuple[str, ...]:
        """The lines of --dry-run."""
        other = [] if self.other is None else [f"  against: {self.other.about.name} ({self.other.about.form})"]
        labels = f"{len(self.labels)} classes" if self.labels else "no labels"
        return (
            "evaluate a network",
            f"  model: {self.model.about.name} ({self.model.about.form}), {self.model.about.spec}",
            f"  images: {self.images.count:,} of {labels}, {self.images.top}",
            *other,
        )


def network_inputs(config: EvaluateConfig, device: torch.device) -> NetworkInputs:
    """Open the networks and list the images.

    Raises:
        SynthkdError: see `open_network`; networks that do not fit each other, or images that do not fit them.
    """
    assert config.model is not None
    assert config.data is not None
    model = open_network("model", config.model, device)
    other = None if config.against is None else open_network("against", config.against, device)
    notes = []
    if other is not None and _numbered(model, other):
        notes.append("classes taken by number, since only one of the model and against names them")
    named = model if other is None or other.unnamed else other  # names tell more than numbers
    network = config.model if isinstance(config.model, LoadedModel) else LoadedModel(kind="load", model=config.model)
    images = _images(config.data, model.spec, [*taught_on([network])])
    used = sorted(images.labels)
    if not used:
        if other is None:
            raise DataError(
                f"data ({images.top}): its images carry no labels, so they need a network to compare with: "
                "set against, or give labels"
            )
        return NetworkInputs(model, other, images, {}, tuple(notes))
    where = f"data ({images.top})"
    aligned = align_labels(
        torch.tensor(used), images.class_names, named.class_names, where, "the model", unnamed=named.unnamed
    )
    notes += [aligned.note] if aligned.note else []
    return NetworkInputs(model, other, images, dict(zip(used, aligned.labels.tolist(), strict=True)), tuple(notes))


def _numbered(model: Network, other: Network) -> bool:
    """Whether the classes of one network are numbers, and those of the other have names.

    Raises:
        ConfigError: they take other images, or name other classes.
    """
    alike = other.class_names == model.class_names
    if other.spec == model.spec and (alike or model.unnamed or other.unnamed):
        return not alike
    what = f"takes {other.spec}" if other.spec != model.spec else "names other classes"
    raise ConfigError(f"against: {other.about.name} {what}, unlike the model ({model.spec}); they must be the same")


def _images(
    configured: str | ImageSet, spec: ImageSpec, training: Sequence[DataSettings | UnlabelledData]
) -> FittedFiles | FittedArrays:
    chosen = ImageSet(path=configured) if isinstance(configured, str) else configured
    if chosen.path is None:
        assert chosen.data is not None
        samples = open_dataset(chosen.data, chosen.split, chosen.channels, training)
        return FittedArrays(Path(samples.name), samples, spec)
    path = Path(chosen.path).expanduser()
    return fitted(path, spec, lambda top: list_scored(top, chosen.split), chosen.split, chosen.channels)


def evaluate_network(inputs: NetworkInputs, skip_bad: int) -> NetworkResult:
    """Pass the images through the networks once, by batches, and count.

    Raises:
        DataError: unreadable images, more than `skip_bad`, or none that can be read.
        ModelError: logits that are not finite.
    """
    started = time.perf_counter()
    model, other, images = inputs.model, inputs.other, inputs.images
    counter = QualityCounter(model.spec.classes) if inputs.labels else None
    digest, count, same, right, alone = hashlib.sha256(), 0, 0, 0, [0, 0]
    for window, pixels in batches(images.images()):
        logits = _logits(model, pixels)
        labels = torch.tensor([-1 if one.label is None else inputs.labels[one.label] for one in window])
        digest.update(pixels.numpy().tobytes() + labels.numpy().tobytes())
        count += len(window)
        if counter is not None:
            labelled = labels >= 0
            counter.add(logits[labelled], labels[labelled])
        if other is not None:
            ours, theirs = logits.argmax(1), _logits(other, pixels).argmax(1)
            same += int((ours == theirs).sum())
            right += int((theirs == labels).sum())
            alone[0] += int(((ours == labels) & (theirs != labels)).sum())
            alone[1] += int(((ours != labels) & (theirs == labels)).sum())
    refuse_bad(images.top, images.count, images.bad, skip_bad)
    against = None
    if other is not None:
        against = Against(other.about, proportion(same, count))
        if counter is not None:
            against = Against(other.about, proportion(same, count), proportion(right, count), *alone)
    seconds = round(time.perf_counter() - started, 3)
    notes = (*inputs.notes, *images.notes)
    return NetworkResult(
        seconds=seconds,
        model=model.about,
        images=SetResult(str(images.top), count, digest.hexdigest(), notes, tuple(images.bad)),
        class_names=model.class_names,
        quality=None if counter is None else counter.result(),
        against=against,
        cost=RunCost({"images": seconds}),
    )


def _logits(network: Network, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return finite_logits(network.logits(to_float(pixels)), network.about.name)


MOST = 5
"""Classes and pairs of classes that the summary names."""


def network_lines(result: NetworkResult) -> tuple[str, ...]:
    """The summary, without the line of the report."""
    lines = [f"model:       {result.model.name} ({result.model.form})", *_quality_lines(result)]
    if result.against is not None:
        one = result.against
        lines.append(f"against:     {one.network.name} ({one.network.form}): the same class for {one.agreement}")
        if one.top1 is not None:
            lines.append(
                f"             it is right for {one.top1}; alone for {one.only_other:,}, the model alone for "
                f"{one.only_model:,}"
            )
    lines += [f"note:        {result.images.name}: {note}" for note in result.images.notes]
    return tuple(lines)


def _quality_lines(result: NetworkResult) -> list[str]:
    quality, names = result.quality, result.class_names
    if quality is None:
        return [f"images:      {result.images.n:,} without labels: no accuracy"]
    lines = [f"top-1:       {quality.top1} images"]
    lines += [] if quality.top5 is None else [f"top-5:       {quality.top5} images"]
    scored = [(one.value, names[label], one.n) for label, one in enumerate(quality.per_class) if one is not None]
    worst = ", ".join(f"{name} {value:.1%} of {n:,}" for value, name, n in sorted(scored)[:MOST])
    interval = ""
    if quality.nll_interval is not None:
        interval = " [{:.4f}, {:.4f}]".format(*quality.nll_interval)
    sure = "more" if quality.confidence > quality.top1.value else "less"
    pairs = ", ".join(f"{names[p.label]} as {names[p.predicted]} {p.count}" for p in quality.confusions[:MOST])
    return [
        *lines,
        f"worst:       {worst}",
        *([f"confused:    {pairs}"] if pairs else []),
        f"calibration: ECE {quality.ece:.4f} ({len(quality.bins)} bins), {sure} sure ({quality.confidence:.2%}) than "
        f"right; NLL {quality.nll:.4f}{interval} nats",
    ]
