"""Which student to distill: searched among networks of the zoo, on images of the pipeline's own generator.

Nothing but the teacher and its generator is asked, so a search costs no privacy beyond theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from synthkd.compression.pareto import Candidate, Front, Scores, draw
from synthkd.compression.proxy import Evaluate, proxy_evaluator
from synthkd.compression.search import search, space_of
from synthkd.models import Classifier, build_model, parameters
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.job import make_accelerator
from synthkd.pipelines.student.assembly import assemble
from synthkd.reports.results import FrontRow, SearchResult
from synthkd.settings import SearchSettings, ZooModel
from synthkd.training.display import Display
from synthkd.types import TrainableGenerator

HELD_OUT = 500
"""Synthetic images, at least, on which a candidate's agreement with the teacher is measured."""
SHARE = 4
"""A candidate has at most the teacher's parameters over this, unless the settings say otherwise."""


@dataclass(frozen=True)
class Choice:
    """What a search ended with.

    Attributes:
        model: the chosen student.
        front: all that was scored.
    """

    model: ZooModel
    front: Front

    def result(self) -> SearchResult:
        """The candidates that no other beats, which of them was chosen, and a drawing of all as SVG."""
        rows = tuple(
            FrontRow(one.model == self.model, one.model.arch, one.model.width, one.model.depth, **vars(one.scores))
            for one in self.front.best
        )
        return SearchResult(len(self.front.candidates), tuple(self.front.objectives), rows, draw(self.front))


def choose_student(config: DistillConfig, settings: SearchSettings, teacher: Classifier, directory: Path) -> Choice:
    """Search, or go on with a search that was cut short.

    A candidate learns for some steps as the student will, from the first images of the generator, and is scored on
    later ones. Chosen is the fastest of those whose agreement is at most `tolerance` below the best.

    Args:
        config: of the distillation; whatever its student is.
        settings: of the search.
        teacher: finished.
        directory: where `search.db` is.

    Raises:
        SynthkdError: what `synthkd.compression.search.search` and the generator raise.
    """
    space = space_of(settings, teacher.spec, parameters(teacher) // SHARE)
    seed = config.seed if settings.seed is None else settings.seed
    count = min(settings.candidates, len(space))
    proxy: list[Evaluate] = []
    with Display(count, f"search {config.name}") as display:
        done = 0

        def evaluate(model: ZooModel) -> Scores:
            nonlocal done
            if not proxy:  # what is finished needs no images
                proxy.append(make_proxy(config, settings, teacher, seed))
            display.update(done, "candidates", {})
            scores = proxy[0](model)
            done += 1
            display.update(done, "candidates", {"agreement": scores.accuracy, "ms": scores.latency_ms})
            return scores

        front = search(space, evaluate, directory, seed, count, settings.objectives, settings.population)
    return Choice(fastest_of(front, settings.tolerance).model, front)


def fastest_of(front: Front, tolerance: float) -> Candidate:
    """The fastest of the candidates whose accuracy is at most `tolerance` below the best."""
    best = front.best
    good = [one for one in best if one.scores.accuracy >= best[0].scores.accuracy - tolerance]
    return min(good, key=lambda one: one.scores.latency_ms)


def make_proxy(config: DistillConfig, settings: SearchSettings, teacher: Classifier, seed: int) -> Evaluate:
    """Fill a bank with images for the candidates to learn from, and make others to score them on."""
    parts = assemble(config, [teacher], make_accelerator(config), None)
    for index in range(settings.rounds):
        parts.synthesis.alone(index, keep=True)
    held_out, logits = _further(parts.generator, settings.rounds, config.difficulty.start)
    subject = parts.subject

    def builder(model: ZooModel) -> Classifier:
        return build_model(model, subject.spec, subject.mean, subject.std, subject.class_names)

    threads = config.threads or torch.get_num_threads()
    accelerator = make_accelerator(config)
    return proxy_evaluator(
        parts.source, held_out, logits, builder, settings.steps, seed, accelerator, config.distill, threads
    )


def _further(generator: TrainableGenerator, first: int, difficulty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """At least `HELD_OUT` images of later rounds, and the teacher's logits of them."""
    images, logits, count = list[torch.Tensor](), list[torch.Tensor](), 0
    while count < HELD_OUT:
        made = generator.round(first + len(images), difficulty)
        images.append(made.images.cpu())
        logits.append(made.teacher_logits.cpu())
        count += len(made.images)
    return torch.cat(images), torch.cat(logits)


def summary(search: SearchResult) -> str:
    """The chosen student in a few words."""
    chosen = next(row for row in search.front if row.chosen)
    depth = "" if chosen.depth is None else f", depth {chosen.depth}"
    return f"{chosen.arch}, width {chosen.width}{depth}, of {search.candidates} candidates"
