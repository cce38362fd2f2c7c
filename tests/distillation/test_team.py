"""Several teachers as one: the mean against products of predictions, the weights by hand, and who is run."""

import math
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.hybrid import REST, HybridDataset
from synthkd.data.sources import RealImages, RealSource
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.teachers import LEAST_ENTROPY, FrozenTeacher, TeacherTeam, certainty_weights
from synthkd.errors import ConfigError
from synthkd.losses.logits import distillation_loss
from synthkd.models import Classifier
from synthkd.settings import MixSettings, SelectionSettings, TeamSettings
from synthkd.types import ImageSpec, Outputs

SPEC = ImageSpec(1, 2, 2, 3)
ACCELERATOR = Accelerator(cpu=True)


class Counting(FrozenTeacher):
    """A teacher that counts its passes."""

    passes = 0

    def __call__(self, images: Tensor) -> Outputs:
        self.passes += 1
        return super().__call__(images)


def teacher(
    seed: int,
    scale: float = 1.0,
    shift: float = 0.0,
    features: Sequence[str] = (),
    names: Sequence[str] = (),
    spec: ImageSpec = SPEC,
) -> Counting:
    linear = nn.Linear(spec.channels * spec.height * spec.width, spec.classes)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.copy_(scale * torch.randn(linear.weight.shape, generator=rng))
        linear.bias.copy_(scale * torch.randn(linear.bias.shape, generator=rng) + shift)
    return Counting(Classifier(nn.Sequential(nn.Flatten(), linear), spec, class_names=names), ACCELERATOR, features)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(9))


def selecting(number: int, teachers: int) -> TeacherSelection:
    """A selection that has come to this teacher."""
    selection = TeacherSelection(teachers, SelectionSettings())
    selection.selected = number
    return selection


def entropies(logits: Tensor) -> Tensor:
    p = logits.double().softmax(dim=-1)
    return -torch.special.xlogy(p, p).sum(dim=-1)


def test_predictions_are_the_normalised_geometric_mean() -> None:
    members = [teacher(0), teacher(1, 3.0), teacher(2)]
    team = TeacherTeam(members, TeamSettings(weights=(1.0, 2.0, 5.0)))
    product = torch.ones(6, 3, dtype=torch.float64)
    for member, weight in zip(members, (1 / 8, 2 / 8, 5 / 8), strict=True):
        product *= member.logits(images()).double().softmax(dim=1) ** weight
    expected = product / product.sum(dim=1, keepdim=True)
    assert torch.allclose(team.logits(images()).double().softmax(dim=1), expected, atol=1e-6)


def test_without_weights_all_teachers_count_alike_in_any_order() -> None:
    members = [teacher(0), teacher(1)]
    one, other = (TeacherTeam(order, TeamSettings()) for order in (members, members[::-1]))
    assert torch.allclose(one.logits(images()), one.separate_logits(images()).mean(dim=0))
    assert torch.allclose(one.logits(images()), other.logits(images()))


@pytest.mark.parametrize("weighting", ["fixed", "sample"])
def test_a_constant_added_to_a_teachers_logits_changes_no_loss(weighting: str) -> None:
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(4))
    plain, shifted = (
        TeacherTeam([teacher(0), teacher(1, shift=shift)], TeamSettings(weighting=weighting)).logits(images())
        for shift in (0.0, 20.0)
    )
    assert float((shifted - plain).min()) > 5.0
    expected = float(distillation_loss(plain, student, 3.0))
    assert float(distillation_loss(shifted, student, 3.0)) == pytest.approx(expected, rel=1e-4)


def test_a_team_of_one_is_that_teacher_under_every_weighting() -> None:
    alone = teacher(0, features=["body.1"])
    seen = alone(images())
    for weighting in ("fixed", "confidence", "sample", "selected"):
        team = TeacherTeam([alone], TeamSettings(weighting=weighting))
        assert torch.equal(team(images()).logits, seen.logits)
        assert torch.equal(team(images()).features["body.1"], seen.features["body.1"])


