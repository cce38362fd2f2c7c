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
import math
import sqlite3
import warnings
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from synthkd.compression.cost import cost
from synthkd.distillation.step import DistillStep
from synthkd.errors import CheckpointError, ConfigError, DataError, MissingExtraError, TrainingError
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import zoo
from synthkd.models.classifier import Classifier, parameters
from synthkd.rng import derive, numpy_stream
from synthkd.settings import Count, DistillSettings, Settings, ZooModel
from synthkd.taps import evaluating
from synthkd.training.learner import Learner
from synthkd.types import BatchSource, ImageSpec

Goal = Literal["error", "latency", "bytes", "energy"]
Architecture = Literal["mlp", "lenet5", "convnet", "resnet", "wide_resnet", "slim", "vit"]

GOALS: tuple[Goal, ...] = ("error", "latency", "bytes")
POPULATION = 10
PATIENCE = 20
"""Proposals in a row of candidates that have their scores already, before one that has none is drawn."""

_STEP = 0.2  # of a child's width, a standard deviation of its gene
_ANEW = 0.2  # how often a child's architecture, or its depth, is drawn anew


class Family(Settings):
    """Students of one architecture."""

    arch: Architecture
    width: tuple[Count, Count]
    """Smallest and largest width, in the architecture's own unit (see `synthkd.models.zoo`)."""
    depth: tuple[Count, ...] = ()
    """Depths to choose from; empty: the architecture's own."""

    @model_validator(mode="after")
    def _ordered(self) -> Family:
        if self.width[0] > self.width[1]:
            raise ValueError("the smallest width must not be above the largest")
        return self


class SearchSettings(Settings):
    """The search of a student among networks of the zoo."""

    families: Annotated[tuple[Family, ...], Field(min_length=1)] = (
        Family(arch="mlp", width=(16, 256), depth=(1, 2)),
        Family(arch="convnet", width=(4, 32)),
        Family(arch="resnet", width=(4, 16), depth=(8, 14)),
        Family(arch="slim", width=(4, 24), depth=(1, 2)),
    )
    """What there is to choose from; each architecture once."""
    objectives: Annotated[tuple[Goal, ...], Field(min_length=2, max_length=3)] = GOALS
    """What to make small, two or three of them; energy only where a counter measures it."""
    max_parameters: Count | None = None
    """Largest number of parameters of a candidate; None: a quarter of the teacher's."""
    candidates: Count = 60
    """How many to score."""
    population: Annotated[int, Field(ge=2)] = POPULATION
    """Parents are taken from so many of the best."""
    steps: Count = 60
    """Training steps of a candidate before its agreement is measured."""
    seed: int | None = None
    """Of the proposals and of the candidates' first weights; None: the run's."""

    @model_validator(mode="after")
    def _each_once(self) -> SearchSettings:
        for name, values in (("families", [f.arch for f in self.families]), ("objectives", list(self.objectives))):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each may stand only once, got {', '.join(values)}")
        return self


@dataclass(frozen=True)
class Scores:
    """What is known of a candidate.

    Attributes:
        accuracy: the proxy of its accuracy, in [0, 1].
        latency_ms: milliseconds for an image, > 0.
        bytes: of its weights, > 0.
        joules: for an image; None where nothing counts it.
    """

    accuracy: float
    latency_ms: float
    bytes: int
    joules: float | None = None

    def __post_init__(self) -> None:
        costs = (self.latency_ms, self.bytes, 1.0 if self.joules is None else self.joules)
        if not 0.0 <= self.accuracy <= 1.0 or not all(0.0 < value < math.inf for value in costs):
            raise DataError(f"scores need an accuracy in [0, 1] and costs that are positive and finite, got {self}")

    def values(self, objectives: Sequence[Goal]) -> tuple[float, ...]:
        """What is minimised, in the order asked for.

        Raises:
            ConfigError: energy, where it was not measured.
        """
        if "energy" in objectives and self.joules is None:
            raise ConfigError("search: energy is an objective and was not measured here; put bytes in its place")
        energy = math.nan if self.joules is None else self.joules
        known = {"error": 1.0 - self.accuracy, "latency": self.latency_ms, "bytes": self.bytes, "energy": energy}
        return tuple(float(known[name]) for name in objectives)


Evaluate = Callable[[ZooModel], Scores]


@dataclass(frozen=True)
class Candidate:
    """A student and its scores."""

    model: ZooModel
    scores: Scores


