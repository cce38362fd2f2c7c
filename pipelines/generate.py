"""Write a labelled synthetic dataset: from a recipe, from a finished run, or from a saved generator."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from synthkd import __version__
from synthkd.data.written.card import card
from synthkd.data.written.filters import Sieve
from synthkd.data.written.stored import ABOUT, FOLDER, FORMAT, Content
from synthkd.data.written.unfinished import PartStore
from synthkd.data.written.writers import METADATA, SPLIT, Layout, estimate, write_records
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.generators.files import INSIDE_A_RUN, save_generator
from synthkd.generators.settings import MerfSettings
from synthkd.models import Classifier, parameters
from synthkd.models.weights import serialised
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.dataset.request import Request, plan_layout, read_request, real_images_used, trained_as
from synthkd.pipelines.dataset.sampling import ChunkSampler, Sampling
from synthkd.pipelines.dataset.statistics import DatasetStatistics
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.directory import REPORT
from synthkd.pipelines.run.disk import free_bytes, require_space
from synthkd.pipelines.run.fit import fit_generator
from synthkd.pipelines.run.images import keep_data
from synthkd.pipelines.run.job import Job, generator_bytes, open_job, training_bytes
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.trust import trusting
from synthkd.pipelines.student.teachers import is_taught, ready_teacher, untrained_teacher
from synthkd.reports.dataset import write_dataset_report
from synthkd.reports.grids import save_grid
from synthkd.settings import LoadedModel
from synthkd.system.files import write_atomically, write_sums
from synthkd.system.hardware import describe
from synthkd.system.resources import size
from synthkd.system.sealed import sealed
from synthkd.training.display import Display
from synthkd.types import TrainableGenerator

PARTS = "parts"
"""Images on their way, inside the run until it is finished."""
PARTIAL = f".{FOLDER}.partial"
RECIPE_KEYS = ("seed", "teacher", "generator", "data", "rounds", "run", "per_class", "difficulty", "filters", "format")
"""What the card tells of the configuration, where it is not the default; the rest does not change what is made."""


@trusting
def generate(config: GenerateConfig, *, dry_run: bool = False) -> Result | Plan:
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
        request = read_request(config)
        untrained = untrained_teacher(request.teacher, config, request.source)
        return Plan(_work(config, request, untrained, make_accelerator(config)).plan())
    with open_job("generate", config) as job:
        if job.finished is not None:
            shutil.rmtree(job.directory / PARTS, ignore_errors=True)
            return Result(job.directory, job.finished, _summary(job, dict(job.finished), already=True))
        request = read_request(config)
        if request.real is not None:
            keep_data(job.directory, request.real, job.accelerator, isinstance(request.generator, MerfSettings))
        if job.accelerator.num_processes > 1 and (config.rounds or not isinstance(request.teacher, LoadedModel)):
            raise ConfigError(
                "rounds: several processes sample, but do not train: run the recipe in one process with a small "
                "per_class, then this with run= that run"
            )
        if not is_taught(request.teacher, job.directory):  # to fail now rather than after the teacher
            untrained = untrained_teacher(request.teacher, config, request.source)
            require_space(job.directory, _work(config, request, untrained, job.accelerator).bytes)
        ready = ready_teacher(request.teacher, config, job, source=request.source)
        work = _work(config, request, ready.model, job.accelerator, job.directory)
        require_space(job.directory, work.bytes)
        values = _make(work, job)
        values["cost"]["seconds"]["teacher"] = round(ready.seconds, 3)
        values["seconds"] = round(sum(values["cost"]["seconds"].values()), 3)
        if job.accelerator.is_main_process:
            shown = {"name": config.name, "version": __version__, "seed": config.seed, **values}
            write_dataset_report(job.directory, {**shown, "hardware": describe(job.device)})
        finished = job.finish(values)
        if job.accelerator.is_main_process:
            shutil.rmtree(job.directory / PARTS, ignore_errors=True)
        return Result(job.directory, finished, _summary(job, finished))


@dataclass(frozen=True)
class DatasetPlan:
    """Everything a dataset is made of.

    Attributes:
        config: the configuration.
        request: its resolved settings and real data.
        teacher: answers the images; untrained while the work is only planned.
        generator: makes them.
        counts: images of each class.
        layout: of the files.
    """

    config: GenerateConfig
    request: Request
    teacher: Classifier
    generator: TrainableGenerator
    counts: Sequence[int]
    layout: Layout

    @property
    def beside(self) -> int:
        """Bytes that the run keeps beside the dataset until it is finished."""
        spec, config = self.teacher.spec, self.config
        part = spec.channels * spec.height * spec.width + 4 * spec.classes + 12
        checkpoints = (config.keep_checkpoints + 1) * generator_bytes(self.generator) if config.rounds else 0
        return self.layout.count * part + training_bytes(parameters(self.teacher)) + checkpoints

    @property
    def bytes(self) -> int:
        """Bytes of dataset and run."""
        return estimate(self.layout, self.teacher.spec) + self.beside

    def plan(self) -> tuple[str, ...]:
        """The lines of a dry run."""
        config, request, teacher, layout = self.config, self.request, self.teacher, self.layout
        out = Path(config.out or "runs").absolute()
        trained = "" if isinstance(request.teacher, LoadedModel) else ", trained first"
        source = f"of {config.run}" if config.run is not None else str(request.generator.kind)
        rounds = f", trained for {config.rounds:,} rounds" if config.rounds else ""
        real = "none" if request.real is None else f"{len(request.real.train):,} of {request.real.train.name}"
        low, high = min(self.counts), max(self.counts)
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        shards = "" if config.format == "folder" else f", {layout.shards:,} shards"
        return (
            f"generate {config.name}: {teacher.spec}",
            f"  teacher: {parameters(teacher):,} parameters{trained}",
            f"  generator: {source}{rounds}",
            f"  real images: {real}",
            f"  images: {layout.count:,}, {each} of each class, as {config.format}{shards}",
            f"  disk: at most about {size(self.bytes - self.beside)} of dataset and {size(self.beside)} beside it "
            f"until it is done; {size(free_bytes(out))} are free",
        )


def _work(
    config: GenerateConfig, request: Request, teacher: Classifier, accelerator: Accelerator, run: Path | None = None
) -> DatasetPlan:
    counts, layout = plan_layout(config, request, teacher)
    generator = build_generator(request.generator, teacher, config.seed, accelerator, request.real, run)
    return DatasetPlan(config, request, teacher, generator, counts, layout)


def _make(work: DatasetPlan, job: Job) -> dict[str, Any]:
    """Train the generator, sample it, write the dataset; the numbers for result.json."""
    config, request, teacher, layout = work.config, work.request, work.teacher, work.layout
    frozen = FrozenTeacher(teacher, job.accelerator)
    progress = fit_generator(job, work.generator, config.rounds, config.difficulty)
    seen = real_images_used(request)
    main = job.accelerator.is_main_process
    if main and config.rounds:
        names = layout.class_names
        folder = job.directory / INSIDE_A_RUN
        save_generator(work.generator, request.generator, folder, teacher.spec, names, config.seed, seen)
    began = time.perf_counter()
    real = None if request.real is None or config.filters.copies is None else request.real.train.images
    sieve = Sieve(work.counts, config.filters.confidence, config.filters.near_duplicates, config.filters.copies)
    sampling = Sampling(
        ChunkSampler(work.generator, frozen, config.difficulty, config.seed, real),
        PartStore(job.directory / PARTS),
        sieve,
        layout.class_names,
        config.batch_size,
        job.accelerator,
    )
    sampling.run(f"generate {config.name}")
    sampled = time.perf_counter()
    statistics = DatasetStatistics(teacher, job.device)
    content = Content()
    for block in sampling.records():
        statistics.add(block)
        content.add(block)
    scores = {**statistics.scores(), "tried": int(sieve.tried.sum()), "rejected": dict(sieve.reasons)}
    about = {
        "version": FORMAT,
        "synthkd": __version__,
        "name": config.name,
        "synthetic": True,
        "format": config.format,
        "files": _files(layout),
        "count": layout.count,
        "content": content.hexdigest(),
        "spec": asdict(teacher.spec),
        "class_names": list(layout.class_names),
        "counts": list(work.counts),
        "mean": teacher.normalize.mean.flatten().tolist(),
        "std": teacher.normalize.std.flatten().tolist(),
        "seed": config.seed,
        "difficulty": config.difficulty,
        "teacher": _about_teacher(request, teacher),
        "generator": _portable(trained_as(request).model_dump(mode="json")),
        "rounds": config.rounds,
        "real_images_used": seen,
        "real_images_compared": None if real is None else len(real),
        "filters": config.filters.model_dump(mode="json"),
        "scores": scores,
    }
    if main:
        _write(config, job, about, sampling, layout)
        columns, images = statistics.grid()
        save_grid(images, len(columns), job.directory / "samples" / "classes.png", _named(columns, layout))
    job.accelerator.wait_for_everyone()
    return {
        "dataset": about,
        "real_images_used": seen,
        "cost": {
            "seconds": {
                "generator": round(progress.seconds, 3),
                "sample": round(sampled - began, 3),
                "write": round(time.perf_counter() - sampled, 3),
            },
            "images_made_now": sampling.made,
            "dataset_bytes": sum(path.stat().st_size for path in (job.directory / FOLDER).rglob("*") if path.is_file()),
        },
    }


def _about_teacher(request: Request, teacher: Classifier) -> dict[str, Any]:
    trained_on = None if isinstance(request.teacher, LoadedModel) else request.teacher.data.kind
    return {
        "sha256": hashlib.sha256(serialised(teacher)).hexdigest(),
        "arch": str(teacher.recipe.get("arch") or teacher.recipe.get("model") or type(teacher).__name__),
        "parameters": parameters(teacher),
        "trained_on": trained_on,
    }


def _write(config: GenerateConfig, job: Job, about: dict[str, Any], sampling: Sampling, layout: Layout) -> None:
    """The dataset, in a folder beside its place until it is whole; what is there of an earlier start is made anew."""
    final, partial = job.directory / FOLDER, job.directory / PARTIAL
    for earlier in (final, partial):
        shutil.rmtree(earlier, ignore_errors=True)
    with Display(layout.count, f"generate {config.name}") as display:
        write_records(sampling.records(), partial, layout, lambda count: display.update(count, "writing", {}))
    write_atomically(partial / ABOUT, sealed(about))
    written = config.model_dump(mode="json", exclude_defaults=True)
    recipe = _portable({key: written[key] for key in RECIPE_KEYS if key in written})
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    write_atomically(partial / "README.md", card(about, text).encode())
    write_sums(partial)
    os.sync()  # the parts, which are the checkpoint, go once this is in place
    partial.rename(final)


def _portable(value: Any) -> Any:
    """A configuration whose absolute paths are their last parts: a dataset is passed on, this machine's folders not."""
    if isinstance(value, dict):
        return {key: _portable(each) for key, each in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _files(layout: Layout) -> list[str]:
    if layout.format == "folder":
        return [f"{SPLIT}/{METADATA}"]
    return [layout.shard(number) for number in range(layout.shards)]


def _named(columns: Sequence[int], layout: Layout) -> list[str]:
    return [layout.class_names[label] for label in columns]


def _summary(job: Job, values: dict[str, Any], already: bool = False) -> tuple[str, ...]:
    about = values["dataset"]
    scores = about["scores"]
    lines = [f"{job.directory} was complete already; nothing was run"] if already else []
    lines.append(
        f"dataset: {about['count']:,} images of {len(about['class_names'])} classes as {about['format']}, "
        f"{size(values['cost']['dataset_bytes'])}"
    )
    lines.append(f"         the teacher sees the asked label in {scores['agreement']:.2%} of them")
    if scores["rejected"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in scores["rejected"].items())
        lines.append(f"         left out by filters, of {scores['tried']:,} tried: {reasons}")
    seen = about["real_images_used"]
    lines.append(f"real images the generator was trained on: {'unknown' if seen is None else seen}")
    return (*lines, f"report:  {job.directory / REPORT}", f"dataset: {job.directory / FOLDER}")
