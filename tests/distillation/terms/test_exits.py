"""Exits at shallow stages: where they are, against the losses themselves, what they teach and whom they leave alone."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.data.read.named import read_digits
from synthkd.distillation.terms.exits import Exits
from synthkd.errors import ConfigError, ModelError
from synthkd.losses.features import hint
from synthkd.losses.logits import distillation_loss
from synthkd.models import Classifier, build
from synthkd.settings import Architecture, ExitsTerm, ZooModel
from synthkd.taps import observe
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(1, 16, 16, 5)
HEAD = "body.head:input"


def model(arch: Architecture = "convnet", width: int = 4, depth: int | None = None) -> Classifier:
    torch.manual_seed(0)
    return build(ZooModel(arch=arch, width=width, depth=depth), SPEC).eval()


def exits(student: Classifier, **settings: Any) -> Exits:
    torch.manual_seed(1)
    return Exits(ExitsTerm(kind="exits", **settings), student)


def seen(student: Classifier, made: Exits, count: int = 6) -> tuple[Mapping[str, Tensor], Tensor]:
    images = torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(2))
    shown = observe(student, images, made.student_places)
    return shown.features, shown.logits


@pytest.mark.parametrize("small", [("convnet", 4, None), ("resnet", 4, 8), ("vit", 16, 3), ("mlp", 32, 3)])
def test_every_stage_but_the_last_has_an_exit(small: tuple[Architecture, int, int | None]) -> None:
    student = model(*small)
    made = exits(student)
    assert made.student_places == made.places == ("body.stage1", "body.stage2")
    features, logits = seen(student, made)
    answers = made.logits(features)
    assert [(place, tuple(value.shape)) for place, value in answers.items()] == [(p, (6, 5)) for p in made.places]
    found = made(features, logits, 3.0)
    assert list(found) == ["exits"]
    expected = torch.stack([distillation_loss(logits, answer, 3.0) for answer in answers.values()]).mean()
    assert float(found["exits"]) == pytest.approx(float(expected), rel=1e-6)


def test_the_weight_of_features_adds_the_hint_to_the_deepest() -> None:
    student = model()
    made = exits(student, features=0.25, at=["body.stage1", "body.stage3"])
    assert made.student_places == ("body.stage1", "body.stage3", HEAD)
    features, logits = seen(student, made)
    hints = []
    for place, neck, regress in zip(made.places, made.necks, made.regressors, strict=True):
        hints.append(hint(features[HEAD], regress(neck(features[place]).mean((2, 3)))))
    answers = [distillation_loss(logits, answer, 2.0) for answer in made.logits(features).values()]
    expected = (sum(answers) + 0.25 * sum(hints)) / 2
    assert float(made(features, logits, 2.0)["exits"]) == pytest.approx(float(expected), rel=1e-5)


def test_an_exit_that_answers_like_the_deepest_has_no_loss() -> None:
    student = model()
    made = exits(student, at=["body.stage2"])
    features, _ = seen(student, made)
    logits = made.logits(features)["body.stage2"]
    assert float(made(features, logits, 4.0)["exits"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(made(features, logits + 3.0, 4.0)["exits"].detach()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_gradients_reach_the_stages_below_and_the_exits_and_leave_the_deepest_alone(weight: float) -> None:
    student = model()
    own = set(student.state_dict())
    made = exits(student, features=weight)
    made(*seen(student, made), 4.0)["exits"].backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name.split(".")[1] for name in reached} == {"stage1", "stage2"}
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())
    assert not {id(p) for p in student.parameters()} & {id(p) for p in made.parameters()}
    assert set(student.state_dict()) == own, "nothing of it is saved with the student"


def test_rows_without_weight_teach_nothing() -> None:
    student = model()
    made = exits(student)
    features, logits = seen(student, made)
    half = {place: value[:3] for place, value in features.items()}
    weights = torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0])
    found, expected = made(features, logits, 4.0, weights), made(half, logits[:3], 4.0)
    assert float(found["exits"]) == pytest.approx(float(expected["exits"]), rel=1e-6)


def test_weights_of_images_scale_answers_and_features_of_each() -> None:
    student = model()
    made = exits(student, features=0.25, at=["body.stage1", "body.stage3"])
    features, logits = seen(student, made)
    features, logits = {place: value.detach() for place, value in features.items()}, logits.detach()
    weights = torch.tensor([0.2, 3.0, 0.0, 1.0, 0.5, 1.3])
    expected = 0.0
    for place, neck, regress in zip(made.places, made.necks, made.regressors, strict=True):
        answers = made.logits(features)[place].detach()
        gaps = (features[HEAD] - regress(neck(features[place]).mean((2, 3))).detach()).square().mean(1)
        for row, weight in enumerate(weights.tolist()):
            one = slice(row, row + 1)
            of_answer = float(distillation_loss(logits[one], answers[one], 2.0))
            expected += weight * (of_answer + 0.25 * float(gaps[row] / features[HEAD].var())) / 6 / 2
    found, ones, none = (
        float(made(features, logits, 2.0, given)["exits"].detach()) for given in (weights, torch.ones(6), None)
    )
    assert found == pytest.approx(expected, rel=1e-4)
    assert ones == pytest.approx(none, rel=1e-6)
    assert found != pytest.approx(none, rel=1e-2)


@pytest.mark.parametrize("fill", [None, 0.0, 100.0])
def test_one_image_in_half_precision_and_constant_features_give_a_finite_loss(fill: float | None) -> None:
    student = model()
    made = exits(student, features=1.0)
    features, logits = seen(student, made, count=1)
    if fill is None:
        features, logits = {place: value.half() for place, value in features.items()}, logits.half()
    else:
        features = {place: torch.full_like(value, fill) for place, value in features.items()}
    leaves = {place: value.detach().requires_grad_() for place, value in features.items()}
    loss = made(leaves, logits, 4.0)["exits"]
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())
    assert bool(torch.autograd.grad(loss, leaves["body.stage1"])[0].isfinite().all())


def test_a_network_without_a_shallow_stage_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"exits at stages: no stage.*name modules \(at\), or take a deeper student"):
        exits(model("mlp", 16, 1))
    with pytest.raises(ConfigError, match="exits at no module"):
        exits(model(), at=[])
    with pytest.raises(ModelError, match=r"body\.stag1.*body\.stage1"):
        exits(model(), at=["body.stag1"])


def test_shallow_exits_learn_to_tell_digits() -> None:
    source = read_digits()
    torch.manual_seed(0)
    student = build(ZooModel(arch="convnet", width=8), ImageSpec(1, 8, 8, 10))
    made, fresh = exits(student), exits(student)
    optimizer = torch.optim.Adam([*student.parameters(), *made.parameters()], lr=5e-3)
    for _ in range(80):
        chosen = torch.randint(0, 1400, (64,))
        shown = observe(student, to_float(source.images[chosen]), made.student_places)
        loss = F.cross_entropy(shown.logits, source.labels[chosen]) + made(shown.features, shown.logits, 4.0)["exits"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        shown = observe(student.eval(), to_float(source.images[1400:]), made.student_places)
        # a deepest answer that grows sharp takes the loss up with it, so the measure is an exit that learned nothing
        learned, untaught = (e(shown.features, shown.logits, 4.0)["exits"] for e in (made, fresh))
        right = [answer.argmax(1) == source.labels[1400:] for answer in made.logits(shown.features).values()]
    assert float(learned) < 0.5 * float(untaught)
    assert all(float(rows.float().mean()) > 0.6 for rows in right)
