"""Which student to distill: architecture, width and depth by NSGA-II, scored by training a little and by measuring.

Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", by optuna's sampler, in the steady
state (Durillo et al. 2009): a candidate may be a parent as soon as it has its scores, since some dozens of candidates
make too few generations. A search begins with the smallest and the largest student of every range.

It lives in one sqlite file and goes on from there: a candidate that was being scored when the process died is scored
again, one that has its scores never is. The n-th proposal is a function of the seed and of what was scored before, so
a search that was interrupted ends like one that was not, up to what a clock measures.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import warnings
from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthkd.compression.pareto import Candidate, Front, Scores, crowded_order
from synthkd.compression.proxy import Evaluate
from synthkd.errors import CheckpointError, ConfigError
from synthkd.imports import optional
from synthkd.models import zoo
from synthkd.models.classifier import parameters
from synthkd.rng import derive, numpy_stream
from synthkd.settings import GOALS, POPULATION, Architecture, Goal, SearchSettings, ZooModel
from synthkd.system.files import naming
from synthkd.types import ImageSpec

OPTUNA = ("optuna", "search", "the search of a student")
"""What a search needs: the package, the extra that installs it, and what for."""
PATIENCE = 20
"""Proposals in a row of candidates that have their scores already, before one that has none is drawn."""

_STEP = 0.2  # of a child's width, a standard deviation of its gene
_ANEW = 0.2  # how often a child's architecture, or its depth, is drawn anew


@dataclass(frozen=True)
class Range:
    """Widths of one architecture at one depth, both ends included; depth None is the architecture's own."""

    arch: Architecture
    depth: int | None
    low: int
    high: int


@dataclass(frozen=True)
class Space:
    """All students that a search may choose, as genes: the architecture, and places in [0, 1] for depth and width.

    A place stands for a width on a logarithmic scale, and means large or small in every architecture alike, so that
    what one has learned another may inherit.

    Attributes:
        ranges: those of an architecture by rising depth.
    """

    ranges: tuple[Range, ...]

    def __len__(self) -> int:
        return sum(r.high - r.low + 1 for r in self.ranges)

    @property
    def archs(self) -> list[str]:
        """Architectures, in the order of their ranges."""
        return list(dict.fromkeys(r.arch for r in self.ranges))

    def decode(self, genes: Mapping[str, Any]) -> ZooModel:
        """The student that genes `arch`, `depth` and `width` stand for."""
        depths = [r for r in self.ranges if r.arch == genes["arch"]]
        r = depths[min(int(genes["depth"] * len(depths)), len(depths) - 1)]
        return ZooModel(arch=r.arch, width=round(r.low * (r.high / r.low) ** genes["width"]), depth=r.depth)

    def ends(self) -> Iterator[dict[str, Any]]:
        """Genes of the smallest and of the largest student of every range."""
        for r in self.ranges:
            depths = [other.depth for other in self.ranges if other.arch == r.arch]
            for width in (0.0, 1.0):
                yield {"arch": r.arch, "depth": (depths.index(r.depth) + 0.5) / len(depths), "width": width}

    def draw(self, rng: np.random.Generator, known: Container[ZooModel]) -> dict[str, Any]:
        """Genes drawn uniformly, of a student that is not known; there must be one."""
        while True:
            arch = self.archs[rng.integers(len(self.archs))]
            genes = {"arch": arch, "depth": rng.random(), "width": rng.random()}
            if self.decode(genes) not in known:
                return genes


def space_of(settings: SearchSettings, spec: ImageSpec, max_parameters: int | None = None) -> Space:
    """The families as far as they fit: widths only up to the largest that stays within the limit.

    Args:
        settings: families and limit.
        spec: images and classes of the student.
        max_parameters: the limit where the settings have none; None: no limit.

    Raises:
        ConfigError: nothing fits, or a family has a depth that its architecture has not.
    """
    limit = max_parameters if settings.max_parameters is None else settings.max_parameters
    ranges = []
    for family in settings.families:
        for depth in sorted(set(family.depth)) or (None,):
            low, high = family.width

            def count(width: int, arch: Architecture = family.arch, depth: int | None = depth) -> int:
                with torch.device("meta"):  # shapes without weights, and without a random draw
                    return parameters(zoo.build(ZooModel(arch=arch, width=width, depth=depth), spec))

            count(low)  # its errors, also where there is no limit
            if limit is not None:
                high = low - 1 + bisect_right(range(low, high + 1), limit, key=count)
            if high >= low:
                ranges.append(Range(family.arch, depth, low, high))
    if not ranges:
        raise ConfigError(f"search: no family has a student of at most {limit:,} parameters; give smaller widths")
    return Space(tuple(ranges))


def search(
    space: Space,
    evaluate: Evaluate,
    directory: Path | str,
    seed: int,
    candidates: int,
    objectives: Sequence[Goal] = GOALS,
    population: int = POPULATION,
) -> Front:
    """Score so many different candidates, or all there are, that NSGA-II proposes from what it has seen.

    Call it again with the same arguments to go on after an interruption, or with more candidates to go further; only
    one process at a time. An error of `evaluate` ends the search, and that candidate is tried again next time.

    Args:
        space: the students.
        evaluate: scores one; what it costs is the cost of the search.
        directory: where `search.db` is; made.
        seed: of the proposals.
        candidates: how many shall have scores in the end.
        objectives: what to minimise, two or three of them.
        population: parents are taken from so many of the best, at least 2.

    Raises:
        MissingExtraError: optuna is not installed.
        CheckpointError: the file is not a search, or one with other arguments.
        ConfigError: energy is an objective and was not measured.
    """
    return _run(space, evaluate, Path(directory) / "search.db", seed, candidates, objectives, population)


