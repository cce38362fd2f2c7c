"""Networks in memory through a distillation: copied, recorded, recognised, and given back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import synthkd
from synthkd.data.read.real import load_splits
from synthkd.errors import ConfigError, ModelError
from synthkd.models import Classifier, build
from synthkd.pipelines import cli, distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.pipelines.distill import Distilled
from synthkd.pipelines.run.result import Plan
from synthkd.settings import DigitsData, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(1, 8, 8, 10)
QUICK: dict[str, Any] = {
    "transfer_set": {"generator": {"batch_size": 16, "width": 4, "latent": 8, "steps": 1}, "bank": {"capacity": 64}},
    "phases": [{"kind": "joint", "steps": 6, "every": 2}],
    "distill": {"batch_size": 16},
    "device": "cpu",
}


def network(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, 10)
    return nn.Sequential(*layers)


def states(*networks: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in one.state_dict().items()} for one in networks]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class Closed(nn.Module):
    """A network without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network(8)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


def run(out: Path, **changes: Any) -> Distilled:
    given: dict[str, Any] = {"teacher": network(8), "student": network(4, 1), "spec": SPEC}
    result = distill(**(given | QUICK | {"out": str(out)} | changes))
    assert isinstance(result, Distilled)
    return result


def test_a_network_comes_back_trained_and_the_callers_stay_as_they_are(tmp_path: Path) -> None:
    teacher, student = network(8), network(4, 1)
    before = states(teacher, student)
    result = run(tmp_path / "run", teacher=teacher, student=student)
    assert all(map(equal, before, states(teacher, student)))
    assert all(weight.requires_grad for one in (teacher, student) for weight in one.parameters())
    assert teacher.training
    assert student.training
    body = result.student.body
    assert type(body) is nn.Sequential
    assert not result.student.training
    assert not torch.equal(body[0].weight, student[0].weight), "it starts from the weights that it has, and learns"
    student.load_state_dict(body.state_dict())
    images = torch.rand(3, *SPEC.shape)
    # Not bit for bit: the result is in channels_last, and a convolution may sum in another order there.
    assert torch.allclose(student.eval()(images), result.student(images), atol=1e-6)
    assert "Sequential" in (tmp_path / "run/config.yaml").read_text()


class Holding(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images, "logits": self.body(images)}


def test_networks_that_hold_logits_in_half_precision_or_with_hooks(tmp_path: Path) -> None:
    teacher, student = Holding(network(8).half()), Holding(network(4, 1).double())
    prune.l1_unstructured(teacher.body[0], "weight", amount=0.5)
    result = run(tmp_path / "run", teacher=teacher, student=student)
    assert {value.dtype for value in teacher.parameters()} == {torch.float16}
    assert {value.dtype for value in student.parameters()} == {torch.float64}
    images = torch.rand(3, 1, 8, 8)
    assert torch.allclose(result.student(images), result.student.body.body(images), atol=1e-6)
    again = synthkd.load(tmp_path / "run", network=Holding(network(4, 2).double()))
    assert torch.allclose(again(images), result.student(images), atol=1e-6)
    plan = distill(teacher=teacher, student=student, spec=SPEC, dry_run=True, **QUICK)
    assert isinstance(plan, Plan)
    assert "  as read: float16 turned into float32, logits from key logits of its dict" in plan.lines


def test_a_normalisation_that_cannot_be_is_a_warning_in_plan_log_summary_and_report(tmp_path: Path) -> None:
    body = network(8)
    with torch.no_grad():
        images = to_float(load_splits(DigitsData(kind="digits")).train.images)
        for _ in range(60):
            body(255 * images)
    teacher = Classifier(body, SPEC, mean=(0.5,), std=(0.5,))
    plan = distill(teacher=teacher, student=network(4, 1), spec=SPEC, dry_run=True, **QUICK)
    assert isinstance(plan, Plan)
    message = "mean and std do not fit the teacher: pictures have "
    assert sum(line.startswith(f"  warning: {message}") for line in plan.lines) == 1
    result = run(tmp_path / "run", teacher=teacher)
    assert sum(bool(re.match(f"alarm: +odd teacher: {message}", line)) for line in result.summary) == 1
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("name") == "odd teacher"] == [0]
    assert message in (tmp_path / "run" / "report.html").read_text()
    assert "write mean: [0], std: [0.003922]" in plan.lines[2]
    right = Classifier(body, SPEC, mean=(0.0,), std=(1 / 255,))
    plan = distill(teacher=right, student=network(4, 1), spec=SPEC, dry_run=True, **QUICK)
    assert isinstance(plan, Plan)
    assert not any("warning" in line for line in plan.lines)


def test_a_finished_run_gives_the_same_student_from_its_files(tmp_path: Path) -> None:
    first, again = run(tmp_path / "run"), run(tmp_path / "run")
    assert "complete already" in str(again)
    assert equal(first.student.state_dict(), again.student.state_dict())
    loaded = synthkd.load(tmp_path / "run", network=network(4))
    assert equal(first.student.state_dict(), loaded.state_dict())
    with pytest.raises(ModelError, match=r"given in memory \(Sequential\): build it, and call synthkd\.load"):
        synthkd.load(tmp_path / "run")
    with pytest.raises(ModelError, match="shape"):
        synthkd.load(tmp_path / "run", network=network(5))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"teacher": network(8, 2)}, "teacher.sha256"),
        ({"student": network(4, 2)}, "student.sha256"),
        ({"student": {"arch": "mlp"}}, "student.kind"),
        ({"teacher": Classifier(network(8), SPEC, (0.5,), (0.5,))}, "teacher.sha256"),
        ({"seed": 3}, "seed"),
    ],
)
def test_a_run_goes_on_with_its_own_networks_only(tmp_path: Path, change: dict[str, Any], key: str) -> None:
    run(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"changed: {key}\\. Choose another out="):
        run(tmp_path / "run", **change)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from test_given import run
