"""Audit of a whole pipeline, which is run again with canaries among its private images, and without them for reference.

The audit attacks models that the same pipeline trained, since the models that are handed over were not trained on
canaries. All runs are inside the directory of the job, so an interrupted audit continues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.on_disk import joined, part_of
from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError
from synthkd.models import Classifier, load
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.config.compress import LEAST_CANARIES
from synthkd.pipelines.handover.flow import FlowResult, run_flow
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.run.shared_work import alone, on_main, shares
from synthkd.pipelines.student.teachers import teach_config
from synthkd.pipelines.teach import teach
from synthkd.privacy import audit
from synthkd.privacy.canaries import Canaries, OneRun, choose, one_run_epsilon
from synthkd.privacy.membership import POPULATION, Answers, attacks
from synthkd.privacy.ratio import RateRatio, student_over_teacher
from synthkd.privacy.verdict import Check
from synthkd.rng import derive
from synthkd.settings import OptimizerSettings, TeachTraining, TrainedTeacher
from synthkd.types import InBlocks

FOLDER = "audit"
CONTROL = TeachTraining(
    steps=600, batch_size=64, optimizer=OptimizerSettings(kind="adam", lr=2e-3, schedule="one_cycle")
)
"""Training of the positive control, long enough to memorise a few hundred images."""


@dataclasses.dataclass(frozen=True)
class PipelineAudit:
    """Results of the audit of a pipeline.

    Attributes:
        canaries: of the audited run.
        models: teacher and student -> half of the canaries -> its audit.
        ratios: half of the canaries -> true-positive rate at 1 % false positives, student over teacher; None where the
            half has fewer than 100 non-members.
        checks: without which the audit says nothing.
        population: number of images in no other role that RMIA used; 0 where it was left out.
        references: teacher and student -> number of references from runs without canaries.
    """

    canaries: Canaries
    models: Mapping[str, Mapping[str, audit.GroupAudit]]
    ratios: Mapping[str, RateRatio | None]
    checks: Sequence[Check]
    population: int
    references: Mapping[str, int]

    @property
    def bounds(self) -> list[float]:
        """The rigorous lower bounds of epsilon, which hold together."""
        groups = [group for model in self.models.values() for group in model.values()]
        return [group.one_run.epsilon for group in groups if group.one_run is not None]


@dataclasses.dataclass(frozen=True)
class DrawnCanaries:
    """The canaries of an audit, drawn before anything is trained.

    Attributes:
        canaries: rows of the training images, none of which another image equals.
        checks: those that need no model; all passed.
    """

    canaries: Canaries
    checks: tuple[Check, ...]


def require_enough(config: CompressConfig, private: Splits) -> None:
    """Check that an audit leaves enough images to train on, and can make its guesses; without an audit nothing.

    Args:
        config: the pipeline, with a teacher that is trained if it has an audit.
        private: the images, of which some become canaries.

    Raises:
        ConfigError: more canaries than half of the images, batches of a private teacher that are larger than what the
            references train on, or guesses that are odd or more than half of the canaries.
    """
    settings, teacher, count = config.audit, config.teacher, len(private.train)
    if settings is None:
        return
    assert isinstance(teacher, TrainedTeacher)
    if settings.canaries > count // 2:
        few = max(LEAST_CANARIES, count // 20 * 2)
        remedy = f"take {few}" if few <= count // 2 else f"an audit needs {2 * LEAST_CANARIES}: leave audit out"
        raise ConfigError(
            f"audit.canaries: {settings.canaries} are more than half of the {count:,} private images; {remedy}"
        )
    half, guesses = settings.canaries // 2, settings.guesses
    if guesses is not None and (guesses % 2 or guesses > half):
        raise ConfigError(
            f"audit.guesses: expected an even number from 2 to {half}, half of the canaries, got {guesses}; take about "
            f"{half // 10 * 2}, or leave it out"
        )
    # An expected batch of DP-SGD is at most the images; those of other trainings go on into the next epoch.
    left, batch = count - settings.canaries, teacher.training.batch_size
    if teacher.training.dp is not None and batch > left:
        raise ConfigError(
            f"teacher.training.batch_size: {batch} expected images of {left:,}, which the references of the audit have "
            "without the canaries; take fewer, or fewer audit.canaries"
        )


def draw_canaries(config: CompressConfig, private: Splits) -> DrawnCanaries:
    """Draw the canaries of an audit among the images that no other image equals, and make the checks without a model.

    Args:
        config: the pipeline, with `audit` set.
        private: the images.

    Raises:
        ConfigError: too few images without a copy, or a check failed.
    """
    settings, train, population = config.audit, private.train, _population(private)
    assert settings is not None
    # Of a canary with a copy in another role, a model may know more or less than the coin says.
    once = audit.rows_without_copy(train.images, [] if population is None else [population.images])
    if len(once) < settings.canaries:
        remedy = "leave audit out" if len(once) < LEAST_CANARIES else f"ask for {len(once)} or fewer"
        raise ConfigError(
            f"audit.canaries: {settings.canaries} are drawn among the private images that no other image equals, which "
            f"are {len(once):,} of {len(train):,}; take out the copies, or {remedy}"
        )
    seed = derive(config.seed, "audit")
    canaries = choose(train.labels, train.spec.classes, settings.canaries, seed)
    if not torch.isin(canaries.rows, once).all():
        drawn = choose(train.labels[once], train.spec.classes, settings.canaries, seed)
        canaries = dataclasses.replace(drawn, rows=once[drawn.rows])
    sets = _sets(train, canaries)
    checks = _roles_check(sets, population), audit.blind_check(sets.members.images, sets.outside.images)
    for check in checks:
        if not check.passed:
            raise ConfigError(f"audit: {check.name}: {check.found}; set another seed, which draws other canaries")
    return DrawnCanaries(canaries, checks)


def audit_pipeline(
    config: CompressConfig, directory: Path, private: Splits, drawn: DrawnCanaries, device: torch.device
) -> PipelineAudit:
    """Run the pipeline with canaries and without, and attack the models of the run with canaries.

    Several processes share the runs; the main one attacks.

    Args:
        config: the pipeline, with `audit` set and a teacher that is trained.
        directory: of the job; the runs are in `audit/` inside.
        private: the images, of which some become canaries.
        drawn: the canaries.
        device: of the models.

    Raises:
        SynthkdError: as the pipeline raises.
    """
    settings, place, sets = config.audit, directory / FOLDER, _sets(private.train, drawn.canaries)
    assert settings is not None
    # The audited run trains on the canaries that the coin included and on all images that are no canary, the references
    # on the latter alone.
    rest, members = sets.rest, sets.members
    audited = _with_train(private, rest, members)
    runs = {"audited": partial(run_flow, config, place / "audited", audited, derive(config.seed, "run"))}
    for k in range(settings.references):
        seed, name = derive(config.seed, "reference", k), f"reference-{k}"
        runs[name] = partial(run_flow, config, place / name, _with_train(private, rest), seed)
    control = partial(_control, config, place / "control", rest, members, private)
    # Each is a function of its images and its seed, whichever process does it, and stays in its directory. The main
    # process finds those of the others finished there.
    mine = list(shares().turns([*runs, "control"]))
    with alone():
        flows = {name: run() for name, run in runs.items() if name in mine}
        memorised = control() if "control" in mine else None
    shares().values(None)  # until every process is done

    def attacked() -> PipelineAudit:
        every = [flows[name] if name in flows else run() for name, run in runs.items()]
        return _attacked(config, sets, drawn, private, every, memorised or control(), device)

    return on_main(attacked)


@dataclasses.dataclass(frozen=True)
class _Sets:
    """The canaries with the labels of their training, those of them that are included and left out, and the rest."""

    candidates: RealData
    members: RealData
    outside: RealData
    rest: RealData


def _sets(train: RealData, canaries: Canaries) -> _Sets:
    """Canaries come out of the training images."""
    candidates = dataclasses.replace(_part(train, canaries.rows), labels=canaries.labels)
    others = torch.ones(len(train), dtype=torch.bool)
    others[canaries.rows] = False
    members, outside = _part(candidates, canaries.included), _part(candidates, ~canaries.included)
    return _Sets(candidates, members, outside, _part(train, others))


def _population(private: Splits) -> RealData | None:
    """The images in no other role that RMIA uses; None where they are few."""
    # RMIA counts how much of the population an image exceeds; fewer images than this would make its steps too coarse.
    unseen = private.unseen
    return unseen if len(unseen) >= POPULATION else None


def _attacked(
    config: CompressConfig,
    sets: _Sets,
    drawn: DrawnCanaries,
    private: Splits,
    flows: Sequence[FlowResult],
    control: Classifier,
    device: torch.device,
) -> PipelineAudit:
    """Attack the models of the first flow, with the others as references, and check the attacks by a control."""
    settings, canaries, candidates, references = config.audit, drawn.canaries, sets.candidates, flows[1:]
    assert settings is not None
    population = _population(private)

    def answers(networks: Mapping[str, Classifier], data: RealData = candidates) -> Answers:
        return audit.answers_of(networks, data.images, data.labels, device)

    models, scores = {}, {}
    for who in audit.WHOS:
        networks = {f"the {who} of {flow.directory.name}": getattr(flow, who) for flow in flows}
        of_canaries, of_population = answers(networks), None if population is None else answers(networks, population)
        models[who] = audit.audit_model(
            canaries, of_canaries, of_population, settings.guesses, config.audited_delta, len(audit.WHOS)
        )
        scores[who] = attacks(of_canaries)["LiRA"]
    # The controls put another teacher in the place of the audited one: a reference, for which nothing may be shown, and
    # an overfitted teacher, for which something must be. If one fails, the numbers above say nothing.
    teachers = {f"the teacher of {flow.directory.name}": flow.teacher for flow in references}
    controls = {"the control": control, **teachers}
    return PipelineAudit(
        canaries=canaries,
        models=models,
        ratios=_ratios(scores, canaries, derive(config.seed, "ratio")),
        checks=(
            *drawn.checks,
            _negative_check(_control_bound(answers(teachers), canaries, config.audited_delta)),
            _positive_check(_control_bound(answers(controls), canaries, config.audited_delta)),
        ),
        population=0 if population is None else len(population),
        references=dict.fromkeys(audit.WHOS, settings.references),
    )


def _part(data: RealData, rows: Tensor) -> RealData:
    """Some images and their labels, by row numbers (int64 `[n]`) or by a mask (bool `[N]`)."""
    return dataclasses.replace(data, images=part_of(data.images, rows), labels=data.labels[rows])


def _with_train(private: Splits, *parts: RealData) -> Splits:
    """The splits with these parts together as the training images."""
    images, labels = joined([part.images for part in parts]), torch.cat([part.labels for part in parts])
    return dataclasses.replace(private, train=dataclasses.replace(parts[0], images=images, labels=labels))


def _control(config: CompressConfig, directory: Path, rest: RealData, members: RealData, private: Splits) -> Classifier:
    """A teacher that memorises its training images: the included canaries, and as many others."""
    settings = config.teacher
    assert isinstance(settings, TrainedTeacher)
    overfitted = teach_config(settings.model_copy(update={"training": CONTROL}), config, str(directory))
    # Few images, so that it can memorise all of them.
    few = _part(rest, torch.arange(len(rest))[: max(len(members), rest.spec.classes)])
    result = teach(overfitted, splits=_with_train(private, few, members))
    assert isinstance(result, Result)
    return load(result.directory)


def _roles_check(sets: _Sets, population: RealData | None) -> Check:
    """No canary is, pixel by pixel, also a canary with the other coin, another training image or in the population."""
    roles: dict[str, InBlocks] = {"other training images": sets.rest.images}
    if population is not None:
        roles["the population"] = population.images
    counts = audit.count_duplicates(sets.members.images, {"the canaries that are left out": sets.outside.images})
    counts |= audit.count_duplicates(sets.candidates.images, roles)
    twice = ", ".join(f"{count} of {role}" for role, count in counts.items() if count)
    evidence = f"{twice} equal a canary pixel by pixel" if twice else "no canary is there again in another role"
    return Check("no image in two roles", not twice, evidence)


def _control_bound(answers: Answers, canaries: Canaries, delta: float) -> OneRun:
    """The one-run bound of a control, by LiRA, or by the log-odds without references."""
    scores = attacks(answers)
    declared = scores.get("LiRA", scores["log-odds"])
    return one_run_epsilon(declared, canaries.included, None, delta, audit.CONTROL_CONFIDENCE)


def _negative_check(bound: OneRun) -> Check:
    """A teacher that was not trained on canaries shows no epsilon."""
    evidence = f"a teacher that saw no canary shows an epsilon of at least {bound.epsilon:.2f}"
    return Check("negative control", bound.epsilon == 0, evidence)


def _positive_check(bound: OneRun) -> Check:
    """A teacher that memorised its training images shows an epsilon above 0."""
    evidence = f"an overfitted teacher shows an epsilon of at least {bound.epsilon:.2f} of {bound.ceiling:.2f} possible"
    return Check("positive control", bound.epsilon > 0, evidence)


def _ratios(scores: Mapping[str, Tensor], canaries: Canaries, seed: int) -> dict[str, RateRatio | None]:
    """Half of the canaries -> student over teacher; see `PipelineAudit.ratios`."""
    ratios = {}
    for group, half in zip(audit.GROUPS, (~canaries.mislabelled, canaries.mislabelled), strict=True):
        student, teacher = scores["student"][half], scores["teacher"][half]
        ratios[group] = student_over_teacher(student, teacher, canaries.included[half], seed)
    return ratios
