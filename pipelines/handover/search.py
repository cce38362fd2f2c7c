"""The search of a student among networks of the zoo, on images of the pipeline's own generator.

It uses nothing but the teacher and the generator, so it costs no privacy beyond theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch

from synthkd.compression.pareto import Candidate, Front, Scores, draw
from synthkd.compression.proxy import Proxy, proxy_evaluator
from synthkd.compression.search import search
from synthkd.compression.space import space_of
from synthkd.models import Classifier, build_model, parameters
from synthkd.models.weights import serialised
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run import shared_work
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.directory import FREE_TO_CHANGE
from synthkd.pipelines.student.assembly import assemble
from synthkd.reports.results import FrontRow, SearchResult
from synthkd.settings import SearchSettings, ZooModel
from synthkd.training.display import Display
from synthkd.types import TrainableGenerator

HELD_OUT = 500
"""Smallest number of synthetic images on which a candidate's agreement with the teacher is measured."""
SHARE = 4
"""A candidate has at most the teacher's parameters divided by this, unless the settings have a limit."""
NOT_SCORED = FREE_TO_CHANGE | {
    "seed", "teacher", "student", "test", "log_every", "evaluate_every", "grid_every", "publish_every",
}  # fmt: skip
"""Keys of a distillation on which no score depends, or that `scored_by` has by themselves."""


@dataclass(frozen=True)
class Choice:
    """The result of a search.

    Attributes:
        model: the chosen student.
        front: all scored candidates.
    """

    model: ZooModel
    front: Front

    def result(self) -> SearchResult:
        """The section `search` of result.json: the Pareto front, the chosen candidate, and a drawing of all as SVG."""
        rows = tuple(
            FrontRow(one.model == self.model, one.model.arch, one.model.width, one.model.depth, **vars(one.scores))
            for one in self.front.best
        )
        return SearchResult(len(self.front.candidates), tuple(self.front.objectives), rows, draw(self.front))


