"""Make a small student to hand over: distilled, exported, priced, and with a report of what it leaks."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd import __version__
from synthkd.data.read.real import Splits, load_splits, reading_once
from synthkd.generators.build import build_generator
from synthkd.imports import optional
from synthkd.models import parameters
from synthkd.models.weights import serialised
from synthkd.pipelines.config import NOISY_GENERATOR, CompressConfig
from synthkd.pipelines.config.compress import UNTAUGHT
from synthkd.pipelines.distill import distill
from synthkd.pipelines.handover import search as choose
from synthkd.pipelines.handover.attack import (
    DrawnCanaries,
    PipelineAudit,
    audit_pipeline,
    draw_canaries,
    require_enough,
)
from synthkd.pipelines.handover.export import NAMES, hand_over, measure_capacity, require_packages
from synthkd.pipelines.handover.finished import read_finished, require_unchanged
from synthkd.pipelines.handover.flow import (
    DISTILL,
    FlowResult,
    planned_distillation,
    require_fitting,
    run_flow,
    sample,
)
from synthkd.pipelines.handover.timing import whole_time
from synthkd.pipelines.run.device import process_state
from synthkd.pipelines.run.images import fitted, keep_data
from synthkd.pipelines.run.job import Job, open_job
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.run.shared_work import on_main
from synthkd.pipelines.run.tested import read_test
from synthkd.pipelines.run.trust import trusting
from synthkd.privacy.accounting import epsilon
from synthkd.privacy.copies import MOST_EXTRACTED, CopyTest, copy_tests
from synthkd.privacy.ledger import Adjacency, Ledger
from synthkd.privacy.report import privacy_report
from synthkd.privacy.verdict import Claim, Verdict, verdict
from synthkd.reports.results import Capacity, CompressResult, Handover, MeasuredFile, RunCost
from synthkd.rng import stream
from synthkd.settings import TrainedTeacher
from synthkd.settings.load import dump_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe
from synthkd.system.sealed import sealed

PRIVACY = "privacy_report.json"
EXPORT = "export"
SYNTHETIC = 1000
"""Images of the generator that copies are looked for in; exports are calibrated on the first of them, or on more."""
UNTIMED = "; it and the measurements of the finished student come on top of the time"
"""What the plan says, since a dry run exports nothing."""
UNAUDITED = "not asked for (audit is not set)"
GIVEN = "a given teacher cannot be trained again with canaries; attack the finished models with `synthkd audit`"
FINISHED = "a finished student is not trained again with canaries; attack it with `synthkd audit`"
UNCOPIED = "needs the private images and as many that were not trained on"


@trusting
def compress(config: CompressConfig, *, dry_run: bool = False) -> Result[CompressResult] | Plan:
    """Run the configured flow, export its student, audit it, and report.

    Several processes share the candidates of a search and the runs of an audit; the main one does the rest, alone.

    The student is in `<run>/student`, its exports in `<run>/export`, what it leaks in `<run>/privacy_report.json` and
    `.html`. A given teacher's private images are opened nowhere.

    Args:
        config: flow, teacher, student, audit, export.
        dry_run: build everything, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    require_packages(config.export, config.search is not None)
    if config.flow in NOISY_GENERATOR:
        optional("dp_accounting", "dp", f"flow {config.flow}")
    if dry_run:
        process_state(config)
        return on_main(lambda: _plan(config))
    with open_job("compress", config) as job:
        if isinstance(job.finished, CompressResult):
            if config.finished is not None:
                require_unchanged(Path(config.finished), job.directory / "student")
            return Result(job.directory, job.finished, _summary(job, job.finished, already=True))
        content = job.finish(_compress(config, job))
        return Result(job.directory, content, _summary(job, content))


def _compress(config: CompressConfig, job: Job) -> CompressResult:
    """Run the flow, export and audit its student, and write `privacy_report.json`; the pages follow the result."""
    began = time.perf_counter()
    with reading_once():
        private, drawn = _prepared(config, job)
    if config.finished is None:
        flow = run_flow(config, job.directory, private, config.seed)
        student = job.directory / DISTILL / "student"
    else:
        flow = read_finished(Path(config.finished), config.trust is True)
        student = flow.directory / "student"
    flow_ended = time.perf_counter()
    synthetic, files, capacity = on_main(lambda: _handed_over(config, job, flow, student))
    export_ended = time.perf_counter()
    attacks = None
    if config.audit is not None:
        assert private is not None
        assert drawn is not None
        chosen = {} if flow.choice is None else {"student": flow.choice.model, "search": None}
        attacks = audit_pipeline(config.model_copy(update=chosen), job.directory, private, drawn, job.device)
    conclusion = on_main(lambda: _reported(config, job, flow, attacks, private, synthetic))
    seconds = {
        "flow": flow_ended - began,
        "export": export_ended - flow_ended,
        "audit": time.perf_counter() - export_ended,
    }
    distilled = flow.distilled
    assert distilled.teacher is not None
    assert distilled.ratio is not None
    return CompressResult(
        real_images_used=distilled.real_images_used,
        teacher=distilled.teacher,
        student=distilled.student,
        ratio=distilled.ratio,
        data=distilled.data,
        alarms=distilled.alarms,
        search=None if flow.choice is None else flow.choice.result(),
        verdict=conclusion,
        handover=files,
        capacity=capacity,
        cost=RunCost({stage: round(value, 3) for stage, value in seconds.items()}),
    )


