"""All scores of one set: what is measured, what is not and why."""

import logging
import math

import pytest
import torch

from synthkd.errors import DataError
from synthkd.metrics.features import Features
from synthkd.metrics.frechet import frechet_distance_from_features
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.score import Score, ScoredSet
from synthkd.metrics.suite import measure

OPTIONS = SuiteOptions(k=3, subsets=4, subset_size=20, splits=2)


def features(seed: int, n: int = 80, shift: float = 0.0, digest: str = "d") -> Features:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 6, generator=rng) + shift
    return Features(values, values[:, :3].clone(), "net", digest, "none")


def made(name: str, seed: int, n: int = 80, labels: bool = True, teacher: bool = True, shift: float = 0.0) -> ScoredSet:
    found = features(seed, n, shift)
    assert found.logits is not None
    return ScoredSet(name, found, found.logits.argmax(1) if labels else None, found if teacher else None)


def scores(*sets: ScoredSet, **more: ScoredSet) -> dict[str, Score]:
    found = measure(sets[0], sets[1], OPTIONS, **more)
    assert len({score.name for score in found.scores}) == len(found.scores)
    return {score.name: score for score in found.scores}


def test_with_everything_at_hand_every_score_is_a_finite_number() -> None:
    found = scores(made("a", 0), made("b", 1), train=made("c", 2), holdout=made("d", 3))
    assert len(found) == 16
    for score in found.values():
        assert score.value is not None, f"{score.name}: {score.note}"
        assert math.isfinite(score.value), score.name
    assert found["label fidelity"].value == 1.0
    distance = frechet_distance_from_features(features(1).values, features(0).values)
    assert found["FD-net"].value == pytest.approx(distance, rel=1e-5)
    assert all(score.uncertainty is not None or score.interval is not None for score in found.values())
    assert found["FD-net"].n == (80, 80)


def test_what_is_missing_is_said() -> None:
    found = scores(made("a", 0, labels=False, teacher=False), made("b", 1, labels=False, teacher=False))
    missing = {name for name, score in found.items() if score.value is None}
    assert {
        "FD per class-net",
        "label fidelity",
        "semantic cosine-net",
        "C_T",
        "authenticity",
        "nearer to train",
    } <= missing
    assert all(found[name].note for name in missing)


def test_the_scores_of_classes_are_warned_about_by_the_smallest_class() -> None:
    many, few = made("a", 0), made("b", 1)
    assert few.labels is not None
    assert many.labels is not None
    kept = torch.cat([(few.labels != 0).nonzero()[:, 0], (few.labels == 0).nonzero()[:3, 0]])
    one = Features(few.features.values[kept], None, "net", "d", "none")
    cut = ScoredSet("b", one, few.labels[kept])
    for pair in ((many, cut), (cut, many)):
        assert scores(*pair)["FD per class-net"].note.startswith("3 samples in 6 dimensions are few")
    assert scores(many, few)["FD-net"].note == ""


def test_a_shift_moves_the_scores_of_fidelity_the_right_way() -> None:
    near, far = scores(made("a", 0), made("b", 1)), scores(made("a", 0, shift=2.0), made("b", 1))
    for name in ("FD-net", "FD_inf-net", "KD-net"):
        assert near[name].value < far[name].value
    for name in ("precision-net", "recall-net", "density-net", "coverage-net"):
        assert near[name].value > far[name].value


def test_features_without_direction_leave_the_other_scores_alone() -> None:
    dead = made("a", 0)
    dead.features.values[0] = 0.0
    found = scores(dead, made("b", 1))
    assert found["Vendi-net"].value is None
    assert "zero" in found["Vendi-net"].note
    assert found["FD-net"].value is not None


def test_features_of_two_networks_are_refused() -> None:
    other = ScoredSet("b", features(1, digest="e"), None)
    with pytest.raises(DataError, match="cannot be compared"):
        measure(made("a", 0), other, OPTIONS)


def test_few_images_are_noted_and_not_shouted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = scores(made("a", 0, n=10), made("b", 1, n=10))
    assert not caplog.records
    assert "in 6 dimensions are few" in found["FD-net"].note
    assert found["FD_inf-net"].value is None
    values = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    wide = [ScoredSet("wide", Features(side, None, "net", "d", "none"), None) for side in values]
    assert "not to be trusted with fewer than 60 samples" in scores(*wide)["FD_inf-net"].note
    with pytest.raises(DataError, match="at least 4 images"):
        scores(made("a", 0, n=3), made("b", 1))
