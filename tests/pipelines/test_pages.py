"""A finished run whose pages are gone has them written again, each job the pages of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import text_of

from synthkd.data.read.real import load_splits
from synthkd.pipelines import audit, compress, distill, evaluate, generate, teach
from synthkd.pipelines.config import (
    AuditConfig,
    CompressConfig,
    DistillConfig,
    EvaluateConfig,
    GenerateConfig,
    TeachConfig,
)
from synthkd.pipelines.run.result import Result
from synthkd.reports.report import has_report, write_report
from synthkd.settings import DigitsData
from synthkd.settings.load import load_config

DIGITS = {"kind": "digits"}
GENERATOR = {"batch_size": 20, "width": 4, "latent": 8}
DISTILLATION: dict[str, Any] = {
    "transfer_set": {"generator": GENERATOR},
    "phases": [{"kind": "joint", "steps": 8, "every": 2}],
    "distill": {"batch_size": 16},
}
STUDENT: dict[str, Any] = {"student": {"arch": "convnet", "width": 4}, "device": "cpu"}
TITLES = {
    "teach": "The teacher reaches",
    "distill": "The student agrees with its teacher on",
    "generate": "20 synthetic images of 10 classes",
    "evaluate": "1 generated set against 60 real images",
    "audit": "Every touch of private images Not known: finished models were given",
    "compress": "The student has",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Result[Any]]]:
    """Each job as a command that can be given again."""
    folder = tmp_path_factory.mktemp("runs")
    train = load_splits(DigitsData(kind="digits")).train
    for number in range(2):
        rows = slice(60 * number, 60 * number + 60)
        np.savez(folder / f"{number}.npz", images=train.images[rows].numpy(), labels=train.labels[rows].numpy())
    sets = [str(folder / f"{number}.npz") for number in range(2)]
    teacher = {"kind": "load", "model": str(folder / "teach")}
    model, training = {"arch": "convnet"}, {"steps": 30, "batch_size": 32}
    small = {"subsets": 2, "subset_size": 20, "splits": 2, "cache": None, "device": "cpu"}
    jobs: dict[str, tuple[Callable[..., Any], type, dict[str, Any]]] = {
        "teach": (
            teach,
            TeachConfig,
            {"data": DIGITS, "model": model, "training": training, "device": "cpu"},
        ),
        "distill": (distill, DistillConfig, {**STUDENT, **DISTILLATION, "teacher": teacher}),
        "generate": (
            generate,
            GenerateConfig,
            {"generator": GENERATOR, "teacher": teacher, "rounds": 2, "per_class": 2, "device": "cpu"},
        ),
        "evaluate": (evaluate, EvaluateConfig, {**small, "generated": sets[:1], "real": sets[1], "teacher": teacher}),
        "audit": (
            audit,
            AuditConfig,
            {"teacher": teacher, "members": sets[0], "nonmembers": sets[1], "device": "cpu"},
        ),
        "compress": (
            compress,
            CompressConfig,
            {**STUDENT, "distillation": DISTILLATION, "teacher": teacher, "export": {"formats": []}},
        ),
    }

    def command(name: str) -> Callable[[], Result[Any]]:
        job, kind, source = jobs[name]
        return lambda: job(load_config(kind, source, [f"out={folder / name}"]))

    commands = {name: command(name) for name in jobs}
    for run in commands.values():
        run()
    return commands


@pytest.mark.parametrize("job", TITLES)
def test_a_page_that_is_gone_is_written_again_by_the_same_command(
    runs: dict[str, Callable[[], Result[Any]]], job: str
) -> None:
    directory: Path = runs[job]().directory
    pages = [directory / "report.html"]
    pages += [directory / "privacy_report.html"] if job in ("audit", "compress") else []
    before = [page.read_bytes() for page in pages]
    assert TITLES[job] in text_of(pages[0])
    for page in pages:
        page.unlink()
        assert not has_report(directory, job)
        runs[job]()
        assert [one.read_bytes() for one in pages] == before
        assert has_report(directory, job)


@pytest.mark.parametrize("job", TITLES)
def test_the_pages_follow_from_the_directory_alone(runs: dict[str, Callable[[], Result[Any]]], job: str) -> None:
    page = runs[job]().directory / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert write_report(page.parent) == page
    assert page.read_bytes() == before
