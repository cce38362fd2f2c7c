"""Students that learn together: mutual terms against an oracle, who teaches whom, averages, views."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.data.sources import Labeller
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Student, build_student
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.distillation.terms.auxiliary import AuxiliaryLayers, auxiliary_layers
from synthkd.errors import ConfigError
from synthkd.losses.contrast import sskd
from synthkd.models import Classifier, build
from synthkd.settings import (
    AdaptSettings,
    BankSettings,
    Curve,
    DistillSettings,
    ExitsTerm,
    HintTerm,
    OnlineSettings,
    OptimizerSettings,
    PeerSettings,
    SwapSettings,
    TemperatureSettings,
    ViewTerm,
    WeightSettings,
    ZooModel,
)
from synthkd.taps import evaluating, observe
from synthkd.types import Batch, ImageSpec, Stateful

SPEC = ImageSpec(1, 2, 2, 3)
PICTURES = ImageSpec(1, 8, 8, 4)
ACCELERATOR = Accelerator(cpu=True)
PLAIN = OptimizerSettings(kind="sgd", lr=0.5, momentum=0.0, schedule="constant")
AVERAGED = OptimizerSettings(kind="sgd", lr=0.5, momentum=0.0, schedule="constant", ema=0.9)
HEAD = "body.head:input"


def network(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), SPEC)


def convnet(seed: int, width: int = 4) -> Classifier:
    torch.manual_seed(seed)
    return build(ZooModel(arch="convnet", width=width), PICTURES)


def batch_of(count: int = 6, taught: bool = True, spec: ImageSpec = SPEC) -> Batch:
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(count, *spec.shape, generator=rng)
    logits = torch.randn(count, spec.classes, generator=rng) * 3 if taught else None
    return Batch(images, torch.arange(count) % spec.classes, logits)


class Source:
    """Gives one batch for ever."""

    def __init__(self, batch: Batch) -> None:
        self.given = batch

    def draw(self, _: int) -> Batch:
        return self.given

    def label(self, batch: Batch) -> Batch:
        return batch


def online(count: int = 1, **more: Any) -> OnlineSettings:
    return OnlineSettings(peers=(PeerSettings(),) * count, **more)


def students_of(
    networks: Sequence[Classifier],
    settings: DistillSettings | None = None,
    together: OnlineSettings | None = None,
    optimizer: OptimizerSettings = PLAIN,
    teacher: Classifier | None = None,
    controllers: Controllers | None = None,
    bank: MemoryBank | None = None,
) -> list[Student]:
    """Students, the controllers moving the first; a teacher shows the features that any of them compares."""
    together = together if together is not None or len(networks) == 1 else online(len(networks) - 1)
    names = ["student", *(f"peer {number}" for number in range(1, len(networks)))]
    settings = settings or DistillSettings(temperature=2.0)
    layers = [auxiliary_layers(settings, teacher, one, 0, name) for name, one in zip(names, networks, strict=True)]
    frozen = None
    if teacher is not None:
        places = [place for auxiliary in layers if auxiliary is not None for place in auxiliary.teacher_places]
        frozen = FrozenTeacher(teacher, ACCELERATOR, tuple(dict.fromkeys(places)))
    return [
        build_student(
            name, one, settings, optimizer, 9, ACCELERATOR, auxiliary, online=together, teacher=frozen, bank=bank,
            controllers=controllers if name == "student" else None,
        )
        for name, one, auxiliary in zip(names, networks, layers, strict=True)
    ]  # fmt: skip


def kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher_T || student_T), mean over the rows, from probabilities."""
    p, q = (torch.softmax(logits / temperature, 1) for logits in (teacher, student))
    divergence: Tensor = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    return divergence


def after_a_step(one: Classifier, loss: Tensor) -> list[Tensor]:
    """The parameters after a step of plain gradient descent at the rate of `PLAIN`."""
    gradients = torch.autograd.grad(loss, list(one.parameters()))
    return [(p - 0.5 * g).detach() for p, g in zip(one.parameters(), gradients, strict=True)]


def same(one: Classifier, expected: Sequence[Tensor]) -> None:
    for found, wanted in zip(one.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted)


