"""The estimate of accuracy without test data: closed forms of agreements, interval and accuracy."""

import math

import pytest
import torch

from synthkd.metrics.untested import (
    Calibration,
    Range,
    agreement_logits,
    estimated_accuracy,
    estimated_agreement,
    from_learned,
    mean_of_four,
)

KNOWN = Calibration(mean_of_four, deviation=0.06, quantile=2.0, runs=9, covered=8, covered_accuracy=7)


def test_agreement_of_all_images_and_of_the_surer_half() -> None:
    # The teacher is surest of images 1 and 3, and the student differs on images 0 and 3.
    teacher = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 2.0], [0.0, 9.0]])
    student = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    everything, surer = agreement_logits(teacher, student)
    assert everything == pytest.approx(math.log(2.5 / 2.5))
    assert surer == pytest.approx(math.log(1.5 / 1.5))
    student[3] = torch.tensor([0.0, 1.0])
    everything, surer = agreement_logits(teacher, student)
    assert everything == pytest.approx(math.log(3.5 / 1.5))
    assert surer == pytest.approx(math.log(2.5 / 0.5))


def test_the_surer_half_is_by_rank() -> None:
    # A teacher so sure of all images that no confidence of the halves would reach, or exceed, one threshold.
    teacher = torch.tensor([[0.2, 0.0], [0.1, 0.0], [0.4, 0.0], [0.3, 0.0]])
    student = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    for scale in (0.01, 1.0, 10.0):
        assert agreement_logits(scale * teacher, student)[1] == pytest.approx(math.log(2.5 / 0.5))


def test_full_agreement_is_finite() -> None:
    teacher = torch.eye(10).repeat(5, 1)
    everything, surer = agreement_logits(teacher, teacher)
    assert everything == pytest.approx(math.log(50.5 / 0.5))
    assert surer == pytest.approx(math.log(25.5 / 0.5))


def test_estimate_is_the_mean_of_logits() -> None:
    estimate = estimated_agreement((0.0, 1.0), (2.0, 3.0), KNOWN)
    middle = 1 / (1 + math.exp(-1.5))
    assert estimate.value == pytest.approx(middle)
    assert (estimate.low, estimate.high) == pytest.approx((middle - 0.12, middle + 0.12))
    assert estimated_agreement((9.0, 9.0), (9.0, 9.0), KNOWN).high == 1.0
    assert estimated_agreement((-9.0, -9.0), (-9.0, -9.0), KNOWN).low == 0.0


def test_the_rule_of_learned_images_takes_their_surer_half() -> None:
    assert from_learned((0.0, 0.0), (0.0, math.log(3))) == pytest.approx(1 - 0.25**1.5)
    assert from_learned((9.0, 9.0), (0.0, 0.0)) == pytest.approx(1 - 0.5**1.5)


def test_accuracy_is_at_most_that_of_the_teacher() -> None:
    estimate = estimated_accuracy(Range(0.8, 0.6, 0.99), 0.9)
    assert estimate.value == pytest.approx(0.8 * 0.95)
    assert estimate.low == pytest.approx(0.6 * 0.95)
    assert estimate.high == pytest.approx(0.9)
    assert estimated_accuracy(Range(0.8, 0.7, 0.9), 1.0) == Range(0.8, 0.7, 0.9)
