"""The network of a teacher before its training, and the step that updates it, plain or differentially private."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.epochs import EpochSource
from synthkd.data.read.on_disk import DiskImages, Pixels
from synthkd.data.read.real import RealData, Splits, channel_statistics
from synthkd.errors import ConfigError, SynthkdError
from synthkd.losses.objective import Loss
from synthkd.metrics.utility import predict
from synthkd.models import Classifier, build_model
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.batch_size import BatchSize, choose_batch_size
from synthkd.pipelines.run.device import process_state, rows_of_process, sharing
from synthkd.pipelines.run.timing import Work, decoding, saving
from synthkd.privacy.dpsgd import PoissonSource, PrivateLearner, plan_mechanism
from synthkd.privacy.journal import Journal
from synthkd.rng import stream
from synthkd.system.text import first_line
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec, Outputs, balanced_labels

Update = Callable[[int], dict[str, Tensor | float]]
"""One training step: takes the 0-based step, returns numbers for the log."""

TIMED_IMAGES = 256
"""Test images whose time a dry run measures."""

REHEARSAL_IMAGES = 4
"""Images of noise in the private step that is taken before any that counts."""

MEASURED_IMAGES, PLANNED_IMAGES = 2000, 500
"""Most images on disk whose mean is taken for the normalisation, in a run and in a dry run."""


def untrained(config: TeachConfig, splits: Splits) -> Classifier:
    """The initial model, for a dry run; with DP a step on noise is tried first, on a copy.

    Raises:
        ConfigError: with `training.dp`, see `rehearse`; several processes.
        TrainingError: see `rehearse`.
    """
    with torch.random.fork_rng(devices=[]):
        model = build(config, splits, planned=True)
    if config.training.dp is not None:
        require_one_process(config)
        rehearse(config, model, splits)
    return model


def rehearse(config: TeachConfig, model: Classifier, splits: Splits) -> None:
    """Take a private step on noise with a copy of the model, on the CPU, which charges no budget.

    Raises:
        ConfigError: what `PrivateLearner` and `plan_mechanism` refuse; a network in which the step fails.
        TrainingError: weights that are not finite after the step, or a buffer that has changed.
    """
    batch = noise(config, model.spec, REHEARSAL_IMAGES)
    try:
        learner = private_learner(config, copy.deepcopy(model), splits, torch.device("cpu"), Journal(None))
        learner.update(lambda: batch, F.cross_entropy, 0)
    except SynthkdError:  # it says already what is wrong
        raise
    except Exception as error:  # the network may be other people's code, which Opacus runs in its own way
        raise ConfigError(
            f"training.dp: a step of DP-SGD on noise fails: {first_line(error)}; take a network of layers that Opacus "
            "supports, and none of whose operations are in place"
        ) from error


def noise(config: TeachConfig, spec: ImageSpec, count: int) -> Batch:
    """A batch of `count` labelled images of noise, on the CPU."""
    images = torch.rand(count, *spec.shape, generator=stream(config.seed, "rehearsal"))
    return Batch(images, balanced_labels(count, 0, spec.classes))


def works(
    config: TeachConfig, splits: Splits, model: Classifier, accelerator: Accelerator, name: str = "steps"
) -> list[Work]:
    """What a training does, its steps by `name`, for the time that a dry run tells; the model is trained a little."""
    steps, device, model = config.training.steps, accelerator.device, model.to(accelerator.device)
    batch_of_noise = noise(config, model.spec, config.training.batch_size).to(device)
    reading = []
    learner: Learner | PrivateLearner
    if config.training.dp is not None:  # a dry run draws no private image
        learner = private_learner(config, model, splits, device, Journal(None))
        update: Update = partial(learner.update, lambda: batch_of_noise, F.cross_entropy)
    else:
        learner, update, batch = plain_update(config, accelerator, None, model, splits)
        if isinstance(splits.train.images, DiskImages):
            part = batch_of_noise.map(lambda value: value[: batch.of_process])
            update = partial(plain_step, learner, part, accelerator)
            reading = decoding(splits.train.images, len(splits.train) // accelerator.num_processes)
    images = splits.test.images[:TIMED_IMAGES]

    def tested(_: float) -> None:
        with evaluating(model):
            predict(model, images, device)

    taught = Work(name, steps, lambda where: update(int(steps * where)))
    parts = [*reading, taught, saving({"teacher": learner}, config, steps)]
    if len(images):  # at each interval, and at the end
        tests = -(-steps // config.evaluate_every) + 1
        parts.append(Work("tests", tests, tested, len(splits.test) / len(images), listed=False))
    return parts


def build(config: TeachConfig, splits: Splits, planned: bool = False) -> Classifier:
    """The initial model; it normalises by the mean and standard deviation of the training split (DP: by 0.5, 0.5)."""
    torch.manual_seed(config.seed)
    if config.training.dp is None:
        mean, std = channel_statistics(_measured(splits.train, config.seed, planned))
    else:  # the statistics of private images would cost budget
        mean = std = (0.5,) * splits.train.spec.channels
    return build_model(config.model, splits.train.spec, mean, std, splits.train.class_names)


def _measured(train: RealData, seed: int, planned: bool) -> Pixels:
    """The images whose mean is taken: all in memory, or a sample of those on disk, which take long to decode."""
    images = train.images
    if isinstance(images, Tensor):
        return images
    order = torch.randperm(len(images), generator=stream(seed, "images of the mean"))
    return images.part(order[: PLANNED_IMAGES if planned else MEASURED_IMAGES].sort().values)


def require_one_process(config: TeachConfig) -> None:
    """Raise `ConfigError` for training with DP in several processes or in mixed precision."""
    if config.training.dp is not None and (process_state(config).num_processes > 1 or config.precision != "no"):
        raise ConfigError(
            "training.dp: runs in one process and in full precision; set precision=no, leave torchrun out"
        )


def plain_update(
    config: TeachConfig, accelerator: Accelerator, directory: Path | None, model: Classifier, splits: Splits
) -> tuple[Learner, Update, BatchSize]:
    """The learner without DP, its step on a batch of an epoch in random order, and the size of these batches."""
    training = config.training
    processes = sharing(config, accelerator)
    learner = Learner("teacher", model, training.optimizer, training.steps, accelerator, processes=processes)
    batch = teacher_batch_size(config, learner, accelerator, model.spec, directory)
    source = EpochSource(
        splits.train.images,
        splits.train.labels,
        batch.images,
        training.augment,
        config.seed,
        accelerator.device,
        processes if processes.world > 1 else rows_of_process(processes, accelerator),
    )

    def update(step: int) -> dict[str, Tensor | float]:
        return plain_step(learner, source.batch(step), accelerator, step)

    return learner, update, batch


def plain_step(learner: Learner, batch: Batch, accelerator: Accelerator, step: int) -> dict[str, Tensor | float]:
    """One step of cross entropy; returns what is logged."""
    model, processes = learner.model.train(), learner.processes
    with accelerator.autocast(), processes.norms():
        logits = processes.outputs(lambda rows: Outputs(model(rows)), batch.images).logits.float()
    loss = F.cross_entropy(logits, batch.labels)
    return learner.update(Loss(loss, {"cross_entropy": loss}), step)


def teacher_batch_size(
    config: TeachConfig, learner: Learner, accelerator: Accelerator, spec: ImageSpec, directory: Path | None
) -> BatchSize:
    """Images of a batch; with `adapt_batch_size` steps on noise are tried first, and the learner is restored."""

    def attempt(count: int) -> None:
        batch = noise(config, spec, count).to(accelerator.device)
        for step in range(2):  # the first makes the moments of the optimizer, beside which the second needs its memory
            plain_step(learner, batch, accelerator, step)

    return choose_batch_size(config, config.training.batch_size, accelerator, directory, [learner], attempt)


def private_learner(
    config: TeachConfig, model: Classifier, splits: Splits, device: torch.device, journal: Journal
) -> PrivateLearner:
    """The learner with DP, which keeps its budget in the journal."""
    training, dp = config.training, config.training.dp
    assert dp is not None
    mechanism = plan_mechanism(dp, len(splits.train), training.batch_size, training.steps)
    return PrivateLearner("teacher", model, training.optimizer, mechanism, dp, device, journal)


def private_update(config: TeachConfig, learner: PrivateLearner, splits: Splits, device: torch.device) -> Update:
    """The step with DP: cross entropy on a Poisson batch."""
    training, train = config.training, splits.train
    entropy = learner.entropy("batch")
    source = PoissonSource(train.images, train.labels, learner.mechanism, training.augment, entropy, device)

    def update(step: int) -> dict[str, Tensor | float]:
        # The learner draws the batch itself: it charges the step to the budget before it sees an image.
        return learner.update(partial(source.batch, step), F.cross_entropy, step)

    return update


def pass_size(config: TeachConfig) -> int:
    """Largest number of images of a pass: those of a batch, which DP-SGD takes in parts."""
    training = config.training
    return training.batch_size if training.dp is None else training.dp.physical_batch
