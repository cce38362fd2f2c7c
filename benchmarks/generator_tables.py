"""The tables of generators, their scores and their mode collapse: a part of `benchmarks.generators`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import common
from benchmarks.common import Row

QUALITY = (
    "agreement, % | FD | over floor | FD of 1,000 | over floor | precision | recall | density | coverage | "
    "classes | clusters"
)
COLUMNS = f"generator | seed | steps | threads | seconds | difficulty | {QUALITY} | sampler steps | ms an image"
COLLAPSE_COLUMNS = "generator | seed | steps | measured | mean rate | missed a class | last at step | rate at the end"


def quality(score: Row, floor: Row) -> list[str]:
    """The columns of the scores."""
    covered = score["classes_judged"] - len(score["classes_missed"])
    clusters = score["clusters_judged"] - score["clusters_missed"]
    return [
        common.percent(score["agreement"], score["agreement_interval"]),
        f"{score['fd']:.3g} \N{PLUS-MINUS SIGN} {score['fd_error']:.2g}",
        f"{score['fd'] / floor['fd']:.1f}",
        f"{score['fd_few']:.3g}",
        f"{score['fd_few'] / floor['fd_few']:.1f}",
        *(f"{score[name]:.3f}" for name in ("precision", "recall", "density", "coverage")),
        f"{covered} of {score['classes_judged']}",
        f"{clusters} of {score['clusters_judged']}",
    ]


def table(cells: Sequence[Row], floor: Row) -> str:
    """One row a cell, seed and difficulty, the headline's first, under the row of real images."""
    rows = [["real", "", "", "", "", "", *quality(floor, floor), "", ""]]
    rows += [
        [
            one["cell"],
            str(one["seed"]),
            f"{one['steps']:,}",
            str(one["hardware"]["threads"]),
            f"{one['seconds']:.0f}",
            difficulty,
            *quality(score, floor),
            str(one["sampler_steps"]),
            f"{score['sampling_ms']:.2f}",
        ]
        for one in cells
        for difficulty, score in one["difficulty"].items()
    ]
    return common.table(COLUMNS, rows)


def collapse_table(cells: Sequence[Row]) -> str:
    """Mode collapse while the cGANs of the ablations trained: the share of classes that 50 samples a class miss."""
    rows = []
    for one in cells:
        steps, rates = one["collapse"]["steps"], one["collapse"]["rates"]
        if rates:
            missed = [step for step, rate in zip(steps, rates, strict=True) if rate > 0]
            rows.append(
                [
                    one["cell"],
                    str(one["seed"]),
                    f"{one['steps']:,}",
                    f"{len(rates)} times",
                    f"{statistics.mean(rates):.3f}",
                    str(len(missed)),
                    str(missed[-1]) if missed else "-",
                    f"{rates[-1]:.3f}",
                ]
            )
    return common.table(COLLAPSE_COLUMNS, rows)
