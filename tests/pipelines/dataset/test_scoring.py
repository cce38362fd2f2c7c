"""Scores while `synthkd generate` trains a generator: in log, result and report, and in no byte of the dataset."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.generators.inversion import Inversion
from synthkd.generators.settings import InversionSettings
from synthkd.models import Classifier, build
from synthkd.pipelines import generate, teach
from synthkd.pipelines.config import GenerateConfig, TeachConfig
from synthkd.pipelines.dataset.scoring import CHUNK, sample_for_scores, score_action
from synthkd.pipelines.run.result import Result
from synthkd.pipelines.scores.running import RunningScores, build_scores
from synthkd.reports.results import GenerateResult
from synthkd.rng import Rows
from synthkd.settings import ScoreSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.training.monitor import Row, read_rows, series
from synthkd.types import ImageSpec, Round

INVERSION = {"generator": {"width": 8, "latent": 32}, "rounds": 5}
CGAN = {
    "generator": {"kind": "cgan", "width": 8, "latent": 8, "steps": 1, "batch_size": 40},
    "data": {"kind": "digits"},
    "rounds": 3,
}
MERF = {
    "generator": {"kind": "merf", "width": 8, "latent": 8, "epsilon": 1.0},
    "data": {"kind": "digits"},
    "rounds": 2,
}
SCORE = {"every": 2, "images": 60, "real": {"kind": "digits"}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits teacher, trained for a second."""
    out = tmp_path_factory.mktemp("taught") / "run"
    training = {"steps": 40, "batch_size": 64}
    model = {"arch": "convnet", "width": 8}
    recipe = {"data": {"kind": "digits"}, "model": model, "training": training, "device": "cpu"}
    assert isinstance(teach(load_config(TeachConfig, recipe, [f"out={out}"])), Result)
    return out


