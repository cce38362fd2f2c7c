"""Runs without test data: what they estimate, and when they say nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.metrics.untested import BY_FOUR, BY_LEARNED, LEAST_STEPS, Range
from synthkd.models import build, save
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.student.seeds import DistilledSeeds
from synthkd.pipelines.student.untested import advice_of, estimate_result
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.training.monitor import Monitor
from synthkd.types import ImageSpec

DIGITS = {"kind": "digits"}
SOURCE: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "transfer_set": {"generator": {"kind": "inversion", "width": 4, "latent": 8, "batch_size": 16}},
    "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "joint", "steps": LEAST_STEPS, "every": 20}],
    "distill": {"batch_size": 16},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "model"
    save(build(ZooModel(arch="convnet", width=6), ImageSpec(1, 8, 8, 10)), path)
    return {"kind": "load", "model": str(path)}


def result_of(out: Path, teacher: dict[str, Any], **changes: Any) -> Any:
    return distill(load_config(DistillConfig, {**SOURCE, "teacher": teacher, **changes, "out": str(out)}, [])).content


def test_a_run_without_test_data_estimates_its_student(tmp_path: Path, teacher: dict[str, Any]) -> None:
    slow = {"batch_size": 16, "optimizer": {"kind": "sgd", "lr": 1e-3}}  # a student whose interval has two ends
    result = result_of(tmp_path / "run", teacher, teacher_accuracy=0.8, distill=slow)
    estimate = result.estimate
    low, high = estimate.agreement_interval
    assert 0 < low < estimate.agreement < high < 1
    assert (estimate.runs, estimate.covered) == (BY_FOUR.runs, BY_FOUR.covered_accuracy)
    assert estimate.teacher_accuracy == 0.8
    assert estimate.accuracy == pytest.approx(min(0.8, 0.9 * estimate.agreement))
    assert result.student.accuracy is None


def test_each_generator_of_the_teacher_alone_has_its_rule(tmp_path: Path, teacher: dict[str, Any]) -> None:
    generator = {"kind": "noisy_label", "width": 4, "noise": 8, "batch_size": 20, "steps": 2, "life": 2}
    estimate = result_of(tmp_path / "run", teacher, transfer_set={"generator": generator}).estimate
    assert (estimate.runs, estimate.covered) == (BY_LEARNED.runs, BY_LEARNED.covered)
    assert estimate.agreement_interval[0] < estimate.agreement


def test_several_seeds_tell_agreement_and_estimate(tmp_path: Path, teacher: dict[str, Any]) -> None:
    out = tmp_path / "run"
    several = distill(load_config(DistillConfig, {**SOURCE, "teacher": teacher, "seeds": 2, "out": str(out)}, []))
    assert isinstance(several, DistilledSeeds)
    runs = [run.content for run in several.runs]
    mean = sum(run.estimate.agreement for run in runs) / 2
    low = min(run.estimate.agreement_interval[0] for run in runs)
    high = max(run.estimate.agreement_interval[1] for run in runs)
    what = "agreement with its teacher on real images"
    told = f"{what} without test data, mean of 2 seeds about {mean:.0%} (their intervals: {low:.0%} to {high:.0%})"
    assert told in str(several)
    agreement = 100 * runs[1].student.agreement
    assert f" no real test data, agreement {agreement:.1f}%, in {out / 'seed-1'}" in str(several)
    assert several.content.estimate.mean == pytest.approx(mean)
    page = (out / "report.html").read_text()
    assert f"Estimated {what} without test data" in page
    assert "intervals of the seeds" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"test": DIGITS},
        {"transfer_set": {"generator": {"kind": "procedural"}}},
        {"phases": [{"kind": "joint", "steps": LEAST_STEPS - 1, "every": 20}]},
        {
            "transfer_set": [
                SOURCE["transfer_set"] | {"kind": "generated"},
                {"kind": "real", "data": DIGITS, "share": 0.5},
            ]
        },
    ],
    ids=["test data", "drawn images", "few steps", "real images"],
)
def test_nothing_is_estimated_where_nothing_was_measured(
    tmp_path: Path, teacher: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert result_of(tmp_path / "run", teacher, **changes).estimate is None


def test_without_the_accuracy_of_the_teacher_the_agreement_stays_one() -> None:
    assert estimate_result(None, 0.9) is None
    estimate = estimate_result((Range(0.7, 0.5, 0.8), BY_FOUR), None)
    assert estimate is not None
    assert (estimate.agreement, estimate.agreement_interval, estimate.accuracy) == (0.7, (0.5, 0.8), None)


def advised(directory: Path, agreements: list[float], difficulty: float, **changes: Any) -> tuple[str, ...]:
    """The advice after rounds with these agreements, every 24 steps of the student."""
    directory.mkdir()
    monitor = Monitor(directory)
    for number, agreement in enumerate(agreements):
        monitor.log(500 + 24 * number, {"fresh/agreement": agreement, "difficulty": difficulty})
    phases = [{"kind": "pregenerate", "rounds": 500}, SOURCE["phases"][1]]
    source = {**SOURCE, "teacher": {"kind": "load", "model": "t"}, "phases": phases, **changes}
    return advice_of(load_config(DistillConfig, source, []), monitor)


def test_advice_goes_by_the_log(tmp_path: Path) -> None:
    rising = [0.1, *(1 - 2.0 * (24.0 * number) ** -0.3 for number in range(1, 50))]
    flat = [0.75] * 50
    (risen,) = advised(tmp_path / "rising", rising, 0.3)
    assert "still rising" in risen
    gain = 2.0 * (24.0 * 49) ** -0.3 * (1 - 3**-0.3)
    assert f"about {round(100 * gain)} points" in risen, "rounds before the student are no steps of it"
    alone = {"kind": "pregenerate", "rounds": 500}
    later = [alone, {"kind": "joint", "steps": 2000}, alone | {"rounds": 300}]
    assert advised(tmp_path / "later", rising, 0.3, phases=later) == (risen,), (
        "nor are later ones, which are still ahead"
    )
    small, floor = advised(tmp_path / "floor", flat, 0.1)
    assert "the student has stopped rising, at an agreement of 0.75 on new images" in small
    assert "to let it rise, lower transfer_set.difficulty.raise_above" in floor
    _, of_list = advised(tmp_path / "list", flat, 0.1, transfer_set=[SOURCE["transfer_set"]])
    assert "to let it rise, lower transfer_set.0.difficulty.raise_above" in of_list
    assert advised(tmp_path / "flat", flat, 0.3) == (small,)
    assert advised(tmp_path / "good", [0.95] * 50, 0.3) == ()
    drawn = {"transfer_set": {"generator": {"kind": "procedural"}}}
    assert advised(tmp_path / "drawn", flat, 0.1, **drawn) == (small,), "drawn images have no difficulty"
    noisy = {"transfer_set": {"generator": {"kind": "noisy_label"}}}
    fixed = {"transfer_set": {"difficulty": {"start": 0.1, "low": 0.1, "high": 0.1}}}
    assert advised(tmp_path / "fixed", flat, 0.1, **fixed) == (small,), "it cannot rise"
    assert advised(tmp_path / "noisy", flat, 0.1, **noisy) == (small,), "its weights are meant for the floor"
    real = {"transfer_set": {"kind": "real", "data": DIGITS}, "phases": [{"kind": "refine", "steps": 4}]}
    assert advised(tmp_path / "real", rising, 0.1, **real) == ()