def _prepared(config: CompressConfig, job: Job) -> tuple[Splits | None, DrawnCanaries | None]:
    """The private images and the canaries among them, after the checks that would cost a budget later."""
    private = load_splits(config.teacher.data) if isinstance(config.teacher, TrainedTeacher) else None
    if private is not None:
        require_enough(config, private)
        on_main(lambda: keep_data(job.directory, private, job.accelerator))
    if config.finished is None:
        on_main(lambda: require_fitting(config, job.directory))
    if private is None or config.audit is None:
        return private, None
    return private, on_main(lambda: draw_canaries(config, private))


def _handed_over(
    config: CompressConfig, job: Job, flow: FlowResult, student: Path
) -> tuple[Tensor, Handover, Capacity]:
    """Copy and export the student: images of the generator, the files with what they measure, and capacities."""
    shutil.copytree(student, job.directory / "student", dirs_exist_ok=True)
    synthetic = _synthetic(config, job, flow)
    test = read_test(config)
    if test is not None:
        test = fitted("test", test, flow.teacher.spec, flow.teacher.class_names, lacks_classes=True)
    files = hand_over(config.export, flow.teacher, flow.student, synthetic, test, job.directory / EXPORT, job.device)
    synthetic = synthetic[:SYNTHETIC]
    capacity = measure_capacity(flow.teacher, flow.student, synthetic, config.seed, job.device)
    return synthetic, files, capacity


def _reported(
    config: CompressConfig,
    job: Job,
    flow: FlowResult,
    attacks: PipelineAudit | None,
    private: Splits | None,
    synthetic: Tensor,
) -> Verdict:
    """Write `privacy_report.json`, and return its verdict."""
    privacy = _privacy(config, job, flow, attacks, _copies(config, job, private, synthetic))
    write_atomically(job.directory / PRIVACY, sealed(privacy))
    return Verdict(**privacy["verdict"])


def _synthetic(config: CompressConfig, job: Job, flow: FlowResult) -> Tensor:
    """Images uint8 `[N, C, H, W]` of the generator that the student learned from: `SYNTHETIC`, or to calibrate more."""
    generator = build_generator(flow.generator, flow.teacher, config.seed, job.accelerator)
    classes, difficulty = flow.teacher.spec.classes, config.generated.difficulty.start
    count = max(SYNTHETIC, config.export.calibration)
    return sample(generator, count, classes, difficulty, config.seed, "handover")[0]


def _copies(config: CompressConfig, job: Job, private: Splits | None, synthetic: Tensor) -> dict[str, CopyTest]:
    """Among training images and those that nobody trained on; none where there are none of those.

    Of images on disk a sample is compared.
    """
    if private is None or not len(unseen := private.unseen):
        return {}
    rng = stream(config.seed, "copies on disk")
    train, held = (
        part.images
        if isinstance(part.images, Tensor)
        else part.images[torch.randperm(len(part), generator=rng)[:MOST_EXTRACTED]]
        for part in (private.train, unseen)
    )
    return copy_tests(train, held, synthetic, config.seed, job.device)


