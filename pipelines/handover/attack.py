"""Attack a whole pipeline: run it again with canaries among its private images, and without them for reference.

What is audited is the pipeline, by models of its own making; the models that are handed over saw no canary. Every run
is kept inside the run of the job, so an interrupted audit goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError
from synthkd.models import Classifier
from synthkd.pipelines.config import AuditSettings, CompressConfig
from synthkd.pipelines.handover.flow import Flowed, run_flow
from synthkd.pipelines.run.directory import Result
from synthkd.pipelines.student.teachers import teach_config
from synthkd.pipelines.teach import load_taught, teach
from synthkd.privacy.audit import (
    CONTROL_CONFIDENCE,
    GROUPS,
    GroupAudit,
    audit_model,
    blind_check,
    duplicated,
    logits_of,
)
from synthkd.privacy.canaries import Canaries, choose, one_run_epsilon
from synthkd.privacy.membership import POPULATION, Answers, attacks
from synthkd.privacy.ratio import RateRatio, tpr_ratio
from synthkd.privacy.verdict import Check
from synthkd.rng import derive
from synthkd.settings import OptimizerSettings, TeachTraining, TrainedTeacher

FOLDER = "audit"
CONTROL = TeachTraining(
    steps=600, batch_size=64, optimizer=OptimizerSettings(kind="adam", lr=2e-3, schedule="one_cycle")
)
"""The positive control: as long as it takes to know a few hundred images by heart."""
WHOS = ("teacher", "student")


@dataclasses.dataclass(frozen=True)
class PipelineAudit:
    """What was found.

    Attributes:
        canaries: of the audited run.
        models: teacher and student -> half of the canaries -> what was found.
        ratios: half -> true positives at 1 % false positives, student over teacher; None where too few images tell.
        checks: without which nothing of it counts.
        population: images in no other role that RMIA used; 0: it was left out.
        references: teacher and student -> how many of runs without canaries they are compared with.
    """

    canaries: Canaries
    models: Mapping[str, Mapping[str, GroupAudit]]
    ratios: Mapping[str, RateRatio | None]
    checks: Sequence[Check]
    population: int
    references: Mapping[str, int]

    @property
    def bounds(self) -> list[float]:
        """The rigorous lower bounds of epsilon, which hold together."""
        groups = [group for model in self.models.values() for group in model.values()]
        return [group.one_run.epsilon for group in groups if group.one_run is not None]


def require_enough(settings: AuditSettings, private: Splits) -> None:
    """Refuse an audit that would leave less than half of the images to train on.

    Raises:
        ConfigError: more canaries than half of the images.
    """
    count = len(private.train)
    if settings.canaries > count // 2:
        raise ConfigError(
            f"audit.canaries: {settings.canaries} are more than half of the {count:,} private images; take "
            f"{count // 20 * 2} or fewer"
        )


def audit_pipeline(config: CompressConfig, directory: Path, private: Splits, device: torch.device) -> PipelineAudit:
    """Run the pipeline with canaries and without, and attack what it makes.

    Args:
        config: the pipeline, with `audit` set and a teacher that is trained.
        directory: of the job; the runs are in `audit/` inside.
        private: the images, of which the canaries are taken.
        device: of the models.

    Raises:
        SynthkdError: what the pipeline raises.
    """
    settings = config.audit
    assert settings is not None
    train = private.train
    canaries = choose(train.labels, train.spec.classes, settings.canaries, derive(config.seed, "audit"))
    others = torch.ones(len(train), dtype=torch.bool)
    others[canaries.rows] = False
    rest = _part(train, others.nonzero()[:, 0])
    included = canaries.included
    planted = _part(train, canaries.rows[included], canaries.labels[included])
    place = directory / FOLDER
    with_canaries = run_flow(config, place / "audited", _trained_on(private, rest, planted), derive(config.seed, "run"))
    without = [
        run_flow(config, place / f"reference-{k}", _trained_on(private, rest), derive(config.seed, "reference", k))
        for k in range(settings.references)
    ]
    images, unseen = train.images[canaries.rows], private.unseen
    population = unseen if len(unseen) >= POPULATION else None

    def answers(who: str, asked: Tensor, labels: Tensor, target: Flowed, references: Sequence[Flowed]) -> Answers:
        said = [logits_of(getattr(flow, who), asked, device) for flow in (target, *references)]
        nobody = said[0].new_empty(0, *said[0].shape)
        return Answers(said[0], torch.stack(said[1:]) if references else nobody, labels)

    found, scores = {}, {}
    for who in WHOS:
        asked = answers(who, images, canaries.labels, with_canaries, without)
        outside = None
        if population is not None:
            outside = answers(who, population.images, population.labels, with_canaries, without)
        found[who] = audit_model(canaries, asked, outside, settings.guesses, settings.delta, len(WHOS))
        scores[who] = attacks(asked)["LiRA"]
    control = _control(config, place / "control", rest, planted, private)
    checks = (
        _no_two_roles(images, rest, population),
        blind_check(images[included], images[~included]),
        _negative(canaries, answers("teacher", images, canaries.labels, without[0], without[1:]), settings),
        _positive(canaries, images, control, without, settings, device),
    )
    return PipelineAudit(
        canaries=canaries,
        models=found,
        ratios={group: _ratio(scores, canaries, group == GROUPS[1], derive(config.seed, "ratio")) for group in GROUPS},
        checks=checks,
        population=0 if population is None else len(population),
        references=dict.fromkeys(WHOS, settings.references),
    )


def _part(data: RealData, rows: Tensor, labels: Tensor | None = None) -> RealData:
    return dataclasses.replace(data, images=data.images[rows], labels=data.labels[rows] if labels is None else labels)


def _trained_on(private: Splits, *parts: RealData) -> Splits:
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return dataclasses.replace(private, train=dataclasses.replace(parts[0], images=images, labels=labels))


def _control(config: CompressConfig, directory: Path, rest: RealData, planted: RealData, private: Splits) -> Classifier:
    """A teacher that knows its training images by heart: the canaries, and as many others."""
    settings = config.teacher
    assert isinstance(settings, TrainedTeacher)
    overfitted = settings.model_copy(update={"training": CONTROL})
    few = _part(rest, torch.arange(len(rest))[: max(len(planted), rest.spec.classes)])
    asked = teach_config(overfitted, config, str(directory))
    result = teach(asked, splits=_trained_on(private, few, planted))
    assert isinstance(result, Result)
    return load_taught(result)


def _no_two_roles(images: Tensor, rest: RealData, population: RealData | None) -> Check:
    roles = {"other training images": rest.images}
    if population is not None:
        roles["the population"] = population.images
    again = {role: count for role, count in duplicated(images, roles).items() if count}
    said = ", ".join(f"{count} of {role}" for role, count in again.items())
    return Check(
        "no image in two roles",
        not again,
        f"{said} equal a canary pixel by pixel" if again else "no canary is there again in another role",
    )


def _negative(canaries: Canaries, answers: Answers, settings: AuditSettings) -> Check:
    """A model that saw no canary must show no epsilon."""
    scores = attacks(answers)
    bound = one_run_epsilon(
        scores.get("LiRA", scores["log-odds"]), canaries.included, None, settings.delta, CONTROL_CONFIDENCE
    )
    said = f"a teacher that saw no canary shows an epsilon of at least {bound.epsilon:.2f}"
    return Check("negative control", bound.epsilon == 0, said)


def _positive(
    canaries: Canaries,
    images: Tensor,
    control: Classifier,
    without: Sequence[Flowed],
    settings: AuditSettings,
    device: torch.device,
) -> Check:
    """A model that learned its images by heart must be caught."""
    said = [logits_of(model, images, device) for model in (control.to(device), *(flow.teacher for flow in without))]
    scores = attacks(Answers(said[0], torch.stack(said[1:]), canaries.labels))
    bound = one_run_epsilon(scores["LiRA"], canaries.included, None, settings.delta, CONTROL_CONFIDENCE)
    told = f"an overfitted teacher shows an epsilon of at least {bound.epsilon:.2f} of {bound.ceiling:.2f} possible"
    return Check("positive control", bound.epsilon > 0, told)


def _ratio(scores: Mapping[str, Tensor], canaries: Canaries, mislabelled: bool, seed: int) -> RateRatio | None:
    member = canaries.mislabelled == mislabelled
    inside, outside = member & canaries.included, member & ~canaries.included
    if int(outside.sum()) < 100:
        return None
    teacher, student = scores["teacher"], scores["student"]
    return tpr_ratio(student[inside], student[outside], teacher[inside], teacher[outside], seed=seed)