def made(taught: Path, out: Path, **changes: Any) -> Result[GenerateResult]:
    recipe = {"teacher": {"kind": "load", "model": str(taught)}, "per_class": 4, "device": "cpu", **changes}
    result = generate(load_config(GenerateConfig, recipe, [f"out={out}"]))
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def run(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Result[GenerateResult]:
    return made(taught, tmp_path_factory.mktemp("scored") / "run", **INVERSION, score=SCORE)


def files(run: Path) -> dict[str, bytes]:
    top = run / "dataset"
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def scores_of(run: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and scores of each measurement, without the seconds."""

    def scores(row: Row) -> dict[str, float]:
        return {name: row[name] for name in row if name.startswith("score/") and name != "score/seconds"}

    return [(row["step"], scores(row)) for row in read_rows(run / "metrics.jsonl") if scores(row)]


def test_scores_are_logged_every_few_rounds_and_after_the_last(run: Result[GenerateResult]) -> None:
    rows = read_rows(run.directory / "metrics.jsonl")
    for name in ("FD-teacher", "precision-teacher", "IS-teacher", "label_fidelity", "batch_norm_distance", "seconds"):
        assert series(rows, f"score/{name}")[0] == [2, 4, 5]


def test_the_result_and_the_summary_have_the_last_scores(run: Result[GenerateResult]) -> None:
    scores, (step, last) = run.content.scores, scores_of(run.directory)[-1]
    assert scores is not None
    assert step == 5
    assert {f"score/{name}": value for name, value in scores.last.items()} == last
    assert (scores.measured, scores.features, scores.reference, scores.reference_n) == (3, "teacher", "digits", 60)
    assert run.values["scores"]["last"]["FD-teacher"] == last["score/FD-teacher"]
    assert "evaluate" in run.content.cost.seconds
    (line,) = [line for line in str(run).splitlines() if line.startswith("scores:")]
    assert f"FD-teacher {last['score/FD-teacher']:.4g}" in line
    assert "label fidelity" in line
    assert line.endswith("against 60 images of digits")


def test_the_report_draws_the_scores_beside_the_losses(run: Result[GenerateResult]) -> None:
    page = (run.directory / "report.html").read_text()
    assert page.index("<h3>Scores of the generated images</h3>") < page.index("<h3>Generator</h3>")
    assert "FD-teacher" in page
    assert "Of images that were sampled for the scores alone" in page
    assert "memory bank" not in page
    assert "Scores while it ran" in page


@pytest.mark.parametrize("changes", [INVERSION, CGAN], ids=["inversion", "cgan"])
def test_scores_change_no_byte_of_the_dataset(taught: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = made(taught, tmp_path / "plain", **changes, log_every=1)
    made(taught, tmp_path / "scored", **changes, score={"every": 1, "images": 30})
    assert files(tmp_path / "plain") == files(tmp_path / "scored")
    assert plain.content.scores is None
    assert "scores" not in plain.values
    page = (tmp_path / "plain" / "report.html").read_text()
    assert "<h3>Generator</h3>" in page
    assert "Scores of the generated images" not in page


def test_a_resumed_run_has_the_scores_of_an_unbroken_one(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**INVERSION, "score": {**SCORE, "every": 1}, "checkpoint_every": 2}
    made(taught, tmp_path / "whole", **changes)
    whole = Inversion.round

    def cut_off(self: Inversion, index: int, *rest: Any) -> Round:
        if index == 3:
            raise KeyboardInterrupt
        return whole(self, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Inversion, "round", cut_off)
        with pytest.raises(KeyboardInterrupt):
            made(taught, tmp_path / "cut", **changes)
    assert [step for step, _ in scores_of(tmp_path / "cut")] == [1, 2, 3]
    resumed = made(taught, tmp_path / "cut", **changes)
    assert resumed.content.interrupted == 1
    assert scores_of(tmp_path / "cut") == scores_of(tmp_path / "whole")
    assert [step for step, _ in scores_of(tmp_path / "cut")] == [1, 2, 3, 4, 5]


def test_a_private_generator_is_not_compared_with_its_images(taught: Path, tmp_path: Path) -> None:
    scores = made(taught, tmp_path / "run", **MERF, score={"every": 1, "images": 30}).content.scores
    assert scores is not None
    assert scores.reference is None
    needs_none = {"IS-teacher", "label_fidelity", "batch_norm_distance", "similarity_within_class"}
    assert set(scores.last) == needs_none


def test_real_images_of_the_run_are_the_reference_without_others(taught: Path, tmp_path: Path) -> None:
    scores = made(taught, tmp_path / "run", **CGAN, score={"every": 3, "images": 30}).content.scores
    assert scores is not None
    assert (scores.reference, scores.reference_n) == ("digits", 30)


@pytest.mark.parametrize("changes", [{"generator": {"kind": "pixels"}}, {"run": "somewhere"}])
def test_scores_without_a_training_are_refused_in_a_line(taught: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match="score follows a generator while it is trained, and with rounds 0 none is: "
    ) as caught:
        made(taught, tmp_path / "run", **changes, score=SCORE)
    assert "\n" not in str(caught.value)


def test_real_images_of_another_size_are_refused_before_the_teacher_is_trained(tmp_path: Path) -> None:
    learns = {"kind": "train", "data": {"kind": "digits", "per_class": 4}, "model": {"arch": "convnet", "width": 4}}
    recipe = {"teacher": learns, "per_class": 4, "device": "cpu", **INVERSION}
    large = tmp_path / "large.npz"
    np.savez(large, images=np.zeros((60, 1, 12, 12), np.uint8), labels=np.arange(60) % 10)
    score = {"real": {"kind": "npz", "path": str(large)}}
    with pytest.raises(ConfigError, match=r"score\.real: large\.npz has 1x12x12 images"):
        generate(load_config(GenerateConfig, {**recipe, "score": score}, [f"out={tmp_path / 'run'}"]))
    assert not (tmp_path / "run" / "teach").exists()


# The images of the scores


class Drawing:
    """A generator that also draws from torch's global generator, and notes the random rows that it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, int, int]] = []

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        self.rows.append((rng.purpose, rng.start, len(labels)))
        torch.rand(7)
        return rng.uniform(len(labels), 64).reshape(-1, 1, 8, 8)


def scores_by(count: int) -> RunningScores:
    torch.manual_seed(0)
    teacher: Classifier = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10)).eval()
    settings = ScoreSettings(every=3, images=count)
    return build_scores(settings, teacher, InversionSettings(), None, torch.device("cpu"), seed=0)


def test_the_images_are_balanced_and_follow_from_seed_and_step() -> None:
    scores, generator = scores_by(CHUNK + 12), Drawing()
    images, labels = sample_for_scores(generator, scores, 0.3, 0, 4)
    assert generator.rows == [("score/4", 0, CHUNK), ("score/4", CHUNK, 12)]
    assert labels.bincount().tolist() == [14] * 10
    assert images.flatten(1).unique(dim=0).shape[0] == CHUNK + 12
    again, other, seeded = (
        sample_for_scores(generator, scores, 0.3, seed, step)[0] for seed, step in [(0, 4), (0, 5), (1, 4)]
    )
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    assert not torch.equal(images, seeded)


def test_a_measurement_leaves_the_random_numbers_of_the_run_alone() -> None:
    action = score_action(scores_by(20), Drawing(), 0.3, seed=0)
    assert (action.every, action.after) == (3, True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert action.run(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seconds_of_a_measurement_have_those_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Drawing):
        def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
            clock[0] += 100.0
            return super().sample(labels, difficulty, rng)

    scores = scores_by(20)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert score_action(scores, Slow(), 0.3, seed=0).run(2)["score/seconds"] == 100.0
