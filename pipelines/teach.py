"""Train a teacher on real data."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.epochs import EpochSource
from synthkd.data.read.on_disk import DiskImages, Pixels
from synthkd.data.read.real import RealData, Splits, channel_statistics, load_splits
from synthkd.distillation.alarms import Alarm, one_class
from synthkd.errors import ConfigError
from synthkd.losses.objective import Loss
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier, build_model, load, parameters, save
from synthkd.models.weights import finite_state
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.batch_size import BatchSize, choose_batch_size
from synthkd.pipelines.run.device import make_accelerator, process_state
from synthkd.pipelines.run.images import keep_data
from synthkd.pipelines.run.job import Job, describe_model, disk_line, open_job, training_bytes
from synthkd.pipelines.run.live import LivePage
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.timing import Work, decoding, measured, time_line
from synthkd.pipelines.run.trust import trusting
from synthkd.privacy.dpsgd import PoissonSource, PrivateLearner, plan_mechanism, statement
from synthkd.privacy.journal import Journal
from synthkd.reports.results import DataDescription, ModelResult, RaisedAlarm, RunCost, TeachResult
from synthkd.rng import stream
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.training.loop import Action, Progress, Stage
from synthkd.types import Batch, ImageSpec, balanced_labels

LOG = logging.getLogger(__name__)

Update = Callable[[int], dict[str, Tensor | float]]
"""One training step: takes the 0-based step, returns numbers for the log."""

TIMED_IMAGES = 256
"""Test images whose time a dry run measures."""
REHEARSAL_IMAGES = 4
"""Images of noise in the private step that a dry run takes."""

PLANNED_IMAGES = 500
"""Images on disk whose mean a dry run takes."""

ALARM_IMAGES = 1024
"""Images at most on which a teacher is checked for an alarm."""


@trusting
def teach(config: TeachConfig, *, dry_run: bool = False, splits: Splits | None = None) -> Result[TeachResult] | Plan:
    """Train the configured model on the training split and save it to `<run>/teacher`.

    The test split is only reported: it never selects a checkpoint, a stopping point or a setting.

    Args:
        config: data, model and training.
        dry_run: build everything, write nothing, and return the plan.
        splits: images in place of those that the configuration names, for a caller who changed some of them.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    if dry_run:
        return _dry(config, splits or load_splits(config.data))
    _require_one_process(config)  # before the run directory exists
    with open_job("teach", config) as job:
        if isinstance(job.finished, TeachResult):
            if splits is not None:  # the result holds for the caller's images only if it was trained on them
                keep_data(job.directory, splits, job.accelerator, config.training.dp is not None)
            return Result(job.directory, job.finished, _summary(job, job.finished, already=True))
        splits = splits or load_splits(config.data)
        keep_data(job.directory, splits, job.accelerator, config.training.dp is not None)
        model = _build(config, splits).to(job.device)
        progress, claim, batch_size = _train(config, job, model, splits)
        began = time.perf_counter()
        with evaluating(model):
            test = _test_accuracy(config, model, splits, job.device)
            alarm = _one_class_alarm(config, model, splits, job.device)
        evaluation = progress.evaluation_seconds + time.perf_counter() - began
        train = splits.train
        content = job.finish(
            TeachResult(
                seconds=round(progress.seconds + evaluation, 3),
                teacher=ModelResult.tested(test, describe_model(model, job.device)),
                data=DataDescription(train.class_names, str(train.spec), len(train), len(splits.holdout)),
                dp=claim,
                alarms=() if alarm is None else (RaisedAlarm(**vars(alarm)),),
                cost=RunCost(
                    {"teacher": round(progress.seconds, 3), "evaluate": round(evaluation, 3)},
                    config.training.steps,
                    batch_size=batch_size,
                ),
            )
        )
        return Result(job.directory, content, _summary(job, content))


