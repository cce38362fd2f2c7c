"""What the search of a student finds against chance: the convnet teacher of fashion_mnist.py, 60 candidates each.

    python benchmarks/search.py [--seeds 3] [--candidates 60] [--root FOLDER]

Run it alone on the machine, after fashion_mnist.py. NSGA-II and random search propose students of the default
families up to the teacher's number of parameters (a quarter of it leaves 76 students, which 60 candidates nearly
exhaust); both are scored by the very same function: agreement with the teacher on held-out images of its inversion
generator after 60 training steps, latency of one image on one thread, bytes of the weights. The hypervolume is the
share of the box, up to the worst of all candidates of both searches of a seed, that some candidate beats. Searches
live in benchmarks/runs/search and go on where they stopped, scored candidates are not scored again; a student that
both propose is scored once. Written to benchmarks/results/search.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd import load
from synthkd.compression.pareto import Scores
from synthkd.compression.proxy import Evaluate
from synthkd.compression.search import random_search, search, space_of
from synthkd.models import parameters
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.handover.search import make_proxy
from synthkd.settings import SearchSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe

RUNS, RESULTS = HERE / "runs" / "search", HERE / "results" / "search.json"
PAIR = fashion_mnist.PAIRS["convnet"]


def compare(seed: int, candidates: int, teacher: Path) -> dict[str, Any]:
    """Both searches of a seed, or what is left of them."""
    source = {**PAIR.recipe, "teacher": {"kind": "load", "model": str(teacher)}, "student": PAIR.student, "threads": 1}
    config = load_config(DistillConfig, source | {"seed": seed}, [])
    model = load(teacher).eval()
    settings = SearchSettings(candidates=candidates, max_parameters=parameters(model))
    space = space_of(settings, model.spec)
    known: dict[str, Scores] = {}
    proxy: list[Evaluate] = []

    def evaluate(student: ZooModel) -> Scores:
        key = student.model_dump_json()
        if key not in known:
            if not proxy:
                proxy.append(make_proxy(config, settings, model, seed))
            known[key] = proxy[0](student)
        return known[key]

    began, place = time.perf_counter(), RUNS / f"seed{seed}"
    fronts = [find(space, evaluate, place, seed, candidates) for find in (search, random_search)]
    seconds = time.perf_counter() - began
    worst = tuple(np.max(np.concatenate([front.points for front in fronts]), axis=0).tolist())
    found, chance = (replace(front, reference=worst) for front in fronts)
    return {
        "seed": seed,
        "candidates": [len(front.candidates) for front in fronts],
        "students": len(space),
        "hypervolume": {"nsga2": found.hypervolume, "random": chance.hypervolume},
        "front": {"nsga2": len(found.best), "random": len(chance.best)},
        "best": {"nsga2": found.best[0].scores.accuracy, "random": chance.best[0].scores.accuracy},
        "reference": worst,
        "seconds_now": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each seed."""
    lines = [
        "| seed | hypervolume, NSGA-II | hypervolume, random | candidates on the front | best agreement, % |",
        "|" + "---|" * 5,
    ]
    for row in rows:
        volume, front, best = row["hypervolume"], row["front"], row["best"]
        lines.append(
            f"| {row['seed']} | {volume['nsga2']:.4f} | {volume['random']:.4f} "
            f"| {front['nsga2']} and {front['random']} | {100 * best['nsga2']:.1f} and {100 * best['random']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--root", default=fashion_mnist.DATA["root"], help="folder with the dataset's files")
    arguments = parser.parse_args()
    fashion_mnist.DATA["root"] = arguments.root
    torch.set_num_threads(1)
    teacher = fashion_mnist.teacher_of("convnet")
    rows = [compare(seed, arguments.candidates, teacher) for seed in range(arguments.seeds)]
    print(table(rows))
    gains = [row["hypervolume"]["nsga2"] - row["hypervolume"]["random"] for row in rows]
    content = {
        "command": "python benchmarks/search.py",
        "rows": rows,
        "median_gain": statistics.median(gains),
        "versions": {name: version(name) for name in ("torch", "optuna", "numpy")},
        "hardware": describe(torch.device("cpu")),
    }
    write_atomically(RESULTS, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
