"""The student's step: its objective against an independent computation, and what goes back to the bank."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.distributions import kl_divergence as kl_of

from synthkd.data.bank import MemoryBank
from synthkd.distillation import student as students
from synthkd.distillation.step import DistillStep
from synthkd.distillation.terms.objective import StudentView, terms_of
from synthkd.errors import ConfigError
from synthkd.losses import logits as losses
from synthkd.losses.logits import decoupled
from synthkd.schedules import value_at
from synthkd.settings import BankSettings, Curve, DecoupledTerm, DistillSettings, OptimizerSettings
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 2, 2, 3)
TOTAL = 9


class Student(nn.Module):
    """A linear student that notes the mode of its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        logits: Tensor = self.out(self.hidden(images.flatten(1)).tanh())
        return logits


class Source:
    """Gives one batch, and notes the steps it is asked for."""

    def __init__(self, batch: Batch) -> None:
        self.given = batch
        self.asked: list[int] = []

    def draw(self, step: int) -> Batch:
        self.asked.append(step)
        return self.given

    def label(self, batch: Batch) -> Batch:
        return batch


class Scale(nn.Module):
    """AuxiliaryLayers of one term with one parameter: the mean square of `teacher - factor * student` at one place."""

    weights: ClassVar[Mapping[str, tuple[float, str]]] = {"hint": (1.5, "features")}
    student_places = ("hidden",)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.steps: list[int] = []

    def extra_images(self, batch: Batch, step: int, bank: object) -> None:
        """No images but those of the batch."""

    def forward(
        self, batch: Batch, student: Mapping[str, Tensor], logits: Tensor, temperature: float, step: int, *_: object
    ) -> dict[str, Tensor]:
        self.steps.append(step)
        return {"hint": (batch.teacher_features["there"] - self.factor * student["hidden"]).square().mean()}


def random_batch(count: int = 6, **more: object) -> Batch:
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(count, *SPEC.shape, generator=rng)
    batch = Batch(images, torch.arange(count) % 3, torch.randn(count, 3, generator=rng) * 3)
    return replace(batch, **more)  # type: ignore[arg-type]


def learner_of(student: Student, helpers: nn.Module | None = None) -> Learner:
    plain = OptimizerSettings(kind="sgd", lr=0.1, momentum=0.0, schedule="constant")
    return Learner("student", student, plain, TOTAL, Accelerator(cpu=True), helpers)


def step_of(
    student: Student, batch: Batch, bank: MemoryBank | None = None, transfer: Any = None, **settings: Any
) -> DistillStep:
    asked = DistillSettings(**settings)
    accelerator = Accelerator(cpu=True)
    trained = students.Student(learner_of(student, transfer), asked, accelerator, transfer)
    return DistillStep([trained], Source(batch), accelerator, bank)


def soft(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher_T || student_T) of each row, by another implementation than that of `synthkd.losses`."""
    divided = [Categorical(logits=logits.double() / temperature) for logits in (teacher, student)]
    divergence: Tensor = kl_of(*divided)
    return temperature**2 * divergence


def hard(student: Tensor, labels: Tensor) -> Tensor:
    likelihood: Tensor = Categorical(logits=student.double()).log_prob(labels)
    return -likelihood


def centred(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean absolute difference of each row's centred logits in standard deviations of the teacher's."""
    t, s = (logits.double() - logits.double().mean(1, keepdim=True) for logits in (teacher, student))
    return (t - s).abs().mean(1) / t.std()


@pytest.fixture
def term(monkeypatch: pytest.MonkeyPatch) -> str:
    """A term of the user's own, by the name it is imported by."""

    def largest(view: StudentView) -> Tensor:
        return view.temperature * view.student.amax(1).mean()

    monkeypatch.setitem(sys.modules, "stand_in_terms", SimpleNamespace(largest=largest))
    return "stand_in_terms:largest"