def _dry(config: TeachConfig, splits: Splits) -> Plan:
    """What the run would do, and the time that it needs by a few of its steps, taken by a model that nobody keeps."""
    model, accelerator = untrained(config, splits), make_accelerator(config)
    lines = _plan(config, splits, model)
    return Plan((*lines, time_line(lambda: measured(works(config, splits, model, accelerator)))))


def load_taught(result: Result[TeachResult]) -> Classifier:
    """The teacher that a run of `teach` saved, in eval mode."""
    return load(result.directory)


def untrained(config: TeachConfig, splits: Splits) -> Classifier:
    """The initial model, for a dry run; with DP a step on noise is tried first, on a copy.

    Raises:
        ConfigError: with `training.dp`, what `PrivateLearner` and `plan_mechanism` refuse; several processes.
        TrainingError: a step on noise that fails.
    """
    with torch.random.fork_rng(devices=[]):
        model = _build(config, splits, planned=True)
    if config.training.dp is not None:
        _require_one_process(config)
        batch = _noise(config, model.spec, REHEARSAL_IMAGES)
        learner = _private_learner(config, copy.deepcopy(model), splits, torch.device("cpu"), Journal(None))
        learner.update(lambda: batch, F.cross_entropy, 0)
    return model


def _noise(config: TeachConfig, spec: ImageSpec, count: int) -> Batch:
    """A batch of `count` labelled images of noise, on the CPU."""
    images = torch.rand(count, *spec.shape, generator=stream(config.seed, "rehearsal"))
    return Batch(images, balanced_labels(count, 0, spec.classes))


