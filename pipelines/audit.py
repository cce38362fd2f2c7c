"""Attack finished models, given lists of their members and of non-members: the average case, without a bound."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd import __version__
from synthkd.errors import ConfigError
from synthkd.models import parameters
from synthkd.pipelines.config import AuditConfig
from synthkd.pipelines.handover.audit_inputs import LEAST, AuditInputs, read_inputs
from synthkd.pipelines.run.device import choose_device, process_state
from synthkd.pipelines.run.result import Plan, Result, finished_result, read_result
from synthkd.pipelines.run.shared_work import on_main, rank, shared_directory, shares
from synthkd.pipelines.run.trust import trusting
from synthkd.privacy.audit import (
    AVERAGE_CASE,
    GIVEN,
    WHOS,
    GroupAudit,
    audit_lists,
    blind_check,
    classes_check,
    labels_check,
    logits_of_each,
    negative_check,
    roles_check,
)
from synthkd.privacy.copies import copy_tests
from synthkd.privacy.membership import Answers, attacks
from synthkd.privacy.rates import AttackSummary
from synthkd.privacy.ratio import RateRatio, student_over_teacher
from synthkd.privacy.report import privacy_report
from synthkd.privacy.verdict import Check, verdict
from synthkd.reports.privacy import PAGE, SOURCE
from synthkd.reports.report import has_report, write_report
from synthkd.reports.results import (
    AuditedModel,
    AuditedSet,
    AuditResult,
    CopyResult,
    RatioResult,
    RunCost,
    from_json,
    write_result,
)
from synthkd.rng import derive
from synthkd.settings.load import dump_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe
from synthkd.system.sealed import sealed

UNCOPIED = "no synthetic images were given (generated)"
NO_POSITIVE = (
    "positive control: nothing is trained here, so no model that surely learned the members by heart was attacked, and "
    "nobody knows whether these attacks would have caught it"
)
NO_NEGATIVE = "negative control: needs reference models, which saw neither list; none were given (references)"


@trusting
def audit(config: AuditConfig, *, dry_run: bool = False) -> Result[AuditResult] | Plan:
    """Attack the given models, look for copies among the given synthetic images, and report.

    The report is in `<run>/privacy_report.json` and `.html`, and the latter also in `report.html`. A finished audit is
    not repeated: its result is returned, if the models and images are still the same.

    Args:
        config: models and lists.
        dry_run: read and check all models and images, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    device = choose_device(config)
    if dry_run:
        process_state(config)
        return on_main(lambda: Plan(_plan(read_inputs(config))))
    with shared_directory("audit", config) as directory:
        finished, inputs = read_result(directory, AuditResult), read_inputs(config)
        already = finished is not None
        if finished is None:
            began = time.perf_counter()
            replies = _replies(inputs, device)
            finished = on_main(lambda: _reported(config, directory, inputs, replies, device, began))
        elif changed := [key for key, digest in inputs.digests.items() if finished.digests.get(key) != digest]:
            raise ConfigError(
                f"{directory} is finished, and {changed[0]} has changed since; choose another out= to attack what is "
                "there now"
            )
        if rank() == 0 and (not already or not has_report(directory, "audit")):
            write_report(directory)
        shares().values(None)  # the page is there for all
        lines = [f"{directory} was complete already; nothing was run"] if already else []
        return Result(directory, finished, (*lines, *_summary(finished), f"report:  {directory / PAGE}"))


def _reported(
    config: AuditConfig, directory: Path, inputs: AuditInputs, replies: _Replies, device: torch.device, began: float
) -> AuditResult:
    """Write the privacy report and the result, and return the latter."""
    report, content = _audit(config, inputs, replies, device, began)
    write_atomically(directory / SOURCE, sealed(report))
    finished = finished_result(content, config, directory, device)
    write_result(directory, finished)
    return finished


def _audit(
    config: AuditConfig, inputs: AuditInputs, replies: _Replies, device: torch.device, began: float
) -> tuple[dict[str, Any], AuditResult]:
    """The contents of `privacy_report.json` and of `result.json`."""
    lists, answers = inputs.lists, replies.answers
    inside, outside = lists["members"], lists["nonmembers"]
    member = torch.arange(len(inside.images) + len(outside.images)) < len(inside.images)
    groups = {
        who: audit_lists(answers[who], member, replies.population.get(who), config.delta) for who in inputs.models
    }
    checks = _checks(config, inputs, answers, member)
    attacks_ended = time.perf_counter()
    copies = {}
    if "generated" in lists:
        copies = copy_tests(inside.images, outside.images, lists["generated"].images, config.seed, device)
    conclusion = verdict(None, (), checks)
    counts = inputs.reference_counts
    results = _report_audit(config, inputs, answers, groups, member)
    released = [f"{who}: the model that was given, taken as handed over" for who in inputs.models]
    released += ["synthetic images: those that were given"] if "generated" in lists else []
    provenance = _provenance(config, inputs, device)
    report = privacy_report(conclusion, None, released, (), results, "", checks, copies, UNCOPIED, provenance)
    ended = time.perf_counter()
    headlines = {
        who: next(one for one in report["audit"]["models"][who][GIVEN]["attacks"] if one["name"] == group.headline)
        for who, group in groups.items()
    }
    ratio = report["audit"]["ratios"][GIVEN]
    return report, AuditResult(
        seconds=round(ended - began, 3),
        verdict=conclusion,
        label=AVERAGE_CASE,
        checks=tuple(checks),
        models={
            who: AuditedModel(parameters(model), counts[who], from_json(AttackSummary, headlines[who]))
            for who, model in inputs.models.items()
        },
        ratio=None if ratio is None else from_json(RatioResult, ratio),
        copies=tuple(from_json(CopyResult, one) for one in report["copies"]),
        sets={key: AuditedSet(one.name, len(one.images), one.notes, one.skipped) for key, one in lists.items()},
        digests=inputs.digests,
        cost=RunCost({"attacks": round(attacks_ended - began, 3), "copies": round(ended - attacks_ended, 3)}),
    )


