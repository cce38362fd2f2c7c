"""The dry run of an evaluation measures its works on few images, and multiplies each as it grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.models import Classifier, build, save
from synthkd.pipelines import evaluate
from synthkd.pipelines.config import EvaluateConfig
from synthkd.pipelines.run import memory as run_memory
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.scores import cost
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.training.memory import Need
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, 90 generated images and 60 real ones."""
    top = tmp_path_factory.mktemp("files")
    for number, name in enumerate(("model", "other")):
        torch.manual_seed(number)
        save(build(ZooModel(arch="convnet", width=4), SPEC, (0.5,), (0.3,)).eval(), top / name, {})
    rng = np.random.default_rng(0)
    for name, count in (("generated", 90), ("real", 60)):
        images = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        np.savez(top / f"{name}.npz", images=images, labels=np.arange(count) % 6)
    return top


def planned(**recipe: Any) -> Plan:
    plan = evaluate(load_config(EvaluateConfig, recipe | {"device": "cpu"}, []), dry_run=True)
    assert isinstance(plan, Plan)
    return plan


def scores_of(files: Path, **changes: Any) -> Plan:
    judge = {"kind": "load", "model": str(files / "model")}
    recipe = {"generated": [str(files / "generated.npz")], "real": str(files / "real.npz"), "teacher": judge}
    return planned(**(recipe | {"cache": None, "subsets": 5} | changes))


def counts(plan: Plan) -> dict[str, int]:
    assert plan.time is not None
    return {one.name: one.count for one in plan.time.timed}


def test_every_kind_of_work_is_counted(files: Path) -> None:
    plan = scores_of(files)
    assert counts(plan) == {"reading": 1, "features of teacher": 150, "scores": 1}
    assert plan.lines[-2].startswith("  time: about ")
    assert "150 features of teacher at" in plan.lines[-2]
    assert plan.lines[-1].startswith("  memory: about ")
    two = scores_of(files, features={"kind": "load", "model": str(files / "other")}, cas=True)
    assert counts(two)["features of other"] == counts(two)["features of teacher"] == 150
    assert counts(two)["steps of classifiers"] == 2 * 2000, "one for the real images, one for each set"


def test_features_in_the_cache_take_no_time(files: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    judge = {"kind": "load", "model": str(files / "model")}
    recipe = {"generated": [str(files / "generated.npz")], "real": str(files / "real.npz"), "teacher": judge}
    evaluate(load_config(EvaluateConfig, recipe | {"cache": cache, "out": str(tmp_path / "run"), "device": "cpu"}, []))
    assert "features of teacher" not in counts(scores_of(files, cache=cache))
    other = scores_of(files, cache=cache, train=str(files / "generated.npz"))
    assert "features of teacher" not in counts(other), "the same images under another key"


def test_scores_of_pairs_grow_with_the_square_of_the_images(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def works(**sets: str) -> list[float]:
        made: list[float] = []
        scores = cost._scores

        def watched(*arguments: Any) -> Any:
            for work in scores(*arguments):
                made.append(work.scale)
                yield work

        with monkeypatch.context() as patch:
            patch.setattr(cost, "_scores", watched)
            scores_of(files, **sets)
        return made

    assert works() == [1.0, 1.0], "as many as there are"
    monkeypatch.setattr(cost, "SAMPLED", 30)
    with_covariances, of_pairs = works()
    assert of_pairs == pytest.approx((150 / 60) ** 2)
    assert 1 < with_covariances < of_pairs
    learned = {"train": str(files / "generated.npz"), "holdout": str(files / "real.npz")}
    assert len(works(train=learned["train"])) == 2, "copies need both sets"
    # Of 90 generated, 90 training and 60 other images, and of 30 each: both to train, half of these again, the ratios.
    assert works(**learned)[2] == (90 * (150 + 90) + 2 * 90 * 60) / (30 * (60 + 30) + 2 * 30 * 30)


def test_growth_is_that_of_decompositions_and_then_that_of_covariances() -> None:
    assert cost._growth(500, 500, 64) == 1.0
    assert cost._growth(1000, 500, 1000) == pytest.approx(2**cost.BELOW)
    assert cost._growth(4000, 500, 64) == pytest.approx(1 + 7 / 3)
    # 1,600 images are the knee of 1,000 dimensions.
    assert cost._growth(3200, 500, 1000) == pytest.approx((1600 / 500) ** cost.BELOW * (4 / 3))


def test_the_memory_is_that_of_features_and_scores(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_memory, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 10**6)
    monkeypatch.setattr(cost, "_width", lambda _: 10_000)
    lines = scores_of(files).lines[-2:]
    pair, square = 8 * cost.COPIES * 150 * 10_000, 8 * cost.SQUARES * 10_000**2
    features = 4 * 150 * (10_000 + 6)
    total = 10**9 + features + int(run_memory.WORKSPACE * (pair + square))
    assert lines[0] == f"  memory: about {total / 1e9:.1f} GB at its peak; the machine has 1.0 MB"
    assert lines[1].endswith("make the sets smaller")
    monkeypatch.setattr(cost, "_pass_need", lambda _: Need(0, 10**12))
    assert scores_of(files).lines[-1].endswith("make features.size smaller")


def test_a_network_is_measured_on_its_images(files: Path) -> None:
    model = {"kind": "load", "model": str(files / "model")}
    plan = planned(model=model, data=str(files / "real.npz"))
    assert counts(plan) == {"reading": 1, "images": 60}
    assert plan.lines[-1].startswith("  memory: about ")
    both = planned(model=model, data=str(files / "real.npz"), against=str(files / "other"))
    assert counts(both) == {"reading": 1, "images": 60, "images of the other network": 60}


def test_a_slow_network_is_measured_on_few_images(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LIMIT", 1e-9)
    passed: list[int] = []
    forward = Classifier.forward

    def watched(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        passed.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", watched)
    monkeypatch.setattr(cost, "need_of", lambda *_: Need(0, 0))
    planned(model=str(files / "model"), data=str(files / "real.npz"))
    assert set(passed) == {cost.FEW}