def test_weights_by_image_are_inverse_entropies() -> None:
    """The second teacher is sure where the first is not, so that the images differ in whom they trust."""
    answers = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], [[0.0, 2.0, 0.0], [0.0, 0.5, 0.0]]])
    inverse = 1.0 / entropies(answers)
    weights = certainty_weights(answers)
    assert torch.allclose(weights.double(), inverse / inverse.sum(dim=0))
    assert float(weights[0, 0]) < 0.5 < float(weights[0, 1])


def test_weights_by_batch_are_inverse_mean_entropies() -> None:
    answers = torch.tensor([[[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], [[0.0, 2.0, 0.0], [0.0, 0.5, 0.0]]])
    inverse = 1.0 / entropies(answers).mean(dim=1, keepdim=True)
    assert torch.allclose(certainty_weights(answers, batch=True).double(), inverse / inverse.sum(dim=0))


@pytest.mark.parametrize("weighting", ["sample", "confidence"])
def test_the_team_combines_by_those_weights(weighting: str) -> None:
    team = TeacherTeam([teacher(0, 0.5), teacher(1, 2.0), teacher(2)], TeamSettings(weighting=weighting))
    answers = team.separate_logits(images())
    assert answers.shape == (3, 6, 3)
    expected = torch.zeros(6, 3)
    for number, row in enumerate(certainty_weights(answers, batch=weighting == "confidence")):
        expected += row[:, None] * answers[number]
    assert torch.allclose(team.logits(images()), expected, atol=1e-6)


def test_a_label_by_image_does_not_depend_on_its_batch_and_one_by_batch_does() -> None:
    members = [teacher(0, 0.5), teacher(1, 2.0)]
    by_image, by_batch = (TeacherTeam(members, TeamSettings(weighting=w)) for w in ("sample", "confidence"))
    assert torch.allclose(by_image.logits(images())[:2], by_image.logits(images()[:2]), atol=1e-6)
    assert not torch.allclose(by_batch.logits(images())[:2], by_batch.logits(images()[:2]), atol=1e-3)


def test_certain_teachers_weigh_the_same_and_nothing_is_infinite() -> None:
    certain = torch.tensor([[[1e4, 0.0, 0.0]], [[0.0, 2e4, 0.0]], [[0.0, 0.0, 0.0]]])
    weights = certainty_weights(certain)
    assert bool(torch.isfinite(weights).all())
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[0, 0]) == float(weights[1, 0])
    assert float(weights[0, 0] / weights[2, 0]) == pytest.approx(math.log(3) / LEAST_ENTROPY, rel=1e-4)


def test_only_the_selected_teacher_is_run() -> None:
    members = [teacher(0), teacher(1), teacher(2)]
    selection = selecting(0, 3)
    team = TeacherTeam(members, TeamSettings(weighting="selected"), selection)
    assert torch.equal(team.logits(images()), members[0].logits(images()))
    selection.selected = 2
    before = [member.passes for member in members]
    assert torch.equal(team.logits(images()), members[2].logits(images()))
    assert [member.passes - past for member, past in zip(members, before, strict=True)] == [0, 0, 2]


def test_the_consensus_is_of_all_teachers_whoever_is_selected() -> None:
    members = [teacher(0), teacher(1, scale=3.0), teacher(2)]
    selection = selecting(0, 3)
    team = TeacherTeam(members, TeamSettings(weighting="selected"), selection)
    expected = torch.stack([member.logits(images()) for member in members]).mean(dim=0)
    for number in range(3):
        selection.selected = number
        assert torch.equal(team.logits(images()), members[number].logits(images()))
        assert torch.allclose(team.consensus(images()), expected, atol=1e-6)
        assert not torch.allclose(team.consensus(images()), team.logits(images()), atol=0.1)


