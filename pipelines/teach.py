"""Train a teacher on real data."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.data.epochs import EpochSource
from synthkd.data.read.real import Splits, channel_statistics, load_splits
from synthkd.distillation.alarms import Alarm, one_class
from synthkd.errors import ConfigError
from synthkd.losses.objective import Loss
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier, build_model, load, parameters, save
from synthkd.models.cost import latency_ms
from synthkd.models.weights import finite_state
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.directory import Plan, Result, keep_data, trusting
from synthkd.pipelines.run.job import (
    Job,
    describe_model,
    disk_line,
    open_job,
    process_state,
    training_bytes,
)
from synthkd.privacy.dpsgd import PoissonSource, PrivateLearner, plan_mechanism, statement
from synthkd.privacy.journal import Journal
from synthkd.reports.results import DataDescription, ModelResult, RaisedAlarm, RunCost, TeachResult
from synthkd.rng import stream
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.training.loop import Action, Loop, Progress, Stage
from synthkd.training.memory import fitting_batch_size, training_step
from synthkd.types import Batch, balanced_labels

REHEARSED = 4
"""Images of noise in the step that a dry run takes."""

ALARM_IMAGES = 1024
"""Images at most that a teacher is judged on for an alarm."""


@trusting
def teach(config: TeachConfig, *, dry_run: bool = False, splits: Splits | None = None) -> Result[TeachResult] | Plan:
    """Train the configured model on the training split and save it to `<run>/teacher`.

    The test split is only reported: it never selects a checkpoint, a stopping point or a setting.

    Args:
        config: what to train on what, and how.
        dry_run: build everything, write nothing, and return the plan.
        splits: images in the place of those that the configuration names, for a caller who changed some of them.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    if dry_run:
        splits = splits or load_splits(config.data)
        return Plan(_plan(config, splits, untrained(config, splits)))
    _require_one_process(config)
    with open_job("teach", config) as job:
        if splits is not None:
            keep_data(job.directory, splits, job.accelerator, config.training.dp is not None)
        if isinstance(job.finished, TeachResult):
            return Result(job.directory, job.finished, _summary(job, job.finished, already=True))
        if splits is None:
            splits = load_splits(config.data)
            keep_data(job.directory, splits, job.accelerator, config.training.dp is not None)
        model = build(config, splits).to(job.device)
        progress, claim = (_train if config.training.dp is None else _train_privately)(config, job, model, splits)
        began = time.perf_counter()
        with evaluating(model):
            test = score(model, splits, job.device)
            alarm = _one_class(config, model, splits, job.device)
        evaluation = progress.watching + time.perf_counter() - began
        train = splits.train
        content = job.finish(
            TeachResult(
                seconds=round(progress.seconds + evaluation, 3),
                teacher=ModelResult.tested(test, describe_model(model, latency_ms(model, model.spec, job.device))),
                data=DataDescription(train.class_names, str(train.spec), len(train.labels), len(splits.holdout.labels)),
                dp=claim,
                alarms=() if alarm is None else (RaisedAlarm(**vars(alarm)),),
                cost=RunCost(
                    {"teacher": round(progress.seconds, 3), "evaluate": round(evaluation, 3)}, config.training.steps
                ),
            )
        )
        return Result(job.directory, content, _summary(job, content))


def build(config: TeachConfig, splits: Splits) -> Classifier:
    """The untrained model, normalising by the mean and standard deviation of the training split (DP: by 0.5, 0.5)."""
    torch.manual_seed(config.seed)
    if config.training.dp is None:
        mean, std = channel_statistics(splits.train.images)
    else:  # those of the training images would cost budget
        mean = std = (0.5,) * splits.train.spec.channels
    return build_model(config.model, splits.train.spec, mean, std, splits.train.class_names)


def untrained(config: TeachConfig, splits: Splits) -> Classifier:
    """The model of `build` for a dry run, once all was tried that would stop its training.

    Raises:
        ConfigError: with `training.dp`, what `PrivateLearner` and `plan_mechanism` refuse; several processes.
        TrainingError: a step on noise that fails.
    """
    model = build(config, splits)
    if config.training.dp is not None:
        _require_one_process(config)
        labels = balanced_labels(REHEARSED, 0, model.spec.classes)
        noise = Batch(torch.rand(REHEARSED, *model.spec.shape, generator=stream(config.seed, "rehearsal")), labels)
        learner = _private_learner(config, copy.deepcopy(model), splits, torch.device("cpu"), Journal(None))
        learner.update(lambda: noise, F.cross_entropy, 0)
    return model


def score(model: Classifier, splits: Splits, device: torch.device) -> Proportion | None:
    """Accuracy on the test split; None where there is none."""
    if not len(splits.test.labels):
        return None
    return accuracy(predict(model, splits.test.images, device), splits.test.labels)