@pytest.mark.parametrize("weighted", [False, True])
def test_the_objective_is_the_documented_sum(term: str, weighted: bool) -> None:
    batch = random_batch(weights=torch.linspace(0.2, 1.8, 6) if weighted else None)
    assert batch.teacher_logits is not None
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    view = StudentView(batch, batch.teacher_logits, student, temperature=2.5)
    settings = DistillSettings(alpha=0.3, logit_match=0.7, terms={term: 0.05})
    loss = terms_of(settings).objective(view, 4, TOTAL)

    weights = torch.ones(6).double() if batch.weights is None else batch.weights.double()
    expected = {
        "soft": (weights * soft(view.teacher, student, 2.5)).mean(),
        "hard": (weights * hard(student, batch.labels)).mean(),
        "logit_match": (weights * centred(view.teacher, student)).mean(),
        term: 2.5 * student.double().amax(1).mean(),
    }
    assert {k: float(v) for k, v in loss.terms.items()} == pytest.approx({k: float(v) for k, v in expected.items()})
    total = 0.3 * expected["hard"] + 0.7 * expected["soft"] + 0.7 * expected["logit_match"] + 0.05 * expected[term]
    assert float(loss.total) == pytest.approx(float(total))


def test_without_alpha_it_is_soft_labels_alone_and_with_one_hard_labels_alone() -> None:
    batch = random_batch()
    assert batch.teacher_logits is not None
    view = StudentView(batch, batch.teacher_logits, torch.zeros(6, 3), temperature=4.0)
    assert list(terms_of(DistillSettings()).objective(view, 0, TOTAL).terms) == ["soft"]
    assert list(terms_of(DistillSettings(alpha=1.0)).objective(view, 0, TOTAL).terms) == ["hard"]


@pytest.mark.parametrize(
    "alpha",
    [
        Curve(kind="linear", start=0.9, end=0.2, begin=0.25, until=0.75),
        Curve(kind="cosine", start=0.0, end=1.0),
        Curve(kind="step", start=0.1, end=0.6, until=0.5),
    ],
)
def test_soft_and_hard_labels_share_one_along_a_curve(alpha: Curve) -> None:
    batch = random_batch()
    assert batch.teacher_logits is not None
    view = StudentView(batch, batch.teacher_logits, torch.ones(6, 3).cumsum(1), temperature=2.0)
    of_soft = float(soft(view.teacher, view.student, 2.0).mean())
    of_hard = float(hard(view.student, batch.labels).mean())
    for step in range(TOTAL):
        share = value_at(alpha, step, TOTAL)
        total = terms_of(DistillSettings(alpha=alpha)).objective(view, step, TOTAL).total
        assert float(total) == pytest.approx(share * of_hard + (1 - share) * of_soft)


def test_with_real_images_only_their_labels_are_hard() -> None:
    batch = random_batch()
    annotated = torch.tensor([True, False, True, False, False, False])
    view = StudentView(replace(batch, annotated=annotated), batch.teacher_logits, Student()(batch.images), 1.0)
    terms = terms_of(DistillSettings(alpha=0.5)).objective(view, 0, TOTAL).terms
    expected = hard(view.student, batch.labels)[annotated].mean()
    assert float(terms["hard"].detach()) == pytest.approx(float(expected.detach()))
    none = replace(view, batch=replace(batch, annotated=torch.zeros(6, dtype=torch.bool)))
    assert float(terms_of(DistillSettings(alpha=0.5)).objective(none, 0, TOTAL).terms["hard"].detach()) == 0.0


def test_decoupled_distillation_takes_the_place_of_soft_labels() -> None:
    batch = random_batch(weights=torch.linspace(0.2, 1.8, 6))
    assert batch.teacher_logits is not None
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    view = StudentView(batch, batch.teacher_logits, student, temperature=2.5)
    term = DecoupledTerm(kind="dkd", weight=0.5, alpha=2.0, beta=3.0)
    loss = terms_of(DistillSettings(soft=0.0, alpha=1.0, transfer=(term,))).objective(view, 0, TOTAL)
    assert list(loss.terms) == ["hard", "dkd"]
    seen = batch.teacher_logits.argmax(1)
    expected = decoupled(batch.teacher_logits, student, seen, 2.5, 2.0, 3.0, batch.weights)
    assert float(loss.terms["dkd"]) == pytest.approx(float(expected))
    assert float(loss.total) == pytest.approx(float(loss.terms["hard"]) + 0.5 * float(expected))


