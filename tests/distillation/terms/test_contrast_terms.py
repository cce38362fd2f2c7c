"""Terms on images beside the batch: what is drawn, against the losses themselves, and what learns."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.distillation.terms.contrast import Contrast, ExtraImages
from synthkd.losses.contrast import crd, sskd
from synthkd.models import Classifier, build
from synthkd.settings import Architecture, BankSettings, ContrastTerm, ViewTerm, ZooModel
from synthkd.taps import observe
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 16, 16, 5)
HEAD = "body.head:input"


def model(arch: Architecture, width: int) -> Classifier:
    torch.manual_seed(width)
    return build(ZooModel(arch=arch, width=width, depth=2 if arch == "vit" else None), SPEC).eval()


def told(negatives: int = 8, **more: Any) -> ContrastTerm:
    return ContrastTerm(kind="crd", negatives=negatives, **more)


def viewed(**more: Any) -> ViewTerm:
    return ViewTerm(kind="sskd", **more)


def noise(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *SPEC.shape, generator=torch.Generator().manual_seed(seed))


def filled(count: int) -> MemoryBank:
    bank = MemoryBank(SPEC, BankSettings(capacity=32), seed=3)
    bank.add(noise(count, seed=9), torch.arange(count) % 5, torch.zeros(count, 5))
    return bank


def batch_of(count: int) -> Batch:
    return Batch(noise(count), torch.arange(count) % 5)


def features(network: Classifier, images: Tensor) -> Mapping[str, Tensor]:
    return observe(network, images, (HEAD,)).features


def terms_of(
    made: Contrast, teacher: Classifier, student: Classifier, batch: Batch, beside: ExtraImages
) -> dict[str, Tensor]:
    """The terms of a batch, each network shown its images in as many passes as a step has."""
    with torch.no_grad():
        theirs = features(teacher, batch.images)
        shown = features(teacher, beside.images) if len(beside.images) else {}
    both = features(student, torch.cat([batch.images, beside.views]))[HEAD]
    count = len(batch)
    found: dict[str, Tensor] = made(theirs, {HEAD: both[:count]}, shown, {HEAD: both[count:]}, beside.copies)
    return found


@pytest.mark.parametrize("pair", [("convnet", "vit"), ("vit", "convnet"), ("convnet", "lenet5")])
def test_gradients_reach_the_student_and_the_heads_and_not_the_teacher(pair: tuple[Architecture, Architecture]) -> None:
    teacher, student = model(pair[0], 16), model(pair[1], 4)
    own = set(student.state_dict())
    made = Contrast([told(), viewed(), told(2, dimension=3)], teacher, student)
    assert made.teacher_places == made.student_places == (HEAD,)
    batch = batch_of(6)
    found = terms_of(made, teacher, student, batch, made.extra_images(batch, 0, filled(20)))
    assert list(found) == list(made.terms) == ["crd", "sskd", "crd 2"]
    inside = [p for name, p in student.named_parameters() if "head" not in name]
    for name, value in found.items():
        gradients = torch.autograd.grad(value, inside, retain_graph=True, allow_unused=True)
        assert any(g is not None and bool(g.any()) for g in gradients), name
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.any()) for name, p in made.named_parameters() if "weight" in name)
    assert all(p.grad is None for p in teacher.parameters())
    networks = {id(p) for network in (teacher, student) for p in network.parameters()}
    assert not networks & {id(p) for p in made.parameters()}
    assert set(student.state_dict()) == own, "nothing of it is saved with the student"


def test_crd_is_infonce_against_every_other_image_but_copies() -> None:
    teacher, student, bank = model("convnet", 8), model("vit", 16), filled(12)
    made = Contrast([told(9, temperature=0.3, dimension=7)], teacher, student)
    batch = bank.draw(10, step=0)
    assert batch.slots is not None
    beside = made.extra_images(batch, 4, bank)
    drawn = bank.draw(9, 4, "negatives")
    assert drawn.slots is not None
    assert torch.equal(beside.negatives, drawn.images)
    assert len(beside.views) == 0
    assert beside.copies[:, :10].any()
    assert beside.copies[:, 10:].any()
    ours, theirs = reversed(list(made.layers["crd"].children()))
    slots = [*batch.slots.tolist(), *drawn.slots.tolist()]
    with torch.no_grad():
        anchors = ours(features(student, batch.images)[HEAD])
        every = theirs(features(teacher, torch.cat([batch.images, drawn.images]))[HEAD])
        losses = []
        for row in range(10):
            others = [column for column, slot in enumerate(slots) if slot != slots[row]]
            mine = slice(row, row + 1)
            losses.append(crd(every[mine], anchors[mine], every[others], 0.3))
        found = terms_of(made, teacher, student, batch, beside)["crd"]
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_weights_of_images_scale_their_rows_of_crd() -> None:
    teacher, student, bank, batch = model("convnet", 8), model("convnet", 4), filled(12), batch_of(5)
    made, weights = Contrast([told(6)], teacher, student), torch.tensor([0.2, 3.0, 0.0, 1.0, 0.5])
    beside = made.extra_images(batch, 1, bank)
    theirs, shown, ours = (
        features(network, images)[HEAD].detach()
        for network, images in ((teacher, batch.images), (teacher, beside.images), (student, batch.images))
    )

    def weighed(given: Tensor | None) -> float:
        return float(made({HEAD: theirs}, {HEAD: ours}, {HEAD: shown}, {}, beside.copies, given)["crd"].detach())

    sides = zip(made.layers["crd"].children(), (torch.cat([theirs, shown]), ours), strict=True)
    projected, mine = (layer(x).detach() for layer, x in sides)
    expected = 0.0
    for row, weight in enumerate(weights.tolist()):
        one, others = slice(row, row + 1), [column for column in range(11) if column != row]
        expected += weight * float(crd(projected[one], mine[one], projected[others])) / 5
    assert weighed(weights) == pytest.approx(expected, rel=1e-5)
    assert weighed(torch.ones(5)) == weighed(None) != pytest.approx(expected, rel=1e-2)


def test_crd_terms_take_their_share_of_the_negatives() -> None:
    teacher, student, bank, batch = model("convnet", 8), model("convnet", 4), filled(12), batch_of(5)
    made = Contrast([told(3), told(7), told(0)], teacher, student)
    for name in ("crd 2", "crd 3"):
        made.layers[name].load_state_dict(made.layers["crd"].state_dict())
    found = terms_of(made, teacher, student, batch, made.extra_images(batch, 2, bank))
    alone = Contrast([told(0)], teacher, student)
    alone.layers.load_state_dict({k: v for k, v in made.layers.state_dict().items() if k.startswith("crd.")})
    seven, three, none = (float(found[name].detach()) for name in ("crd 2", "crd", "crd 3"))
    assert seven > three > none
    assert torch.equal(
        found["crd 3"], terms_of(alone, teacher, student, batch, alone.extra_images(batch, 2, bank))["crd"]
    )


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_sskd_is_the_loss_of_penultimate_features(keep: float) -> None:
    teacher, student, batch = model("convnet", 8), model("vit", 16), batch_of(12)
    made = Contrast([told(4), viewed(temperature=0.2, keep=keep)], teacher, student)
    beside = made.extra_images(batch, 1, filled(6))
    assert beside.images.shape == (16, *SPEC.shape)
    assert beside.copies.shape == (12, 16)
    theirs, ours = ([features(n, x)[HEAD] for x in (batch.images, beside.views)] for n in (teacher, student))
    expected = sskd(theirs[0], ours[0], theirs[1], ours[1], 0.2, keep)
    assert bool(expected > 0.0)
    found = terms_of(made, teacher, student, batch, beside)["sskd"]
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_views() -> None:
    teacher, batch = model("convnet", 8), batch_of(6)
    made = Contrast([viewed()], teacher, teacher)
    beside = made.extra_images(batch, 0)
    assert float(terms_of(made, teacher, teacher, batch, beside)["sskd"].detach()) == pytest.approx(0.0, abs=1e-6)


def test_views_are_turned_images_and_a_term_asks_for_no_more_than_it_needs() -> None:
    teacher, student, batch, bank = model("convnet", 8), model("convnet", 4), batch_of(40), filled(12)
    both = Contrast([viewed(), told()], teacher, student, seed=5).extra_images(batch, 0, bank)
    for image, view in zip(batch.images, both.views, strict=True):
        assert sum(torch.equal(view, image.rot90(k, (1, 2))) for k in (1, 2, 3)) == 1
    assert len(Contrast([told()], teacher, student).extra_images(batch, 0, bank).views) == 0
    assert len(Contrast([viewed()], teacher, student).extra_images(batch, 0, bank).negatives) == 0
    other = Contrast([viewed()], teacher, student, seed=6)
    assert not torch.equal(both.views, other.extra_images(batch, 0).views)
    assert not torch.equal(both.views, Contrast([viewed()], teacher, student, seed=5).extra_images(batch, 1).views)


def test_a_resumed_run_draws_what_an_unbroken_one_draws() -> None:
    teacher, student, bank, batch = model("convnet", 8), model("convnet", 4), filled(12), batch_of(6)
    unbroken = Contrast([viewed(), told()], teacher, student, seed=5)
    for step in range(3):
        unbroken.extra_images(batch, step, bank)
    again = MemoryBank(SPEC, BankSettings(capacity=32), seed=3)
    again.load_state_dict(bank.state_dict())
    resumed = Contrast([viewed(), told()], teacher, student, seed=5)
    assert torch.equal(resumed.extra_images(batch, 3, again).images, unbroken.extra_images(batch, 3, bank).images)


def test_an_image_that_came_into_a_mixture_is_a_copy_of_none() -> None:
    bank, images = filled(3), noise(4)
    made = Contrast([told(5)], model("convnet", 8), model("convnet", 4))
    drawn = bank.draw(5, 0, "negatives").slots
    assert drawn is not None
    assert 2 in drawn
    slots = torch.tensor([2, -1, -1, 2])
    copies = made.extra_images(Batch(images, torch.zeros(4).long(), slots=slots), 0, bank).copies
    assert copies[:, :4].nonzero().tolist() == [[0, 3], [3, 0]]
    assert torch.equal(copies[0, 4:], drawn == 2)
    assert not copies[1:3].any()


def test_a_real_image_drawn_twice_is_a_copy_and_its_number_is_no_slot() -> None:
    bank, images = filled(12), noise(6)
    made = Contrast([told(40)], model("convnet", 8), model("convnet", 4))
    drawn = made.extra_images(batch_of(6), 0, bank)
    slots = bank.draw(40, 0, "negatives").slots
    assert slots is not None
    assert {2, 7} <= set(slots.tolist())
    assert not drawn.copies.any()
    rows, places = torch.tensor([7, -1, 2, -1, 7, 0]), torch.tensor([-1, 2, -1, -1, -1, -1])
    batch = Batch(images, torch.zeros(6).long(), slots=places, rows=rows)
    copies = made.extra_images(batch, 0, bank).copies
    assert copies[:, :6].nonzero().tolist() == [[0, 4], [4, 0]]
    assert torch.equal(copies[1, 6:], slots == 2)
    assert not copies[[0, 2, 3, 4, 5], 6:].any()
    alone = made.extra_images(Batch(images, torch.zeros(6).long(), rows=rows), 0).copies
    assert alone.nonzero().tolist() == [[0, 4], [4, 0]]


@pytest.mark.parametrize("bank", [None, MemoryBank(SPEC, BankSettings(capacity=4), seed=0)], ids=["none", "empty"])
def test_without_a_bank_the_rest_of_the_batch_is_what_there_is(bank: MemoryBank | None) -> None:
    teacher, student, batch = model("convnet", 8), model("convnet", 4), batch_of(5)
    made = Contrast([told()], teacher, student)
    beside = made.extra_images(batch, 0, bank)
    assert len(beside.images) == 0
    found = terms_of(made, teacher, student, batch, beside)["crd"]
    theirs, ours = (
        layer(features(network, batch.images)[HEAD])
        for layer, network in zip(made.layers["crd"].children(), (teacher, student), strict=True)
    )
    others = torch.stack([torch.cat([theirs[:i], theirs[i + 1 :]]) for i in range(5)])
    assert float(found) == pytest.approx(float(crd(theirs, ours, others)), rel=1e-5)


def test_a_batch_of_one_learns_from_negatives_alone() -> None:
    teacher, student, batch = model("convnet", 8), model("convnet", 4), batch_of(1)
    made = Contrast([told(), viewed()], teacher, student)
    nothing = terms_of(made, teacher, student, batch, made.extra_images(batch, 0))
    assert [float(value) for value in nothing.values()] == [0.0, 0.0]
    sum(nothing.values()).backward()  # type: ignore[union-attr]
    assert all(bool(p.grad.isfinite().all()) for p in made.parameters() if p.grad is not None)
    found = terms_of(made, teacher, student, batch, made.extra_images(batch, 0, filled(9)))
    assert float(found["crd"]) > 0.0
    assert float(found["sskd"]) == 0.0


def test_half_precision_and_constant_features_give_finite_terms() -> None:
    teacher, student, batch = model("convnet", 8), model("convnet", 4), batch_of(4)
    made = Contrast([told(2), viewed()], teacher, student)
    beside = made.extra_images(batch, 0, filled(9))
    for fill in (0.0, 300.0):
        theirs, shown = ({HEAD: torch.full((n, 128), fill, dtype=torch.half)} for n in (4, 6))
        ours = torch.full((4, 64), fill, dtype=torch.half, requires_grad=True)
        found = made(theirs, {HEAD: ours}, shown, {HEAD: ours}, beside.copies)
        assert all(value.dtype == torch.float32 and bool(value.isfinite()) for value in found.values())
        (gradient,) = torch.autograd.grad(sum(found.values()), ours)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("term", [told(), viewed()], ids=["crd", "sskd"])
def test_a_student_learns_from_each_term(term: ContrastTerm | ViewTerm) -> None:
    teacher, student, bank, batch = model("convnet", 8), model("convnet", 4), filled(20), batch_of(24)
    made = Contrast([term], teacher, student)
    beside = made.extra_images(batch, 0, bank)
    optimizer = torch.optim.Adam([*student.parameters(), *made.parameters()], lr=3e-3)
    values = []
    for _ in range(25):
        found = terms_of(made, teacher, student, batch, beside)[term.kind]
        values.append(float(found.detach()))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0]
