"""The width of a student is told its gradient, and the similarity that its settings name."""

import copy

import pytest
import torch
from accelerate import Accelerator

from synthkd.distillation.control.width import WidthRegulator
from synthkd.distillation.student import Student, build_student
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.errors import ConfigError
from synthkd.losses import agreement, linear_cka
from synthkd.models import Classifier, Slimmable, build
from synthkd.settings import DistillSettings, OptimizerSettings, WidthSettings, ZooModel
from synthkd.taps import observe
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 8, 8, 4)
ACCELERATOR = Accelerator(cpu=True)
HEAD = "body.head:input"


def teacher() -> Classifier:
    torch.manual_seed(0)
    return build(ZooModel(arch="resnet", width=6, depth=8), SPEC)


def slimmable(**settings: object) -> Slimmable:
    torch.manual_seed(1)
    return Slimmable(WidthSettings(**settings), ZooModel(arch="convnet", width=4), SPEC)  # type: ignore[arg-type]


def after_a_step(module: Slimmable) -> tuple[Student, dict[str, object], Batch]:
    """A step on 16 images; the coin of the width is that of seed 5."""
    regulator = WidthRegulator(module, teacher())
    student = build_student(
        "student", module, DistillSettings(), OptimizerSettings(lr=1e-3), 9, ACCELERATOR, regulator=regulator
    )
    rng = torch.Generator().manual_seed(2)
    # Of different brightness, by which both networks arrange them.
    images = torch.rand(16, *SPEC.shape, generator=rng) * torch.rand(16, 1, 1, 1, generator=rng)
    outputs = FrozenTeacher(teacher(), ACCELERATOR, regulator.teacher_places)(images)
    batch = Batch(images, torch.arange(16) % 4, outputs.logits, teacher_features=outputs.features)
    torch.manual_seed(5)
    view = student.forward(batch, 0)
    return student, dict(student.update(student.loss(view, 0), view, 0)), batch


def test_features_are_compared_by_cka_at_the_width_of_the_pass() -> None:
    twin = slimmable()
    _, logged, batch = after_a_step(slimmable(measure="features"))
    torch.manual_seed(5)
    ours = observe(twin.train(), batch.images, [f"network.{HEAD}"]).features[f"network.{HEAD}"]
    theirs = observe(teacher().eval(), batch.images, [HEAD]).features[HEAD]
    assert ours.shape[1] != theirs.shape[1]
    expected = linear_cka(theirs, ours).item()
    assert 0.1 < expected < 1.0
    assert logged["width/similarity"] == pytest.approx(expected, abs=1e-4)


def test_without_it_the_agreement_counts_and_nothing_is_tapped() -> None:
    module = slimmable()
    twin = copy.deepcopy(module)
    _, logged, batch = after_a_step(module)
    assert batch.teacher_features == {}
    assert batch.teacher_logits is not None
    torch.manual_seed(5)
    expected = float(agreement(batch.teacher_logits, twin.train()(batch.images)))
    assert logged["width/similarity"] == logged["student/agreement"] == expected


def test_a_step_that_fp16_skips_moves_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    module = slimmable()
    student, _, batch = after_a_step(module)
    signals, view = module.signals.clone(), student.forward(batch, 1)
    monkeypatch.setattr(student.learner, "update", lambda *_: {"student/gradient_norm": torch.tensor(float("inf"))})
    logged = student.update(student.loss(view, 1), view, 1)
    assert torch.equal(module.signals, signals)
    assert not any(name.startswith("width/") for name in logged)


def test_the_measure_changes_the_demand_and_not_the_step() -> None:
    """S_t only moves the penalty of the next step."""
    modules = slimmable(), slimmable(measure="features")
    demands = {float(after_a_step(module)[1]["width/demand"]) for module in modules}  # type: ignore[arg-type]
    assert len(demands) == 2
    for one, other in zip(*(module.network.parameters() for module in modules), strict=True):
        assert torch.equal(one, other)


def test_features_need_a_teacher() -> None:
    with pytest.raises(ConfigError, match=r"width\.measure: .* set teacher, or measure to agreement"):
        WidthRegulator(slimmable(measure="features"), None)
    assert WidthRegulator(slimmable(), None).student_places == ()
