"""Train a teacher on real data."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.data.read.real import Splits, load_splits
from synthkd.distillation.alarms import Alarm, one_class
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier, load, parameters, save
from synthkd.models.weights import finite_state
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.batch_size import BatchSize
from synthkd.pipelines.run.device import make_accelerator, process_state
from synthkd.pipelines.run.images import keep_data
from synthkd.pipelines.run.job import Job, describe_model, disk_line, open_job, training_bytes
from synthkd.pipelines.run.live import LivePage
from synthkd.pipelines.run.memory import memory_lines
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.several import require_shareable
from synthkd.pipelines.run.shared_work import shares
from synthkd.pipelines.run.timing import measured, planned_time
from synthkd.pipelines.run.trust import trusting
from synthkd.pipelines.teacher.learning import (
    build,
    pass_size,
    plain_update,
    private_learner,
    private_update,
    rehearse,
    require_one_process,
    teacher_batch_size,
    untrained,
    works,
)
from synthkd.pipelines.teacher.memory import teaching_memory
from synthkd.privacy.dpsgd import PrivateLearner, statement
from synthkd.privacy.journal import Journal
from synthkd.reports.results import DataDescription, ModelResult, RaisedAlarm, RunCost, TeachResult
from synthkd.system.shares import together
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.training.loop import Action, Progress, Stage

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
    require_shareable(config, process_state(config).num_processes)
    if dry_run:
        return _dry(config, splits or load_splits(config.data))
    require_one_process(config)  # before the run directory exists
    with open_job("teach", config) as job:
        if isinstance(job.finished, TeachResult):
            if splits is not None:  # the result holds for the caller's images only if it was trained on them
                keep_data(job.directory, splits, job.accelerator, config.training.dp is not None)
            return Result(job.directory, job.finished, _summary(job, job.finished, already=True))
        with together(shares()):
            splits = splits or load_splits(config.data)
        keep_data(job.directory, splits, job.accelerator, config.training.dp is not None)
        model = build(config, splits)
        if config.training.dp is not None:
            rehearse(config, model, splits)  # an error at the first step would cost its share of the budget
        model = model.to(job.device)
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
    """What the run would do, and the time and memory that it needs by a few steps of models that nobody keeps."""
    model, accelerator = untrained(config, splits), make_accelerator(config)
    lines = _plan(config, splits, model)
    memory = memory_lines(lambda: teaching_memory(config, splits, model, accelerator))
    time = planned_time(lambda: measured(works(config, splits, model, accelerator)))
    return Plan((*lines, time.line, *memory), time)


def load_taught(result: Result[TeachResult]) -> Classifier:
    """The teacher that a run of `teach` saved, in eval mode."""
    return load(result.directory)


def _train(
    config: TeachConfig, job: Job, model: Classifier, splits: Splits
) -> tuple[Progress, dict[str, Any] | None, int]:
    """Train the model and save it; the time that took, the privacy claim (None without DP), and the batch size."""
    learner: Learner | PrivateLearner
    batch = BatchSize(config.training.batch_size, config.training.batch_size)
    if config.training.dp is None:
        learner, update, batch = plain_update(config, job.accelerator, job.directory, model, splits)
    else:
        learner = private_learner(config, model, splits, job.device, Journal(job.directory))
        update = private_update(config, learner, splits, job.device)

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
    return accuracy(predict(model, splits.test.images, device, pass_size(config)), splits.test.labels)


def _one_class_alarm(config: TeachConfig, model: Classifier, splits: Splits, device: torch.device) -> Alarm | None:
    """The alarm about a teacher that predicts one class; checked on test images, or else on training images."""
    part, name = splits.test, "test images"
    if not len(part):
        # With DP the predictions on private images must not be reported: no noise covers them.
        if config.training.dp is not None:
            return None
        part, name = splits.train, "training images"
    predictions = predict(model, part.images[:ALARM_IMAGES], device, pass_size(config), who="the teacher")
    return one_class(predictions, part.labels[:ALARM_IMAGES], "the teacher", name, part.class_names)


def _plan(config: TeachConfig, splits: Splits, model: Classifier) -> tuple[str, ...]:
    training, images, note = config.training, config.training.batch_size, ""
    if config.adapt_batch_size and training.dp is None:
        accelerator = make_accelerator(config)
        learner = Learner("teacher", copy.deepcopy(model), training.optimizer, training.steps, accelerator)
        batch = teacher_batch_size(config, learner, accelerator, model.spec, None)
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