def test_standardised_soft_labels_do_not_know_the_size_of_logits() -> None:
    batch = random_batch()
    assert batch.teacher_logits is not None
    student = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    found = [
        float(terms_of(DistillSettings(standardise=on)).objective(StudentView(batch, t, s, 2.0), 0, TOTAL).total)
        for on in (True, False)
        for t, s in ((batch.teacher_logits, student), (3.0 * batch.teacher_logits, 0.5 * student))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[2] != pytest.approx(found[3], rel=1e-2)


def test_a_step_minimises_the_objective_at_the_temperature_of_its_step() -> None:
    batch = random_batch()
    assert batch.teacher_logits is not None
    student, twin = Student(), Student()
    step = step_of(student, batch, alpha=0.25, temperature=Curve(kind="linear", start=1.0, end=9.0))
    logged = step(2)

    before = twin(batch.images)
    temperature = 1.0 + 8.0 * 2 / (TOTAL - 1)
    loss = 0.25 * hard(before, batch.labels).mean() + 0.75 * soft(batch.teacher_logits, before, temperature).mean()
    assert float(logged["student/loss"]) == pytest.approx(float(loss.detach()))
    loss.backward()
    for moved, start in zip(student.parameters(), twin.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(moved.detach(), start.detach() - 0.1 * start.grad)


def test_the_batch_is_that_of_the_step_and_agreement_is_that_before_the_update() -> None:
    student = Student()
    answers = student(random_batch().images).argmax(1)
    wrong = torch.cat([answers[:4], (answers[4:] + 1) % 3])
    source = Source(random_batch(teacher_logits=torch.eye(3)[wrong] * 50))
    step = DistillStep(
        [students.Student(learner_of(student), DistillSettings(), Accelerator(cpu=True))], source, Accelerator(cpu=True)
    )
    assert float(step(7)["student/agreement"]) == pytest.approx(4 / 6)
    assert source.asked == [7]


def test_the_student_is_in_train_mode_during_the_step() -> None:
    student = Student().eval()
    step_of(student, random_batch())(0)
    assert student.modes == [True]


def test_importance_weights_scale_rows() -> None:
    """One row of weight 2 and one of weight 0 move the student as the first row alone does."""
    both, alone = Student(), Student()
    rows = random_batch(2)
    step_of(both, replace(rows, weights=torch.tensor([2.0, 0.0])), alpha=0.5)(0)
    step_of(alone, rows.map(lambda value: value[:1]), alpha=0.5)(0)
    unweighted = Student()
    step_of(unweighted, rows, alpha=0.5)(0)
    torch.testing.assert_close(both.out.weight, alone.out.weight)
    assert not torch.allclose(unweighted.out.weight, alone.out.weight)


def test_transferred_terms_see_the_features_of_teacher_and_student_and_learn_too() -> None:
    there = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    batch = random_batch(teacher_features={"there": there})
    student, twin, hints = Student(), Student(), Scale()
    logged = step_of(student, batch, transfer=hints)(4)
    assert hints.steps == [4]
    expected = (there - 2.0 * twin.hidden(batch.images.flatten(1)).detach()).square().mean()
    assert float(logged["student/hint"]) == pytest.approx(float(expected))
    assert float(logged["student/loss"]) == pytest.approx(float(logged["student/soft"]) + 1.5 * float(expected))
    assert float(hints.factor.detach()) != 2.0


def test_features_are_not_compared_at_steps_whose_curve_is_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scale, "weights", {"hint": (Curve(kind="step", start=1.5, end=0.0, until=0.5), "features")})
    there, hints = {"there": torch.ones(6, 5)}, Scale()
    step = step_of(Student(), random_batch(teacher_features=there), transfer=hints)
    assert ["student/hint" in step(number) for number in (0, TOTAL - 1, TOTAL + 3)] == [True, False, False]
    assert hints.steps == [0]


def without_arguments() -> Tensor:
    raise AssertionError("it was called")


def of_two_lines(_: StudentView) -> Tensor:
    raise RuntimeError("first\nsecond")


WRONG: list[tuple[Callable[..., object], str]] = [
    (without_arguments, r"failed: TypeError\(.*0 positional arguments but 1 was given"),
    (of_two_lines, r"failed: RuntimeError\('first\\nsecond'\)"),
    (lambda view: view.student.amax(1), r"gave shape \[2\], requires_grad True"),
    (lambda view: float(view.student.detach().mean()), "gave a float"),
    (lambda _: None, "gave a NoneType"),
    (lambda view: view.student.detach().mean(), r"gave shape \[\], requires_grad False"),
]


@pytest.mark.parametrize("weight", [1.0, Curve(kind="linear", start=0.0, end=1.0)], ids=["constant", "curve"])
@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_loss_of_the_users_own_is_told_in_one_line_by_a_rehearsal(
    wrong: Callable[..., object], message: str, weight: float | Curve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stand_in_terms", SimpleNamespace(wrong=wrong))
    step = step_of(Student(), random_batch(2), terms={"stand_in_terms:wrong": weight})
    with pytest.raises(ConfigError, match=rf"^distill\.terms: stand_in_terms:wrong .*{message}") as told:
        step.rehearse(random_batch(2))
    assert "\n" not in str(told.value)


def test_a_rehearsal_learns_nothing_and_goes_through_each_term_once(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student, twin, hints = Student().train(), Student(), Scale()
    batch = random_batch(2, teacher_features={"there": torch.ones(2, 5)})
    names = ("distillation_loss", "hard_label", "centred_difference")
    noted = [Mock(wraps=getattr(losses, name)) for name in names]
    for name, function in zip(names, noted, strict=True):
        monkeypatch.setattr(losses, name, function)
    later = Curve(kind="step", start=0.0, end=1.0, until=0.5)
    step_of(student, batch, transfer=hints, alpha=later, logit_match=later, terms={term: later}).rehearse(batch)
    assert [function.call_count for function in noted] == [1, 1, 1]
    assert hints.steps == [0]
    assert student.modes == [False]
    assert student.training
    same = zip(student.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(p, start) and p.grad is None for p, start in same)


def test_terms_that_never_have_a_weight_are_refused_with_a_remedy() -> None:
    step = step_of(Student(), random_batch(), soft=0.0)
    for go in (lambda: step.rehearse(random_batch(2)), lambda: step(0)):
        with pytest.raises(ConfigError, match="all terms have weight 0 at step 0; give one to any of soft, hard"):
            go()
    step_of(Student(), random_batch(), soft=Curve(kind="linear", start=0.0, end=1.0)).rehearse(random_batch(2))


def prioritized(count: int) -> MemoryBank:
    settings = BankSettings(capacity=count, policy="prioritized", priority_exponent=1.0)
    bank = MemoryBank(SPEC, settings, 0)
    bank.add(torch.zeros(count, *SPEC.shape), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 3))
    return bank


def priorities(bank: MemoryBank) -> list[float]:
    weights: list[float] = bank.state_dict()["index"]["weights"].tolist()
    return weights


def draws(bank: MemoryBank) -> list[int]:
    slots = bank.draw(50, 0).slots
    assert slots is not None
    return slots.tolist()


def test_divergence_goes_back_as_priority_to_rows_of_the_bank_alone() -> None:
    bank = prioritized(5)
    batch = random_batch(4, slots=torch.tensor([3, -1, 0, -1]))
    assert batch.teacher_logits is not None
    divergence = soft(batch.teacher_logits, Student()(batch.images), 1.0).tolist()
    step_of(Student(), batch, bank, temperature=8.0)(0)
    assert priorities(bank) == pytest.approx([divergence[2], 1.0, 1.0, divergence[0], 1.0], rel=1e-3)
    same = prioritized(5)
    same.reprioritise(torch.arange(5), torch.tensor(priorities(bank), dtype=torch.float64))
    assert draws(bank) == draws(same), "nothing else of the bank is touched"


def test_a_student_that_agrees_wholly_leaves_a_priority_above_zero() -> None:
    bank, student = prioritized(2), Student()
    batch = random_batch(1, slots=torch.tensor([1]))
    step_of(student, replace(batch, teacher_logits=student(batch.images).detach()), bank)(0)
    assert 0.0 < priorities(bank)[1] < 1e-4


@pytest.mark.parametrize("slots", [None, torch.full((6,), -1)])
def test_rows_from_elsewhere_change_no_priority(slots: Tensor | None) -> None:
    bank = prioritized(6)
    step_of(Student(), random_batch(slots=slots), bank)(0)
    assert priorities(bank) == [1.0] * 6
    assert draws(bank) == draws(prioritized(6))