def _provenance(config: AuditConfig, inputs: AuditInputs, device: torch.device) -> dict[str, Any]:
    # The report is handed on, and the hash of a list would tell whether a guess of all its images is right.
    models = {key: digest for key, digest in inputs.digests.items() if key not in inputs.lists}
    return {
        "synthkd": __version__,
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        **{f"{key.replace('.', '_')}_sha256": digest for key, digest in models.items()},
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "hardware": describe(device),
    }


@dataclass(frozen=True)
class _Replies:
    """What the models answer: teacher, student -> logits for members and non-members together, and for a population."""

    answers: Mapping[str, Answers]
    population: Mapping[str, Answers]


def _replies(inputs: AuditInputs, device: torch.device) -> _Replies:
    # RMIA needs both a population and references
    populated = [who for who in inputs.models if "population" in inputs.lists and inputs.references[who]]
    return _Replies(
        {who: _answers(who, inputs, device, "members", "nonmembers") for who in inputs.models},
        {who: _answers(who, inputs, device, "population") for who in populated},
    )


def _answers(who: str, inputs: AuditInputs, device: torch.device, *keys: str) -> Answers:
    """Logits of an audited model and its references for the images of these lists; processes share the models."""
    models = {f"the {who}": inputs.models[who]}
    models |= {f"references.{who}.{number}": model for number, model in enumerate(inputs.references[who])}
    own = {name: models[name] for name in shares().turns([*models])}
    replies = dict(zip(own, logits_of_each(own, inputs.images(*keys), device), strict=True)) if own else {}
    every = {name: logits for one in shares().values(replies) for name, logits in one.items()}
    logits = torch.stack([every[name] for name in models])
    return Answers(logits[0], logits[1:], inputs.labels(*keys))


def _report_audit(
    config: AuditConfig,
    inputs: AuditInputs,
    answers: Mapping[str, Answers],
    groups: Mapping[str, GroupAudit],
    member: Tensor,
) -> dict[str, Any]:
    """The audit for `privacy_report`."""
    lists, counts = inputs.lists, inputs.reference_counts
    return {
        "kind": GIVEN,
        "label": AVERAGE_CASE,
        "members": len(lists["members"].images),
        "nonmembers": len(lists["nonmembers"].images),
        "references": counts,
        "population": len(lists["population"].images) if "population" in lists else 0,
        "skipped": {key: one.skipped for key, one in lists.items()},
        "missing": (NO_POSITIVE,) if any(counts.values()) else (NO_POSITIVE, NO_NEGATIVE),
        "models": {who: {GIVEN: group} for who, group in groups.items()},
        "ratios": {GIVEN: _ratio(config, answers, member)},
    }


def _checks(config: AuditConfig, inputs: AuditInputs, answers: Mapping[str, Answers], member: Tensor) -> list[Check]:
    """The checks without which the audit says nothing; `member` is bool `[N]` over members and non-members."""
    inside, outside = inputs.labels("members"), inputs.labels("nonmembers")
    images = {key.replace("non", "non-"): inputs.lists[key].images for key in LEAST if key in inputs.lists}
    checks = [
        roles_check(images),
        blind_check(images["members"], images["non-members"], config.seed),
        classes_check(inside, outside, config.seed),
        labels_check({who: torch.as_tensor(each.target)[member] for who, each in answers.items()}, inside),
    ]
    references = [logits for each in answers.values() for logits in torch.as_tensor(each.references)]
    if references:
        checks.append(negative_check(references, torch.cat([inside, outside]), member))
    return checks


def _ratio(config: AuditConfig, answers: Mapping[str, Answers], member: Tensor) -> RateRatio | None:
    """Student over teacher by the same attack; None for one model, or too few non-members."""
    if len(answers) < len(WHOS):
        return None
    student, teacher = attacks(answers["student"]), attacks(answers["teacher"])
    name = "LiRA" if "LiRA" in student and "LiRA" in teacher else "log-odds"
    return student_over_teacher(student[name], teacher[name], member, derive(config.seed, "ratio"))


def _plan(inputs: AuditInputs) -> tuple[str, ...]:
    models = [
        f"  {who}: {parameters(model):,} parameters, {len(inputs.references[who])} references"
        for who, model in inputs.models.items()
    ]
    lists = [f"  {key}: {len(one.images):,} images of {one.name}" for key, one in inputs.lists.items()]
    return (f"audit: {AVERAGE_CASE}", *models, *lists)


def _summary(content: AuditResult) -> tuple[str, ...]:
    sets = content.sets
    lines = [f"audit:   {sets['members'].n:,} members, {sets['nonmembers'].n:,} non-members; {AVERAGE_CASE}"]
    for who, model in content.models.items():
        area, at = model.headline.auc, model.headline.tpr[0]
        hits = at.reason
        if at.rate is not None:
            hits = f"{at.rate.value:.1%} of members found at {at.error:.0%} false positives"
        lines.append(f"{who}: AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}] by {model.headline.name}; {hits}")
    for test in content.copies:
        near, space = test.near_copies, test.space.partition(" ")[0]
        lines.append(
            f"copies:  {near.of_train:,} of {test.n_generated:,} synthetic images are near a member in {space}, "
            f"{near.of_holdout:,} near a non-member; {test.note}"
        )
    notes = dict.fromkeys(f"note:    {key}: {note}" for key, one in sets.items() for note in one.notes)
    return (*lines, *notes, f"privacy: {content.verdict.text}")
