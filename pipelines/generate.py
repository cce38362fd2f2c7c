"""Write a labelled synthetic dataset: from a recipe, from a finished run, or from a saved generator."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from synthkd import __version__
from synthkd.data.read.real import reading_once
from synthkd.data.written.card import card
from synthkd.data.written.filters import Sieve
from synthkd.data.written.stored import ABOUT, FOLDER, FORMAT, Content
from synthkd.data.written.unfinished import PartStore
from synthkd.data.written.writers import METADATA, SPLIT, Layout, write_records
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.generators.files import INSIDE_A_RUN, save_generator
from synthkd.generators.settings import MerfSettings, PythonGenerator, access_of
from synthkd.models import Classifier, parameters, probe
from synthkd.models.weights import serialised
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.dataset.cost import dataset_memory, dataset_works
from synthkd.pipelines.dataset.plan import DatasetPlan
from synthkd.pipelines.dataset.request import Request, plan_layout, read_request, real_images_used, trained_as
from synthkd.pipelines.dataset.sampling import CHUNK, ChunkSampler, Sampling
from synthkd.pipelines.dataset.scoring import score_action
from synthkd.pipelines.dataset.statistics import DatasetStatistics
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.directory import REPORT
from synthkd.pipelines.run.disk import require_space
from synthkd.pipelines.run.fit import fit_generator
from synthkd.pipelines.run.images import fitted_splits, keep_data
from synthkd.pipelines.run.job import Job, open_job
from synthkd.pipelines.run.memory import memory_lines
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.shared_work import shares
from synthkd.pipelines.run.tested import taught_on
from synthkd.pipelines.run.timing import measured, planned_time
from synthkd.pipelines.run.trust import trusting
from synthkd.pipelines.scores.running import BATCH, build_scores, scores_in_words
from synthkd.pipelines.student.teacher_warnings import teacher_warnings
from synthkd.pipelines.student.teachers import is_taught, ready_teacher, untrained_teacher
from synthkd.reports.grids import save_grid
from synthkd.reports.results import (
    DatasetDescription,
    DatasetScores,
    DatasetTeacher,
    GenerateResult,
    RunCost,
    to_json,
)
from synthkd.settings import LoadedModel
from synthkd.system.files import write_atomically, write_sums
from synthkd.system.resources import size
from synthkd.system.sealed import sealed
from synthkd.training.display import Display
from synthkd.types import repeats

LOG = logging.getLogger(__name__)

PARTS = "parts"
"""Images on their way, inside the run until it is finished."""
PARTIAL = f".{FOLDER}.partial"
RECIPE_KEYS = ("seed", "teacher", "generator", "data", "rounds", "run", "per_class", "difficulty", "filters", "format")
"""What the card tells of the configuration, where it is not the default; the rest does not change what is made."""


@trusting
def generate(config: GenerateConfig, *, dry_run: bool = False) -> Result[GenerateResult] | Plan:
    """Write the configured dataset to `<run>/dataset`, with a card, and report on it.

    Images are a function of the recipe: any `batch_size`, any number of processes, and any number of interruptions give
    the same bytes. Several processes only sample: gradients averaged over processes would give other weights.

    Args:
        config: teacher, generator, counts, format, filters.
        dry_run: build everything, write nothing, and return the plan with its estimate of the disk.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`; a full disk is a CheckpointError, and the same command
            resumes.
    """
    if dry_run:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), reading_once():
            return _plan(config)
    with open_job("generate", config) as job:
        if isinstance(job.finished, GenerateResult):
            shutil.rmtree(job.directory / PARTS, ignore_errors=True)
            return Result(job.directory, job.finished, _summary(job, job.finished, already=True))
        with reading_once():
            request = _read(config, job.accelerator)
            if request.real is not None:
                keep_data(job.directory, request.real, job.accelerator, isinstance(request.generator, MerfSettings))
            if not is_taught(request.teacher, job.directory):  # to fail now rather than after the teacher
                untrained = untrained_teacher(request.teacher, config, request.source)
                require_space(job.directory, _work(config, request, untrained, job.accelerator).bytes)
            ready = ready_teacher(request.teacher, config, job, source=request.source)
        work = _work(config, request, ready.model, job.accelerator, job.directory)
        for warning in work.warnings:
            LOG.warning("%s", warning)
        require_space(job.directory, work.bytes)
        finished = job.finish(_make(work, job, ready.seconds))
        if job.accelerator.is_main_process:
            shutil.rmtree(job.directory / PARTS, ignore_errors=True)
        return Result(job.directory, finished, _summary(job, finished))


def _plan(config: GenerateConfig) -> Plan:
    """What the job would do, and the time and memory that it needs by a few of its steps."""
    accelerator = make_accelerator(config)
    request = _read(config, accelerator)
    work = _work(config, request, untrained_teacher(request.teacher, config, request.source), accelerator)
    lines = work.plan()
    memory = memory_lines(lambda: dataset_memory(work, accelerator))
    time = planned_time(lambda: measured(dataset_works(work, accelerator)))
    return Plan((*lines, time.line, *memory), time)


def _read(config: GenerateConfig, accelerator: Accelerator) -> Request:
    """The request; several processes are refused one that trains anything."""
    request = read_request(config)
    if accelerator.num_processes > 1 and (config.rounds or not isinstance(request.teacher, LoadedModel)):
        raise ConfigError(
            "rounds: several processes sample, but do not train: run the recipe in one process with a small "
            "per_class, then this with run= that run"
        )
    return request


def _work(
    config: GenerateConfig, request: Request, teacher: Classifier, accelerator: Accelerator, run: Path | None = None
) -> DatasetPlan:
    if request.real is not None:
        real = fitted_splits("data", request.real, teacher.spec, teacher.class_names)
        request = replace(request, real=real)
    own = isinstance(request.generator, PythonGenerator)  # it does not tell whether it needs gradients
    size = getattr(request.generator, "batch_size", BATCH)
    contract = probe(teacher, gradients=not own and "gradients" in access_of(request.generator), batch_size=size)
    warnings = teacher_warnings([request.teacher], [teacher], [contract], size)
    counts, layout = plan_layout(config, request, teacher)
    generator = build_generator(
        request.generator, teacher, config.seed, accelerator, request.real, run, rounds=config.rounds
    )
    images, classes = config.rounds * size, teacher.spec.classes
    if config.rounds and not own and repeats(generator) and images < classes:
        raise ConfigError(
            f"rounds: {config.rounds} of {size} images leave some of {classes:,} classes without one; "
            f"set at least {-(-classes // size)}"
        )
    scores = None
    if config.score is not None:
        device, trained = accelerator.device, [*taught_on([request.teacher])]
        trained += [] if config.data is None else [config.data]
        scores = build_scores(
            config.score, teacher, request.generator, request.real, device, config.seed, trained, size
        )
    return DatasetPlan(config, request, teacher, generator, counts, layout, scores, warnings)


def _make(work: DatasetPlan, job: Job, teacher_seconds: float) -> GenerateResult:
    """Train the generator, sample it and write the dataset, where `teacher_seconds` went into the teacher before."""
    config, spec = work.config, work.teacher.spec
    # First: it changes the memory layout of the teacher, and so the last bits of its gradients.
    frozen = FrozenTeacher(work.teacher, job.accelerator)
    scores = work.scores
    watching = [] if scores is None else [score_action(scores, work.generator, config.difficulty, config.seed)]
    progress = fit_generator(job, work.generator, config.rounds, config.difficulty, watching)
    real_images = real_images_used(work.request)
    if job.accelerator.is_main_process and config.rounds:
        names, folder = work.layout.class_names, job.directory / INSIDE_A_RUN
        save_generator(work.generator, work.request.generator, folder, spec, names, config.seed, real_images)
    began = time.perf_counter()
    sieve = Sieve(work.counts, config.filters.confidence, config.filters.near_duplicates, config.filters.copies)
    sampling = _sample(work, job, frozen, sieve)
    sampled = time.perf_counter()
    dataset = _write(work, job, sampling, sieve)
    shares().values(None)  # the other processes measure what the main one has written, however long that takes
    seconds = {
        "generator": round(progress.seconds, 3),
        **({} if scores is None else {"evaluate": round(progress.evaluation_seconds, 3)}),
        "sample": round(sampled - began, 3),
        "write": round(time.perf_counter() - sampled, 3),
        "teacher": round(teacher_seconds, 3),
    }
    written = sum(path.stat().st_size for path in (job.directory / FOLDER).rglob("*") if path.is_file())
    return GenerateResult(
        dataset=dataset,
        real_images_used=real_images,
        cost=RunCost(seconds, images_made_now=sampling.made, dataset_bytes=written),
        seconds=round(sum(seconds.values()), 3),
        scores=None if scores is None else scores.result(job.monitor.rows()),
    )


def _sample(work: DatasetPlan, job: Job, frozen: FrozenTeacher, sieve: Sieve) -> Sampling:
    config = work.config
    sampling = Sampling(
        ChunkSampler(
            work.generator,
            frozen,
            config.difficulty,
            config.seed,
            work.compared,
            getattr(work.request.generator, "batch_size", CHUNK),
        ),
        PartStore(job.directory / PARTS),
        sieve,
        work.layout.class_names,
        config.batch_size,
        job.accelerator,
    )
    sampling.run(f"generate {config.name}")
    return sampling


def _write(work: DatasetPlan, job: Job, sampling: Sampling, sieve: Sieve) -> DatasetDescription:
    """Describe the sampled images; the main process writes them as a dataset, and a picture of the first ones."""
    statistics, content = DatasetStatistics(work.teacher, job.device, work.counts), Content()
    for block in sampling.records():
        statistics.add(block)
        content.add(block)
    scores = statistics.scores(int(sieve.tried.sum()), dict(sieve.reasons))
    description = _describe(work, content.hexdigest(), scores)
    if job.accelerator.is_main_process:
        _write_dataset(work, job.directory, description, sampling)
        columns, images = statistics.grid()
        names = [work.layout.class_names[label] for label in columns]
        save_grid(images, len(columns), job.directory / "samples" / "classes.png", names)
    return description


def _describe(work: DatasetPlan, content: str, scores: DatasetScores) -> DatasetDescription:
    config, layout, teacher = work.config, work.layout, work.teacher
    settings = work.request.teacher
    return DatasetDescription(
        version=FORMAT,
        synthkd=__version__,
        name=config.name,
        synthetic=True,
        format=config.format,
        files=_files(layout),
        count=layout.count,
        content=content,
        spec=teacher.spec,
        class_names=layout.class_names,
        counts=tuple(work.counts),
        mean=tuple(teacher.normalize.mean.flatten().tolist()),
        std=tuple(teacher.normalize.std.flatten().tolist()),
        seed=config.seed,
        difficulty=config.difficulty,
        teacher=DatasetTeacher(
            sha256=hashlib.sha256(serialised(teacher)).hexdigest(),
            arch=str(teacher.recipe.get("arch") or teacher.recipe.get("model") or type(teacher).__name__),
            parameters=parameters(teacher),
            trained_on=None if isinstance(settings, LoadedModel) else settings.data.kind,
        ),
        generator=_portable(trained_as(work.request).model_dump(mode="json")),
        rounds=config.rounds,
        real_images_used=real_images_used(work.request),
        real_images_compared=None if work.compared is None else len(work.compared),
        filters=config.filters.model_dump(mode="json"),
        scores=scores,
    )


def _write_dataset(work: DatasetPlan, run: Path, description: DatasetDescription, sampling: Sampling) -> None:
    """Write the dataset in a folder beside its place until it is whole; remove what an earlier start left of it."""
    config, layout = work.config, work.layout
    final, partial = run / FOLDER, run / PARTIAL
    for earlier in (final, partial):
        shutil.rmtree(earlier, ignore_errors=True)
    with Display(layout.count, f"generate {config.name}") as display:
        write_records(sampling.records(), partial, layout, lambda count: display.update(count, "writing", {}))
    content = to_json(description)
    write_atomically(partial / ABOUT, sealed(content))
    settings = config.model_dump(mode="json", exclude_defaults=True)
    recipe = _portable({key: settings[key] for key in RECIPE_KEYS if key in settings})
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_atomically(partial / "README.md", card(content, text).encode())
    write_sums(partial)
    os.sync()  # the parts, which are the checkpoint, go once this is in place
    partial.rename(final)


def _portable(value: Any) -> Any:
    """A configuration whose absolute paths are their last parts: a dataset is passed on, this machine's folders not."""
    if isinstance(value, dict):
        return {key: _portable(each) for key, each in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _files(layout: Layout) -> tuple[str, ...]:
    """The files that a reader of the dataset opens, relative to it."""
    if layout.format == "folder":
        return (f"{SPLIT}/{METADATA}",)
    return tuple(layout.shard(number) for number in range(layout.shards))


def _summary(job: Job, content: GenerateResult, already: bool = False) -> tuple[str, ...]:
    dataset, scores, real_images = content.dataset, content.dataset.scores, content.dataset.real_images_used
    lines = [f"{job.directory} was complete already; nothing was run"] if already else []
    lines.append(
        f"dataset: {dataset.count:,} images of {len(dataset.class_names):,} classes as {dataset.format}, "
        f"{size(content.cost.dataset_bytes or 0)}"
    )
    lines.append(f"         the teacher sees the asked label in {scores.agreement:.2%} of them")
    if scores.rejected:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in scores.rejected.items())
        lines.append(f"         left out by filters, of {scores.tried:,} tried: {reasons}")
    if scores.exact_duplicates:
        lines.append(
            f"         {scores.exact_duplicates:,} of them repeat an earlier one exactly: ask for fewer of a class, or "
            "give the generator more rounds"
        )
    if content.scores is not None:
        lines.append(f"scores:  {scores_in_words(content.scores)}")
    lines.append(f"real images the generator was trained on: {'unknown' if real_images is None else real_images}")
    return (*lines, f"report:  {job.directory / REPORT}", f"dataset: {job.directory / FOLDER}")
