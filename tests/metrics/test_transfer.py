"""Gap curves, transfer efficiency and stability against closed forms and slow counts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

from synthkd.errors import DataError
from synthkd.metrics.transfer import fit_capacity_gap, stability, transfer_efficiency


def one_hot(classes: list[int], count: int) -> torch.Tensor:
    """Logits that are all but certain."""
    return 100.0 * F.one_hot(torch.tensor(classes), count).float()


def test_the_gap_curve_is_found_again() -> None:
    times = [100.0, 150.0, 200.0, 300.0, 450.0, 700.0]
    curve = fit_capacity_gap(times, [0.4 * math.exp(-0.01 * (t - 100)) + 0.05 for t in times])
    assert (curve.alpha, curve.beta, curve.gamma) == pytest.approx((0.4, 0.01, 0.05))
    assert curve.at(300.0) == pytest.approx(0.4 * math.exp(-2) + 0.05)
    assert curve.at(curve.below(0.1)) == pytest.approx(0.1)
    assert curve.below(0.1) == pytest.approx(100 + math.log(8) / 0.01)
    assert curve.below(0.5) == 100.0
    assert curve.below(0.04) == curve.below(0.05 - 1e-9) == math.inf


def test_the_gap_curve_of_noise_is_as_near_as_its_errors_say() -> None:
    noise = np.random.default_rng(0)
    times = np.arange(40.0)
    found = [fit_capacity_gap(times, 0.3 * np.exp(-times / 8) + 0.1 + noise.normal(0, 0.01, 40)) for _ in range(20)]
    for value, index, true in (("alpha", 0, 0.3), ("beta", 1, 1 / 8), ("gamma", 2, 0.1)):
        far = [abs(getattr(curve, value) - true) / curve.errors[index] for curve in found]
        assert 0.4 < float(np.sqrt(np.mean(np.square(far)))) < 1.7


def test_gaps_that_widen_stand_still_or_fall_straight_have_curves() -> None:
    rising = fit_capacity_gap([0, 1, 2, 3, 4], [1.0 - math.exp(-t) for t in range(5)])
    assert (rising.alpha, rising.beta, rising.gamma) == pytest.approx((-1.0, 1.0, 1.0))
    assert rising.below(0.5) == 0.0
    still = fit_capacity_gap([0, 1, 2, 3], [0.2] * 4)
    assert (still.at(0), still.at(99), still.below(0.1), still.below(0.3)) == pytest.approx((0.2, 0.2, math.inf, 0.0))
    straight = fit_capacity_gap([0, 1, 2, 3], [3.0, 2.0, 1.0, 0.0])
    assert [straight.at(t) for t in range(4)] == pytest.approx([3, 2, 1, 0], abs=0.02)
    assert straight.errors[0] > 100.0


@pytest.mark.parametrize(
    "points", [([0, 1, 2], [1, 2, 3]), ([0, 1, 2, math.nan], [1] * 4), ([0, 0, 1, 1], [1] * 4), ([0, 1, 2, 3], [1] * 3)]
)
def test_too_little_for_a_curve_is_told(points: tuple[list[float], list[float]]) -> None:
    with pytest.raises(DataError, match="at least 4 finite points"):
        fit_capacity_gap(*points)


@pytest.mark.parametrize("estimator", ["soft", "hard", "miller_madow"])
def test_the_same_certain_predictions_transfer_everything(estimator) -> None:  # type: ignore[no-untyped-def]
    logits = one_hot([0, 1, 1, 2, 2, 2], 4)
    found = transfer_efficiency(logits, logits[:, [2, 0, 1, 3]], estimator)  # other names for the classes
    assert found.value == pytest.approx(1.0)
    if estimator != "miller_madow":
        assert found.teacher_entropy == pytest.approx(entropy([1 / 6, 2 / 6, 3 / 6]))
    assert found.n == 6


@pytest.mark.parametrize("estimator", ["soft", "hard", "miller_madow"])
def test_independent_predictions_transfer_nothing(estimator) -> None:  # type: ignore[no-untyped-def]
    pairs = [(t, s) for t in (0, 1, 1, 2) for s in (0, 0, 0, 1, 2)]
    teacher, student = (one_hot(list(side), 3) for side in zip(*pairs, strict=True))
    assert transfer_efficiency(teacher, student, estimator).value == pytest.approx(0.0, abs=1e-12)
    assert transfer_efficiency(teacher, student[:1].expand(20, 3), estimator).value == pytest.approx(0.0, abs=1e-12)


def test_efficiency_is_that_of_a_slow_count() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(40, 3, generator=rng)
    student = teacher[:, [1, 0, 2]] + torch.randn(40, 3, generator=rng)
    joint = np.zeros((3, 3))
    for t, s in zip(teacher.double().softmax(1).tolist(), student.double().softmax(1).tolist(), strict=True):
        for i in range(3):
            for j in range(3):
                joint[i, j] += t[i] * s[j] / 40
    rows, columns = joint.sum(1), joint.sum(0)
    information = sum(joint[i, j] * math.log(joint[i, j] / (rows[i] * columns[j])) for i in range(3) for j in range(3))
    found = transfer_efficiency(teacher, student)
    assert found.mutual_information == pytest.approx(information)
    assert found.teacher_entropy == pytest.approx(entropy(rows))
    assert found.value == pytest.approx(information / entropy(rows))
    assert 0.1 < found.value < 0.9


def test_efficiency_is_of_what_the_teacher_says() -> None:
    teacher = one_hot([0, 0, 0, 1, 1, 1], 2)
    student = one_hot([0, 1, 2, 3, 4, 5], 6)  # tells all that the teacher does, and more
    assert transfer_efficiency(teacher, student).value == pytest.approx(1.0)
    assert transfer_efficiency(student, teacher).value == pytest.approx(math.log(2) / math.log(6))


def test_a_copy_of_an_unsure_teacher_is_below_one() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert transfer_efficiency(logits, logits).value < 0.5
    assert transfer_efficiency(logits, logits, "hard").value == pytest.approx(1.0)


def test_miller_madow_takes_off_most_of_the_bias() -> None:
    rng = torch.Generator().manual_seed(0)
    bias = dict.fromkeys(("hard", "miller_madow"), 0.0)
    entropies = []
    for _ in range(100):
        teacher, student = torch.randn(2, 60, 4, generator=rng)
        for estimator in bias:
            found = transfer_efficiency(teacher, student, estimator)  # type: ignore[arg-type]
            bias[estimator] += found.mutual_information / 100
        entropies.append(found.teacher_entropy)
    assert bias["hard"] == pytest.approx(9 / 120, rel=0.2)
    # what is left is from the clamp at 0: half of the draws are below it
    assert bias["miller_madow"] < 0.35 * bias["hard"]
    assert float(np.mean(entropies)) == pytest.approx(math.log(4), abs=0.01)


def test_a_teacher_that_always_says_the_same_has_nothing_to_transfer() -> None:
    for estimator in ("soft", "hard", "miller_madow"):
        found = transfer_efficiency(one_hot([1] * 5, 3), torch.randn(5, 3), estimator)  # type: ignore[arg-type]
        assert found.value == 0.0
    single = transfer_efficiency(torch.randn(1, 3), torch.randn(1, 3))
    assert single.value == pytest.approx(0.0, abs=1e-12)


def test_unusable_logits_are_told() -> None:
    with pytest.raises(DataError, match=r"got \[3, 2\] and \[4, 2\]"):
        transfer_efficiency(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(DataError, match="NaN or infinity"):
        transfer_efficiency(torch.zeros(3, 2), torch.full((3, 2), math.nan))


def test_stability_is_the_deviation_of_the_last_ones() -> None:
    values = [0.1, 0.9, 0.80, 0.82, 0.84]
    assert stability(values, 3) == pytest.approx(0.02)
    assert stability(values) == pytest.approx(float(np.std(values, ddof=1)))
    assert stability([0.7] * 4, 3) == 0.0
    assert stability([0.7], 3) is None
    assert stability([]) is None
    with pytest.raises(DataError, match="last >= 2"):
        stability(values, 1)
    with pytest.raises(DataError, match="finite values"):
        stability([0.1, math.nan], 2)
