"""The bridge between unlike architectures: shapes, what it can learn, what it may know, where gradients go."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from synthkd.distillation.terms.adapter import HEADS, ArchitectureAdapter, coordinates, no_finer
from synthkd.errors import ModelError
from synthkd.losses.alignment import positions
from synthkd.models import build
from synthkd.settings import ZooModel
from synthkd.taps import observe
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 16, 16, 5)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapter(teacher: int, student: int, content: bool = False) -> ArchitectureAdapter:
    torch.manual_seed(0)
    return ArchitectureAdapter(teacher, student, content)


LAYOUTS = [(5, 12, 8, 8), (5, 12, 3, 7), (5, 16, 12), (5, 17, 12), (5, 6, 12), (5, 1, 12), (5, 12)]


@pytest.mark.parametrize("teacher", LAYOUTS)
@pytest.mark.parametrize("student", LAYOUTS)
def test_any_layout_gets_the_shape_of_any_other(teacher: tuple[int, ...], student: tuple[int, ...]) -> None:
    answer = adapter(12, 12)(torch.zeros(teacher), normal(*student))
    assert answer.shape == teacher
    assert bool(torch.isfinite(answer).all())


@pytest.mark.parametrize(("channels", "width"), [((3, 500), 16), ((40, 20), 24), ((64, 64), 64), ((2048, 768), 128)])
def test_width_follows_the_smaller_side(channels: tuple[int, int], width: int) -> None:
    with torch.device("meta"):
        assert ArchitectureAdapter(*channels).width == width


@pytest.mark.parametrize(("teacher", "student"), [("convnet", "vit"), ("vit", "convnet")])
@pytest.mark.parametrize("content", [False, True])
def test_gradients_reach_a_student_of_another_kind_and_not_its_teacher(
    teacher: str, student: str, content: bool
) -> None:
    models = [
        build(ZooModel(arch=arch, width=16 if arch == "vit" else 4, depth=2 if arch == "vit" else None), SPEC)  # type: ignore[arg-type]
        for arch in (teacher, student)
    ]
    images = normal(3, *SPEC.shape).sigmoid()
    theirs, ours = (observe(model, images, ["body.stage2"]).features["body.stage2"] for model in models)
    assert {theirs.dim(), ours.dim()} == {3, 4}
    bridge = adapter(positions(theirs).shape[-1], positions(ours).shape[-1], content)
    answer = bridge(theirs, ours)
    assert answer.shape == theirs.shape
    (answer - theirs.detach()).square().mean().backward()
    assert all(p.grad is None for p in models[0].parameters())
    stem = next(p for name, p in models[1].named_parameters() if "stem" in name or "stage1" in name or "tokens" in name)
    assert stem.grad is not None
    assert float(stem.grad.abs().max()) > 0.0
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0.0 for p in bridge.parameters() if p.numel() > 1)


def test_it_learns_a_linear_map_of_each_token_to_a_finer_map() -> None:
    student = normal(48, 4, 10)
    linear = normal(10, 12, seed=1) / 10**0.5
    target = F.interpolate((student @ linear).transpose(1, 2).unflatten(2, (2, 2)), size=4)
    bridge = adapter(12, 10)
    optimizer = torch.optim.Adam(bridge.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = (bridge(torch.zeros_like(target), student) - target).square().mean() / target.var()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.8
    assert losses[-1] < 0.05


def test_the_teachers_features_are_not_known_unless_asked_with() -> None:
    student, teacher, other = normal(2, 4, 10), normal(2, 12, 3, 3, seed=1), normal(2, 12, 3, 3, seed=2)
    blind, asking = adapter(12, 10), adapter(12, 10, content=True)
    assert torch.equal(blind(teacher, student), blind(other, student))
    assert not torch.equal(asking(teacher, student), asking(other, student))


def test_asking_with_content_sends_no_gradient_to_the_teacher() -> None:
    student, teacher = normal(2, 4, 10).requires_grad_(), normal(2, 12, 3, 3, seed=1).requires_grad_()
    adapter(12, 10, content=True)(teacher, student).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_images_do_not_see_each_other_and_tokens_have_places() -> None:
    bridge = adapter(12, 10)
    teacher, student = torch.zeros(6, 9, 12), normal(6, 16, 10)
    answer = bridge(teacher, student)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.allclose(bridge(teacher, student[order]), answer[order], atol=1e-6)
    assert torch.allclose(bridge(teacher[:1], student[:1]), answer[:1], atol=1e-6)
    assert not torch.allclose(bridge(teacher, student.flip(1)), answer, atol=1e-2)


def test_equal_tokens_have_no_order_and_a_single_one_is_everywhere() -> None:
    bridge = adapter(12, 10)
    token = normal(3, 1, 10)
    alone = bridge(torch.zeros(3, 12, 4, 4), token)
    assert torch.allclose(alone, alone[:, :, :1, :1].expand_as(alone), atol=1e-6)
    many = bridge(torch.zeros(3, 12, 4, 4), token.expand(3, 25, 10))
    assert torch.allclose(many, alone, atol=1e-5)


def test_a_map_and_its_tokens_are_the_same_student() -> None:
    bridge, student = adapter(12, 10), normal(2, 10, 4, 4)
    as_map, as_tokens = (bridge(torch.zeros(2, 9, 12), x) for x in (student, positions(student)))
    assert torch.equal(as_map, as_tokens)


def test_at_first_a_place_of_the_teacher_looks_near_itself() -> None:
    bridge, student = adapter(12, 10), normal(1, 64, 10).requires_grad_()
    bridge(torch.zeros(1, 12, 8, 8), student)[0, :, 0, 0].square().sum().backward()
    assert student.grad is not None
    seen = student.grad[0].norm(dim=1).reshape(8, 8)
    assert float(seen[:2, :2].mean()) > 3.0 * float(seen[4:, 4:].mean())


@pytest.mark.parametrize("student", [(2, 17, 10), (2, 10, 3, 5)])
def test_attention_falls_with_the_squared_distance(student: tuple[int, ...]) -> None:
    bridge, target, source = adapter(12, 10), torch.zeros(2, 6, 12), normal(*student)
    with torch.no_grad():
        bridge.log_nearness.copy_(torch.tensor([-3.0, 0.0, 2.0, 5.0]))
        answer = bridge(target, source)
        # one image, head and question at a time, with the distances written out
        there, here = coordinates(target), coordinates(source)
        waves = [torch.stack([wave(place) for place in places]) for places in (there, here)]
        tokens = bridge.project(positions(source).transpose(1, 2)).transpose(1, 2)
        queries = bridge.query(bridge.place["query"](waves[0]))
        keys, values = bridge.key(tokens + bridge.place["key"](waves[1])), bridge.value(tokens)
        size = bridge.width // HEADS
        for image in range(2):
            for place in range(6):
                heads = []
                for head in range(HEADS):
                    part = slice(head * size, (head + 1) * size)
                    scores = keys[image, :, part] @ queries[place, part] / size**0.5
                    squared = (here - there[place]).square().sum(dim=1)
                    weights = (scores - bridge.log_nearness[head].exp() * squared).softmax(dim=0)
                    heads.append(weights @ values[image, :, part])
                assert torch.allclose(answer[image, place], bridge.out(torch.cat(heads)), atol=1e-5)


def wave(place: torch.Tensor) -> torch.Tensor:
    """Of rows the sines, the sines of columns, then the cosines; at 1, 2, 4 and 8 half turns; then the mark."""
    turns = [torch.stack([at * torch.pi * 2.0**k for k in range(4)]) for at in place[:2]]
    return torch.cat([*(angle.sin() for angle in turns), *(angle.cos() for angle in turns), place[2:]])


def test_a_map_is_averaged_down_to_what_the_student_has_and_nothing_else_is() -> None:
    fine = normal(2, 3, 8, 6)
    assert torch.equal(no_finer(fine, torch.zeros(2, 16, 5)), F.adaptive_avg_pool2d(fine, (4, 4)))
    assert torch.equal(no_finer(fine, torch.zeros(2, 17, 5)), F.adaptive_avg_pool2d(fine, (4, 4)))
    assert torch.equal(no_finer(fine, torch.zeros(2, 5, 2, 9)), F.adaptive_avg_pool2d(fine, (2, 6)))
    assert torch.allclose(no_finer(fine, torch.zeros(2, 5)), fine.mean(dim=(2, 3), keepdim=True))
    assert no_finer(fine, torch.zeros(2, 5, 9, 9)) is fine
    assert no_finer(tokens := normal(2, 64, 5), torch.zeros(2, 4, 5)) is tokens


def test_coordinates_are_known_for_grids_class_tokens_and_lines() -> None:
    assert coordinates(torch.zeros(1, 5, 2, 3)).tolist() == [
        pytest.approx([r, c, 0.0]) for r in (0.25, 0.75) for c in (1 / 6, 0.5, 5 / 6)
    ]
    assert torch.equal(coordinates(torch.zeros(1, 9, 5)), coordinates(torch.zeros(1, 5, 3, 3)))
    with_class = coordinates(torch.zeros(1, 10, 5))
    assert with_class[0].tolist() == [0.5, 0.5, 1.0]
    assert torch.equal(with_class[1:], coordinates(torch.zeros(1, 9, 5)))
    line = coordinates(torch.zeros(1, 6, 5))
    assert all(a < b for a, b in pairwise(line[:, 0].tolist()))
    assert set(line[:, 1].tolist()) == {0.5}
    assert coordinates(torch.zeros(4, 5)).tolist() == [[0.5, 0.5, 0.0]]


def test_constant_features_and_mixed_precision_are_finite() -> None:
    bridge = adapter(12, 10)
    student = torch.full((1, 4, 10), 3.0, requires_grad=True)
    bridge(torch.zeros(1, 12, 3, 3), student).sum().backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    tokens = normal(2, 4, 10)
    with torch.autocast("cpu", torch.bfloat16):
        half = bridge(torch.zeros(2, 12, 3, 3), tokens.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, bridge(torch.zeros(2, 12, 3, 3), tokens.bfloat16()))  # squared distances want float32


def test_other_features_than_it_was_made_for_are_told() -> None:
    with pytest.raises(ModelError, match=r"12 teacher and 10 student channels.*\[2, 9, 12\] and student \[2, 4, 11\]"):
        adapter(12, 10)(torch.zeros(2, 9, 12), torch.zeros(2, 4, 11))
    with pytest.raises(ModelError, match="of the same images"):
        adapter(12, 10)(torch.zeros(2, 9, 12), torch.zeros(3, 4, 10))
