"""Attack finished models of which only lists of members and of non-members are known: the average case, no bound."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from synthkd import __version__
from synthkd.data.read.classes import align_labels
from synthkd.data.read.samples import open_samples
from synthkd.errors import ConfigError, DataError
from synthkd.models import Classifier, load_model, parameters
from synthkd.models.weights import serialised
from synthkd.pipelines.config import AuditConfig, ImageSet
from synthkd.pipelines.copying import look_for_copies
from synthkd.pipelines.run.directory import (
    Plan,
    Result,
    choose_device,
    run_directory,
    trusting,
)
from synthkd.pipelines.run.finished import finished_result, read_result
from synthkd.privacy.audit import (
    AVERAGE_CASE,
    GIVEN,
    audit_lists,
    blind_check,
    classes_check,
    labels_check,
    logits_of,
    negative_check,
    roles_check,
)
from synthkd.privacy.membership import POPULATION, Answers, attacks
from synthkd.privacy.rates import RateRatio, tpr_ratio
from synthkd.privacy.report import privacy_report
from synthkd.privacy.verdict import Check, verdict
from synthkd.reports.privacy import PAGE, SOURCE
from synthkd.reports.report import has_report, write_report
from synthkd.reports.results import (
    AuditedModel,
    AuditedSet,
    AuditResult,
    CopyResult,
    HeadlineAttack,
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
from synthkd.types import ImageSpec

WHOS = ("teacher", "student")
LEAST = {"members": 20, "nonmembers": 20, "population": POPULATION}
"""Images that the blind baseline and RMIA need."""
UNCOPIED = "no synthetic images were given (generated)"
NO_POSITIVE = (
    "positive control: nothing is trained here, so no model that surely learned the members by heart was attacked, and "
    "nobody knows whether these attacks would have caught it"
)
NO_NEGATIVE = "negative control: needs reference models, which saw neither list; none were given (references)"
BATCH = 256


@trusting
def audit(config: AuditConfig, *, dry_run: bool = False) -> Result[AuditResult] | Plan:
    """Attack the given models, look for copies among the given synthetic images, and report.

    The report is in `<run>/privacy_report.json` and `.html`, which `report.html` repeats. A finished audit is shown
    again, once its models and images have been found to be what they were.

    Args:
        config: models and lists.
        dry_run: read and judge every file, load the models, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    device = choose_device(config)
    if dry_run:
        return Plan(_plan(_prepare(config)))
    with run_directory("audit", config) as directory:
        finished, inputs = read_result(directory, AuditResult), _prepare(config)
        already = finished is not None
        if finished is None:
            report, content = _audit(config, inputs, device)
            write_atomically(directory / SOURCE, sealed(report))
            finished = finished_result(content, config, directory, device)
            write_result(directory, finished)
        elif changed := [key for key, digest in inputs.digests.items() if finished.digests.get(key) != digest]:
            raise ConfigError(
                f"{directory} is finished, and {changed[0]} has changed since; choose another out= to attack what is "
                "there now"
            )
        if not already or not has_report(directory, "audit"):
            write_report(directory)
        lines = [f"{directory} was complete already; nothing was run"] if already else []
        return Result(directory, finished, (*lines, *_summary(finished), f"report:  {directory / PAGE}"))


@dataclass(frozen=True)
class _List:
    """A set of images, all of the shape that the models take.

    Attributes:
        name: as shown in the summary.
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`, in terms of the models' classes; None for synthetic images, which need none.
        digest: of images and labels as they were read.
        notes: what was converted, left out or assumed.
        skipped: unreadable files that were left out.
    """

    name: str
    images: Tensor
    labels: Tensor | None
    digest: str
    notes: tuple[str, ...]
    skipped: int


@dataclass(frozen=True)
class _Inputs:
    """Everything that is checked before anything is computed.

    Attributes:
        models: teacher, student -> the model.
        references: teacher, student -> what each is compared with.
        lists: members, nonmembers and, where given, population and generated.
        digests: key of the configuration -> sha256 of the weights, or of images and labels.
    """

    models: Mapping[str, Classifier]
    references: Mapping[str, tuple[Classifier, ...]]
    lists: Mapping[str, _List]
    digests: Mapping[str, str]


