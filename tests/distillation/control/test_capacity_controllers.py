"""Controllers step by step and resumed; what they go by against closed forms and slow counts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from scipy.stats import entropy

from synthkd.distillation.control.capacity import (
    AdaptiveWeights,
    StrengthController,
    balanced_weight,
    capacity_strength,
)
from synthkd.errors import ConfigError, DataError
from synthkd.losses.balance import GradientBalance, UncertaintyBalance, gradient_weights
from synthkd.metrics.transfer import fit_capacity_gap, stability, transfer_efficiency
from synthkd.settings import GradientBalanceSettings, StrengthSettings, WeightSettings
from synthkd.types import Stateful


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def one_hot(classes: list[int], count: int) -> torch.Tensor:
    """Logits that are all but certain."""
    return 100.0 * F.one_hot(torch.tensor(classes), count).float()


def test_the_rate_of_the_weights_is_a_share() -> None:
    for rate in (0.0, 1.5):
        with pytest.raises(ValidationError):
            WeightSettings(rate=rate)


def test_strength_is_the_sigmoid_of_the_ratio() -> None:
    assert capacity_strength(0.0, 0.9) == 0.5
    assert capacity_strength(0.6, 0.8, 2.0) == pytest.approx(sigmoid(1.5))
    assert capacity_strength(6.0, 8.0, 2.0) == capacity_strength(0.6, 0.8, 2.0)
    assert capacity_strength(0.6, 0.8, -2.0) == pytest.approx(1.0 - sigmoid(1.5))
    assert 0.0 <= capacity_strength(1e9, 1e-9, -1.0) < capacity_strength(1e9, 1e-9, 1.0) <= 1.0


@pytest.mark.parametrize("capacities", [(0.5, 0.0), (-0.1, 1.0), (math.nan, 1.0), (0.5, math.inf)])
def test_capacities_without_a_ratio_are_told(capacities: tuple[float, float]) -> None:
    for call in (capacity_strength, AdaptiveWeights(WeightSettings()).update):
        with pytest.raises(DataError, match="one estimator on the same images"):
            call(*capacities)


def test_an_update_of_the_weights_is_one_damped_step() -> None:
    weights = AdaptiveWeights(WeightSettings(start=0.2, rate=0.25))
    assert weights.update(0.3, 0.6) == pytest.approx(0.2 + 0.25 * (sigmoid(0.5 * 0.8) - 0.2))
    assert weights.value + weights.other == 1.0
    whole = AdaptiveWeights(WeightSettings(start=0.2, rate=1.0))
    assert whole.update(0.3, 0.6) == pytest.approx(sigmoid(0.5 * 0.8))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 5.0, 20.0, 70.0])
@pytest.mark.parametrize("start", [0.001, 0.5, 0.999])
def test_weights_converge_to_their_fixed_point_within_bounds(ratio: float, start: float) -> None:
    weights = AdaptiveWeights(WeightSettings(start=start))
    seen = [weights.update(ratio, 1.0) for _ in range(500)]
    assert all(0.0 < value < 1.0 for value in seen)
    assert weights.value == pytest.approx(balanced_weight(ratio), abs=1e-5)
    assert balanced_weight(ratio) == pytest.approx(sigmoid(ratio * (1.0 - balanced_weight(ratio))), abs=1e-12)


def test_without_damping_a_large_ratio_never_settles() -> None:
    weights = AdaptiveWeights(WeightSettings(rate=1.0))
    seen = [weights.update(8.0, 1.0) for _ in range(400)]
    assert abs(seen[-1] - seen[-2]) > 0.1
    assert seen[-1] == pytest.approx(seen[-3])
    small = AdaptiveWeights(WeightSettings(rate=1.0))
    for _ in range(400):
        small.update(5.0, 1.0)
    assert small.value == pytest.approx(balanced_weight(5.0), abs=1e-6)


def test_the_range_of_the_weights_is_small() -> None:
    assert balanced_weight(0.0) == pytest.approx(0.5)
    assert balanced_weight(1.0) == pytest.approx(0.599, abs=1e-3)


def test_controllers_resume_from_what_a_checkpoint_holds() -> None:
    updates = {
        AdaptiveWeights: [(0.2, 1.0), (0.5, 1.0), (0.9, 1.0)],
        StrengthController: [(float(i), 1.0 - math.exp(-i), 1.0) for i in range(6)],
    }
    settings = {
        AdaptiveWeights: WeightSettings,
        StrengthController: StrengthSettings,
    }
    for kind, steps in updates.items():
        whole, first, second = (kind(settings[kind]()) for _ in range(3))  # type: ignore[operator]
        assert isinstance(whole, Stateful)
        for step in steps[:-1]:
            whole.update(*step)
            first.update(*step)
        second.load_state_dict(first.state_dict())
        assert second.value == whole.value
        assert second.update(*steps[-1]) == whole.update(*steps[-1])


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


def test_strength_is_boosted_until_the_gap_has_closed() -> None:
    controller = StrengthController(StrengthSettings(beta=None, threshold=0.1, boost=2.0))
    assert controller.value == 1.0
    factors = [controller.update(step, 0.9 * (1.0 - 0.8 * math.exp(-step)), 0.9) for step in range(6)]
    # gaps of 0.80, 0.29, 0.11, 0.04, 0.01, 0.01
    assert factors == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert controller.curve is not None
    assert controller.curve.below(0.1) == pytest.approx(math.log(8))
    with pytest.raises(DataError, match="times that go up"):
        controller.update(5, 0.5, 0.9)


def test_strength_is_capacity_and_gap_together() -> None:
    controller = StrengthController(StrengthSettings(beta=2.0, threshold=0.3, boost=3.0))
    assert controller.value == 0.5
    assert controller.update(0, 0.4, 0.8) == pytest.approx(3.0 * sigmoid(1.0))
    assert controller.update(1, 0.6, 0.8) == pytest.approx(sigmoid(1.5))


def test_one_bad_evaluation_does_not_boost() -> None:
    controller = StrengthController(StrengthSettings(beta=None, threshold=0.1, boost=2.0))
    for step in range(20):
        controller.update(step, 1.0 - 0.5 * math.exp(-step), 1.0)
    assert controller.update(20, 0.85, 1.0) == 1.0


def test_uncertainty_is_the_formula_and_settles_at_the_losses() -> None:
    balance = UncertaintyBalance(["soft", "hint"])
    first = balance({"soft": torch.tensor(3.0), "hint": torch.tensor(0.5)})
    assert float(first.detach()) == pytest.approx(1.75, abs=2e-3)
    losses = {"soft": torch.tensor(4.0), "hint": torch.tensor(0.05)}
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        total = balance(losses)
        total.backward()
        optimizer.step()
    assert balance.weights == pytest.approx({"soft": 1 / 8.002, "hint": 1 / 0.102}, rel=1e-2)
    assert balance.log_variances.tolist() == pytest.approx([math.log(4.001), math.log(0.051)], abs=1e-2)
    expected = 0.5 * sum(1.0 + math.log(value) for value in (4.001, 0.051))
    assert float(total.detach()) == pytest.approx(expected, abs=1e-3)


def test_uncertainty_weighs_the_gradient_of_each_loss() -> None:
    balance = UncertaintyBalance(["a", "b"])
    with torch.no_grad():
        balance.log_variances.copy_(torch.tensor([0.7, -1.3]))
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    balance({"b": b, "a": a}).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert {"a": float(a.grad), "b": float(b.grad)} == pytest.approx(balance.weights)
    assert balance.weights["b"] > 0.5 > balance.weights["a"]


def test_a_loss_that_has_nothing_to_say_in_a_batch_has_no_part_in_it() -> None:
    balance = UncertaintyBalance(["soft", "hard"])
    with torch.no_grad():
        balance.log_variances.copy_(torch.tensor([0.4, -0.9]))
    soft, hard = torch.tensor(2.0, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    total = balance({"hard": hard, "soft": soft}, {"soft": 0.7, "hard": 0.3})
    alone = balance({"soft": soft}, {"soft": 0.7})
    assert float(total.detach()) == float(alone.detach())
    total.backward()
    assert balance.log_variances.grad is not None
    assert float(balance.log_variances.grad[1]) == 0.0
    assert float(balance.log_variances.grad[0]) != 0.0
    nothing = balance({"soft": torch.tensor(0.0), "hard": torch.tensor(0.0)})
    nothing.backward()
    assert float(nothing.detach()) == 0.0


def test_the_weight_of_a_loss_that_is_always_zero_stays_while_the_other_settles() -> None:
    balance = UncertaintyBalance(["soft", "hard"])
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        balance({"soft": torch.tensor(4.0), "hard": torch.tensor(0.0)}).backward()
        optimizer.step()
    assert balance.weights == pytest.approx({"soft": 1 / 8.002, "hard": 0.5}, rel=1e-2)
    assert balance.weights["hard"] == 0.5


def test_a_loss_that_is_absent_every_other_batch_settles_where_it_is_when_there() -> None:
    balance = UncertaintyBalance(["hard"])
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.1)
    for number in range(400):
        optimizer.zero_grad()
        balance({"hard": torch.tensor(3.0 if number % 2 else 0.0)}).backward()
        optimizer.step()
    assert balance.weights["hard"] == pytest.approx(1 / 6.002, rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_still_seen_under_uncertainty(bad: float) -> None:
    total = UncertaintyBalance(["soft", "hard"])({"soft": torch.tensor(bad), "hard": torch.tensor(0.0)})
    assert not math.isfinite(float(total.detach()))


def test_a_loss_next_to_zero_gets_a_bounded_weight_and_comes_back() -> None:
    balance = UncertaintyBalance(["only"], least=0.1)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.1)

    def descend(value: float) -> float:
        for _ in range(300):
            optimizer.zero_grad()
            balance({"only": torch.tensor(value)}).backward()
            optimizer.step()
        return balance.weights["only"]

    assert descend(1e-9) == pytest.approx(1 / 0.2, rel=1e-2)
    assert descend(1.9) == pytest.approx(1 / 4.0, rel=1e-2)


def test_uncertainty_wants_each_name_once() -> None:
    with pytest.raises(ConfigError, match="each loss once"):
        UncertaintyBalance(["a", "a"])
    with pytest.raises(ConfigError, match=r"made for \['a'\], got \['b'\]"):
        UncertaintyBalance(["a"])({"b": torch.tensor(1.0)})


def test_gradient_weights_make_all_losses_pull_alike() -> None:
    norms = {"soft": 4.0, "hint": 0.5, "relation": 1.0}
    weights = gradient_weights(norms)
    assert sum(weights.values()) == pytest.approx(3.0)
    assert [weights[n] * norms[n] for n in norms] == pytest.approx([weights["soft"] * 4.0] * 3)
    assert gradient_weights({n: 10 * g for n, g in norms.items()}) == pytest.approx(weights)


def test_a_loss_that_lags_pulls_harder() -> None:
    norms, progress = {"a": 2.0, "b": 3.0}, {"a": 0.9, "b": 0.3}
    weights = gradient_weights(norms, progress, asymmetry=2.0)
    assert weights["a"] * 2.0 / (weights["b"] * 3.0) == pytest.approx(9.0)
    assert gradient_weights(norms, progress, asymmetry=0.0) == pytest.approx(gradient_weights(norms))


def test_gradient_weights_where_nothing_pulls() -> None:
    assert gradient_weights({"a": 0.0, "b": 0.0}) == {"a": 1.0, "b": 1.0}
    assert gradient_weights({"a": 1.0, "b": 0.0})["b"] == pytest.approx(2000 / 1001)
    assert gradient_weights({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}) == {"a": 1.0, "b": 1.0}
    for norms, progress in (({}, None), ({"a": math.nan}, None), ({"a": -1.0}, None), ({"a": 1.0}, {"b": 1.0})):
        with pytest.raises(DataError, match="of the same losses"):
            gradient_weights(norms, progress)


SHARED = torch.tensor([3.0, 4.0], requires_grad=True)
"""Where gradients are compared: of norm 5."""


def two_losses(shared: torch.Tensor, b: float = 1.0) -> dict[str, torch.Tensor]:
    """`a = |w|^2 / 2`, whose gradient is w, of norm 5; `b` times the sum of w, whose gradient has norm b sqrt(2)."""
    return {"a": 0.5 * shared.square().sum(), "b": b * shared.sum()}


def gradient_balance(shared: torch.Tensor = SHARED, **settings: float) -> GradientBalance:
    return GradientBalance(GradientBalanceSettings.model_validate({"kind": "gradient", **settings}), shared)


def test_gradient_balance_evens_out_known_gradients() -> None:
    balance = gradient_balance(rate=1.0)
    total = balance(two_losses(SHARED))
    root = math.sqrt(2)
    assert balance.weights == pytest.approx({"a": 2 * root / (5 + root), "b": 10 / (5 + root)})
    assert 5 * balance.weights["a"] == pytest.approx(root * balance.weights["b"])
    assert float(total.detach()) == pytest.approx(12.5 * balance.weights["a"] + 7 * balance.weights["b"])
    (gradient,) = torch.autograd.grad(total, SHARED)
    expected = balance.weights["a"] * SHARED.detach() + balance.weights["b"]
    torch.testing.assert_close(gradient, expected)


def test_own_weights_stand_beside_the_balance_and_do_not_move_it() -> None:
    plain, weighted = gradient_balance(rate=1.0), gradient_balance(rate=1.0)
    plain(two_losses(SHARED))
    total = weighted(two_losses(SHARED), {"a": 0.01, "b": 3.0})
    assert weighted.weights == plain.weights
    assert float(total.detach()) == pytest.approx(0.01 * 12.5 * plain.weights["a"] + 3.0 * 7 * plain.weights["b"])

    balance = UncertaintyBalance(["a", "b"], least=1e-9)
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        found = balance({"a": torch.tensor(0.2), "b": torch.tensor(5.0)}, {"b": 3.0, "a": 0.5})
        found.backward()
        optimizer.step()
    assert balance.log_variances.tolist() == pytest.approx([math.log(0.2), math.log(5.0)], abs=1e-2)
    expected = 0.5 * (0.5 * (1 + math.log(0.2)) + 3.0 * (1 + math.log(5.0)))
    assert float(found.detach()) == pytest.approx(expected, abs=1e-3)


def test_a_measurement_moves_the_weights_by_its_rate_and_comes_every_so_often() -> None:
    balance, whole = gradient_balance(rate=0.25, every=3), gradient_balance(rate=1.0)
    whole(two_losses(SHARED))
    balance(two_losses(SHARED))
    for name, weight in whole.weights.items():
        assert balance.weights[name] == pytest.approx(1 + 0.25 * (weight - 1))
    first = dict(balance.weights)
    for _ in range(2):
        balance(two_losses(SHARED, b=50.0))
        assert balance.weights == first
    balance(two_losses(SHARED, b=50.0))
    assert balance.weights != first


def test_a_loss_that_lags_pulls_harder_than_it_did() -> None:
    shared = torch.tensor([3.0, 4.0], requires_grad=True)
    balance = gradient_balance(shared, rate=1.0, every=1, asymmetry=2.0)
    balance(two_losses(shared))
    with torch.no_grad():
        shared.copy_(torch.tensor([1.0, 1.0]))  # a: from 12.5 to 1; b: from 7 to 2
    balance(two_losses(shared))
    progress = {"a": 1 / 12.5, "b": 2 / 7}
    norms = {"a": math.sqrt(2), "b": math.sqrt(2)}
    assert balance.weights == pytest.approx(gradient_weights(norms, progress, asymmetry=2.0))
    assert balance.weights["b"] > balance.weights["a"]


def test_a_loss_without_gradient_is_left_out_and_the_others_keep_their_sum() -> None:
    balance = gradient_balance(rate=1.0, every=1)
    elsewhere = torch.tensor(2.0, requires_grad=True)
    losses = {**two_losses(SHARED), "none": SHARED.sum() * 0.0, "elsewhere": 3.0 * elsewhere}
    total = balance(losses)
    assert set(balance.weights) == {"a", "b"}
    assert sum(balance.weights.values()) == pytest.approx(2.0)
    assert float(total.detach()) == pytest.approx(12.5 * balance.weights["a"] + 7 * balance.weights["b"] + 6.0)
    before = dict(balance.weights)
    balance({"a": SHARED.sum() * 0.0, "none": SHARED.sum() * 0.0})
    assert balance.weights == before
    balance({**two_losses(SHARED), "none": SHARED[0]})
    assert set(balance.weights) == {"a", "b", "none"}, "it counts from when it has one"


def test_a_loss_that_is_not_finite_leaves_the_weights_alone() -> None:
    balance = gradient_balance(rate=1.0, every=1)
    balance(two_losses(SHARED))
    before = dict(balance.weights)
    assert not math.isfinite(float(balance({"a": SHARED.sum() * math.nan, "b": SHARED.sum()}).detach()))
    assert balance.weights == before


def test_gradient_balance_resumes_from_what_a_checkpoint_holds() -> None:
    for stop in range(5):
        whole, first, second = (gradient_balance(rate=0.5, every=2) for _ in range(3))
        assert isinstance(first, Stateful)
        for number in range(stop):
            for one in (whole, first):
                one(two_losses(SHARED, b=1.0 + number))
        second.load_state_dict(first.state_dict())
        for number in range(stop, 5):
            totals = [float(one(two_losses(SHARED, b=1.0 + number)).detach()) for one in (whole, second)]
            assert totals[0] == totals[1]
        assert whole.state_dict() == second.state_dict()


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
