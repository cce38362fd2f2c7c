"""Fisher trace, feature dimension and label information against closed forms; the scores by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synthkd.compression.capacity import (
    TeacherReport,
    capacity_bound,
    compare_teachers,
    feature_dimension,
    fisher_trace,
    label_information,
    teacher_quality,
)
from synthkd.errors import ConfigError, DataError
from synthkd.models import Classifier, build
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec, to_float


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_regression(scale: float, classes: int = 3, pixels: int = 4) -> Classifier:
    linear = nn.Linear(pixels, classes)
    with torch.no_grad():
        linear.weight.copy_(scale * normal(classes, pixels, seed=1))
        linear.bias.copy_(scale * normal(classes, seed=2))
    return Classifier(nn.Sequential(nn.Flatten(), linear), ImageSpec(1, 1, pixels, classes))


def images(n: int, pixels: int = 4) -> Tensor:
    return torch.rand(n, 1, 1, pixels, generator=torch.Generator().manual_seed(3))


class TestFisherTrace:
    def test_uniform_predictions_have_one_value_for_every_label(self):
        """The gradient is (e_y - p)(x, 1): its squared norm is (1 - 1/K)(|x|^2 + 1) whatever y is."""
        x = images(9)
        result = fisher_trace(softmax_regression(0.0), x, seed=0)
        expected = (1 - 1 / 3) * (x.double().flatten(1).square().sum(dim=1) + 1)
        assert result.value == pytest.approx(float(expected.mean()), rel=1e-6)
        assert result.standard_error == pytest.approx(float(expected.std()) / 3, rel=1e-6)
        assert result.n == 9

    def test_expectation_over_labels_in_closed_form(self):
        """E |e_y - p|^2 = 1 - |p|^2 with y drawn from p. Labels of one class, or p's largest, would miss it by far."""
        model, x = softmax_regression(0.5), images(2000)
        p = torch.softmax(model(x).detach().double(), dim=1)
        expected = ((1 - p.square().sum(dim=1)) * (x.double().flatten(1).square().sum(dim=1) + 1)).mean()
        result = fisher_trace(model, x, seed=0)
        assert abs(result.value - float(expected)) < 3.5 * result.standard_error
        assert result.standard_error < 0.05 * result.value

    def test_each_image_adds_the_closed_form_of_one_of_its_labels(self):
        """So the label of an image depends on (seed, place) alone, not on how many images there are."""
        model, x = softmax_regression(0.3), images(12)
        p = torch.softmax(model(x).detach().double(), dim=1)
        gaps = (torch.eye(3, dtype=torch.float64) - p[:, None]).square().sum(dim=2)
        of_label = gaps * (x.double().flatten(1).square().sum(dim=1) + 1)[:, None]
        sums = [0.0, *(n * fisher_trace(model, x[:n], seed=5).value for n in range(1, 13))]
        added = torch.tensor(sums, dtype=torch.float64).diff()
        misses = (of_label - added[:, None]).abs()
        assert float(misses.min(dim=1).values.max()) < 1e-5
        assert len(misses.argmin(dim=1).unique()) == 3
        assert fisher_trace(model, x, seed=6).value != pytest.approx(sums[-1] / 12)

    def test_certain_predictions_have_none(self):
        assert fisher_trace(softmax_regression(1e4), images(20), seed=0).value == pytest.approx(0.0, abs=1e-6)

    def test_the_model_comes_back_as_it_was(self):
        body = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(), nn.Flatten(), nn.Linear(4, 3))
        model = Classifier(body, ImageSpec(1, 1, 4, 3)).train().requires_grad_(False)
        body[1].eval()
        with torch.no_grad():
            assert fisher_trace(model, images(3), seed=0).value > 0
        assert [m.training for m in body] == [True, False, True, True]
        assert int(body[0].num_batches_tracked) == 0
        assert not any(p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in model.parameters())

    def test_one_image_has_no_error_and_none_is_refused(self):
        assert fisher_trace(softmax_regression(1.0), images(1), seed=0).standard_error == math.inf
        with pytest.raises(DataError, match="at least 1 image"):
            fisher_trace(softmax_regression(1.0), images(0), seed=0)