def _prepare(config: AuditConfig) -> _Inputs:
    models = {who: load_model(asked) for who in WHOS if (asked := getattr(config, who)) is not None}
    references = {who: tuple(map(load_model, getattr(config.references, who))) for who in models}
    among, first = next(iter(models.items()))
    others = {f"references.{who}.{k}": one for who, several in references.items() for k, one in enumerate(several)}
    classes: tuple[str, ...] = ()
    digests: dict[str, str] = {}
    for key, model in chain(models.items(), others.items()):
        if model.spec != first.spec:
            raise ConfigError(f"{key}: it takes {model.spec}, the {among} {first.spec}; they must be the same")
        if classes and model.class_names and model.class_names != classes:
            raise ConfigError(f"{key}: its classes have other names, or another order, than those of the models before")
        classes = classes or model.class_names
        digest = hashlib.sha256(serialised(model)).hexdigest()
        if twin := next((other for other, seen in digests.items() if seen == digest), None):
            raise ConfigError(
                f"{key}: its weights are those of {twin}; give each model once, by its own directory (that of a run "
                "stands for its student, where it has one)"
            )
        digests[key] = digest
    classes = classes or tuple(map(str, range(first.spec.classes)))
    lists = {
        key: _opened(key, asked, config, first.spec, classes, among)
        for key in (*LEAST, "generated")
        if (asked := getattr(config, key)) is not None
    }
    return _Inputs(models, references, lists, digests | {key: one.digest for key, one in lists.items()})


def _opened(
    key: str, asked: str | ImageSet, config: AuditConfig, spec: ImageSpec, classes: tuple[str, ...], among: str
) -> _List:
    one = ImageSet(path=asked) if isinstance(asked, str) else asked
    source = one.path if one.data is None else one.data
    assert source is not None
    split = one.split or (None if one.data is None else "test")
    found = open_samples(source, split=split, skip_bad=config.skip_bad, seed=config.seed)
    where, labels, notes = f"{key} ({found.name})", None, found.notes
    if found.count < LEAST.get(key, 1):
        raise DataError(f"{where}: {LEAST[key]:,} images or more are needed, got {found.count:,}; give more of them")
    if key in LEAST:
        if found.labels is None:
            raise DataError(
                f"{where}: its images carry no labels, and attacks ask how sure a model is of an image's own; give a "
                "directory per class, or labels in the .npz"
            )
        aligned = align_labels(found.labels, found.class_names, classes, where, f"the {among}")
        labels, notes = aligned.labels, (*notes, *filter(None, [aligned.note]))
    blocks = []
    for block in found.batches(BATCH):
        if tuple(block.shape[1:]) != spec.shape:
            ours, theirs = ("x".join(map(str, shape)) for shape in (block.shape[1:], spec.shape))
            raise DataError(
                f"{where}: it has images of {ours} (channels x height x width), the {among} takes {theirs}; give them "
                "as training saw them, or as a dataset (data.kind=folder) with its size and channels"
            )
        blocks.append(block)
    return _List(found.name, torch.cat(blocks), labels, found.digest, notes, len(found.bad))


