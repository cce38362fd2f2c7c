"""What the search of a student finds against chance: the convnet teacher of fashion_mnist.py, 60 candidates each.

    python -m benchmarks.search [--seeds 3] [--candidates 60] [--root FOLDER]

Run it alone on the machine, after fashion_mnist.py. NSGA-II and random search propose students of the default
families up to the teacher's number of parameters (a quarter of it leaves 76 students, which 60 candidates nearly
exhaust); both are scored by the very same function: agreement with the teacher on held-out images of its inversion
generator after 60 training steps, latency of one image on one thread, bytes of the weights. The hypervolume is the
share of the box, up to the worst of all candidates of both searches of a seed, that some candidate beats. Searches
live in benchmarks/runs/search and go on where they stopped, scored candidates are not scored again; a student that
both propose is scored once. Written to benchmarks/results/search.json.

    python -m benchmarks.search --picture RUN

draws the candidates of a finished `synthkd compress` with a search to docs/images, and measures nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd import load
from synthkd.compression.pareto import Scores
from synthkd.compression.proxy import Evaluate
from synthkd.compression.search import search
from synthkd.compression.space import space_of
from synthkd.models import parameters
from synthkd.pipelines.config import CompressConfig, DistillConfig
from synthkd.pipelines.handover.search import Choice, choose_student, make_proxy
from synthkd.settings import POPULATION, SearchSettings, ZooModel
from synthkd.settings.load import load_config

RUNS = common.RUNS / "search"
COLUMNS = "seed | hypervolume, NSGA-II | hypervolume, random | candidates on the front | best agreement, %"
PAIR = pairs.PAIRS["convnet"]


def compare(seed: int, candidates: int, teacher: Path) -> Row:
    """Both searches of a seed, or what is left of them."""
    source = {**PAIR.recipe, "teacher": {"kind": "load", "model": str(teacher)}, "student": PAIR.student, "threads": 1}
    config = load_config(DistillConfig, source | {"seed": seed}, [])
    model = load(teacher).eval()
    settings = SearchSettings(candidates=candidates, max_parameters=parameters(model))
    space = space_of(settings, model.spec)
    scores: dict[str, Scores] = {}
    proxy: list[Evaluate] = []

    def evaluate(student: ZooModel) -> Scores:
        """The scores of a student; the generator of the proxy is trained for the first one only."""
        key = student.model_dump_json()
        if key not in scores:
            if not proxy:
                proxy.append(make_proxy(config, settings, model, seed))
            scores[key] = proxy[0](student)
        return scores[key]

    began, place = time.perf_counter(), RUNS / f"seed{seed}"
    fronts = [search(space, evaluate, place, seed, candidates, population=size) for size in (POPULATION, None)]
    seconds = time.perf_counter() - began
    worst = tuple(np.max(np.concatenate([front.points for front in fronts]), axis=0).tolist())
    nsga2, chance = (replace(front, reference=worst) for front in fronts)
    return {
        "seed": seed,
        "candidates": [len(front.candidates) for front in fronts],
        "students": len(space),
        "hypervolume": {"nsga2": nsga2.hypervolume, "random": chance.hypervolume},
        "front": {"nsga2": len(nsga2.best), "random": len(chance.best)},
        "best": {"nsga2": nsga2.best[0].scores.accuracy, "random": chance.best[0].scores.accuracy},
        "reference": worst,
        "seconds_now": round(seconds, 1),
    }


def tables(content: Row) -> str:
    """A row for each seed."""
    rows = []
    for row in content["rows"]:
        volume, front, best = row["hypervolume"], row["front"], row["best"]
        rows.append(
            [
                str(row["seed"]),
                f"{volume['nsga2']:.4f}",
                f"{volume['random']:.4f}",
                f"{front['nsga2']} and {front['random']}",
                f"{100 * best['nsga2']:.1f} and {100 * best['random']:.1f}",
            ]
        )
    return common.table(COLUMNS, rows)


def choice_of(run: Path) -> Choice:
    """The search of a finished run; each of its candidates has scores, so none is scored again."""
    settings = load_config(CompressConfig, run / "config.yaml", []).search
    assert settings is not None, f"{run} had no search"
    config = load_config(DistillConfig, run / "distill" / "config.yaml", [])
    return choose_student(config, settings, load(run / "teach"), run / "search")


def picture(choice: Choice, path: Path) -> None:
    """Draw agreement over latency: all candidates, those that no other beats, and the chosen one."""
    best = sorted((one.scores for one in choice.front.best), key=lambda scores: scores.latency_ms)
    others = [one.scores for one in choice.front.candidates if one not in choice.front.best]
    chosen = next(one for one in choice.front.best if one.model == choice.model)
    with common.figure(path) as axes:
        for scores, style in ((others, "o"), (best, "o-")):
            percents = [100 * one.accuracy for one in scores]
            label = "on the front" if scores is best else "another is as good in both, and better in one"
            axes.plot([one.latency_ms for one in scores], percents, style, label=label, alpha=0.8)
        x, y = chosen.scores.latency_ms, 100 * chosen.scores.accuracy
        model = chosen.model
        name = ", ".join([model.arch, f"width {model.width}", *([f"depth {model.depth}"] if model.depth else [])])
        axes.plot([x], [y], "o", markersize=14, fillstyle="none", color="black", label=f"chosen: {name}")
        axes.set_xscale("log")
        for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatter("{x:g}")  # and not powers of ten
        axes.set_xlabel("measured latency of one image, ms, one thread")
        axes.set_ylabel("agreement with the teacher, %")


def main(argv: Sequence[str] | None = None) -> None:
    """Search, print the table and write it."""
    parser = common.options("search", __doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--picture", type=Path, metavar="RUN")
    pairs.add_root(parser)
    arguments = parser.parse_args(argv)
    if arguments.picture is not None:
        choice = choice_of(arguments.picture)
        picture(choice, common.IMAGES / f"{arguments.picture.name}.png")
        return
    pairs.DATA["root"] = arguments.root
    torch.set_num_threads(1)
    teacher = pairs.teacher_of("convnet")
    rows = [compare(seed, arguments.candidates, teacher) for seed in range(arguments.seeds)]
    content: Row = {
        "rows": rows,
        "median_gain": statistics.median(row["hypervolume"]["nsga2"] - row["hypervolume"]["random"] for row in rows),
    }
    print(tables(content))
    common.save("search", content | common.environment("torch", "optuna", "numpy"))


if __name__ == "__main__":
    main()