class TestFeatureDimension:
    def test_known_variances(self):
        """Orthogonal columns with variances 90, 5, 4, 1: shares .90, .95, .99, 1."""
        signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
        hadamard = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
        features = hadamard[:, 1:5] * torch.tensor([90.0, 5.0, 4.0, 1.0], dtype=torch.float64).sqrt() + 7.0
        shares = {0.5: 1, 0.90: 1, 0.91: 2, 0.95: 2, 0.951: 3, 0.99: 3, 0.999: 4, 1.0: 4}
        assert {share: feature_dimension(features, share) for share in shares} == shares

    @settings(max_examples=25, deadline=None)
    @given(n=st.integers(3, 30), d=st.integers(1, 8), seed=st.integers(0, 99), share=st.floats(0.05, 0.99))
    def test_slow_count_of_eigenvalues(self, n, d, seed, share):
        features = normal(n, d, seed=seed).numpy() * np.arange(1, d + 1)
        kept = np.sort(np.linalg.eigvalsh(np.atleast_2d(np.cov(features.T))))[::-1]
        expected = next(k for k in range(1, d + 1) if kept[:k].sum() >= share * kept.sum() - 1e-9)
        assert feature_dimension(features, share) == expected

    def test_rank_is_the_most_and_alike_samples_have_none(self):
        low_rank = normal(50, 3) @ normal(3, 20, seed=1)
        assert feature_dimension(low_rank, 1.0) == 3
        assert feature_dimension(torch.full((5, 3), 0.1)) == 0

    def test_turning_and_moving_features_changes_nothing(self):
        features = normal(60, 6) * torch.arange(1, 7)
        turn = torch.linalg.qr(normal(6, 6, seed=1)).Q
        assert feature_dimension(features @ turn + 100) == feature_dimension(features)

    @pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
    def test_shares_that_are_none(self, share):
        with pytest.raises(ConfigError, match=r"share must be in \(0, 1\]"):
            feature_dimension(normal(5, 2), share)


class TestTeacherQuality:
    def test_by_hand(self):
        reports = [TeacherReport("a", 10.0, 200), TeacherReport("b", 20.0, 50)]
        a, b = teacher_quality(reports)
        assert (a.relative_trace, a.relative_dimension) == (0.5, 1.0)
        assert (b.relative_trace, b.relative_dimension) == (1.0, 0.25)
        assert a.score == pytest.approx(0.6 * 0.5 + 0.4)
        assert b.score == pytest.approx(0.6 + 0.4 * 0.25)
        assert [q.report for q in (a, b)] == reports

    def test_the_order_does_not_depend_on_the_unit_of_a_term(self):
        teachers = [(12.34, 512), (18.56, 768), (9.87, 320)]
        scores = [
            [q.score for q in teacher_quality([TeacherReport("", unit * trace, n) for trace, n in teachers])]
            for unit in (1.0, 1e-6)
        ]
        assert scores[0] == pytest.approx(scores[1])
        assert max(scores[0]) == scores[0][1] == pytest.approx(1.0)

    def test_zeros_score_nothing_and_a_teacher_alone_scores_one(self):
        assert teacher_quality([TeacherReport("a", 0.0, 0)])[0].score == 0.0
        assert teacher_quality([TeacherReport("a", 3.0, 7)])[0].score == pytest.approx(1.0)

    def test_refusals(self):
        with pytest.raises(DataError, match="at least 1 teacher"):
            teacher_quality([])
        with pytest.raises(DataError, match=r"got nan and 3 for b$"):
            teacher_quality([TeacherReport("a", 1.0, 3), TeacherReport("b", math.nan, 3)])


