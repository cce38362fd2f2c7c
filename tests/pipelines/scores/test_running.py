"""Scores of generated images while a run goes, and the images that it keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.data.read.real import load_splits
from synthkd.data.read.samples import open_samples
from synthkd.errors import ConfigError
from synthkd.generators.settings import InversionSettings, MerfSettings
from synthkd.metrics.features import build_extractor, extract
from synthkd.metrics.frechet import frechet_distance_from_features
from synthkd.models import Classifier
from synthkd.models.zoo import build
from synthkd.pipelines import distill, evaluate
from synthkd.pipelines.config import DistillConfig, EvaluateConfig
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.scores.running import build_scores
from synthkd.reports.results import DistillResult
from synthkd.settings import DigitsData, NpzTest, ScoreSettings, TeacherExtractor, ZooModel
from synthkd.settings.load import load_config
from synthkd.training.monitor import read_rows, series
from synthkd.types import ImageSpec

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {
    "teacher": {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 4},
        "training": {"steps": 20},
    },
    "student": {"arch": "convnet", "width": 4},
    "transfer_set": [
        {"kind": "generated", "generator": {"kind": "cgan", "width": 8, "latent": 8, "steps": 1, "batch_size": 40}},
        {"kind": "real", "data": {"kind": "digits", "per_class": 4}, "share": 0.25},
    ],
    "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "joint", "steps": 4, "every": 2}],
    "score": {"every": 2, "images": 60},
    "keep_images": 50,
    "test": {"kind": "digits"},
    "device": "cpu",
    "threads": 1,
}
"""A flagship recipe made small: a conditional GAN beside a few real images."""


def teacher() -> Classifier:
    torch.manual_seed(0)
    return build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10)).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result[DistillResult]:
    out = tmp_path_factory.mktemp("flagship") / "run"
    result = distill(load_config(DistillConfig, RECIPE, [f"out={out}"]))
    assert isinstance(result, Result)
    return result


def test_scores_are_logged_beside_accuracy_and_difficulty(run: Result[DistillResult]) -> None:
    rows = read_rows(run.directory / "metrics.jsonl")
    assert series(rows, "score/FD-teacher")[0] == [2, 6], "after the last round of each phase"
    for name in ("KD-teacher", "precision-teacher", "recall-teacher", "IS-teacher", "semantic_cosine-teacher"):
        assert len(series(rows, f"score/{name}")[0]) == 2
    assert series(rows, "score/label_fidelity")[0] == series(rows, "score/seconds")[0]


def test_the_result_has_the_last_scores_and_what_they_cost(run: Result[DistillResult]) -> None:
    scores = run.content.scores
    assert scores is not None
    assert (scores.measured, scores.features) == (2, "teacher")
    rows = read_rows(run.directory / "metrics.jsonl")
    assert scores.last["FD-teacher"] == series(rows, "score/FD-teacher")[1][-1]
    assert scores.seconds == pytest.approx(sum(series(rows, "score/seconds")[1]), abs=1e-3)
    assert scores.reference_n == 60, "of the held-out digits, at most `images`"


def test_the_report_draws_the_scores_and_tells_their_cost(run: Result[DistillResult]) -> None:
    page = (run.directory / "report.html").read_text()
    assert "Scores of the generated images" in page
    assert "FD-teacher" in page
    assert "Scores while it ran" in page
    assert "seconds</h" not in page, "the time of the measurements is no score"


def test_a_finished_run_can_be_evaluated(run: Result[DistillResult], tmp_path: Path) -> None:
    kept = open_samples(run.directory)
    assert kept.count == 50
    assert kept.class_names == tuple("0123456789")
    source = {"generated": [str(run.directory)], "real": {"data": {"kind": "digits"}}, "device": "cpu"}
    judge = {"kind": "load", "model": str(run.directory / "teach")}
    result = evaluate(load_config(EvaluateConfig, source | {"teacher": judge}, [f"out={tmp_path / 'scores'}"]))
    assert isinstance(result, Result)
    names = {score.name for score in result.content.generated[0].scores if score.value is not None}
    assert {"FD-teacher", "label fidelity"} <= names


def test_the_distance_is_that_of_the_metric() -> None:
    model = teacher()
    settings = ScoreSettings(images=200, real=DigitsData(kind="digits"))
    scores = build_scores(settings, model, InversionSettings(), None, CPU, seed=0)
    images, labels = torch.rand(80, 1, 8, 8), torch.arange(80) % 10
    values = scores(images, labels)
    extractor = build_extractor(TeacherExtractor(kind="teacher"), CPU, model)
    assert scores.real is not None
    features = extract([(images * 255).round().byte()], extractor).values
    expected = frechet_distance_from_features(scores.real.features.values, features, warn=False)
    assert values["score/FD-teacher"] == pytest.approx(expected, rel=1e-4)


def test_without_real_images_only_the_scores_that_need_none() -> None:
    torch.manual_seed(0)
    scores = build_scores(ScoreSettings(), teacher(), InversionSettings(), None, CPU, seed=0)
    values = scores(torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
    assert set(values) == {
        "score/IS-teacher",
        "score/label_fidelity",
        "score/batch_norm_distance",
        "score/similarity_within_class",
        "score/seconds",
    }


def test_a_bank_of_few_images_has_the_scores_that_need_no_real_ones() -> None:
    torch.manual_seed(0)
    settings = ScoreSettings(images=40, real=DigitsData(kind="digits"))
    scores = build_scores(settings, teacher(), InversionSettings(), None, CPU, seed=0)
    assert "score/FD-teacher" not in scores(torch.rand(3, 1, 8, 8), torch.arange(3))
    assert "score/FD-teacher" in scores(torch.rand(4, 1, 8, 8), torch.arange(4))


def test_equal_images_of_a_class_have_similarity_one() -> None:
    torch.manual_seed(0)
    scores = build_scores(ScoreSettings(), teacher(), InversionSettings(), None, CPU, seed=0)
    images = torch.rand(10, 1, 8, 8).repeat(4, 1, 1, 1)
    values = scores(images, torch.arange(10).repeat(4))
    assert values["score/similarity_within_class"] == pytest.approx(1.0)


def test_score_without_a_generator_is_refused() -> None:
    real = {"kind": "real", "data": {"kind": "digits"}}
    recipe = RECIPE | {"transfer_set": real, "phases": [{"kind": "refine", "steps": 2}]}
    with pytest.raises(ConfigError, match="score: nothing is generated"):
        load_config(DistillConfig, recipe, [])


def test_images_from_which_a_generator_learns_privately_are_compared_with_nothing() -> None:
    torch.manual_seed(0)
    digits = load_splits(DigitsData(kind="digits"))
    private = MerfSettings(kind="merf", epsilon=1.0)
    assert build_scores(ScoreSettings(), teacher(), private, digits, CPU, seed=0).real is None
    seen = build_scores(ScoreSettings(images=40), teacher(), InversionSettings(), digits, CPU, seed=0).real
    assert seen is not None
    assert len(seen) == 40


@pytest.mark.parametrize(
    ("shape", "test", "message"),
    [
        ((60, 1, 12, 12), 0.5, "score.real: real.npz has 1x12x12 images, 10 classes, the teacher takes 1x8x8"),
        ((60, 1, 8, 8), 1e-3, "score.real: real.npz has no test images; leave score.real.test out for all images"),
        ((60, 1, 8, 8), 0.05, "score.real: real.npz has 3 test images; leave score.real.test out for all images"),
    ],
)
def test_real_images_that_do_not_fit_are_refused_in_a_line(
    tmp_path: Path, shape: tuple[int, ...], test: float, message: str
) -> None:
    path = tmp_path / "real.npz"
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    np.savez(path, images=images, labels=np.arange(60) % 10)
    settings = ScoreSettings(real=NpzTest(kind="npz", path=str(path), test=test))
    with pytest.raises(ConfigError) as caught:
        build_scores(settings, teacher(), InversionSettings(), None, CPU, seed=0)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