def test_three_peers_learn_from_labels_teacher_and_each_other_at_the_same_time() -> None:
    """Each loss by hand from the weights before the step: nobody learns from weights that this batch has changed."""
    batch, networks = batch_of(), [network(seed) for seed in range(3)]
    twins = [network(seed) for seed in range(3)]
    assert batch.teacher_logits is not None
    said = [twin(batch.images) for twin in twins]
    losses = []
    for number, mine in enumerate(said):
        others = [answer.detach() for other, answer in enumerate(said) if other != number]
        mutual = (kl(others[0], mine, 3.0) + kl(others[1], mine, 3.0)) / 2
        loss = 0.3 * F.cross_entropy(mine, batch.labels) + 0.7 * kl(batch.teacher_logits, mine, 2.0) + 0.8 * mutual
        losses.append((loss, mutual))
    expected = [after_a_step(twin, loss) for twin, (loss, _) in zip(twins, losses, strict=True)]
    settings = DistillSettings(temperature=2.0, alpha=0.3)
    students = students_of(networks, settings, online(2, mutual=0.8, temperature=3.0))
    logged = DistillStep(students, Source(batch), ACCELERATOR)(0)
    for name, one, wanted, (loss, mutual) in zip(
        ("student", "peer 1", "peer 2"), networks, expected, losses, strict=True
    ):
        assert float(logged[f"{name}/mutual"]) == pytest.approx(float(mutual.detach()), rel=1e-5)
        assert float(logged[f"{name}/loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
        same(one, wanted)


def test_the_order_of_the_peers_changes_nothing() -> None:
    batch = batch_of()
    for order in ([0, 1, 2], [2, 0, 1]):
        networks = [network(seed) for seed in order]
        step = DistillStep(students_of(networks), Source(batch), ACCELERATOR)
        for number in range(3):
            step(number)
        found = [networks[order.index(seed)](batch.images).detach() for seed in range(3)]
        if order == [0, 1, 2]:
            first = found
    for one, other in zip(first, found, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_of_the_batch_count_in_the_mutual_term() -> None:
    batch = batch_of()
    half = replace(batch.map(lambda value: value[:3]))
    weighted = replace(batch, weights=torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
    values = []
    for shown in (half, weighted):
        logged = DistillStep(students_of([network(0), network(1)]), Source(shown), ACCELERATOR)(0)
        values.append(float(logged["student/mutual"]))
    assert values[0] == pytest.approx(values[1])


def test_twins_have_nothing_to_teach_each_other() -> None:
    logged = DistillStep(students_of([network(0), network(0)]), Source(batch_of()), ACCELERATOR)(0)
    assert float(logged["student/mutual"]) == pytest.approx(0.0, abs=1e-6)


def test_a_mutual_weight_that_has_not_begun_leaves_each_alone() -> None:
    batch, together, alone = batch_of(), network(0), network(0)
    never = online(mutual=Curve(kind="step", start=0.0, end=1.0, until=1.0))
    logged = DistillStep(students_of([together, network(1)], together=never), Source(batch), ACCELERATOR)(0)
    DistillStep(students_of([alone]), Source(batch), ACCELERATOR)(0)
    assert "student/mutual" not in logged
    same(together, [p.detach() for p in alone.parameters()])


def test_peers_may_teach_by_the_average_of_their_weights() -> None:
    batch = batch_of()
    networks = [network(0), network(1)]
    students = students_of(networks, together=online(averaged=True, mutual=0.5), optimizer=AVERAGED)
    step = DistillStep(students, Source(batch), ACCELERATOR)
    for number in range(3):
        step(number)
    averages = [student.learner.evaluated for student in students]
    with torch.no_grad():
        said = [average(batch.images) for average in averages]
        own = [one(batch.images) for one in networks]
    assert float(kl(said[1], own[1])) > 1e-4, "an average that differs from what it is of"
    logged = step(3)
    assert float(logged["student/mutual"]) == pytest.approx(float(kl(said[1], own[0])), rel=1e-4)
    assert float(logged["peer 1/mutual"]) == pytest.approx(float(kl(said[0], own[1])), rel=1e-4)


def test_a_student_may_learn_from_its_own_average() -> None:
    batch, one = batch_of(), network(0)
    settings = DistillSettings(temperature=2.0, alpha=1.0, average=0.4)
    (student,) = students_of([one], settings, optimizer=AVERAGED)
    step = DistillStep([student], Source(batch), ACCELERATOR)
    assert float(step(0)["student/average"]) == pytest.approx(0.0, abs=1e-6), "the first average is the student itself"
    for number in range(1, 4):
        step(number)
    with torch.no_grad(), evaluating(student.learner.evaluated):
        said, own = student.learner.evaluated(batch.images), one(batch.images)
        expected = float(kl(said, own, 2.0))
        hard = float(F.cross_entropy(own, batch.labels))
    logged = step(4)
    assert expected > 1e-5
    assert float(logged["student/average"]) == pytest.approx(expected, rel=1e-2)
    assert float(logged["student/loss"]) == pytest.approx(hard + 0.4 * expected, rel=1e-4)


def test_the_one_who_teaches_learns_from_the_frozen_teacher_and_the_others_from_it() -> None:
    batch = batch_of()
    assert batch.teacher_logits is not None
    roles = Roles(SwapSettings(), teaching=1)
    networks = [network(seed) for seed in range(3)]
    students = students_of(networks, together=online(2, mutual=0.0))
    step = DistillStep(students, Source(batch), ACCELERATOR, teaching=lambda: roles.teaching)
    for teaching in (1, 2, 0):
        roles.teaching = teaching
        with torch.no_grad():
            said = [one(batch.images) for one in networks]
        logged = step(0)
        for number, name in enumerate(("student", "peer 1", "peer 2")):
            teacher = batch.teacher_logits if number == teaching else said[teaching]
            assert float(logged[f"{name}/soft"]) == pytest.approx(float(kl(teacher, said[number], 2.0)), rel=1e-4)
            agreement = (said[number].argmax(1) == batch.teacher_logits.argmax(1)).float().mean()
            assert float(logged[f"{name}/agreement"]) == pytest.approx(float(agreement)), "with the frozen teacher"


def test_under_roles_answers_are_averaged_where_peers_teach_so() -> None:
    batch = batch_of()
    students = students_of(
        [network(0), network(1)], together=online(averaged=True, swap=SwapSettings()), optimizer=AVERAGED
    )
    step = DistillStep(students, Source(batch), ACCELERATOR, teaching=lambda: 1)
    for number in range(3):
        step(number)
    with torch.no_grad():
        said, own = students[1].learner.evaluated(batch.images), students[0].learner.module(batch.images)
    assert float(step(3)["student/soft"]) == pytest.approx(float(kl(said, own, 2.0)), rel=1e-4)


def test_without_a_teacher_there_are_labels_and_peers() -> None:
    batch, networks = batch_of(taught=False), [network(0), network(1)]
    twins = [network(0), network(1)]
    said = [twin(batch.images) for twin in twins]
    loss = F.cross_entropy(said[0], batch.labels) + kl(said[1].detach(), said[0])
    expected = after_a_step(twins[0], loss)
    settings = DistillSettings(alpha=1.0)
    logged = DistillStep(students_of(networks, settings), Source(batch), ACCELERATOR)(0)
    assert not [name for name in logged if "agreement" in name or "soft" in name]
    assert float(logged["student/loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    same(networks[0], expected)


def test_without_a_frozen_teacher_the_one_who_teaches_has_labels_alone() -> None:
    batch, networks, twin = batch_of(taught=False), [network(0), network(1)], network(1)
    expected = after_a_step(twin, 0.5 * F.cross_entropy(twin(batch.images), batch.labels))
    settings = DistillSettings(temperature=2.0, alpha=0.5)
    students = students_of(networks, settings, online(mutual=0.0, swap=SwapSettings()))
    logged = DistillStep(students, Source(batch), ACCELERATOR, teaching=lambda: 1)(0)
    assert float(logged["peer 1/soft"]) == 0.0
    assert float(logged["student/soft"]) > 0.0
    same(networks[1], expected)


class Noisy(nn.Module):
    """A linear network with everything that a pass in train mode changes or draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.first(images))
        return logits


def noisy(seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(Noisy(), SPEC)


def everything(student: Student) -> dict[str, Any]:
    """All that a student has, by name."""
    state = student.state_dict()
    return {f"{part}.{name}": value for part in ("module", "helpers", "average") for name, value in state[part].items()}


def test_a_rehearsal_leaves_a_student_as_it_is() -> None:
    later = Curve(kind="linear", start=0.0, end=1.0)
    settings = DistillSettings(
        average=later, alpha=later, transfer=(HintTerm(kind="hint", at="penultimate"), ViewTerm(kind="sskd"))
    )
    teacher, together = noisy(0), online(1, averaged=True, mutual=later)
    students = students_of([noisy(1), noisy(2)], settings, together, AVERAGED, teacher)
    _, batch = taught(students)
    for student in students:
        student.learner.module.train()
        student.learner.module.get_submodule("body.head").eval()
    before = [copy.deepcopy(everything(student)) for student in students]
    drawn = torch.get_rng_state()
    DistillStep(students, Source(batch), ACCELERATOR).rehearse(batch)
    assert torch.equal(torch.get_rng_state(), drawn)
    for student, was in zip(students, before, strict=True):
        now = everything(student)
        assert now.keys() == was.keys()
        assert all(torch.equal(value, was[name]) for name, value in now.items())
        modes = {name: module.training for name, module in student.learner.module.body.named_children()}  # type: ignore[union-attr]
        assert modes == {"first": True, "head": False}
        assert all(p.grad is None for p in student.learner.module.parameters())


def test_an_average_that_teaches_from_later_on_is_rehearsed_and_teaches_then() -> None:
    settings = DistillSettings(average=Curve(kind="step", start=0.0, end=1.0, until=0.5))
    (student,) = students_of([network(0)], settings, optimizer=AVERAGED)
    step = DistillStep([student], Source(batch_of()), ACCELERATOR)
    step.rehearse(batch_of())
    assert ["student/average" in step(number) for number in (0, 8)] == [False, True]


def test_an_average_answers_as_it_is_evaluated_and_keeps_its_statistics() -> None:
    (student,) = students_of([convnet(1)], DistillSettings(average=0.5), optimizer=AVERAGED)
    average, batch = student.learner.evaluated.train(), batch_of(spec=PICTURES)
    before = copy.deepcopy(average.state_dict())
    said = student.forward(batch, 0).averaged
    assert said is not None
    assert all(torch.equal(value, before[name]) for name, value in average.state_dict().items())
    assert average.training
    with torch.no_grad():
        torch.testing.assert_close(said, average.eval()(batch.images))


def test_adaptation_moves_temperature_and_weights_of_the_student_it_belongs_to_alone() -> None:
    batch = batch_of()
    assert batch.teacher_logits is not None
    controllers = Controllers(AdaptSettings(temperature=TemperatureSettings(start=7.0), weights=WeightSettings()))
    controllers.load_state_dict({"temperature": {"value": 7.0}, "weights": {"value": 0.6}})
    settings = DistillSettings(temperature=2.0, alpha=0.4)
    students = students_of([network(0), network(1)], settings, online(mutual=0.3), controllers=controllers)
    with torch.no_grad():
        said, other = network(0)(batch.images), network(1)(batch.images)
    soft, hard = kl(batch.teacher_logits, said, 7.0), F.cross_entropy(said, batch.labels)
    logged = DistillStep(students, Source(batch), ACCELERATOR)(0)
    assert float(logged["student/soft"]) == pytest.approx(float(soft), rel=1e-4)
    rest = 0.4 * hard + 0.3 * kl(other, said)  # what peers answer is not what a teacher answers
    assert float(logged["student/loss"]) == pytest.approx(float(1.2 * 0.6 * soft + 0.8 * rest), rel=1e-4)
    soft, hard = kl(batch.teacher_logits, other, 2.0), F.cross_entropy(other, batch.labels)
    assert float(logged["peer 1/loss"]) == pytest.approx(
        float(0.6 * soft + 0.4 * hard + 0.3 * kl(said, other)), rel=1e-4
    )


def test_a_student_resumes_from_its_state() -> None:
    batch = batch_of()

    def student_and_step() -> tuple[Student, DistillStep]:
        (student,) = students_of([network(0)], DistillSettings(temperature=2.0, alpha=0.25), optimizer=AVERAGED)
        return student, DistillStep([student], Source(batch), ACCELERATOR)

    first, learn = student_and_step()
    assert isinstance(first, Stateful)
    for number in range(3):
        learn(number)
    second, again = student_and_step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for number in range(3, 6):
        assert {k: float(v) for k, v in again(number).items()} == {k: float(v) for k, v in learn(number).items()}


def taught(students: Sequence[Student], count: int = 6) -> tuple[Labeller, Batch]:
    """Their teacher, and a batch that it has labelled."""
    frozen, spec = students[0].teacher, students[0].learner.module.spec
    assert frozen is not None
    assert isinstance(spec, ImageSpec)
    batch = batch_of(count, spec=spec)
    outputs = frozen(batch.images)
    return frozen, replace(batch, teacher_logits=outputs.logits, teacher_features=outputs.features)


def test_turned_views_go_through_the_student_in_the_pass_of_the_batch() -> None:
    teacher, net = convnet(0, 8), convnet(1)
    settings = DistillSettings(temperature=2.0, transfer=(ViewTerm(kind="sskd", weight=3.0, temperature=0.2),))
    (student,) = students_of([net], settings, teacher=teacher)
    frozen, batch = taught([student])
    shown: list[Tensor] = []
    net.register_forward_hook(lambda _, args, __: shown.append(args[0]))
    view = student.forward(batch, 4)
    assert len(shown) == 1
    assert shown[0].shape == (12, *PICTURES.shape)
    images, views = shown[0].split(6)
    assert torch.equal(images, batch.images)
    assert student.auxiliary is not None
    beside = student.auxiliary.extra_images(batch, 4, None)
    assert beside is not None
    assert torch.equal(views, beside.views)
    assert view.student.shape == (6, 4)
    twin = convnet(1).train()
    both = observe(twin, shown[0], (HEAD,))
    ours = both.features[HEAD]
    torch.testing.assert_close(view.student, both.logits[:6])
    expected = sskd(
        batch.teacher_features[HEAD], ours[:6], frozen(views).features[HEAD], ours[6:], 0.2, settings.transfer[0].keep  # type: ignore[union-attr]
    )  # fmt: skip
    assert float(view.transferred["sskd"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    logged = student.update(student.loss(view, 4), view, 4)
    total = float(logged["student/soft"]) + 3.0 * float(expected.detach())
    assert float(logged["student/loss"]) == pytest.approx(total, rel=1e-4)


def test_auxiliary_layers_of_every_kind_stand_in_one_module_that_is_trained_and_not_saved() -> None:
    teacher, net = convnet(0, 8), convnet(1)
    terms = [
        {"kind": "hint", "weight": 0.5}, {"kind": "crd", "negatives": 4}, {"kind": "sskd"}, {"kind": "dkd"},
        {"kind": "exits", "weight": 0.2, "features": 0.1}, {"kind": "hint", "at": "penultimate"},
    ]  # fmt: skip
    settings = DistillSettings.model_validate({"transfer": terms}, strict=False)
    own = set(net.state_dict())
    bank = MemoryBank(PICTURES, BankSettings(capacity=8), 0)
    bank.add(torch.rand(8, *PICTURES.shape), torch.arange(8) % 4, torch.zeros(8, 4))
    optimizer = OptimizerSettings(kind="adam", lr=1e-2, schedule="constant")
    (student,) = students_of([net], settings, optimizer=optimizer, teacher=teacher, bank=bank)
    _, batch = taught([student])
    assert isinstance(student.auxiliary, AuxiliaryLayers)
    before = {name: p.detach().clone() for name, p in student.auxiliary.named_parameters()}
    logged = DistillStep([student], Source(batch), ACCELERATOR)(0)
    names = {"soft", "hint", "crd", "sskd", "dkd", "exits", "hint 2"}
    assert names | {"loss", "gradient_norm", "learning_rate", "agreement"} == {
        name.removeprefix("student/") for name in logged
    }
    moved = {name for name, p in student.auxiliary.named_parameters() if not torch.equal(p, before[name])}
    assert {"contrast.layers.crd.0.weight", "exits.heads.0.weight"} <= moved
    assert set(net.state_dict()) == own
    assert set(student.auxiliary.weights) == names - {"soft", "dkd"}
    assert {name: origin for name, (_, origin) in student.auxiliary.weights.items()} == {
        "hint": "features", "hint 2": "features", "crd": "features", "sskd": "features", "exits": "own",
    }  # fmt: skip


def test_a_network_without_a_teacher_learns_from_its_exits() -> None:
    net = convnet(1)
    settings = DistillSettings(alpha=1.0, transfer=(ExitsTerm(kind="exits"),))
    (student,) = students_of([net], settings)
    assert student.auxiliary is not None
    assert student.auxiliary.teacher_places == ()
    logged = DistillStep([student], Source(batch_of(taught=False, spec=PICTURES)), ACCELERATOR)(0)
    assert {"student/hard", "student/exits"} <= set(logged)
    assert float(logged["student/exits"]) > 0.0


def test_terms_that_look_nowhere_need_no_module_beside_the_student() -> None:
    (student,) = students_of([network(0)], DistillSettings())
    assert student.auxiliary is None
    assert student.learner.helpers is None
    with pytest.raises(ConfigError, match="exits may stand once"):
        students_of([convnet(0)], DistillSettings(transfer=(ExitsTerm(kind="exits"), ExitsTerm(kind="exits"))))


def test_peers_have_layers_of_their_own_beside_them() -> None:
    teacher, settings = convnet(0, 8), DistillSettings(transfer=(HintTerm(kind="hint", at="penultimate"),))
    students = students_of([convnet(1), convnet(2, 6)], settings, teacher=teacher)
    _, batch = taught(students)
    before: list[Mapping[str, Tensor]] = []
    for student in students:
        assert student.auxiliary is not None
        before.append({name: p.detach().clone() for name, p in student.auxiliary.named_parameters()})
    logged = DistillStep(students, Source(batch), ACCELERATOR)(0)
    assert {"student/hint", "peer 1/hint"} <= set(logged)
    for student, was in zip(students, before, strict=True):
        assert student.auxiliary is not None
        assert any(not torch.equal(p, was[name]) for name, p in student.auxiliary.named_parameters())
    assert all(p.grad is None for p in teacher.parameters())