def random_search(
    space: Space,
    evaluate: Evaluate,
    directory: Path | str,
    seed: int,
    candidates: int,
    objectives: Sequence[Goal] = GOALS,
) -> Front:
    """The same with genes drawn uniformly, for comparison; in `random.db`. For arguments and errors see `search`."""
    return _run(space, evaluate, Path(directory) / "random.db", seed, candidates, objectives, None)


def _run(
    space: Space,
    evaluate: Evaluate,
    path: Path,
    seed: int,
    candidates: int,
    objectives: Sequence[Goal],
    population: int | None,
) -> Front:
    if candidates < 1:
        raise ConfigError(f"search: candidates must be at least 1, got {candidates}")
    optuna = optional(*OPTUNA)
    state, place = optuna.trial.TrialState, optuna.distributions.FloatDistribution(0.0, 1.0)
    genes = {"arch": optuna.distributions.CategoricalDistribution(space.archs), "depth": place, "width": place}
    given = dict(enumerate(() if population is None else space.ends()))
    made = {"space": asdict(space), "objectives": list(objectives), "seed": seed, "population": population}
    with naming(path), _study(optuna, path, made) as study:
        # What was being scored when a process died is not counted, and so is the next to be proposed.
        for trial in study.get_trials(states=[state.RUNNING]):
            study.tell(trial.number, state=state.FAIL)
        told = study.get_trials(states=[state.COMPLETE, state.PRUNED])
        scored = {space.decode(t.params): Scores(**t.user_attrs["scores"]) for t in told if t.state == state.COMPLETE}
        again = next((i for i, t in enumerate(reversed(told)) if t.state == state.COMPLETE), len(told))
        proposed = len(told)
        while len(scored) < min(candidates, len(space)):
            if again and again % PATIENCE == 0:
                rng = numpy_stream(seed, "one without scores", proposed)
                given[proposed] = space.draw(rng, scored)
            chance = derive(seed, "proposal", proposed) % 2**32
            study.sampler = _sampler(optuna, population, chance, given.get(proposed))
            trial = study.ask(genes)
            model = space.decode(trial.params)
            if model in scored:
                study.tell(trial, state=state.PRUNED)
                again += 1
            else:
                scores = evaluate(model)
                values = scores.values(objectives)
                trial.set_user_attr("scores", asdict(scores))
                study.tell(trial, values)
                scored[model], again = scores, 0
            proposed += 1
    found = tuple(Candidate(model, scores) for model, scores in scored.items())
    worst = np.max([c.scores.values(objectives) for c in found], axis=0)
    return Front(found, tuple(objectives), tuple(float(value) or 1.0 for value in worst))


def _sampler(optuna: Any, population: int | None, seed: int, given: Mapping[str, Any] | None) -> Any:
    """NSGA-II, or chance where there is no population; with genes given, those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that fixed genes and a strategy of one's own may change in later versions
        if population is None:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.NSGAIISampler(
                population_size=population, seed=seed, child_generation_strategy=partial(_child, population, seed)
            )
        return sampler if given is None else optuna.samplers.PartialFixedSampler(given, sampler)


def _child(population: int, seed: int, study: Any, genes: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """Genes of a child of two of the best; a gene that is left out is drawn uniformly by the sampler.

    Parents win tournaments of two. The width nearly always moves a little, since neighbours score alike.
    """
    rng = np.random.default_rng(seed)
    told = [trial for trial in study.get_trials(deepcopy=False) if trial.values is not None]
    best = crowded_order(np.array([trial.values for trial in told]))[:population]
    mother, father = (told[best[rng.integers(len(best), size=2).min()]].params for _ in range(2))
    child = dict(mother)
    mixed = ("depth", "width") if mother["arch"] == father["arch"] else ("arch",)
    child |= {name: father[name] for name in mixed if rng.random() < 0.5}
    if rng.random() < 0.9:
        child["width"] = float(np.clip(child["width"] + rng.normal(0.0, _STEP), 0.0, 1.0))
    return {name: child[name] for name in genes if name == "width" or rng.random() >= _ANEW}


@contextmanager
def _study(optuna: Any, path: Path, made: Mapping[str, Any]) -> Iterator[Any]:
    """The study in a file, begun with exactly these arguments; meanwhile optuna's log is silent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = json.loads(json.dumps(made))
    # Connected here, since a path may hold what means something else in the address of a database.
    connect = {"creator": partial(sqlite3.connect, path, timeout=60.0, check_same_thread=False)}
    before, storage = optuna.logging.get_verbosity(), None
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        try:
            storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=connect)
            directions = ["minimize"] * len(made["objectives"])
            study = optuna.create_study(
                study_name="search", storage=storage, directions=directions, load_if_exists=True
            )
            known = study.user_attrs.get("made", made)
            study.set_user_attr("made", known)
        except Exception as error:  # of sqlite, its layers above, or optuna; they have no common parent
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise CheckpointError(f"{path} cannot be used as a search ({reason}); give another directory") from error
        if changed := [key for key in made if known.get(key) != made[key]]:
            raise CheckpointError(
                f"{path} was begun with another {', '.join(changed)}; take the same again, or another directory"
            )
        yield study
    finally:
        optuna.logging.set_verbosity(before)
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