def _audit(config: AuditConfig, inputs: _Inputs, device: torch.device) -> tuple[dict[str, Any], AuditResult]:
    """The contents of `privacy_report.json` and of `result.json`."""
    began = time.perf_counter()
    lists = inputs.lists
    inside, outside, population = lists["members"], lists["nonmembers"], lists.get("population")
    member = torch.arange(len(inside.images) + len(outside.images)) < len(inside.images)
    asked = {who: _answers(who, inputs, device, "members", "nonmembers") for who in inputs.models}
    crowd = {
        who: None if population is None or not several else _answers(who, inputs, device, "population")
        for who, several in inputs.references.items()
    }
    groups = {who: audit_lists(answers, member, crowd[who], config.delta) for who, answers in asked.items()}
    checks = _checks(config, inputs, asked, member)
    attacked = time.perf_counter()
    copies = {}
    if "generated" in lists:
        copies = look_for_copies(inside.images, outside.images, lists["generated"].images, config.seed, device)
    said = verdict(None, (), checks)
    counts = {who: len(several) for who, several in inputs.references.items()}
    found = {
        "kind": GIVEN,
        "label": AVERAGE_CASE,
        "members": len(inside.images),
        "nonmembers": len(outside.images),
        "references": counts,
        "population": 0 if population is None else len(population.images),
        "skipped": {key: one.skipped for key, one in lists.items()},
        "missing": (NO_POSITIVE,) if any(counts.values()) else (NO_POSITIVE, NO_NEGATIVE),
        "models": {who: {GIVEN: group} for who, group in groups.items()},
        "ratios": {GIVEN: _ratio(config, asked, member)},
    }
    released = [f"{who}: the model that was given, taken as handed over" for who in inputs.models]
    released += ["synthetic images: those that were given"] if "generated" in lists else []
    provenance = {
        "synthkd": __version__,
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        **{f"{key.replace('.', '_')}_sha256": digest for key, digest in inputs.digests.items()},
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "hardware": describe(device),
    }
    report = privacy_report(said, None, released, (), found, "", checks, copies, UNCOPIED, provenance)
    done = time.perf_counter()
    headlines = {
        who: next(one for one in report["audit"]["models"][who][GIVEN]["attacks"] if one["name"] == group.headline)
        for who, group in groups.items()
    }
    ratio = report["audit"]["ratios"][GIVEN]
    return report, AuditResult(
        seconds=round(done - began, 3),
        verdict=said,
        label=AVERAGE_CASE,
        checks=tuple(checks),
        models={
            who: AuditedModel(parameters(model), counts[who], from_json(HeadlineAttack, headlines[who]))
            for who, model in inputs.models.items()
        },
        ratio=None if ratio is None else from_json(RatioResult, ratio),
        copies=tuple(from_json(CopyResult, one) for one in report["copies"]),
        sets={key: AuditedSet(one.name, len(one.images), one.notes, one.skipped) for key, one in lists.items()},
        digests=inputs.digests,
        cost=RunCost({"attacks": round(attacked - began, 3), "copies": round(done - attacked, 3)}),
    )


def _answers(who: str, inputs: _Inputs, device: torch.device, *keys: str) -> Answers:
    images, labels = torch.cat([inputs.lists[key].images for key in keys]), _labels(inputs, *keys)
    models = {f"the {who}": inputs.models[who]}
    models |= {f"references.{who}.{number}": model for number, model in enumerate(inputs.references[who])}
    said = [logits_of(model.to(device), images, device, who=name) for name, model in models.items()]
    return Answers(said[0], torch.stack(said)[1:], labels)


def _labels(inputs: _Inputs, *keys: str) -> Tensor:
    return torch.cat([labels for key in keys if (labels := inputs.lists[key].labels) is not None])


def _checks(config: AuditConfig, inputs: _Inputs, asked: Mapping[str, Answers], member: Tensor) -> list[Check]:
    inside, outside = _labels(inputs, "members"), _labels(inputs, "nonmembers")
    images = {key.replace("non", "non-"): inputs.lists[key].images for key in LEAST if key in inputs.lists}
    checks = [
        roles_check(images),
        blind_check(images["members"], images["non-members"], config.seed),
        classes_check(inside, outside, config.seed),
        labels_check({who: torch.as_tensor(answers.target)[member] for who, answers in asked.items()}, inside),
    ]
    references = [one for answers in asked.values() for one in torch.as_tensor(answers.references)]
    if references:
        checks.append(negative_check(references, torch.cat([inside, outside]), member))
    return checks


def _ratio(config: AuditConfig, asked: Mapping[str, Answers], member: Tensor) -> RateRatio | None:
    """Members found in the student for each found in the teacher, by one attack; None where too little is there."""
    if len(asked) < len(WHOS) or int((~member).sum()) < 100:
        return None
    student, teacher = attacks(asked["student"]), attacks(asked["teacher"])
    name = "LiRA" if "LiRA" in student and "LiRA" in teacher else "log-odds"
    ours, theirs = student[name], teacher[name]
    seed = derive(config.seed, "ratio")
    return tpr_ratio(ours[member], ours[~member], theirs[member], theirs[~member], seed=seed)


def _plan(inputs: _Inputs) -> tuple[str, ...]:
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