@dataclass(frozen=True)
class Front:
    """What a search found.

    Attributes:
        candidates: all that were scored, in that order.
        objectives: what is minimised, M of them.
        reference: M numbers, the corner that the hypervolume is measured to; of `search`, the worst of all candidates.
            To compare two searches put the same into both, with `dataclasses.replace`.
    """

    candidates: tuple[Candidate, ...]
    objectives: tuple[Goal, ...]
    reference: tuple[float, ...]

    @property
    def points(self) -> NDArray[np.float64]:
        """Objectives of all candidates, float64 `[N, M]`."""
        return np.array([c.scores.values(self.objectives) for c in self.candidates], dtype=np.float64)

    @property
    def best(self) -> tuple[Candidate, ...]:
        """Those that no other is better than in one objective and not worse in all, the most accurate first."""
        kept = [c for c, good in zip(self.candidates, _undominated(self.points), strict=True) if good]
        return tuple(sorted(kept, key=lambda c: (-c.scores.accuracy, *c.scores.values(self.objectives))))

    @property
    def hypervolume(self) -> float:
        """Share of the box between 0 and the reference that some candidate dominates, in [0, 1]."""
        return hypervolume(self.points, self.reference)

    def table(self) -> tuple[str, ...]:
        """The candidates of `best`, numbered as in `draw`, as lines of text under their titles."""
        rows = [("", "arch", "width", "depth", "proxy", "latency", "bytes", "energy")]
        for number, one in enumerate(self.best, 1):
            model, s = one.model, one.scores
            shape = (str(number), model.arch, str(model.width), "-" if model.depth is None else str(model.depth))
            energy = "-" if s.joules is None else f"{s.joules:.3g} J"
            rows.append((*shape, f"{s.accuracy:.1%}", f"{s.latency_ms:.3g} ms", f"{s.bytes:,}", energy))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return tuple("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def hypervolume(points: NDArray[np.float64], reference: Sequence[float]) -> float:
    """Share of the box from 0 to the reference that is worse than some point in every objective, exact.

    By slices along the last objective (HSO, While et al. 2006), each a hypervolume of one objective less.

    Args:
        points: float64 `[N, M]`, >= 0, to be minimised; those beyond the reference count for nothing.
        reference: M numbers > 0.

    Raises:
        DataError: numbers of another shape or sign.
    """
    scale = np.asarray(reference, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != scale.shape or not (scale > 0).all() or not (points >= 0).all():
        raise DataError(
            f"hypervolume needs points [N, M] >= 0 and M numbers > 0 as reference, got {points.shape} and {reference}"
        )
    return _dominated(points[(points < scale).all(axis=1)] / scale)


def crowded_order(points: NDArray[np.float64]) -> list[int]:
    """Rows of float64 `[N, M]`, minimised, from best to worst.

    By the number of fronts to take off before, then by crowding distance (Deb et al. 2002, sections III-A and B).
    """
    left, order = np.arange(len(points)), list[int]()
    while len(left):
        good = _undominated(points[left])
        front, left = left[good], left[~good]
        distance = np.zeros(len(front))
        for values in points[front].T:
            at = values.argsort(kind="stable")
            distance[at[[0, -1]]] = np.inf
            distance[at[1:-1]] += (values[at[2:]] - values[at[:-2]]) / ((values[at[-1]] - values[at[0]]) or 1.0)
        order += front[(-distance).argsort(kind="stable")].tolist()
    return order


def draw(front: Front) -> str:
    """The accuracy proxy over the latency of all candidates, `best` numbered and a disc as large as its bytes, as SVG.

    Its colours are variables of the page (`--line`, `--muted`, `--grid`), as those of `synthkd.figures` are.
    """
    best, scores = front.best, [c.scores for c in front.candidates]
    fast, slow = (math.log(at(s.latency_ms for s in scores)) + pad for at, pad in ((min, -0.1), (max, 0.1)))
    low, high = max(0.0, min(s.accuracy for s in scores) - 0.02), min(1.0, max(s.accuracy for s in scores) + 0.02)
    largest = max(s.bytes for s in scores)

    def place(milliseconds: float, share: float) -> tuple[float, float]:
        across, up = (math.log(milliseconds) - fast) / (slow - fast), (share - low) / (high - low)
        return 52.0 + 318.0 * across, 222.0 - 210.0 * up

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "var(--muted)") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    parts = ['<svg viewBox="0 0 390 262" role="img" aria-label="accuracy proxy over latency" font-size="11">']
    for share in np.linspace(low, high, 4):
        y = place(math.exp(fast), share)[1]
        parts.append(f'<line x1="52" x2="370" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(text(46, y + 4, f"{share:.0%}", "end"))
    for milliseconds in np.geomspace(math.exp(fast), math.exp(slow), 4):
        parts.append(text(place(milliseconds, low)[0], 240, f"{milliseconds:.2g}"))
    parts.append(text(211, 257, "ms for an image"))
    for one in sorted(front.candidates, key=lambda c: c in best):
        (x, y), colour = place(one.scores.latency_ms, one.scores.accuracy), "line" if one in best else "muted"
        disc = f'cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 6.0 * math.sqrt(one.scores.bytes / largest):.1f}"'
        parts.append(f'<circle {disc} fill="var(--{colour})" fill-opacity="0.35" stroke="var(--{colour})"/>')
    for number, one in enumerate(best, 1):
        x, y = place(one.scores.latency_ms, one.scores.accuracy)
        parts.append(text(x, y + 4, str(number), colour="currentColor"))
    return "".join([*parts, "</svg>"])


def _undominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows no other row is better than in one place and not worse in all, bool `[N]`."""
    worse = [bool(((points <= p).all(axis=1) & (points < p).any(axis=1)).any()) for p in points]
    return ~np.array(worse, dtype=np.bool_)


def _dominated(points: NDArray[np.float64]) -> float:
    """Volume of what some point of the unit cube dominates in it."""
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return 1.0 - float(points.min())
    rows = points[points[:, -1].argsort()]
    edges = np.append(rows[:, -1], 1.0)
    return sum(float(edges[i + 1] - edges[i]) * _dominated(rows[: i + 1, :-1]) for i in range(len(rows)))


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
    made = {"space": asdict(space), "objectives": list(objectives), "seed": seed, "population": population}
    return _run(space, evaluate, Path(directory) / "search.db", made, candidates)


def random_search(
    space: Space,
    evaluate: Evaluate,
    directory: Path | str,
    seed: int,
    candidates: int,
    objectives: Sequence[Goal] = GOALS,
) -> Front:
    """The same with genes drawn uniformly, for comparison; in `random.db`. For arguments and errors see `search`."""
    made = {"space": asdict(space), "objectives": list(objectives), "seed": seed, "population": None}
    return _run(space, evaluate, Path(directory) / "random.db", made, candidates)


def proxy_evaluator(
    source: BatchSource,
    held_out: Tensor,
    teacher_logits: Tensor,
    builder: Callable[[ZooModel], Classifier],
    steps: int,
    seed: int,
    accelerator: Accelerator,
    settings: DistillSettings | None = None,
    threads: int = 1,
) -> Evaluate:
    """Scores of a candidate that is trained for some steps; all start from the same seed and see the same batches.

    The proxy of its accuracy is its agreement with the teacher on held-out synthetic images, which orders candidates
    and is no accuracy of a finished student; one whose training diverges agrees on nothing.

    Args:
        source: batches of stored images with teacher logits.
        held_out: uint8 or float images `[N, C, H, W]` that the source does not hold.
        teacher_logits: the teacher's logits `[N, K]` of those.
        builder: makes the untrained student.
        steps: of the training.
        seed: of weights and dropout.
        accelerator: device and precision, for the candidates alone.
        settings: loss and optimiser; None: the defaults.
        threads: of torch while latency and energy of one image are measured.
    """
    settings, expected = settings or DistillSettings(), teacher_logits.argmax(dim=1).cpu()

    def evaluate(candidate: ZooModel) -> Scores:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "candidate"))
            model = builder(candidate)
            # before it is prepared for training, which may change its precision
            spent = cost(model, accelerator.device, threads=threads, energy_seconds=0.5)
            learner = Learner("candidate", model, settings.optimizer, steps, accelerator)
            step = DistillStep(learner, source, settings, accelerator)
            try:
                for number in range(steps):
                    step(number)
                with evaluating(model):
                    agreed = accuracy(predict(model, held_out, accelerator.device), expected).value
            except TrainingError:
                agreed = 0.0
        accelerator.free_memory()  # it would keep every candidate
        return Scores(agreed, spent.latency.median_ms, spent.bytes, spent.energy.joules)

    return evaluate


def _run(space: Space, evaluate: Evaluate, path: Path, made: Mapping[str, Any], candidates: int) -> Front:
    objectives: tuple[Goal, ...] = tuple(made["objectives"])
    if candidates < 1:
        raise ConfigError(f"search: candidates must be at least 1, got {candidates}")
    try:
        optuna = import_module("optuna")
    except ImportError as error:
        raise MissingExtraError("optuna", "search", "the search of a student") from error
    state, place = optuna.trial.TrialState, optuna.distributions.FloatDistribution(0.0, 1.0)
    genes = {"arch": optuna.distributions.CategoricalDistribution(space.archs), "depth": place, "width": place}
    given = dict(enumerate(() if made["population"] is None else space.ends()))
    with _study(optuna, path, made) as study:
        # What was being scored when a process died is not counted, and so is the next to be proposed.
        for trial in study.get_trials(states=[state.RUNNING]):
            study.tell(trial.number, state=state.FAIL)
        told = study.get_trials(states=[state.COMPLETE, state.PRUNED])
        scored = {space.decode(t.params): Scores(**t.user_attrs["scores"]) for t in told if t.state == state.COMPLETE}
        again = next((i for i, t in enumerate(reversed(told)) if t.state == state.COMPLETE), len(told))
        proposed = len(told)
        while len(scored) < min(candidates, len(space)):
            if again and again % PATIENCE == 0:
                rng = numpy_stream(made["seed"], "one without scores", proposed)
                given[proposed] = space.draw(rng, scored)
            seed = derive(made["seed"], "proposal", proposed) % 2**32
            study.sampler = _sampler(optuna, made["population"], seed, given.get(proposed))
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
    return Front(found, objectives, tuple(float(value) or 1.0 for value in worst))


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
