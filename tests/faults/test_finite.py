"""What is saved is finite, or the run ends with an error that names the cause; one answer to everything is told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from synthkd.compression.export import export_program
from synthkd.data.read.real import load_splits
from synthkd.distillation.alarms import one_class
from synthkd.errors import ModelError, TrainingError
from synthkd.models import Classifier, build, load, save
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import save_weights
from synthkd.pipelines.cli import main
from synthkd.settings import DigitsData, ZooModel
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.learner import Learner
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(1, 8, 8, 10)
DIGITS = {"kind": "digits"}
Spoil = Callable[[Learner], None]


def network(**settings: Any) -> Classifier:
    torch.manual_seed(0)
    return build(ZooModel(**{"arch": "convnet", "width": 6, **settings}), SPEC).eval()


def some_images_break_it() -> Classifier:
    """Finite weights, finite logits on noise, and infinite ones on images that are dark, as digits are."""
    model = build(ZooModel(arch="mlp", width=1, depth=1), SPEC)
    first, last = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.fill_(-100.0 / 64)
        first.bias.fill_(40.0)  # 0 from a mean of 0.4 on
        last.weight.zero_()[0] = 3e38
    return model.eval()


def recipe(path: Path, teacher: Path, **changes: Any) -> str:
    source = {
        "teacher": {"kind": "load", "model": str(teacher)},
        "student": {"arch": "convnet", "width": 4},
        "inherit": False,
        "test": DIGITS,
        "transfer_set": {"generator": {"width": 4, "latent": 8, "batch_size": 16, "steps": 1}},
        "distill": {"batch_size": 16, "optimizer": {"ema": 0.9}},
        "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "joint", "steps": 7, "every": 4}],
        "checkpoint_every": 3,
        "evaluate_every": 100,
        "grid_every": 100,
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump({**source, **changes}))
    return str(path)


def spoiled_after(monkeypatch: pytest.MonkeyPatch, step: int, spoil: Spoil) -> None:
    """Let a learner be spoiled after a step, as one step too long spoils it where loss and gradient were finite."""
    update = Learner.update

    def spoiling(self: Learner, loss: Any, at: int) -> Any:
        values = update(self, loss, at)
        if at == step:
            with torch.no_grad():
                spoil(self)
        return values

    monkeypatch.setattr(Learner, "update", spoiling)


def tensor(learner: Learner, name: str) -> torch.Tensor:
    return learner.module.state_dict()[name]


def one_answer(learner: Learner) -> None:
    for module in (learner.module, learner.evaluated):
        module.state_dict()["body.head.bias"][2] = 1e4


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "model"
    save(network(), path)
    return path


SPOILS = {
    "body.stage2.1.running_var": lambda learner: tensor(learner, "body.stage2.1.running_var").fill_(float("inf")),
    "body.head.weight": lambda learner: tensor(learner, "body.head.weight")[0].fill_(float("nan")),
    "body.head.bias": lambda learner: learner.evaluated.state_dict()["body.head.bias"].fill_(float("inf")),
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_student_that_diverged_ends_the_run_and_the_finite_checkpoint_stays(
    name: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the last step: neither loss nor gradient would ever tell
    spoiled_after(monkeypatch, 6, SPOILS[name])
    run = tmp_path / "run"
    assert main(["distill", recipe(tmp_path / "r.yaml", teacher), f"out={run}"]) == 5
    said = capsys.readouterr().err
    assert name in said
    assert "the training diverged" in said
    assert "lower the learning rate or set clip" in said
    assert not (run / "student").exists()
    assert not (run / "result.json").exists()
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    assert checkpoint is not None
    assert checkpoint.step == 6
    student = checkpoint.state["parts"]["student"]
    assert all(bool(torch.isfinite(v).all()) for part in ("module", "average") for v in student[part].values())


def test_a_published_student_is_finite_too(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled_after(monkeypatch, 5, SPOILS["body.head.bias"])
    run = tmp_path / "run"
    source = recipe(tmp_path / "r.yaml", teacher, publish_every=2, checkpoint_every=100)
    assert main(["distill", source, f"out={run}"]) == 5
    assert "body.head.bias" in capsys.readouterr().err
    assert all(bool(torch.isfinite(v).all()) for v in load(run).state_dict().values())


@pytest.mark.parametrize("evaluate_every", [100, 2])
def test_a_teacher_that_diverged_ends_the_run(
    evaluate_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled_after(monkeypatch, 3, SPOILS["body.stage2.1.running_var"])
    source = {"data": DIGITS, "model": {"arch": "convnet", "width": 4}, "training": {"steps": 4, "batch_size": 8}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**source, "evaluate_every": evaluate_every, "device": "cpu"}))
    assert main(["teach", str(path), f"out={tmp_path / 'run'}"]) == 5
    assert "teacher: the training diverged, 1 of" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()


def test_every_way_out_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = network()
    save(model, tmp_path / "model")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    model.state_dict()["body.stage1.1.running_mean"][0] = float("nan")
    for write in (save, lambda m, to: save_weights(m, to / "w.safetensors"), lambda m, to: export_program(m, to / "p")):
        with pytest.raises(TrainingError, match="not finite"):
            write(model, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == kept
    with pytest.raises(ModelError, match=r"weights in FILE are not finite in 1 of 20 tensors: body.stage1.1.running_m"):
        load_strictly(network(), model.state_dict(), "FILE")


def test_a_teacher_with_damaged_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = network()
    broken.state_dict()["body.stage1.1.running_var"].fill_(float("inf"))  # its logits are finite, and say nothing
    monkeypatch.setattr("synthkd.models.weights.finite_state", lambda model, _: dict(model.state_dict()))
    save(broken, tmp_path / "teacher")
    assert main(["distill", recipe(tmp_path / "r.yaml", tmp_path / "teacher"), "--dry-run"]) == 4
    said = capsys.readouterr().err
    assert f"{tmp_path / 'teacher' / 'model.safetensors'} are not finite in 1 of 20 tensors" in said
    assert "learning rate" not in said


def test_a_teacher_whose_logits_are_not_finite_for_some_images_is_named_wherever_it_is_asked(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "teacher"
    save(some_images_break_it(), path)
    real = {"transfer_set": {"kind": "real", "data": DIGITS}, "phases": [{"kind": "refine", "steps": 4}]}
    first = recipe(tmp_path / "r.yaml", path, **real)
    second = recipe(tmp_path / "s.yaml", teacher, teachers=[{"kind": "load", "model": str(path)}], **real)
    pixels = recipe(tmp_path / "p.yaml", path, transfer_set={"generator": {"kind": "pixels"}})
    digits = load_splits(DigitsData(kind="digits")).test
    folder = tmp_path / "images"
    folder.mkdir()
    np.savez(folder / "some.npz", images=digits.images.permute(0, 2, 3, 1).numpy(), labels=digits.labels.numpy())
    some = folder / "some.npz"
    asked = [
        (["distill", first], "the teacher"),
        (["distill", second], "teacher 2"),
        (["distill", pixels], "the teacher"),
        (
            ["generate", "teacher.kind=load", f"teacher.model={path}", "generator.kind=pixels", "per_class=2"],
            "the teacher",
        ),
        (
            ["evaluate", f'generated=["{some}"]', f"real={some}", "teacher.kind=load", f"teacher.model={path}"],
            "the network teacher",
        ),
    ]
    for number, (command, who) in enumerate(asked):
        assert main([*command, f"out={tmp_path / str(number)}", "device=cpu"]) == 4, command
        said = capsys.readouterr().err
        assert f"{who} gives logits that are not finite for " in said, command
        assert "check its weights" in said
        assert "learning rate" not in said


def test_a_student_that_gives_one_answer_says_so_first(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled_after(monkeypatch, 6, one_answer)
    run = tmp_path / "run"
    larger = {"generator": {"width": 4, "latent": 8, "batch_size": 64, "steps": 1}}
    for changes in ({}, {"test": None, "transfer_set": larger}):
        source = recipe(tmp_path / "r.yaml", teacher, **changes)
        out = run / str(len(changes))
        assert main(["distill", source, f"out={out}"]) == 0
        said = capsys.readouterr().out
        assert "Whatever it is shown, it answers one class" in said.splitlines()[0]
        assert re.search("alarm: +one class: the student answers class 2 to ", said)
        assert "Whatever it is shown, it answers one class" in (out / "report.html").read_text()
        assert json.loads((out / "result.json").read_text())["alarms"][0]["name"] == "one class"


def test_a_teacher_that_gives_one_answer_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoiled_after(monkeypatch, 3, one_answer)
    source = {"data": DIGITS, "model": {"arch": "convnet", "width": 4}, "training": {"steps": 4, "batch_size": 8}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**source, "device": "cpu"}))
    assert main(["teach", str(tmp_path / "r.yaml"), f"out={tmp_path / 'run'}"]) == 0
    assert "alarm:   one class: the teacher answers class 2 to 359 of 359 test images" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Whatever it is shown, it answers one class" in page
    assert "the teacher answers class 2" in page


def test_one_class_goes_by_what_was_asked_for() -> None:
    balanced, mostly = torch.arange(100) % 10, (torch.arange(1000) % 50 == 0).long()
    found = one_class(torch.zeros_like(balanced), balanced, "the student", "test images", tuple("abcdefghij"))
    assert found is not None
    assert found.message.startswith("the student answers class a to 100 of 100 test images")
    some = torch.where(torch.arange(100) < 4, 1, 0)
    assert one_class(some, balanced, "the student", "test images") is not None, "4 of 90 other answers"
    assert one_class(balanced, balanced, "the student", "test images") is None
    assert one_class(mostly, mostly, "the student", "test images") is None, "one class has 98 % of the images"
    assert one_class(0 * mostly, mostly, "the student", "test images") is not None
    assert one_class(torch.zeros(10).long(), torch.arange(10), "the student", "test images") is None, "too few"


def terms(generator: str) -> list[str]:
    """Settings by which the generator, whose key this is, learns from the student alone."""
    return [f"{generator}.{term}" for term in ("batch_norm=0", "one_hot=0", "adversarial=1")]


def test_terms_that_need_a_student_are_refused_where_there_is_none(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = recipe(tmp_path / "r.yaml", teacher)
    search = '{"families": [{"arch": "convnet", "width": [4, 8]}]}'
    given = ["teacher.kind=load", f"teacher.model={teacher}"]
    distill = ["distill", source, *terms("transfer_set.generator")]
    asked = {
        "phases.0": distill,
        "rounds": ["generate", *given, "per_class=1", "rounds=1", *terms("generator")],
        "search": [
            "compress",
            *given,
            *terms("distillation.transfer_set.generator"),
            f"search={search}",
            'distillation.phases=[{"kind":"joint","steps":4}]',
        ],
    }
    for key, command in asked.items():
        assert main([*command, "--dry-run"]) == 2, key
        said = capsys.readouterr().err
        assert f"{key}: the generator works without a student there" in said
        assert "set any of the generator's batch_norm" in said
    nothing = [*distill, "transfer_set.generator.adversarial=0", "--dry-run"]
    assert main(nothing) == 2
    assert "all terms have weight 0" in capsys.readouterr().err
    joint = [*distill, 'phases=[{"kind":"joint","steps":4,"every":2}]', f"out={tmp_path / 'run'}"]
    assert main(joint) == 0, "beside a student they are all that is needed"


def test_the_images_on_which_the_teacher_breaks_are_told_from_noise() -> None:
    model = some_images_break_it()
    digits = to_float(load_splits(DigitsData(kind="digits")).test.images[:8])
    with torch.no_grad():
        assert bool(torch.isfinite(model(torch.rand(8, *SPEC.shape, generator=torch.Generator().manual_seed(0)))).all())
        assert not bool(torch.isfinite(model(digits)).all())