def choose_student(config: DistillConfig, settings: SearchSettings, teacher: Classifier, directory: Path) -> Choice:
    """Search a student, or resume an interrupted search.

    A candidate is trained for some steps like the student, on the first images of the generator, and scored on later
    images. The choice is the fastest candidate whose agreement is at most `tolerance` below the best.

    Several processes train the candidates that are proposed together, each its share of them. The main process proposes
    and stores, and measures latency and energy while the others wait: beside other work a model would look slower.

    Args:
        config: of the distillation; its student is not read.
        settings: of the search.
        teacher: finished.
        directory: of `search.db`.

    Raises:
        SynthkdError: the errors of `synthkd.compression.search.search` and of the generator.
    """
    space = space_of(settings, teacher.spec, parameters(teacher) // SHARE)
    # A seed of the search's own keeps the choice when a run is repeated with other seeds.
    seed = config.seed if settings.seed is None else settings.seed
    count = min(settings.candidates, len(space))
    scoring = _Scoring(config, settings, teacher, seed)
    if shared_work.rank():
        none: list[ZooModel] | None = None
        while turn := shared_work.shares().first(lambda: none):
            scoring.turn(turn)
        return cast(Choice, shared_work.shares().first(lambda: None))
    with Display(count, f"search {config.name}") as display:
        done = 0

        def displayed(_: object, models: Sequence[ZooModel]) -> Iterator[Scores]:
            nonlocal done
            for scores in scoring.each(models):
                done += 1
                display.update(done, "candidates", {"agreement": scores.accuracy, "ms": scores.latency_ms})
                yield scores

        arguments = (settings.objectives, settings.population, settings.generation, displayed)
        front = search(space, scoring.one, directory, seed, count, *arguments, scored_by(config, settings, teacher))
    choice = Choice(fastest_of(front, settings.tolerance).model, front)
    shared_work.shares().first(list)  # no further turn
    return shared_work.shares().first(lambda: choice)


def scored_by(config: DistillConfig, settings: SearchSettings, teacher: Classifier) -> dict[str, str | int]:
    """What decides the scores of candidates, beside their seed and the machine, by the names that an error has for it.

    Args:
        config: of the distillation.
        settings: of the search.
        teacher: finished.
    """
    # Without defaults: a key that a later version adds does not change what its default did before.
    values = config.model_dump(exclude=NOT_SCORED, exclude_defaults=True)
    sources = values.get("transfer_set", ())
    for source in [sources] if isinstance(sources, dict) else sources:
        generator = source.get("generator", {})
        path = generator.get("path")
        # An earlier part of the run may have saved the generator, and the run may have moved since.
        if path and config.out and Path(path).is_relative_to(Path(config.out).parent):
            del generator["path"]
    return {
        "steps": settings.steps,
        "rounds": settings.rounds,
        "seed of the run": config.seed,
        "teacher": hashlib.sha256(serialised(teacher)).hexdigest(),
        "distillation": hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest(),
    }


@dataclass
class _Scoring:
    """Scores candidates, in one process or in turns of as many as there are processes."""

    config: DistillConfig
    settings: SearchSettings
    teacher: Classifier
    seed: int
    proxy: Proxy | None = None

    def one(self, model: ZooModel) -> Scores:
        """The scores of a candidate, by this process."""
        return self._proxy()(model)

    def each(self, models: Sequence[ZooModel]) -> Iterator[Scores]:
        """The scores of candidates, as soon as they are known; the other processes wait for a turn."""
        if shared_work.count() == 1:
            yield from map(self.one, models)
            return
        for first in range(0, len(models), shared_work.count()):
            turn = models[first : first + shared_work.count()]
            yield from self.turn(shared_work.shares().first(partial(list, turn)))

    def turn(self, models: Sequence[ZooModel]) -> list[Scores]:
        """The scores of at most one candidate for each process, each trained by its process; in every process."""
        with shared_work.alone():
            proxy = self._proxy()
        shared_work.shares().values(None)  # nobody works while the main process takes times
        spent = shared_work.on_main(lambda: [proxy.cost(model) for model in models])
        own = list(shared_work.shares().turns(models))
        with shared_work.alone():
            trained = [proxy.agreement(model) for model in own]
        agreed = [agreement for one in shared_work.shares().values(trained) for agreement in one]
        return [Proxy.scores(agreement, cost) for agreement, cost in zip(agreed, spent, strict=True)]

    def _proxy(self) -> Proxy:
        # Made for the first candidate only: a search that is complete needs no images.
        if self.proxy is None:
            self.proxy = make_proxy(self.config, self.settings, self.teacher, self.seed)
        return self.proxy


def fastest_of(front: Front, tolerance: float) -> Candidate:
    """The fastest of the candidates whose accuracy is at most `tolerance` below the best."""
    # The first of the front is the most accurate; without a tolerance it would always be the choice, however slow.
    best = front.best
    good = [one for one in best if one.scores.accuracy >= best[0].scores.accuracy - tolerance]
    return min(good, key=lambda one: one.scores.latency_ms)


def make_proxy(config: DistillConfig, settings: SearchSettings, teacher: Classifier, seed: int) -> Proxy:
    """A function that scores candidates, trained on images of the first rounds and scored on later ones.

    Args:
        config: of the distillation.
        settings: of the search.
        teacher: finished.
        seed: of weights and dropout of the candidates.
    """
    assembly = assemble(config, [teacher], make_accelerator(config), None)
    generated = assembly.transfer_set.generated
    assert generated is not None
    assert config.generated is not None
    for index in range(settings.rounds):
        generated.rounds.alone(index, keep=True)
    # Later rounds have images that no candidate was trained on.
    held_out, logits = _held_out(generated.generator, settings.rounds, config.generated.difficulty.start)
    subject = assembly.subject

    def builder(model: ZooModel) -> Classifier:
        return build_model(model, subject.spec, subject.mean, subject.std, subject.class_names)

    threads = config.threads or torch.get_num_threads()
    training = (settings.steps, seed, make_accelerator(config), config.distill, threads)
    return proxy_evaluator(assembly.transfer_set.dataset, held_out, logits, builder, *training)


def _held_out(generator: TrainableGenerator, first: int, difficulty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """At least `HELD_OUT` images of the rounds from `first` on, float32, and the teacher's logits of them."""
    images, logits, count = list[torch.Tensor](), list[torch.Tensor](), 0
    while count < HELD_OUT:
        batch = generator.round(first + len(images), difficulty)
        images.append(batch.images.cpu())
        logits.append(batch.teacher_logits.cpu())
        count += len(batch.images)
    return torch.cat(images), torch.cat(logits)


def summary(search_result: SearchResult) -> str:
    """The chosen student in words, for the terminal."""
    chosen = next(row for row in search_result.front if row.chosen)
    depth = "" if chosen.depth is None else f", depth {chosen.depth}"
    return f"{chosen.arch}, width {chosen.width}{depth}, of {search_result.candidates} candidates"