def _one_class(config: TeachConfig, model: Classifier, splits: Splits, device: torch.device) -> Alarm | None:
    """The alarm about a teacher that gives one answer: on test images, else on some that it was trained on.

    Of private training images nothing is told, which no noise would cover.
    """
    shown, on = splits.test, "test images"
    if not len(shown):
        if config.training.dp is not None:
            return None
        shown, on = splits.train, "training images"
    asked = shown.labels[:ALARM_IMAGES]
    answers = predict(model, shown.images[:ALARM_IMAGES], device, who="the teacher")
    return one_class(answers, asked, "the teacher", on, shown.class_names)


def _train(config: TeachConfig, job: Job, model: Classifier, splits: Splits) -> tuple[Progress, None]:
    training = config.training
    accelerator = job.accelerator
    learner = Learner("teacher", model, training.optimizer, training.steps, accelerator)
    batch_size = training.batch_size
    if config.adapt_batch_size:
        batch_size = fitting_batch_size(batch_size, training_step(model, model.spec, job.device))
    source = EpochSource(
        splits.train.images,
        splits.train.labels,
        batch_size,
        training.augment,
        config.seed,
        job.device,
        accelerator.process_index,
        accelerator.num_processes,
    )

    def learn(step: int) -> dict[str, Tensor | float]:
        batch = source.batch(step)
        learner.model.train()
        with accelerator.autocast():
            logits = learner.model(batch.images).float()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=training.label_smoothing)
        return learner.update(Loss(loss, {"cross_entropy": loss}), step)

    progress = _run(config, job, learner, learn, splits)
    _finish(job, config, model, learner.evaluated, splits, None)
    return progress, None


def _train_privately(
    config: TeachConfig, job: Job, model: Classifier, splits: Splits
) -> tuple[Progress, dict[str, Any]]:
    training = config.training
    learner = _private_learner(config, model, splits, job.device, Journal(job.directory))
    mechanism = learner.mechanism
    entropy = learner.entropy("batch")
    source = PoissonSource(splits.train.images, splits.train.labels, mechanism, training.augment, entropy, job.device)

    def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)

    def learn(step: int) -> dict[str, Tensor | float]:
        learner.model.train()
        return learner.update(partial(source.batch, step), loss_of, step)

    progress = _run(config, job, learner, learn, splits)
    claim = statement(mechanism, learner.ledger, learner.spent())
    learner.finished()
    _finish(job, config, model, learner.evaluated, splits, claim)
    return progress, claim


def _private_learner(
    config: TeachConfig, model: Classifier, splits: Splits, device: torch.device, journal: Journal
) -> PrivateLearner:
    training, dp = config.training, config.training.dp
    assert dp is not None
    mechanism = plan_mechanism(dp, len(splits.train), training.batch_size, training.steps)
    return PrivateLearner("teacher", model, training.optimizer, mechanism, dp, device, journal)


def _require_one_process(config: TeachConfig) -> None:
    if config.training.dp is not None and (process_state(config).num_processes > 1 or config.precision != "no"):
        raise ConfigError(
            "training.dp: runs in one process and in full precision; set precision=no, leave torchrun out"
        )


def _run(
    config: TeachConfig,
    job: Job,
    learner: Learner | PrivateLearner,
    learn: Callable[[int], dict[str, Tensor | float]],
    splits: Splits,
) -> Progress:
    def evaluate(_: int) -> dict[str, Tensor | float]:
        evaluated = learner.evaluated
        finite_state(evaluated, learner.name)
        assert isinstance(evaluated, Classifier)
        with evaluating(evaluated):
            test = score(evaluated, splits, job.device)
        return {} if test is None else {"test/accuracy": test.value}

    actions = [Action("learn", learn), Action("evaluate", evaluate, every=config.evaluate_every, after=True)]
    loop = Loop(
        job.accelerator,
        {"teacher": learner},
        job.store,
        job.monitor,
        config.seed,
        config.log_every,
        config.checkpoint_every,
        shown=("teacher/loss", "test/accuracy"),
    )
    return loop.run([Stage("teach", config.training.steps, actions)], f"teach {config.name}")


def _finish(
    job: Job,
    config: TeachConfig,
    model: Classifier,
    evaluated: nn.Module,
    splits: Splits,
    claim: dict[str, Any] | None,
) -> None:
    """Save the last weights, or their average, in the model."""
    if evaluated is not model:
        model.load_state_dict(evaluated.state_dict())
    model.eval()
    if job.accelerator.is_main_process:
        notes = {"trained_on": splits.train.name, "seed": config.seed}
        save(model, job.directory / "teacher", notes if claim is None else notes | {"dp": claim})
    job.accelerator.wait_for_everyone()


def load_taught(result: Result[TeachResult]) -> Classifier:
    """The teacher that a run of `teach` saved."""
    return load(result.directory)


def _plan(config: TeachConfig, splits: Splits, model: Classifier) -> tuple[str, ...]:
    training = config.training
    epochs = training.steps * training.batch_size / len(splits.train.labels)
    return (
        f"teach {config.name}: {splits.train.name}, {splits.train.spec}",
        f"  images: {len(splits.train.labels):,} train, {len(splits.holdout.labels):,} holdout, "
        f"{len(splits.test.labels):,} test",
        f"  model: {parameters(model):,} parameters",
        f"  steps: {training.steps:,} of {training.batch_size} images ({epochs:.1f} epochs)",
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