def _privacy(
    config: CompressConfig,
    job: Job,
    flow: FlowResult,
    attacks: PipelineAudit | None,
    copies: Mapping[str, CopyTest],
) -> dict[str, Any]:
    checks = () if attacks is None else tuple(attacks.checks)
    conclusion = verdict(_claim(flow), [] if attacks is None else attacks.bounds, checks)
    audit = None
    if attacks is not None:
        audit = {
            "canaries": len(attacks.canaries),
            "included": int(attacks.canaries.included.sum()),
            "references": attacks.references,
            "population": attacks.population,
            "models": attacks.models,
            "ratios": attacks.ratios,
        }
    released = ["student: weights and description (safetensors, JSON)"]
    released += [f"student: {NAMES[kind]}" for kind in config.export.formats]
    unaudited = UNAUDITED if isinstance(config.teacher, TrainedTeacher) else GIVEN
    if config.finished is not None:
        unaudited = FINISHED
    provenance = {
        "synthkd": __version__,
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "teacher_sha256": hashlib.sha256(serialised(flow.teacher)).hexdigest(),
        "student_sha256": hashlib.sha256(serialised(flow.student)).hexdigest(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "hardware": describe(job.device),
    }
    return privacy_report(
        conclusion,
        config.flow if config.finished is None else None,
        released,
        flow.dp,
        audit,
        unaudited,
        checks,
        copies,
        UNCOPIED,
        provenance,
        taught_generator=not isinstance(config.generated.generator, UNTAUGHT),
    )


def _claim(flow: FlowResult) -> Claim | None:
    """What all noisy parts come to together; None where there are none."""
    if not flow.dp:
        return None
    ledger = sum((Ledger.from_json(part["ledger"]) for part in flow.dp), Ledger())
    adjacencies = {part["adjacency"] for part in flow.dp}
    # removing and adding one is replacing one, so what holds for the first can be told for the second
    adjacency: Adjacency = "replace_one" if "replace_one" in adjacencies else "add_or_remove_one"
    spent = epsilon(ledger, max(part["delta"] for part in flow.dp), adjacency)
    insecure = any(part["insecure"] for part in flow.dp)
    return Claim(None if math.isinf(spent.pld) else spent.pld, spent.delta, adjacency, flow.dp[0]["unit"], insecure)


def _plan(config: CompressConfig) -> Plan:
    if config.finished is not None:
        finished = read_finished(Path(config.finished), config.trust is True)
        size = f"{parameters(finished.student):,} parameters, of a teacher of {parameters(finished.teacher):,}"
        return Plan(
            (
                f"compress {config.name}: {finished.student.spec}",
                f"  student: that of {config.finished}, {size}; nothing is trained",
                f"  export: {', '.join(config.export.formats) or 'none'}",
            )
        )
    inner = planned_distillation(config)
    with reading_once():
        if isinstance(config.teacher, TrainedTeacher):
            require_enough(config, load_splits(config.teacher.data))
        plan = distill(inner, dry_run=True)
    assert isinstance(plan, Plan)
    runs = "" if config.audit is None else f", {config.audit.references + 1} further runs of it and a control"
    audited = "none" if config.audit is None else f"{config.audit.canaries} canaries{runs}"
    lines, flow, whole = str(plan).splitlines(), plan.time, plan.time
    # What that measures is one teacher and one student.
    clock = "  time of the flow" + ("" if config.search is None else ", without the search")
    lines = [clock + line.removeprefix("  time") if line.startswith("  time:") else line for line in lines]
    if flow is not None and flow.timed and (config.search is not None or config.audit is not None):
        whole = whole_time(config, inner, flow)
        lines.insert(next(row for row, line in enumerate(lines) if line.startswith(clock)) + 1, whole.line)
    if config.search is not None:
        searched = f"  student: searched, {config.search.candidates} candidates of {config.search.steps} steps each"
        lines = [searched if line.startswith("  student: ") else line for line in lines]
    exported = ", ".join(config.export.formats) or "none"
    first = f"compress {config.name}: flow {config.flow}"
    return Plan((first, *lines[1:], f"  audit: {audited}", f"  export: {exported}{UNTIMED}"), whole)


def _summary(job: Job, content: CompressResult, already: bool = False) -> tuple[str, ...]:
    lines = [f"{job.directory} was complete already; nothing was run"] if already else []
    handover, cost = content.handover, content.handover.cost
    share = cost.student.parameters / cost.teacher.parameters
    faster = cost.teacher.latency.median_ms / cost.student.latency.median_ms
    if content.search is not None:
        lines.append(f"chosen:  {choose.summary(content.search)}")
    lines.append(f"student: {share:.1%} of the teacher's parameters, {faster:.1f} times as fast")
    right, theirs = handover.student.accuracy, content.teacher.accuracy
    if right is not None and theirs is not None:
        lines.append(f"         {right.value:.2%} of {right.n:,} test images right, its teacher {theirs:.2%}")
    for file in handover.files.values():
        line = f"export:  {file.file}, {file.bytes:,} bytes"
        if isinstance(file, MeasuredFile) and file.accuracy is not None:
            line += f", {file.accuracy.value:.2%} right"
        lines.append(line)
    lines += [f"alarm:   {alarm.name}: {alarm.message}" for alarm in content.alarms or ()]
    lines.append(f"privacy: {content.verdict.text}")
    return (*lines, f"report:  {job.directory / 'privacy_report.html'}", f"student: {job.directory / 'student'}")
