"""Search of a student's architecture, width and depth by NSGA-II, with scores from a short training and measurements.

Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", by optuna's sampler, in its
steady-state form (Durillo et al. 2009): a candidate may be a parent as soon as it has scores, since a few dozen
candidates make too few generations. A search begins with the smallest and the largest student of every range.

Its state is one sqlite file, from which it resumes. A candidate whose scoring was interrupted is scored again; one with
scores never is. The n-th proposal is a function of the seed and of the earlier scores, so an interrupted search ends
like an uninterrupted one, up to the measured times.
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
from typing import Any, TypedDict

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
from synthkd.system.text import first_line
from synthkd.types import ImageSpec

OPTUNA = ("optuna", "search", "the search of a student")
"""The package that a search needs, the extra that installs it, and its use."""
PATIENCE = 20
"""Repeated proposals in a row, after which a new candidate is drawn at random: a small space may be nearly used up."""

_MUTATION = 0.2  # standard deviation of the change of a child's width gene
_REDRAW = 0.2  # probability that a child's architecture, or its depth, is drawn at random


@dataclass(frozen=True)
class Range:
    """Widths of one architecture at one depth, both ends included; depth None if the architecture has no choice."""

    arch: Architecture
    depth: int | None
    low: int
    high: int


class Genes(TypedDict):
    """A candidate as NSGA-II varies it: an architecture, and numbers in [0, 1] for depth and width."""

    arch: str
    depth: float
    width: float


@dataclass(frozen=True)
class Space:
    """All candidates of a search, encoded as genes.

    0 is small and 1 is large in every architecture, so genes of parents with different architectures can be combined.

    Attributes:
        ranges: those of one architecture by rising depth.
    """

    ranges: tuple[Range, ...]

    def __len__(self) -> int:
        return sum(r.high - r.low + 1 for r in self.ranges)

    @property
    def archs(self) -> list[str]:
        """Architectures, in the order of their ranges."""
        return list(dict.fromkeys(r.arch for r in self.ranges))

    def decode(self, genes: Genes) -> ZooModel:
        """The student with these genes."""
        depths = [r for r in self.ranges if r.arch == genes["arch"]]
        r = depths[min(int(genes["depth"] * len(depths)), len(depths) - 1)]
        # A logarithmic scale: a step of the gene changes every width by the same factor.
        return ZooModel(arch=r.arch, width=round(r.low * (r.high / r.low) ** genes["width"]), depth=r.depth)

    def ends(self) -> Iterator[Genes]:
        """Genes of the smallest and of the largest student of every range."""
        for r in self.ranges:
            depths = [other.depth for other in self.ranges if other.arch == r.arch]
            for width in (0.0, 1.0):
                yield {"arch": r.arch, "depth": (depths.index(r.depth) + 0.5) / len(depths), "width": width}

    def draw(self, rng: np.random.Generator, scored: Container[ZooModel]) -> Genes:
        """Genes of a student that is not among `scored`, drawn uniformly; there must be such a student."""
        while True:
            arch = self.archs[rng.integers(len(self.archs))]
            genes: Genes = {"arch": arch, "depth": rng.random(), "width": rng.random()}
            if self.decode(genes) not in scored:
                return genes


def space_of(settings: SearchSettings, spec: ImageSpec, max_parameters: int | None = None) -> Space:
    """The search space of families of networks, with the widths that a limit of parameters allows.

    Args:
        settings: families and limit.
        spec: images and classes of the student.
        max_parameters: the limit if the settings have none; None: no limit.

    Raises:
        ConfigError: no network fits, or a family has a depth that its architecture does not have.
    """
    limit = max_parameters if settings.max_parameters is None else settings.max_parameters
    ranges = []
    for family in settings.families:
        for depth in sorted(set(family.depth)) or (None,):
            low, high = family.width

            def count(width: int, arch: Architecture = family.arch, depth: int | None = depth) -> int:
                with torch.device("meta"):  # shapes without weights, and without a random draw
                    return parameters(zoo.build(ZooModel(arch=arch, width=width, depth=depth), spec))

            count(low)  # raises for a wrong depth, also without a limit
            # Parameters rise with the width, so bisection builds a few networks and not one for every width.
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
    population: int | None = POPULATION,
) -> Front:
    """Search with NSGA-II, or at random, until `candidates` different candidates, or the whole space, have scores.

    A call with the same arguments resumes an interrupted search; a call with more candidates continues it. One process
    may do so at a time. An error of `evaluate` ends the search, and the next call scores that candidate again.

    Args:
        space: the candidates.
        evaluate: scores a candidate; nearly all of the time is spent there.
        directory: of `search.db`, or of `random.db` for a random search; created.
        seed: of the proposals.
        candidates: number of candidates with scores in the end, at least 1.
        objectives: two or three values to minimise.
        population: number of best candidates among which parents are chosen, at least 2; None: random search, for
            comparison, which draws genes uniformly.

    Returns:
        All candidates with their scores; the reference is the worst value of each objective.

    Raises:
        MissingExtraError: optuna is not installed.
        CheckpointError: the file is no search, or one with other arguments.
        ConfigError: energy is an objective and was not measured.
    """
    if candidates < 1:
        raise ConfigError(f"search: candidates must be at least 1, got {candidates}")
    optuna = optional(*OPTUNA)
    path = Path(directory) / ("random.db" if population is None else "search.db")
    state, unit = optuna.trial.TrialState, optuna.distributions.FloatDistribution(0.0, 1.0)
    genes = {"arch": optuna.distributions.CategoricalDistribution(space.archs), "depth": unit, "width": unit}
    fixed = dict(enumerate(() if population is None else space.ends()))  # number of a proposal -> its genes
    arguments = {"space": asdict(space), "objectives": list(objectives), "seed": seed, "population": population}
    with naming(path), _study(optuna, path, arguments) as study:
        # A trial that was running when a process ended is not counted, so its number is proposed again.
        for trial in study.get_trials(states=[state.RUNNING]):
            study.tell(trial.number, state=state.FAIL)
        trials = study.get_trials(states=[state.COMPLETE, state.PRUNED])
        scored = {space.decode(t.params): Scores(**t.user_attrs["scores"]) for t in trials if t.state == state.COMPLETE}
        # Repeated proposals at the end of what is stored, to go on counting where an interrupted search stopped.
        repeats = next((i for i, t in enumerate(reversed(trials)) if t.state == state.COMPLETE), len(trials))
        number = len(trials)
        while len(scored) < min(candidates, len(space)):
            if repeats and repeats % PATIENCE == 0:
                fixed[number] = space.draw(numpy_stream(seed, "one without scores", number), scored)
            # A sampler of its own for each proposal, seeded by its number: the state of one sampler would be lost with
            # the process, and an interrupted search would propose other candidates.
            study.sampler = _sampler(optuna, population, derive(seed, "proposal", number) % 2**32, fixed.get(number))
            trial = study.ask(genes)
            model = space.decode(trial.params)
            if model in scored:
                study.tell(trial, state=state.PRUNED)
                repeats += 1
            else:
                scores = evaluate(model)
                values = scores.values(objectives)
                trial.set_user_attr("scores", asdict(scores))
                study.tell(trial, values)
                scored[model], repeats = scores, 0
            number += 1
    results = tuple(Candidate(model, scores) for model, scores in scored.items())
    worst = np.max([c.scores.values(objectives) for c in results], axis=0)
    return Front(results, tuple(objectives), tuple(float(value) or 1.0 for value in worst))


def _sampler(optuna: Any, population: int | None, seed: int, fixed: Genes | None) -> Any:
    """NSGA-II's sampler, or a random one without a population; with `fixed` genes, a sampler of those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fixed genes and a strategy for children are experimental in optuna
        if population is None:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.NSGAIISampler(
                population_size=population, seed=seed, child_generation_strategy=partial(_child, population, seed)
            )
        return sampler if fixed is None else optuna.samplers.PartialFixedSampler(fixed, sampler)


