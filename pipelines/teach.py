"""Train a teacher on real data."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.data.real import Splits, channel_statistics, load_splits
from synthkd.hardware import latency_ms
from synthkd.losses.objective import Loss
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier, build_model, load, parameters, save
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.job import Job, describe_model, disk_line, open_job, scored, training_bytes
from synthkd.pipelines.run import Plan, Result
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.training.loop import Action, Loop, Progress, Stage
from synthkd.training.memory import fitting_batch_size, training_step
from synthkd.training.supervised import EpochSource


def teach(config: TeachConfig, *, dry_run: bool = False) -> Result | Plan:
    """Train the configured model on the training split and save it to `<run>/teacher`.

    The test split is only reported: it never selects a checkpoint, a stopping point or a setting.

    Args:
        config: what to train on what, and how.
        dry_run: build everything, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    if dry_run:
        splits = load_splits(config.data)
        return Plan(_plan(config, splits, build(config, splits)))
    with open_job("teach", config) as job:
        if job.finished is not None:
            return Result(job.directory, job.finished, _summary(job, dict(job.finished), already=True))
        splits = load_splits(config.data)
        model = build(config, splits).to(job.device)
        progress = _train(config, job, model, splits)
        began = time.perf_counter()
        with evaluating(model):
            test = score(model, splits, job.device)
        evaluation = progress.watching + time.perf_counter() - began
        values = job.finish(
            {
                "seconds": round(progress.seconds + evaluation, 3),
                "teacher": {**scored(test), **describe_model(model, latency_ms(model, model.spec, job.device))},
                "data": {
                    "class_names": list(splits.train.class_names),
                    "spec": str(splits.train.spec),
                    "train": len(splits.train.labels),
                    "holdout": len(splits.holdout.labels),
                },
                "cost": {
                    "seconds": {"teacher": round(progress.seconds, 3), "evaluate": round(evaluation, 3)},
                    "steps": config.training.steps,
                },
            }
        )
        return Result(job.directory, values, _summary(job, values))


def build(config: TeachConfig, splits: Splits) -> Classifier:
    """The untrained model, normalising by the mean and standard deviation of the training split."""
    torch.manual_seed(config.seed)
    mean, std = channel_statistics(splits.train.images)
    return build_model(config.model, splits.train.spec, mean, std, splits.train.class_names)


def score(model: Classifier, splits: Splits, device: torch.device) -> Proportion | None:
    """Accuracy on the test split; None where there is none."""
    if not len(splits.test.labels):
        return None
    return accuracy(predict(model, splits.test.images, device), splits.test.labels)


def _train(config: TeachConfig, job: Job, model: Classifier, splits: Splits) -> Progress:
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

    def evaluate(_: int) -> dict[str, Tensor | float]:
        evaluated = learner.evaluated
        assert isinstance(evaluated, Classifier)
        with evaluating(evaluated):
            test = score(evaluated, splits, job.device)
        return {} if test is None else {"test/accuracy": test.value}

    actions = [Action("learn", learn), Action("evaluate", evaluate, every=config.evaluate_every, after=True)]
    loop = Loop(
        accelerator,
        {"teacher": learner},
        job.store,
        job.monitor,
        config.seed,
        config.log_every,
        config.checkpoint_every,
        shown=("teacher/loss", "test/accuracy"),
    )
    progress = loop.run([Stage("teach", training.steps, actions)], f"teach {config.name}")
    if learner.evaluated is not model:
        model.load_state_dict(learner.evaluated.state_dict())
    model.eval()
    if accelerator.is_main_process:
        save(model, job.directory / "teacher", {"trained_on": splits.train.name, "seed": config.seed})
    accelerator.wait_for_everyone()
    return progress


def load_taught(result: Result) -> Classifier:
    """The teacher that a run of `teach` saved."""
    return load(result.directory, trust=True)


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


def _summary(job: Job, values: dict[str, object], already: bool = False) -> tuple[str, ...]:
    teacher = values["teacher"]
    assert isinstance(teacher, dict)
    if teacher.get("accuracy") is None:
        outcome = f"teacher: {teacher['parameters']:,} parameters, no test images"
    else:
        right = f"{teacher['accuracy']:.2%} of {teacher['n']:,} test images right"
        outcome = f"teacher: {right}, {teacher['parameters']:,} parameters"
    return (
        *((f"{job.directory} was complete already; nothing was run",) if already else ()),
        outcome,
        f"report:  {job.directory / 'report.html'}",
        f"teacher: {job.directory / 'teacher'}",
    )