def test_the_consensus_of_a_team_in_which_nobody_is_selected_is_what_it_says() -> None:
    members = [teacher(0), teacher(1, scale=3.0)]
    for settings in (TeamSettings(weights=(1.0, 3.0)), TeamSettings(weighting="sample")):
        team = TeacherTeam(members, settings)
        assert torch.equal(team.consensus(images()), team.logits(images()))
        assert not torch.allclose(team.consensus(images()), team.separate_logits(images()).mean(dim=0), atol=0.05)


def test_features_are_the_first_teachers_whoever_is_selected() -> None:
    members = [teacher(0, features=["body.1"]), teacher(1)]
    team = TeacherTeam(members, TeamSettings(weighting="selected"), selecting(1, 2))
    seen = team(images())
    assert [member.passes for member in members] == [1, 1]
    assert torch.equal(seen.logits, members[1].logits(images()))
    assert torch.equal(seen.features["body.1"], members[0](images()).features["body.1"])


def test_a_teacher_of_weight_zero_is_not_run() -> None:
    members = [teacher(0), teacher(1), teacher(2)]
    team = TeacherTeam(members, TeamSettings(weights=(0.0, 1.0, 3.0)))
    logits = team.logits(images())
    assert [member.passes for member in members] == [0, 1, 1]
    assert torch.allclose(logits, 0.25 * members[1].logits(images()) + 0.75 * members[2].logits(images()), atol=1e-6)


def test_the_first_teacher_stands_for_the_team() -> None:
    members = [teacher(0), teacher(1)]
    team = TeacherTeam(members, TeamSettings())
    assert team.model is members[0].model
    assert team.spec == SPEC
    assert team.selected == 0
    assert not team.logits(images()).requires_grad


def test_costs_are_multiplications_over_those_of_the_largest() -> None:
    """4 x 3 of a linear layer against 4 x 24 + 24 x 3 of two, in any order of the teachers."""
    deep = nn.Sequential(nn.Flatten(), nn.Linear(4, 24), nn.Linear(24, 3))
    large = FrozenTeacher(Classifier(deep, SPEC), ACCELERATOR)
    assert TeacherTeam([teacher(0), large], TeamSettings()).costs == pytest.approx((12 / 168, 1.0))
    assert TeacherTeam([large, teacher(0), teacher(1)], TeamSettings()).costs == pytest.approx((1.0, 1 / 14, 1 / 14))
    assert TeacherTeam([teacher(0)], TeamSettings()).costs == (1.0,)


def test_a_source_takes_a_team_for_its_teacher() -> None:
    team = TeacherTeam([teacher(0), teacher(1)], TeamSettings(weighting="sample"))
    real = RealSource(RealImages((images(9) * 255).to(torch.uint8), torch.arange(9) % 3), 0)
    batch = HybridDataset([real], [REST], MixSettings(), 5, 3, team, lambda: 0.0, 0).batch(1)
    assert batch.teacher_logits is not None
    assert torch.equal(batch.teacher_logits, team.logits(batch.images))


def test_teachers_that_cannot_be_a_team_are_told() -> None:
    with pytest.raises(ConfigError, match="at least 1 teacher"):
        TeacherTeam([], TeamSettings())
    with pytest.raises(ConfigError, match=r"teachers\.1: it takes 1x2x2 images, 4 classes, the first teacher 1x2x2"):
        TeacherTeam([teacher(0), teacher(1), teacher(2, spec=ImageSpec(1, 2, 2, 4))], TeamSettings())
    with pytest.raises(ConfigError, match=r"team\.weights: there are 3 for 2 teachers"):
        TeacherTeam([teacher(0), teacher(1)], TeamSettings(weights=(1.0, 1.0, 1.0)))


def test_classes_must_be_named_alike_where_both_have_names() -> None:
    first, same, nameless = teacher(0, names="abc"), teacher(1, names="abc"), teacher(2)
    TeacherTeam([first, nameless, same], TeamSettings())
    TeacherTeam([nameless, first], TeamSettings())
    with pytest.raises(ConfigError, match=r"teachers\.0: its class 1 is 'c', the first teacher's is 'b'"):
        TeacherTeam([first, teacher(3, names="acb")], TeamSettings())