run(sys.argv[1], phases=[{"kind": "joint", "steps": 60, "every": 2}], checkpoint_every=10)
"""


def test_the_same_script_resumes_a_run_that_was_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, str(out), str(Path(__file__).parent)]
        return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)

    def finish(out: Path) -> str:
        process = start(out)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        return errors

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(straight)
    process, deadline = start(broken), time.monotonic() + 200
    while not (broken / "checkpoints/step_00000020").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (broken / "student").exists()
    assert "resumed after step" in finish(broken)
    one, other = ((out / "student/model.safetensors").read_bytes() for out in (straight, broken))
    assert one == other


def test_a_network_and_sections_of_a_recipe_go_together(tmp_path: Path) -> None:
    teacher = build(ZooModel(arch="convnet", width=4), SPEC, (0.3,), (0.4,), tuple("abcdefghij")).eval()
    result = run(tmp_path / "sections", teacher=teacher, student={"arch": "mlp", "width": 4}, spec=None)
    assert (result.student.recipe["arch"], result.student.class_names) == ("mlp", tuple("abcdefghij"))
    assert equal(synthkd.load(tmp_path / "sections").state_dict(), result.student.state_dict())
    zoo = run(tmp_path / "zoo", teacher=teacher, student=build(ZooModel(arch="mlp", width=4), SPEC), spec=None)
    assert equal(synthkd.load(tmp_path / "zoo").state_dict(), zoo.student.state_dict()), "it has a recipe of its own"
    plain = run(tmp_path / "plain", teacher=teacher, spec=None)
    assert plain.student.spec == SPEC, "the teacher tells"
    assert plain.student.class_names == tuple("abcdefghij")


def test_defaults_go_by_the_images_of_a_network(tmp_path: Path) -> None:
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(3, 8, 8, 10)).eval()
    student = {"arch": "mlp", "width": 4}
    plan = distill(teacher=teacher, student=student, out=str(tmp_path / "run"), dry_run=True, device="cpu")
    text = str(plan)
    assert "generator: noisy_label" in text
    assert "joint 4,000 steps with a round every 25" in text


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = distill(teacher=network(8), student=network(4), spec=SPEC, dry_run=True, **QUICK)
    assert isinstance(plan, Plan)
    assert "student: 418 parameters (" in str(plan)
    assert list(tmp_path.iterdir()) == []


class Uncopied(nn.Linear):
    """A network that refuses to be copied."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("it holds a socket")


CASES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no spec": (
        lambda: distill(teacher=network(8), student=network(4)),
        ModelError,
        r"the teacher is a Sequential.*give spec=ImageSpec\(channels, height, width, classes\)",
    ),
    "no copy": (
        lambda: distill(teacher=Uncopied(2, 2), student=network(4), spec=SPEC),
        ModelError,
        "the teacher cannot be copied: it holds a socket; give a network that copy.deepcopy takes",
    ),
    "another size": (
        lambda: distill(
            teacher=network(8), student=build(ZooModel(arch="mlp"), ImageSpec(1, 9, 9, 10)), spec=SPEC, dry_run=True
        ),
        ModelError,
        "the student takes 1x9x9 images, 10 classes, but spec says 1x8x8",
    ),
    "a typo": (
        lambda: distill(teacher=network(8), student=network(4), spec=SPEC, fases=[]),
        ConfigError,
        r"fases: unknown key \(did you mean 'phases'\?\)",
    ),
    "no student": (lambda: distill(teacher=network(8), spec=SPEC), ConfigError, "student: required"),
    "both": (
        lambda: distill(load_config(DistillConfig, {"student": {"arch": "mlp"}, "teacher": LOADED}, []), seed=1),
        ConfigError,
        "a configuration, or networks and keys of a recipe, not both",
    ),
    "no network": (
        lambda: distill(load_config(DistillConfig, {"student": {"arch": "mlp"}, "teacher": RECORDED}, [])),
        ConfigError,
        r"teacher: a network in memory \(Net\), which no recipe can name: call synthkd\.pipelines\.distill\(teacher=",
    ),
}
LOADED, RECORDED = {"kind": "load", "model": "t"}, {"kind": "given", "model": "Net", "sha256": "0"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_cannot_be_is_an_error_with_the_remedy(case: tuple[Callable[[], object], type[Exception], str]) -> None:
    call, kind, message = case
    with pytest.raises(kind, match=message):
        call()


def test_commands_say_what_to_do_about_a_run_of_networks_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run(out)
    assert cli.main(["distill", str(out / "config.yaml")]) == 2
    assert "teacher: a network in memory (Sequential), which no recipe can name" in capsys.readouterr().err
    assert cli.main(["distill", f"teacher={{kind: load, model: {out}}}", "student.arch=mlp", "--dry-run"]) == 4
    assert "given in memory (Sequential): build it" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="does not say which teacher labels the images; set teacher"):
        generate(load_config(GenerateConfig, {"run": str(out), "per_class": 2}, []), dry_run=True)


def test_a_saved_generator_whose_samples_need_gradients_needs_a_teacher_that_gives_them(tmp_path: Path) -> None:
    made_by = run(tmp_path / "first")
    saved = {"generator": {"kind": "saved", "path": str(made_by.directory)}, "bank": {"capacity": 64}}
    assert run(tmp_path / "second", transfer_set=saved).values["cost"]["images_generated"] == 48
    with pytest.raises(ModelError, match=r"cuts the gradient .*torch.no_grad"):
        run(tmp_path / "third", transfer_set=saved, teacher=Closed())