def works(
    config: TeachConfig, splits: Splits, model: Classifier, accelerator: Accelerator, name: str = "steps"
) -> list[Work]:
    """What a training does, its steps by `name`, for the time that a dry run tells; the model is trained a little."""
    steps, device, model = config.training.steps, accelerator.device, model.to(accelerator.device)
    noise = _noise(config, model.spec, config.training.batch_size).to(device)
    reading = []
    if config.training.dp is not None:  # a dry run draws no private image
        private = _private_learner(config, model, splits, device, Journal(None))
        update: Update = partial(private.update, lambda: noise, F.cross_entropy)
    else:
        learner, update, batch = _learner(config, accelerator, None, model, splits)
        if isinstance(splits.train.images, DiskImages):
            noise = noise.map(lambda value: value[: batch.of_process])
            update = partial(_step, learner, noise, accelerator)
            reading = decoding(splits.train.images, len(splits.train))
    images = splits.test.images[:TIMED_IMAGES]

    def tested(_: float) -> None:
        with evaluating(model):
            predict(model, images, device)

    parts = [*reading, Work(name, steps, lambda where: update(int(steps * where)))]
    if len(images):  # at each interval, and at the end
        tests = -(-steps // config.evaluate_every) + 1
        parts.append(Work("tests", tests, tested, len(splits.test) / len(images), listed=False))
    return parts


def _build(config: TeachConfig, splits: Splits, planned: bool = False) -> Classifier:
    """The initial model; it normalises by the mean and standard deviation of the training split (DP: by 0.5, 0.5)."""
    torch.manual_seed(config.seed)
    if config.training.dp is None:
        mean, std = channel_statistics(_measured(splits.train, planned))
    else:  # the statistics of private images would cost budget
        mean = std = (0.5,) * splits.train.spec.channels
    return build_model(config.model, splits.train.spec, mean, std, splits.train.class_names)


def _measured(train: RealData, planned: bool) -> Pixels:
    """The images whose mean is taken; of those on disk a plan takes some, since to decode all may take an epoch."""
    images = train.images
    if isinstance(images, Tensor):
        return images
    if planned:
        return images[:: max(1, len(images) // PLANNED_IMAGES)]
    if count := images.lacking():
        LOG.warning("%s: %s images are decoded before the first step, for their mean", train.name, f"{count:,}")
    return images


def _require_one_process(config: TeachConfig) -> None:
    if config.training.dp is not None and (process_state(config).num_processes > 1 or config.precision != "no"):
        raise ConfigError(
            "training.dp: runs in one process and in full precision; set precision=no, leave torchrun out"
        )


def _train(
    config: TeachConfig, job: Job, model: Classifier, splits: Splits
) -> tuple[Progress, dict[str, Any] | None, int]:
    """Train the model and save it; the time that took, the privacy claim (None without DP), and the batch size."""
    learner: Learner | PrivateLearner
    batch = BatchSize(config.training.batch_size, config.training.batch_size)
    if config.training.dp is None:
        learner, update, batch = _learner(config, job.accelerator, job.directory, model, splits)
    else:
        learner = _private_learner(config, model, splits, job.device, Journal(job.directory))
        update = _private_update(config, learner, splits, job.device)

    def evaluate(_: int) -> dict[str, Tensor | float]:
        evaluated = learner.evaluated
        finite_state(evaluated, learner.name)
        assert isinstance(evaluated, Classifier)
        with evaluating(evaluated):
            test = _test_accuracy(config, evaluated, splits, job.device)
        return {} if test is None else {"test/accuracy": test.value}

    page = LivePage(job.directory, job.accelerator.is_main_process).every(config.evaluate_every)
    actions = [Action("learn", update), Action("evaluate", evaluate, every=config.evaluate_every, after=True), page]
    stage = Stage("teach", config.training.steps, actions)
    title = f"teach {config.name}"
    stages, headline = batch.logged([stage], job.monitor), ("teacher/loss", "test/accuracy")
    progress = job.train({"teacher": learner}, stages, title, headline)
    claim = None
    if isinstance(learner, PrivateLearner):
        claim = statement(learner.mechanism, learner.ledger, learner.spent())
        learner.finished()
    _save(config, job, model, learner.evaluated, splits, claim)
    return progress, claim, batch.images


def _learner(
    config: TeachConfig, accelerator: Accelerator, directory: Path | None, model: Classifier, splits: Splits
) -> tuple[Learner, Update, BatchSize]:
    """The learner without DP, its step on a batch of an epoch in random order, and the size of these batches."""
    training = config.training
    learner = Learner("teacher", model, training.optimizer, training.steps, accelerator)
    batch = _batch_size(config, learner, accelerator, model.spec, directory)
    source = EpochSource(
        splits.train.images,
        splits.train.labels,
        batch.images,
        training.augment,
        config.seed,
        accelerator.device,
        accelerator.process_index,
        accelerator.num_processes,
    )

    def update(step: int) -> dict[str, Tensor | float]:
        return _step(learner, source.batch(step), accelerator, step)

    return learner, update, batch


def _step(learner: Learner, batch: Batch, accelerator: Accelerator, step: int) -> dict[str, Tensor | float]:
    """One step of cross entropy; returns what is logged."""
    learner.model.train()
    with accelerator.autocast():
        logits = learner.model(batch.images).float()
    loss = F.cross_entropy(logits, batch.labels)
    return learner.update(Loss(loss, {"cross_entropy": loss}), step)


def _batch_size(
    config: TeachConfig, learner: Learner, accelerator: Accelerator, spec: ImageSpec, directory: Path | None
) -> BatchSize:
    """Images of a batch; with `adapt_batch_size` steps on noise are tried first, and the learner is restored."""

    def attempt(count: int) -> None:
        batch = _noise(config, spec, count).to(accelerator.device)
        for step in range(2):  # the first makes the moments of the optimizer, beside which the second needs its memory
            _step(learner, batch, accelerator, step)

    return choose_batch_size(config, config.training.batch_size, accelerator, directory, [learner], attempt)


def _private_learner(
    config: TeachConfig, model: Classifier, splits: Splits, device: torch.device, journal: Journal
) -> PrivateLearner:
    training, dp = config.training, config.training.dp
    assert dp is not None
    mechanism = plan_mechanism(dp, len(splits.train), training.batch_size, training.steps)
    return PrivateLearner("teacher", model, training.optimizer, mechanism, dp, device, journal)


def _private_update(config: TeachConfig, learner: PrivateLearner, splits: Splits, device: torch.device) -> Update:
    """The step with DP: cross entropy on a Poisson batch."""
    training, train = config.training, splits.train
    entropy = learner.entropy("batch")
    source = PoissonSource(train.images, train.labels, learner.mechanism, training.augment, entropy, device)

    def update(step: int) -> dict[str, Tensor | float]:
        learner.model.train()
        # The learner draws the batch itself: it charges the step to the budget before it sees an image.
        return learner.update(partial(source.batch, step), F.cross_entropy, step)

    return update


def _save(
    config: TeachConfig,
    job: Job,
    model: Classifier,
    evaluated: nn.Module,
    splits: Splits,
    claim: dict[str, Any] | None,
) -> None:
    """Save the last weights, or their average, in the model."""
    # The evaluated module may be a copy with averaged weights; `model` is what the caller goes on with.
    if evaluated is not model:
        model.load_state_dict(evaluated.state_dict())
    model.eval()
    if job.accelerator.is_main_process:
        notes = {"trained_on": splits.train.name, "seed": config.seed}
        save(model, job.directory / "teacher", notes if claim is None else notes | {"dp": claim})
    job.accelerator.wait_for_everyone()


def _test_accuracy(config: TeachConfig, model: Classifier, splits: Splits, device: torch.device) -> Proportion | None:
    """Accuracy on the test split; None where there are no test images."""
    if not len(splits.test):
        return None
    return accuracy(predict(model, splits.test.images, device, _pass_size(config)), splits.test.labels)


def _pass_size(config: TeachConfig) -> int:
    """Largest number of images of a pass: those of a batch, which DP-SGD takes in parts."""
    training = config.training
    return training.batch_size if training.dp is None else training.dp.physical_batch


def _one_class_alarm(config: TeachConfig, model: Classifier, splits: Splits, device: torch.device) -> Alarm | None:
    """The alarm about a teacher that predicts one class; checked on test images, or else on training images."""
    part, name = splits.test, "test images"
    if not len(part):
        # With DP the predictions on private images must not be reported: no noise covers them.
        if config.training.dp is not None:
            return None
        part, name = splits.train, "training images"
    predictions = predict(model, part.images[:ALARM_IMAGES], device, _pass_size(config), who="the teacher")
    return one_class(predictions, part.labels[:ALARM_IMAGES], "the teacher", name, part.class_names)


def _plan(config: TeachConfig, splits: Splits, model: Classifier) -> tuple[str, ...]:
    training, images, note = config.training, config.training.batch_size, ""
    if config.adapt_batch_size and training.dp is None:
        accelerator = make_accelerator(config)
        learner = Learner("teacher", copy.deepcopy(model), training.optimizer, training.steps, accelerator)
        batch = _batch_size(config, learner, accelerator, model.spec, None)
        images, note = batch.images, f", {batch.note}"
    epochs = training.steps * images / len(splits.train)
    return (
        f"teach {config.name}: {splits.train.name}, {splits.train.spec}",
        f"  images: {len(splits.train):,} train, {len(splits.holdout):,} holdout, {len(splits.test):,} test"
        + splits.train.kept,
        f"  model: {parameters(model):,} parameters",
        f"  steps: {training.steps:,} of {images} images ({epochs:.1f} epochs{note})",
        disk_line(config, training_bytes(parameters(model))),
    )


def _summary(job: Job, content: TeachResult, already: bool = False) -> tuple[str, ...]:
    teacher = content.teacher or ModelResult()
    if teacher.accuracy is None:
        outcome = f"teacher: {teacher.parameters:,} parameters, no test images"
    else:
        right = f"{teacher.accuracy:.2%} of {teacher.n:,} test images right"
        outcome = f"teacher: {right}, {teacher.parameters:,} parameters"
    return (
        *((f"{job.directory} was complete already; nothing was run",) if already else ()),
        outcome,
        *(f"alarm:   {alarm.name}: {alarm.message}" for alarm in content.alarms or ()),
        f"report:  {job.directory / 'report.html'}",
        f"teacher: {job.directory / 'teacher'}",
    )
