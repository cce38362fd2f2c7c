"""Terms that compare features: which places, against the losses themselves, and what the layers beside them learn."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from synthkd.distillation.terms.features import RELATIONS, Pair, Transfer
from synthkd.errors import ConfigError, ModelError
from synthkd.losses.attention import attention_transfer
from synthkd.losses.features import hint
from synthkd.models import Classifier, build
from synthkd.settings import Architecture, DistillSettings, ZooModel
from synthkd.settings.load import load_config
from synthkd.taps import observe
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 16, 16, 5)


def model(arch: Architecture, width: int, depth: int | None = None) -> Classifier:
    return build(ZooModel(arch=arch, width=width, depth=depth), SPEC)


def transfer(teacher: Classifier, student: Classifier, *terms: Mapping[str, Any]) -> Transfer:
    settings = load_config(DistillSettings, {"transfer": [dict(term) for term in terms]}, [])
    return Transfer(settings.features, teacher, student)


def seen(network: Classifier, places: tuple[str, ...], count: int = 4) -> Mapping[str, Tensor]:
    images = torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(0))
    return observe(network, images, places).features


def losses(made: Transfer, teacher: Classifier, student: Classifier, step: int = 0) -> dict[str, Tensor]:
    with torch.no_grad():
        targets = seen(teacher, made.teacher_places)
    return made(targets, seen(student, made.student_places), step)


def test_hint_is_zero_for_equals_and_one_for_the_mean() -> None:
    target = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 7 + 2
    assert float(hint(target, target)) == 0.0
    assert float(hint(target, target.mean().expand_as(target))) == pytest.approx(1.0, abs=1e-2)
    assert float(hint(5 * target, 5 * (target + 1))) == pytest.approx(float(hint(target, target + 1)), rel=1e-5)


def test_layers_of_hints_begin_as_the_identity_where_widths_agree() -> None:
    teacher = model("convnet", 8)
    same, narrower = (
        transfer(teacher, teacher, {"kind": "hint"}),
        transfer(teacher, model("convnet", 4), {"kind": "hint"}),
    )
    assert float(losses(same, teacher, teacher)["hint"].detach()) == 0.0
    assert float(losses(narrower, teacher, model("convnet", 4))["hint"].detach()) > 0.1
    assert all(layer.weight.requires_grad for layer in same.layers["hint"])


@pytest.mark.parametrize("weight", [50.0, {"kind": "cosine", "start": 50.0, "end": 0.0}])
@pytest.mark.parametrize("width", [8, 4])
def test_layers_of_hints_that_begin_as_the_identity_learn_as_with_weight_1(weight: Any, width: int) -> None:
    teacher = model("convnet", 8)
    torch.manual_seed(1)
    student = model("convnet", width)
    gradients = []
    for one in (1.0, weight):
        torch.manual_seed(0)
        made = transfer(teacher, student, {"kind": "hint", "weight": one})
        student.zero_grad()
        (losses(made, teacher, student)["hint"] * (1.0 if one == 1.0 else 50.0)).backward()
        theirs = [value.grad for value in student.parameters() if value.grad is not None]
        gradients.append(([value.grad for value in made.parameters()], [value.clone() for value in theirs]))
    (layers, ours), (of_weight, of_student) = gradients
    factor = 1.0 if width == 8 else 50.0
    torch.testing.assert_close(of_weight, [factor * value for value in layers], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(of_student, [50.0 * value for value in ours], rtol=1e-3, atol=1e-4)


def test_last_stages_belong_together() -> None:
    made = transfer(model("convnet", 8), model("lenet5", 3), {"kind": "hint"}, {"kind": "attention"})
    maps = (Pair("body.stage2", "body.stage1"), Pair("body.stage3", "body.stage2"))
    assert made.pairs["attention"] == maps
    assert made.pairs["hint"] == (*maps, Pair("body.head:input", "body.head:input"))
    assert made.teacher_places == ("body.stage2", "body.stage3", "body.head:input")


def test_a_term_may_come_twice_at_places_of_its_own() -> None:
    at = {"at": [["body.stage1", "body.stage2"]]}
    made = transfer(model("convnet", 8), model("convnet", 4), {"kind": "hint"}, {"kind": "hint", **at})
    assert list(made.terms) == ["hint", "hint 2"]
    assert made.pairs["hint 2"] == (Pair("body.stage1", "body.stage2"),)
    with pytest.raises(ModelError, match=r"^distill\.transfer: at of the teacher: .*body\.stag1.*body\.stage1"):
        transfer(model("convnet", 8), model("convnet", 4), {"kind": "hint", "at": [["body.stag1", "body.stage1"]]})


@pytest.mark.parametrize("kind", sorted(RELATIONS))
def test_relations_are_those_of_penultimate_features(kind: str) -> None:
    teacher, student = model("convnet", 8).eval(), model("lenet5", 3).eval()
    made = transfer(teacher, student, {"kind": kind})
    found = losses(made, teacher, student)[kind]
    ours, theirs = (seen(network, ("body.head:input",))["body.head:input"] for network in (student, teacher))
    assert float(found) == pytest.approx(float(RELATIONS[kind](theirs, ours)))


def test_attention_is_the_mean_over_stages_in_the_form_asked_for() -> None:
    teacher, student = model("convnet", 8).eval(), model("convnet", 4).eval()
    places = ("body.stage1", "body.stage2", "body.stage3")
    theirs, ours = seen(teacher, places), seen(student, places)
    for form in ("paper", "authors"):
        made = transfer(teacher, student, {"kind": "attention", "form": form})
        each = [attention_transfer(theirs[place], ours[place], 2.0, form) for place in places]  # type: ignore[arg-type]
        assert float(losses(made, teacher, student)["attention"]) == pytest.approx(float(torch.stack(each).mean()))


ALL: list[dict[str, Any]] = [
    {"kind": "hint"},
    {"kind": "attention"},
    {"kind": "rkd_distance"},
    {"kind": "rkd_angle"},
    {"kind": "similarity", "at": "stages"},
    {"kind": "semantic"},
    {"kind": "alignment"},
    {"kind": "alignment", "distance": "sinkhorn", "at": "penultimate"},
    {"kind": "adapter"},
]


@pytest.mark.parametrize(
    "small", [("convnet", 4, None), ("resnet", 4, 8), ("lenet5", 3, None), ("slim", 4, 1)], ids=lambda small: small[0]
)
def test_gradients_of_every_term_reach_the_student_and_not_the_teacher(small: tuple[Architecture, int, int]) -> None:
    teacher, student = model("convnet", 8), model(*small)
    made = transfer(teacher, student, *ALL)
    found = losses(made, teacher, student)
    assert list(found) == [*(term["kind"] for term in ALL[:7]), "alignment 2", "adapter"]
    inside = [p for name, p in student.named_parameters() if "head" not in name]
    for name, value in found.items():
        assert torch.isfinite(value), name
        gradients = torch.autograd.grad(value, inside, retain_graph=True, allow_unused=True)
        assert any(g is not None and bool(g.any()) for g in gradients), name
    assert all(p.grad is None for p in teacher.parameters())
    learned = [name for name, p in made.named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in learned} == {"hint", "alignment", "alignment 2", "adapter"}


@pytest.mark.parametrize("pair", [("convnet", "vit"), ("vit", "convnet")])
def test_maps_and_tokens_meet_in_adapter_alignment_and_relations(pair: tuple[Architecture, Architecture]) -> None:
    teacher, student = (model(arch, 16, 2 if arch == "vit" else None) for arch in pair)
    made = transfer(teacher, student, {"kind": "adapter"}, {"kind": "alignment"}, {"kind": "similarity"})
    assert all(torch.isfinite(value) for value in losses(made, teacher, student).values())
    with pytest.raises(ConfigError, match=r"distill: hint: the teacher's body\.stage.*kind adapter"):
        transfer(teacher, student, {"kind": "hint"})
    with pytest.raises(ConfigError, match="attention finds no two feature maps"):
        transfer(teacher, student, {"kind": "attention"})


def test_attention_where_there_are_no_maps_is_refused_with_both_places() -> None:
    teacher, student = model("convnet", 8), model("convnet", 4)
    vector, maps = r"\[\d+\]", r"\[\d+, \d+, \d+\]"
    remedy = r"name other places \(at\), or take kind adapter"
    for at, places in (
        (
            "penultimate",
            rf"teacher's body\.head:input gives {vector} for an image, the student's body\.head:input {vector}",
        ),
        (
            [["body.stage2", "body.head:input"]],
            rf"teacher's body\.stage2 gives {maps} .*, the student's body\.head:input {vector}",
        ),
        (
            [["body.head:input", "body.stage2"]],
            rf"teacher's body\.head:input gives {vector} .*, the student's body\.stage2 {maps}",
        ),
    ):
        with pytest.raises(ConfigError, match=rf"distill\.transfer: attention 2 compares.* {places}; {remedy}"):
            transfer(teacher, student, {"kind": "attention"}, {"kind": "attention", "at": at})


@pytest.mark.parametrize("size", [1.0, 10.0])
def test_a_student_that_answers_the_teachers_mean_is_1_from_it_at_any_scale(size: float) -> None:
    teacher, student = model("convnet", 2).eval(), model("convnet", 4).eval()
    place = "body.head:input"
    theirs = size * seen(teacher, (place,))[place].detach()
    # 64 directions are two rotations of 32 dimensions, and each rotation has all of the distance
    assert theirs.shape[1] == 32
    made = transfer(teacher, student, {"kind": "alignment", "at": "penultimate"})
    (layer,) = made.layers["alignment"].children()
    with torch.no_grad():
        layer.get_parameter("weight").zero_()
        layer.get_parameter("bias").copy_(theirs.mean(0))
    found = made({place: theirs}, seen(student, (place,)), 0)["alignment"]
    assert float(found.detach()) == pytest.approx(1.0, rel=1e-4)


def test_directions_of_the_alignment_follow_the_step() -> None:
    teacher, student = model("convnet", 8).eval(), model("convnet", 4).eval()
    made = transfer(teacher, student, {"kind": "alignment"})
    first, again, later = (float(losses(made, teacher, student, step)["alignment"]) for step in (0, 0, 1))
    assert first == again != later


def test_a_copy_with_identity_regressors_has_no_loss() -> None:
    teacher = model("convnet", 8).eval()
    made = transfer(teacher, teacher, {"kind": "hint"})
    with torch.no_grad():
        for regressor in made.layers["hint"]:  # type: ignore[union-attr]
            weight = regressor.weight.flatten(1)
            weight.copy_(torch.eye(len(weight)))
            regressor.bias.zero_()
        assert float(losses(made, teacher, teacher)["hint"]) == pytest.approx(0.0, abs=1e-10)


def test_the_old_keys_are_terms_like_others() -> None:
    settings = DistillSettings(hint=3.0, semantic=2.0)
    assert [(term.kind, term.weight, term.at) for term in settings.features] == [
        ("hint", 3.0, "stages"),
        ("semantic", 2.0, "penultimate"),
    ]
