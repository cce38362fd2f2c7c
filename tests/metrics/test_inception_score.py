"""Inception score: its two ends, its definition, its splits."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import slow_inception_scores

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.inception_score import inception_score


def softmaxes(n: int, classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(n, classes, dtype=torch.float64, generator=generator)).softmax(1)


def test_sure_and_varied_is_the_number_of_classes() -> None:
    result = inception_score(torch.eye(7).repeat(4, 1), splits=4)
    assert (result.mean, result.std, result.splits) == (pytest.approx(7.0, rel=1e-14), pytest.approx(0, abs=1e-13), 4)


def test_the_same_answer_for_all_is_one() -> None:
    assert inception_score(torch.full((20, 5), 0.2)).mean == pytest.approx(1.0, rel=1e-14)
    assert inception_score(torch.eye(5)[:1].repeat(20, 1)).mean == 1.0


def test_two_rows_by_hand() -> None:
    # p = (1, 0) and (1/2, 1/2), marginal (3/4, 1/4)
    expected = np.exp((np.log(4 / 3) + 0.5 * np.log(2 / 3) + 0.5 * np.log(2)) / 2)
    assert inception_score(np.array([[1.0, 0.0], [0.5, 0.5]]), splits=1).mean == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("n", "splits"), [(40, 10), (11, 3), (10, 4), (6, 6), (9, 1)])
def test_splits_equal_the_definition(n: int, splits: int) -> None:
    values = softmaxes(n, 4)
    values[0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    scores = slow_inception_scores(values.tolist(), splits)
    result = inception_score(values, splits)
    assert result.mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert result.std == pytest.approx(np.std(scores), rel=1e-9, abs=1e-12)


def test_splits_are_consecutive_and_the_whole_is_blind_to_order() -> None:
    values = torch.eye(4).repeat_interleave(5, dim=0)
    mixed = values[torch.arange(20).reshape(4, 5).T.flatten()]
    assert inception_score(values, 4).mean == pytest.approx(1.0)
    assert inception_score(mixed, 5).mean == pytest.approx(4.0)
    assert inception_score(values, 1).mean == pytest.approx(inception_score(mixed, 1).mean, rel=1e-14)


def test_one_split_has_no_deviation() -> None:
    assert inception_score(softmaxes(10, 3), splits=1).std == 0.0


def test_half_precision_softmaxes_are_taken() -> None:
    values = softmaxes(50, 100)
    assert inception_score(values.half(), 5).mean == pytest.approx(inception_score(values, 5).mean, rel=1e-2)


@pytest.mark.parametrize("bad", [[[2.0, -1.0]], [[0.5, 0.4]], [[3.0, 1.0]], [[0.0, 0.0]]])
def test_what_is_no_probability_is_refused(bad: list[list[float]]) -> None:
    with pytest.raises(DataError, match="softmax"):
        inception_score(np.array([[0.5, 0.5], *bad]), splits=1)


@pytest.mark.parametrize("splits", [0, 9])
def test_splits_that_do_not_fit_are_refused(splits: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.8.*got"):
        inception_score(softmaxes(8, 3), splits)


def test_agreement_with_torch_fidelity() -> None:
    metric: Any = pytest.importorskip("torch_fidelity.metric_isc")
    logits = torch.randn(43, 6, generator=torch.Generator().manual_seed(0))
    theirs = metric.isc_features_to_metric(logits, splits=4, shuffle=False)
    ours = inception_score(logits.double().softmax(1), 4)
    assert ours.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours.std == pytest.approx(theirs["inception_score_std"], rel=1e-5)