def _child(population: int, seed: int, study: Any, genes: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """Genes of a child of two of the best candidates; the sampler draws missing genes uniformly."""
    rng = np.random.default_rng(seed)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.values is not None]
    best = crowded_order(np.array([trial.values for trial in trials]))[:population]
    # Each parent wins a tournament of two: the smaller index is the better candidate.
    mother, father = (trials[best[rng.integers(len(best), size=2).min()]].params for _ in range(2))
    # Of parents with two architectures the child takes one or the other, and the mother's depth and width.
    child = dict(mother)
    mixed = ("depth", "width") if mother["arch"] == father["arch"] else ("arch",)
    child |= {name: father[name] for name in mixed if rng.random() < 0.5}
    # The width nearly always changes a little: networks of neighbouring widths score alike.
    if rng.random() < 0.9:
        child["width"] = float(np.clip(child["width"] + rng.normal(0.0, _MUTATION), 0.0, 1.0))
    return {name: child[name] for name in genes if name == "width" or rng.random() >= _REDRAW}


@contextmanager
def _study(optuna: Any, path: Path, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """Context with the study in a file that was begun with equal arguments; optuna's log is silent inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = json.loads(json.dumps(arguments))  # as they come back from the file, where tuples are lists
    # A connection and not an address: some characters of a path have a meaning in an address.
    connect = {"creator": partial(sqlite3.connect, path, timeout=60.0, check_same_thread=False)}
    before, storage = optuna.logging.get_verbosity(), None
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        try:
            storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=connect)
            directions = ["minimize"] * len(arguments["objectives"])
            study = optuna.create_study(
                study_name="search", storage=storage, directions=directions, load_if_exists=True
            )
            begun_with = study.user_attrs.get("made", arguments)
            study.set_user_attr("made", begun_with)
        except Exception as error:  # of sqlite, its layers above, or optuna; they have no common parent
            reason = first_line(error)
            raise CheckpointError(f"{path} cannot be used as a search ({reason}); give another directory") from error
        if changed := [key for key, value in arguments.items() if begun_with.get(key) != value]:
            raise CheckpointError(
                f"{path} was begun with another {', '.join(changed)}; take the same again, or another directory"
            )
        yield study
    finally:
        optuna.logging.set_verbosity(before)
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
