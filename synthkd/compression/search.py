"""Search of a student's architecture, width and depth by NSGA-II, with scores from a short training and measurements.

Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", by optuna's sampler, in its
steady-state form (Durillo et al. 2009): a candidate may be a parent as soon as it has scores, since a few dozen
candidates make too few generations. A search begins with the smallest and the largest student of every range. A larger
generation has children that do not know of each other, so that several processes can score them at the same time.

Its state is one sqlite file, from which it resumes. A candidate whose scoring was interrupted is scored again; one with
scores never is. The n-th proposal is a function of the seed and of the scores before its generation, so an
interrupted search ends like an uninterrupted one, and that of several processes like that of one, up to the measured
times.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthkd.compression.pareto import Candidate, Front, Scores, crowded_order
from synthkd.compression.proxy import Evaluate
from synthkd.compression.space import Genes, Space
from synthkd.errors import CheckpointError, ConfigError
from synthkd.imports import optional
from synthkd.rng import derive, numpy_stream
from synthkd.settings import GOALS, POPULATION, Goal, ZooModel
from synthkd.system.files import naming
from synthkd.system.text import first_line

OPTUNA = ("optuna", "search", "the search of a student")
"""The package that a search needs, the extra that installs it, and its use."""
PATIENCE = 20
"""Repeated proposals in a row, after which a new candidate is drawn at random: a small space may be nearly used up."""

Mapped = Callable[[Evaluate, Sequence[ZooModel]], Iterable[Scores]]
"""Applies a function to candidates as `map` does, in whatever order: the scores come in the order of the candidates."""

_MUTATION = 0.2  # standard deviation of the change of a child's width gene
_REDRAW = 0.2  # probability that a child's architecture, or its depth, is drawn at random


def search(
    space: Space,
    evaluate: Evaluate,
    directory: Path | str,
    seed: int,
    candidates: int,
    objectives: Sequence[Goal] = GOALS,
    population: int | None = POPULATION,
    generation: int = 1,
    mapped: Mapped = map,
    scoring: Mapping[str, str | int] | None = None,
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
        generation: number of children that are proposed by the same scores. The result depends on it.
        mapped: scores the candidates that are proposed together. The result does not depend on it.
        scoring: name -> value, for what decides the scores, such as the steps of a training. A call with other values
            is refused, since the scores of the two could not be compared.

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
    arguments = {"space": asdict(space), "objectives": list(objectives), "seed": seed, "population": population}
    with naming(path), _study(optuna, path, {**(scoring or {}), **arguments, "generation": generation}) as study:
        course = _Course(optuna, study, space, seed, population, generation)
        while proposals := course.propose(min(candidates, len(space))):
            scored = iter(mapped(evaluate, [one.model for one in proposals if not one.repeated]))
            for proposal in proposals:
                course.tell(proposal, None if proposal.repeated else next(scored), objectives)
    results = tuple(Candidate(model, scores) for model, scores in course.scored.items())
    worst = np.max([c.scores.values(objectives) for c in results], axis=0)
    return Front(results, tuple(objectives), tuple(float(value) or 1.0 for value in worst))


@dataclass(frozen=True)
class _Proposal:
    """A student that was proposed: its trial in the study, and whether it was proposed before."""

    trial: Any
    model: ZooModel
    repeated: bool


@dataclass
class _Course:
    """The state of a search, as it is stored and as it goes on.

    Attributes:
        optuna, study: the module, and the study, which has every proposal.
        space, seed, population, generation: see `search`.
        scored: candidate -> its scores, in the order of the proposals.
        count: number of proposals that were scored, or had been proposed before.
        repeats: those at the end that had been proposed before.
        basis: number of proposals by whose scores the newest child was proposed; None without a child.
    """

    optuna: Any
    study: Any
    space: Space
    seed: int
    population: int | None
    generation: int
    scored: dict[ZooModel, Scores] = field(default_factory=dict)
    count: int = 0
    repeats: int = 0
    basis: int | None = None

    def __post_init__(self) -> None:
        state = self.optuna.trial.TrialState
        # A trial that was running when a process ended is not counted, so its number is proposed again.
        for trial in self.study.get_trials(states=[state.RUNNING]):
            self.study.tell(trial.number, state=state.FAIL)
        for trial in self.study.get_trials(states=[state.COMPLETE, state.PRUNED]):
            self.count += 1
            self.basis = trial.user_attrs.get("basis")
            self.repeats = 0 if trial.state == state.COMPLETE else self.repeats + 1
            if trial.state == state.COMPLETE:
                self.scored[self.space.decode(trial.params)] = Scores(**trial.user_attrs["scores"])

    def propose(self, wanted: int) -> list[_Proposal]:
        """The next proposals that need no further score; none once `wanted` candidates have scores."""
        ends = () if self.population is None else tuple(self.space.ends())
        proposals: list[_Proposal] = []
        models = set(self.scored)
        while len(models) < wanted:
            number, basis = self.count + len(proposals), None
            if self.population is not None and len(models) >= self.population and number >= len(ends):  # it is a child
                is_next = self.basis is None or number >= self.basis + self.generation
                basis = number if is_next else self.basis
                assert basis is not None
                if basis > self.count:
                    break
            fixed = ends[number] if number < len(ends) else None
            if self.repeats and self.repeats % PATIENCE == 0:
                fixed = self.space.draw(numpy_stream(self.seed, "one without scores", number), models)
            proposals.append(self._ask(number, basis, fixed, models))
            self.basis = basis
            self.repeats = self.repeats + 1 if proposals[-1].repeated else 0
            models.add(proposals[-1].model)
        return proposals

    def _ask(self, number: int, basis: int | None, fixed: Genes | None, models: Container[ZooModel]) -> _Proposal:
        distributions, unit = self.optuna.distributions, self.optuna.distributions.FloatDistribution(0.0, 1.0)
        # A sampler of its own for each proposal, seeded by its number: the state of one sampler would be lost with the
        # process, and an interrupted search would propose other candidates.
        seed = derive(self.seed, "proposal", number) % 2**32
        self.study.sampler = _sampler(self.optuna, self.population, seed, basis or 0, fixed)
        arch = distributions.CategoricalDistribution(self.space.archs)
        trial = self.study.ask({"arch": arch, "depth": unit, "width": unit})
        if basis is not None:
            trial.set_user_attr("basis", basis)
        model = self.space.decode(trial.params)
        return _Proposal(trial, model, model in models)

    def tell(self, proposal: _Proposal, scores: Scores | None, objectives: Sequence[Goal]) -> None:
        """Store the scores of a proposal, or, for None, that it was proposed before."""
        if scores is None:
            self.study.tell(proposal.trial, state=self.optuna.trial.TrialState.PRUNED)
        else:
            values = scores.values(objectives)
            proposal.trial.set_user_attr("scores", asdict(scores))
            self.study.tell(proposal.trial, values)
            self.scored[proposal.model] = scores
        self.count += 1


def _sampler(optuna: Any, population: int | None, seed: int, basis: int, fixed: Genes | None) -> Any:
    """NSGA-II's sampler, or a random one without a population; with `fixed` genes, a sampler of those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fixed genes and a strategy for children are experimental in optuna
        if population is None:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.NSGAIISampler(
                population_size=population,
                seed=seed,
                child_generation_strategy=partial(_child, population, seed, basis),
            )
        return sampler if fixed is None else optuna.samplers.PartialFixedSampler(fixed, sampler)


def _child(population: int, seed: int, basis: int, study: Any, genes: Mapping[str, Any], _: Any) -> dict[str, Any]:
    """Genes of a child of two of the best of the first `basis` proposals; the sampler draws missing genes uniformly."""
    rng = np.random.default_rng(seed)
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "PRUNED")]
    trials = [trial for trial in finished[:basis] if trial.values is not None]
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
            begun_with = {"generation": 1, **study.user_attrs.get("made", arguments)}
            study.set_user_attr("made", begun_with)
        except Exception as error:  # of sqlite, its layers above, or optuna; they have no common parent
            reason = first_line(error)
            raise CheckpointError(f"{path} cannot be used as a search ({reason}); give another directory") from error
        # A file of an earlier version does not say how it scored; it goes on.
        if changed := [key for key, value in arguments.items() if begun_with.get(key, value) != value]:
            raise CheckpointError(
                f"{path} was begun with another {', '.join(changed)}; take the same again, or another directory"
            )
        yield study
    finally:
        optuna.logging.set_verbosity(before)
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()