class TestCompareTeachers:
    def pixels(self, n: int, *shape: int) -> Tensor:
        return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))

    def test_the_parts_by_hand(self):
        """What enters the last layer of a softmax regression are the pixels."""
        x = self.pixels(40, 1, 1, 4)
        x[:, 0, 0, 2:] = x[:, 0, 0, :2]
        models = {"sure": softmax_regression(9.0), "unsure": softmax_regression(0.1)}
        qualities = compare_teachers(models, x, seed=3)
        assert [q.report.name for q in qualities] == ["sure", "unsure"]
        for q in qualities:
            assert q.report.fisher_trace == fisher_trace(models[q.report.name], to_float(x), seed=3).value
            assert q.report.feature_dimension == 2
        assert qualities == teacher_quality([q.report for q in qualities])
        assert qualities[0].score < qualities[1].score == 1.0

    def test_networks_of_any_kind_on_the_same_images(self):
        """Features are averaged over positions: a dimension is at most the width of the last layer's input."""
        spec = ImageSpec(1, 8, 8, 3)
        models = {
            "maps": build(ZooModel(arch="convnet", width=4), spec).train(),
            "tokens": build(ZooModel(arch="vit", width=16, depth=1), spec),
        }
        x = self.pixels(30, *spec.shape)
        first, again = (compare_teachers(models, x, seed=0) for _ in range(2))
        assert first == again
        assert all(0 < q.report.feature_dimension <= 16 for q in first)
        assert models["maps"].training
        assert all(p.requires_grad and p.grad is None for model in models.values() for p in model.parameters())

    def test_refusals(self):
        with pytest.raises(DataError, match="at least 1 teacher"):
            compare_teachers({}, self.pixels(4, 1, 1, 4), seed=0)
        with pytest.raises(DataError, match="at least 2 samples"):
            compare_teachers({"a": softmax_regression(1.0)}, self.pixels(1, 1, 1, 4), seed=0)
        with pytest.raises(DataError, match="must be uint8"):
            compare_teachers({"a": softmax_regression(1.0)}, images(4), seed=0)


class TestLabelInformation:
    def test_certain_and_balanced_predictions_tell_everything(self):
        assert label_information(1000 * torch.eye(4).repeat(5, 1)) == pytest.approx(math.log(4))

    def test_predictions_that_are_all_alike_tell_nothing(self):
        assert label_information(torch.tensor([[1.0, 0.0, -2.0]]).repeat(6, 1)) == pytest.approx(0.0, abs=1e-12)

    def test_a_symmetric_channel_in_closed_form(self):
        """Two classes told apart with error e: log 2 - H(e)."""
        e = 0.1
        logits = torch.tensor([[1 - e, e], [e, 1 - e]], dtype=torch.float64).log()
        noise = -(e * math.log(e) + (1 - e) * math.log(1 - e))
        assert label_information(logits) == pytest.approx(math.log(2) - noise)

    def test_a_class_that_is_never_predicted_is_no_nan(self):
        logits = torch.tensor([[1e3, 0.0, -1e5], [0.0, 1e3, -1e5]])
        assert label_information(logits) == pytest.approx(math.log(2))


class TestCapacityBound:
    def test_by_hand(self):
        assert capacity_bound(2.0, 0.1, 0.5).value == pytest.approx(2.0 / (0.01 * 0.5))

    def test_limits(self):
        assert capacity_bound(1.0, 0.1, 0.0).value == math.inf
        assert capacity_bound(0.0, 0.1, 0.0).value == 0.0

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
    def test_epsilon_must_be_positive(self, epsilon):
        with pytest.raises(ConfigError, match="epsilon must be positive"):
            capacity_bound(1.0, epsilon, 1.0)

    def test_information_and_divergence_are_not_negative(self):
        with pytest.raises(DataError, match="kl must be finite and >= 0 nats, got -1"):
            capacity_bound(1.0, 0.1, -1.0)
        with pytest.raises(DataError, match="mutual_information must be finite"):
            capacity_bound(math.nan, 0.1, 1.0)
