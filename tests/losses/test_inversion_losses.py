"""What the generator is trained on, against closed forms."""

import math

import pytest
import torch

from synthkd.errors import ConfigError
from synthkd.losses import inversion
from synthkd.losses.objective import Objective
from synthkd.settings import Curve
from synthkd.types import BatchNormStatistics


def statistics(mean: list[float], var: list[float]) -> BatchNormStatistics:
    zeros = torch.zeros(len(mean))
    return BatchNormStatistics(torch.tensor(mean), torch.tensor(var), zeros, zeros + 1)


def test_batch_norm_sums_two_norms_a_layer() -> None:
    layers = {"a": statistics([3.0, 4.0], [1.0, 1.0]), "b": statistics([0.0], [3.0])}
    assert float(inversion.batch_norm(layers)) == pytest.approx(5.0 + 2.0)


def test_batch_norm_is_zero_for_equal_moments() -> None:
    assert float(inversion.batch_norm({"a": statistics([0.0], [1.0])})) == 0.0


def test_batch_norm_refuses_a_silent_zero() -> None:
    with pytest.raises(ValueError, match="no BatchNorm"):
        inversion.batch_norm({})


def test_adversarial_pushes_only_where_both_agree() -> None:
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = inversion.adversarial(teacher, student)
    assert float(loss.detach()) < 0
    (gradient,) = torch.autograd.grad(loss, student)
    assert bool(gradient[0].abs().sum() > 0)
    assert bool(gradient[1].abs().sum() == 0)


def test_entropy_is_least_for_balanced_classes() -> None:
    one_each = torch.eye(4) * 50
    all_alike = torch.tensor([[50.0, 0, 0, 0]] * 4)
    assert float(inversion.information_entropy(one_each)) == pytest.approx(-math.log(4), abs=1e-5)
    assert float(inversion.information_entropy(all_alike)) == pytest.approx(0.0, abs=1e-5)


def test_one_hot_and_activation() -> None:
    assert float(inversion.one_hot(torch.zeros(2, 10), torch.tensor([3, 4]))) == pytest.approx(math.log(10))
    assert float(inversion.activation(torch.tensor([[-2.0, 4.0]]))) == -3.0


def test_objective_weighs_named_terms_and_skips_zero_weights() -> None:
    def never(_: float) -> torch.Tensor:
        raise AssertionError("a term of weight 0 was computed")

    objective: Objective[float] = Objective(
        {"double": lambda x: torch.tensor(2 * x), "square": lambda x: torch.tensor(x * x), "never": never},
        {"double": 0.5, "square": Curve(kind="linear", start=0.0, end=2.0), "never": 0.0},
    )
    first, last = objective(3.0, 0, 11), objective(3.0, 10, 11)
    assert (float(first.total), set(first.terms)) == (3.0, {"double"})
    assert float(last.total) == 3.0 + 18.0
    assert float(last.terms["square"]) == 9.0


def test_objective_refuses_unmatched_names_and_all_zero_weights() -> None:
    with pytest.raises(ValueError, match="same names"):
        Objective({"a": lambda x: x}, {"b": 1.0})
    with pytest.raises(ConfigError, match="weight 0 at step 4"):
        Objective({"a": lambda x: x}, {"a": 0.0})(torch.zeros(()), 4, 10)


def test_the_logit_gap_is_a_mean_over_images_and_classes() -> None:
    teacher, student = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, -1.0]])
    assert float(inversion.logit_gap(teacher, student)) == (1.0 + 2.0 + 0.0 + 1.0) / 4


def test_competition_is_1_for_equal_answers_and_least_for_opposite_ones() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert float(inversion.competition(logits, logits)) == pytest.approx(1.0)
    apart = torch.tensor([[1e4, 0.0]])
    assert float(inversion.competition(apart, -apart)) == pytest.approx(1.0 - math.log(2))


def test_competition_is_that_of_probabilities() -> None:
    rng = torch.Generator().manual_seed(1)
    teacher, student = (3 * torch.randn(6, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    p, q = ((logits / 3.0).exp() for logits in (teacher, student))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    m = (p + q) / 2
    divergence = 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(1).mean()
    assert float(inversion.competition(teacher, student)) == pytest.approx(1.0 - float(divergence), rel=1e-12)


def test_total_variation_adds_four_norms_over_the_batch() -> None:
    image = torch.tensor([[[[0.0, 3.0], [0.0, 4.0]]]])
    # To the right: 3 and 4; below: 0 and 1; falling: 0 - 4; rising: 0 - 3.
    assert float(inversion.total_variation(image)) == pytest.approx(5.0 + 1.0 + 4.0 + 3.0)
    assert float(inversion.total_variation(image.repeat(4, 1, 1, 1))) == pytest.approx(2 * 13.0)
    assert float(inversion.total_variation(torch.ones(2, 3, 4, 4))) == 0.0
    assert float(inversion.magnitude(image.repeat(4, 1, 1, 1))) == pytest.approx(2 * 5.0)
