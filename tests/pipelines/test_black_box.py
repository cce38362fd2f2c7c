"""Runs with a black box for a teacher: budget, record, kill, refusals, and which generator a teacher gets."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import synthkd
from synthkd.errors import ConfigError, ModelError
from synthkd.generators.build import build_generator
from synthkd.generators.files import save_generator
from synthkd.generators.method_settings import ContinuousSettings, NoisyLabelSettings
from synthkd.generators.settings import PixelSettings
from synthkd.imports import allowing
from synthkd.models import Classifier, build
from synthkd.models.black_box import ANSWERS, black_box_model
from synthkd.pipelines import audit, distill
from synthkd.pipelines.config import AuditConfig, DistillConfig
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.student.chosen import HINT, with_generator, with_hint
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.training.monitor import read_rows
from synthkd.types import ImageSpec

ASKED: list[int] = []
"""Images of each call of `service`."""
REFINE = [{"kind": "refine", "steps": 12}]


class Killed(BaseException):
    """Stands for a kill: nothing but the files on disk survives it."""


KILL_AT: list[int] = []
"""The call of `service` in which the run is killed, if any."""


def service(pixels: np.ndarray) -> object:
    """Which quarter of an image is brightest."""
    ASKED.append(len(pixels))
    if len(ASKED) in KILL_AT:
        raise Killed
    quarters = pixels.reshape(len(pixels), 2, 4, 2, 4).astype(int).sum(axis=(2, 4))
    return quarters.reshape(len(pixels), 4).argmax(axis=1)


def probabilities(pixels: np.ndarray) -> object:
    return np.eye(4)[service(pixels)] * 0.6 + 0.1


@pytest.fixture(autouse=True)
def _nobody_was_asked() -> None:
    ASKED.clear()
    KILL_AT.clear()


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    """120 images in training (12 of them held out) and 30 in test, with labels that nobody uses."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 8, 8), dtype=np.uint8)
    labels = np.arange(150) % 4
    path = tmp_path / "task.npz"
    np.savez(path, images=images[:120], labels=labels[:120], test_images=images[120:], test_labels=labels[120:])
    return {"kind": "npz", "path": str(path)}


def recipe(**changes: Any) -> dict[str, Any]:
    teacher = {"function": "tests.pipelines.test_black_box:service", "queries": 100, "batch_size": 16}
    teacher |= changes.pop("teacher", {})
    return {
        "teacher": {"kind": "labels", "channels": 1, "size": 8, "classes": 4, **teacher},
        "student": {"arch": "convnet", "width": 4},
        "device": "cpu",
        "phases": REFINE,
        "distill": {"batch_size": 16},
        "evaluate_every": 6,
        "checkpoint_every": 4,
        **changes,
    }


def real(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return recipe(transfer_set={"kind": "real", "data": task}, **changes)


def run(source: dict[str, Any], out: Path | None = None) -> Result:
    result = distill(load_config(DistillConfig, source, [] if out is None else [f"out={out}"]))
    assert isinstance(result, Result)
    return result


def plan(source: dict[str, Any]) -> str:
    result = distill(load_config(DistillConfig, source, []), dry_run=True)
    assert isinstance(result, Plan)
    return str(result)


def student_bytes(directory: Path) -> bytes:
    return (directory / "student" / "model.safetensors").read_bytes()


def test_each_image_is_asked_once_whatever_the_steps(task: dict[str, Any], tmp_path: Path) -> None:
    result = run(real(task, teacher={"queries": 500}, test=task), tmp_path / "run")
    values = result.values
    # 12 held-out images, 108 to learn from, 30 test images; mixtures and steps ask nothing.
    assert sum(ASKED) == 150
    assert values["queries"] == {"used": 150, "budget": 500, "answers": "labels"}
    assert values["teacher"]["n"] == 30
    assert values["teacher"]["parameters"] is None
    assert values["student"]["agreement_on"] == "test"
    assert values["alarms"] is not None
    assert "queries: 150 of 500 used" in str(result)
    assert "Queries to the black box" in (tmp_path / "run" / "report.html").read_text()
    events = [row["event"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row.get("kind") == "note"]
    assert events == [
        "black box tests.pipelines.test_black_box:service, answers labels, at most 500 queries; asked 120 images "
        "before the first step"
    ]


def test_a_budget_that_is_too_small_for_all_images_is_never_exceeded(task: dict[str, Any], tmp_path: Path) -> None:
    """A tenth goes to held-out images, the rest to images to learn from, and nothing is left for test images."""
    values = run(real(task, teacher={"queries": 50}, test=task), tmp_path / "run").values
    assert sum(ASKED) == 50
    assert values["queries"]["used"] == 50
    assert values["student"]["agreement_n"] == 5
    assert values["real_images_used"] <= 45
    assert values["teacher"]["accuracy"] is None
    assert values["student"]["n"] == 30


def test_unlabelled_images_are_asked_about_within_the_budget(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (150, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "task.npz", images=images)
    data = {"kind": "unlabelled", "path": str(tmp_path / "task.npz"), "channels": 1}
    source = real(data, teacher={"queries": 50})
    text = plan(source)
    assert ASKED == []
    assert "unlabelled images: 50 of task.npz (5 held out), labelled by the black box\n" in text
    values = run(source, tmp_path / "run").values
    assert sum(ASKED) == values["queries"]["used"] == 50
    assert values["student"]["agreement_n"] == 5


def test_a_dry_run_asks_nothing_and_says_what_may_be_asked(task: dict[str, Any]) -> None:
    text = plan(real(task, test=task))
    assert ASKED == []
    assert "teacher: black box tests.pipelines.test_black_box:service, answers labels, at most 100 queries" in text
    assert "term soft: weight 1, temperature 1\n" in text, "the cross-entropy to the label"
    assert "temperature 7" in plan(real(task, distill={"batch_size": 16, "temperature": 7}))
    soft = {"function": "tests.pipelines.test_black_box:probabilities", "answers": "probabilities"}
    assert "temperature 4" in plan(real(task, teacher=soft))


def test_the_plan_of_an_extension_says_what_is_left_of_the_budget(tmp_path: Path) -> None:
    run(drawn(teacher={"queries": 90}, phases=[{"kind": "joint", "steps": 4, "every": 2}]), tmp_path / "run")
    assert sum(ASKED) == 40
    extended = [f"out={tmp_path / 'run'}", "more=4"]
    source = drawn(teacher={"queries": 90}, phases=[{"kind": "joint", "steps": 4, "every": 2}])
    text = str(distill(load_config(DistillConfig, source, extended), dry_run=True))
    assert "at most 90 queries, 50 of them left\n" in text
    assert "; the queries that are left cover 2\n" in text
    assert sum(ASKED) == 40


def drawn(**changes: Any) -> dict[str, Any]:
    phases = changes.pop("phases", [{"kind": "joint", "steps": 18, "every": 2}])
    return recipe(transfer_set={"generator": {"kind": "procedural", "batch_size": 20}}, phases=phases, **changes)


def test_with_a_spent_budget_the_student_goes_on_with_the_images_it_has(tmp_path: Path) -> None:
    values = run(drawn(teacher={"queries": 50}), tmp_path / "run").values
    assert sum(ASKED) == 40, "two rounds; the budget does not cover a third"
    assert values["cost"]["images_generated"] == 40
    assert values["cost"]["steps"] == 18
    assert values["real_images_used"] == 0
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "teacher/queries" in row]
    assert rows[-1]["teacher/queries"] == 40


def saved_by(settings: ContinuousSettings | NoisyLabelSettings, directory: Path) -> dict[str, Any]:
    """The transfer set of a generator of another teacher."""
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 4)).eval()
    generator = build_generator(settings, teacher, 0, Accelerator(cpu=True))
    save_generator(generator, settings, directory, teacher.spec, (), 0, 0)
    return {"generator": {"kind": "saved", "path": str(directory)}}


def test_a_round_of_a_saved_generator_costs_its_images_too(tmp_path: Path) -> None:
    made = saved_by(ContinuousSettings(kind="continuous", batch_size=40, width=4, one_hot=1.0), tmp_path / "saved")
    phases = [{"kind": "joint", "steps": 12, "every": 2}]
    assert "generator rounds: 6, 240 images; the queries cover 2\n" in plan(recipe(transfer_set=made, phases=phases))
    values = run(recipe(transfer_set=made, phases=phases), tmp_path / "run").values
    assert sum(ASKED) == 80, "two rounds; the budget does not cover a third"
    assert values["cost"]["steps"] == 12
    with pytest.raises(ConfigError, match=r"30 do not cover a round of 40 images; raise it$"):
        plan(recipe(transfer_set=made, phases=phases, teacher={"queries": 30}))


def test_a_saved_generator_that_needs_gradients_is_refused(tmp_path: Path) -> None:
    settings = NoisyLabelSettings(kind="noisy_label", width=4, batch_norm=0.0)
    made = saved_by(settings, tmp_path / "saved")
    with pytest.raises(ConfigError, match="kind noisy_label, whose samples are moved by gradients of the teacher"):
        plan(recipe(transfer_set=made, phases=[{"kind": "joint", "steps": 12, "every": 2}]))
    assert ASKED == []


@pytest.mark.parametrize("source", ["real", "drawn"])
def test_a_killed_run_pays_nothing_twice_and_ends_with_the_same_bytes(
    task: dict[str, Any], tmp_path: Path, source: str
) -> None:
    """Killed inside a call: among the images before the first step, or in a round after a checkpoint."""
    written = real(task, test=task) if source == "real" else drawn()
    straight = run(written, tmp_path / "straight")
    calls, images = len(ASKED), sum(ASKED)
    ASKED.clear()
    KILL_AT.append(4 if source == "real" else calls - 2)
    with pytest.raises(Killed):
        run(written, tmp_path / "broken")
    assert any((tmp_path / "broken" / "checkpoints").glob("step_*")) == (source == "drawn")
    at = KILL_AT.pop()
    ASKED.clear()
    resumed = run(written, tmp_path / "broken")
    assert student_bytes(straight.directory) == student_bytes(resumed.directory)
    assert (straight.directory / ANSWERS).read_bytes() == (resumed.directory / ANSWERS).read_bytes()
    assert len(ASKED) == calls - at + 1, "the call that was killed, and those after it"
    assert sum(ASKED) < images
    assert resumed.values["queries"] == straight.values["queries"]


SERVICE = """
import os, signal

def answer(pixels):
    with open("asked", "a") as file:
        file.write("x" * len(pixels))
    if os.path.getsize("asked") > 60 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels[:, 0, 0, 0] % 4
"""


@pytest.mark.slow
def test_answers_survive_kill_9(task: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "quarter_service.py").write_text(SERVICE)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(real(task, teacher={"function": "quarter_service:answer", "queries": 120})))
    command = [sys.executable, "-m", "synthkd", "distill", str(path), "out=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    codes = [
        subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=200, check=False).returncode
        for _ in range(2)
    ]
    assert codes == [-signal.SIGKILL, 0]
    # 12 held-out images and 108 others, and once more the call that was killed.
    assert (tmp_path / "asked").stat().st_size == 120 + 16


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"transfer_set": {"generator": {}}}, "transfer_set.generator: it needs gradients and BatchNorm statistics of"),
        (
            {"transfer_set": {"generator": {"kind": "pixels"}}},
            "transfer_set.generator: it needs gradients of the teach",
        ),
        (
            {"transfer_set": {"live": 0.1}},
            "transfer_set.live: fresh samples ask a black box at every step: set live to",
        ),
        (
            {"transfer_set": {"kind": "real", "data": {"kind": "stream", "path": "."}}, "phases": REFINE},
            "transfer_set: a stream asks a black box without end: take another kind of data",
        ),
        ({"mix": {"logits": "fresh"}}, "mix: a black box is asked about each image once, not about its mixtures at"),
        ({"mix": {"mixup": 0, "cutmix": 0.5}}, "mix: a black box is asked about each image once"),
        ({"mix": {"crop": 0.5}}, "mix: a black box is asked about each image once"),
        ({"inherit": True}, "teacher: a black box gives answers alone: leave out inherit"),
        (
            {"distill": {"semantic": 1.0}},
            "teacher: a black box gives answers alone: leave out terms of distill that com",
        ),
        (
            {"online": {"peers": [{}]}},
            "teacher: a black box gives answers alone: leave out online.peers without a model",
        ),
        (
            {"teachers": [{"kind": "load", "model": "m"}], "score": {}},
            "teacher: a black box gives answers alone: leave out teachers and score",
        ),
    ],
)
def test_what_needs_more_than_answers_is_refused_in_one_line(changes: dict[str, Any], line: str) -> None:
    phases = [{"kind": "joint", "steps": 4, "every": 2}]
    with pytest.raises(ConfigError) as caught:
        load_config(DistillConfig, {**recipe(phases=phases), **changes}, [])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_round_that_no_budget_covers_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"teacher\.queries: 10 do not cover a round of 20 images; raise it, or lower"
    ):
        plan(drawn(teacher={"queries": 10}))
    phases = [{"kind": "joint", "steps": 4, "every": 2}]
    for transfer_set, place in (({"generator": {"kind": "auto"}}, "transfer_set"), ([{}], r"transfer_set\.0")):
        said = rf"lower {place}\.generator\.batch_size \(with {place}\.generator\.kind=auto\)$"
        with pytest.raises(ConfigError, match=said):
            plan(recipe(transfer_set=transfer_set, phases=phases, teacher={"queries": 10}))


def test_a_function_that_only_a_file_names_is_not_called(task: dict[str, Any]) -> None:
    settings = load_config(DistillConfig, real(task), []).black_box
    assert settings is not None
    with allowing({"teacher": "another:function"}), pytest.raises(ModelError, match="this recipe does not name it"):
        black_box_model(settings)


def test_the_student_of_a_black_box_can_be_audited(task: dict[str, Any], tmp_path: Path) -> None:
    run(real(task), tmp_path / "run")
    sets = {"members": {"data": task, "split": "train"}, "nonmembers": {"data": task, "split": "test"}}
    source = {"student": {"kind": "load", "model": str(tmp_path / "run")}, **sets, "device": "cpu"}
    assert "student: " in str(audit(load_config(AuditConfig, source, [f"out={tmp_path / 'audit'}"]), dry_run=True))
    assert isinstance(synthkd.load(tmp_path / "run"), Classifier)


# --- the generator where none is named --------------------------------------------------------------------------------


BATCH_NORM = torch.nn.BatchNorm2d


def network(norm: type[torch.nn.Module] | None, channels: int = 1) -> torch.nn.Sequential:
    torch.manual_seed(0)
    middle = [] if norm is None else [norm(4)]
    head = [torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 4)]
    return torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 3), *middle, *head)


@pytest.mark.parametrize(
    ("norm", "shape", "words"),
    [
        (BATCH_NORM, (1, 8, 8), "generator: inversion, since the teacher has a BatchNorm layer with statistics\n"),
        (BATCH_NORM, (3, 8, 8), "generator: noisy_label, since the teacher has a BatchNorm layer with statistics and "),
        (BATCH_NORM, (3, 72, 8), "generator: inversion, since the teacher has a BatchNorm layer with statistics\n"),
        (None, (3, 8, 8), "generator: pixels, since the teacher has no BatchNorm statistics\n"),
    ],
)
def test_the_teacher_chooses_the_generator_where_none_is_named(
    norm: type[torch.nn.Module] | None, shape: tuple[int, int, int], words: str, tmp_path: Path
) -> None:
    phases = [{"kind": "joint", "steps": 2, "every": 1}]
    common: dict[str, Any] = {"student": {"arch": "convnet", "width": 4}, "phases": phases, "device": "cpu"}
    spec, teacher = ImageSpec(*shape, 4), network(norm, shape[0])
    assert words in str(distill(teacher=teacher, spec=spec, dry_run=True, **common))
    named = {"transfer_set": {"generator": {"kind": "pixels", "batch_size": 8}}}
    assert "  generator: " not in str(distill(teacher=teacher, spec=spec, dry_run=True, **common, **named))
    if norm is None:
        done = distill(teacher=teacher, spec=spec, out=str(tmp_path / "run"), **common)
        assert isinstance(done, Result)
        saved = json.loads((tmp_path / "run" / "generator" / "generator.json").read_text())
        assert saved["settings"]["kind"] == "pixels"
        assert saved["settings"]["steps"] == PixelSettings(kind="pixels").steps


def test_the_generator_that_the_teacher_chooses_varies_images_as_the_run_does() -> None:
    taught = Classifier(network(BATCH_NORM, 3), ImageSpec(3, 8, 8, 4))
    given = {"teacher": {"kind": "load", "model": "x"}, "student": {"arch": "mlp"}, "mix": {"shift": 2, "flip": True}}
    chosen = with_generator(load_config(DistillConfig, given, []), taught)[0].generated
    assert chosen is not None
    assert isinstance(chosen.generator, NoisyLabelSettings)
    assert (chosen.generator.shift, chosen.generator.flip) == (2, True)


def test_hints_are_chosen_where_both_networks_show_features_that_can_be_compared() -> None:
    spec = ImageSpec(3, 8, 8, 4)
    teacher = Classifier(network(BATCH_NORM, 3), spec)
    recipe = {"teacher": {"kind": "load", "model": "x", "size": 8}, "student": {"arch": "convnet"}}

    def weight(student: torch.nn.Module, teacher: Classifier | None = teacher, why: str = "", **changes: Any) -> object:
        state = torch.random.get_rng_state()
        config, notes = with_hint(load_config(DistillConfig, recipe | changes, []), teacher, student)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert [why in note for note in notes] == ([True] if why else [])
        return config.distill.hint

    convnet = build(ZooModel(arch="convnet", width=4), spec)
    assert weight(convnet) == HINT
    assert weight(convnet, distill={"hint": 2.0}) == 2.0
    assert weight(convnet, None, "hints: none, since no teacher") == 0.0
    assert weight(torch.nn.Identity(), why="changes its width") == 0.0
    assert weight(convnet, why="learn together", online={"peers": [{"model": {"arch": "mlp"}}]}) == 0.0
    assert weight(convnet, why="stored answers", mix={"logits": "stored"}) == 0.0
    assert weight(convnet, why="of the first teacher", teachers=[recipe["teacher"]]) == 0.0
    assert weight(convnet, why="attention compares", distill={"transfer": [{"kind": "attention", "weight": 1}]}) == 0.0
    assert weight(convnet, distill={"transfer": [{"kind": "dkd", "weight": 1}]}) == HINT, "of logits alone"
    headless = Classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.BatchNorm2d(4), Flat()), spec)
    assert weight(convnet, headless, "no linear layer") == 0.0, "without a last layer that is found"


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def test_a_black_box_gets_drawn_images() -> None:
    phases = [{"kind": "joint", "steps": 4, "every": 2}]
    assert "generator: procedural, since a black box gives its answers alone\n" in plan(recipe(phases=phases))
    assert ASKED == []


def learned(task: dict[str, Any], images: int = 8, **changes: Any) -> dict[str, Any]:
    """A generator that learns from real images, of which some are held out."""
    generator = {"kind": "cgan", "batch_size": images, "width": 4, "latent": 8}
    phases = [{"kind": "joint", "steps": 8, "every": 4}]
    return recipe(transfer_set={"generator": generator, "data": task}, phases=phases, **changes)


def test_held_out_images_of_a_generator_are_asked_about_before_its_rounds(task: dict[str, Any], tmp_path: Path) -> None:
    plan(learned(task))
    assert ASKED == [], "a dry run asks nothing"
    assert run(learned(task), tmp_path / "run").values["queries"]["used"] == sum(ASKED) == 26
    assert ASKED[0] == 10
    with pytest.raises(ConfigError, match="10 do not cover a round of 10 images beside real images"):
        run(learned(task, images=10, teacher={"queries": 10}))


def test_real_images_leave_queries_to_the_generator(task: dict[str, Any], tmp_path: Path) -> None:
    drawn = {"generator": {"kind": "procedural", "batch_size": 8}}
    both = [drawn, {"kind": "real", "data": task, "share": 0.5}]
    phases = [{"kind": "joint", "steps": 8, "every": 4}]
    run(recipe(transfer_set=both, phases=phases, teacher={"queries": 50}), tmp_path / "run")
    assert ASKED == [5, 16, 13, 8, 8]


def test_a_budget_of_a_few_queries_is_enough_for_drawn_images(tmp_path: Path) -> None:
    drawn = {"generator": {"kind": "procedural", "batch_size": 4}}
    phases = [{"kind": "joint", "steps": 8, "every": 4}]
    distilling = {"batch_size": 8, "adapt": {"every": 2}}
    run(recipe(transfer_set=drawn, phases=phases, teacher={"queries": 8}, distill=distilling), tmp_path / "run")
    assert ASKED == [4, 4]


def test_an_extension_goes_on_with_the_budget_and_a_kill_changes_nothing(task: dict[str, Any], tmp_path: Path) -> None:
    """The answers to test images lie between those of the rounds before the extension and those of its own."""
    drawn = {"generator": {"kind": "procedural", "batch_size": 8}}
    phases = [{"kind": "joint", "steps": 8, "every": 4}]
    source = recipe(transfer_set=drawn, phases=phases, test=task, teacher={"queries": 76})
    run(source, tmp_path / "whole")
    assert sum(ASKED) == 46
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    longer = {**source, "more": 20}
    ASKED.clear()
    whole = run(longer, tmp_path / "whole").values
    assert ASKED == [8, 8, 8], "30 queries were left, and the test images are paid for"
    assert whole["queries"]["used"] == 70
    assert whole["teacher"]["n"] == 30
    ASKED.clear()
    KILL_AT.append(3)
    with pytest.raises(Killed):
        run(longer, tmp_path / "killed")
    KILL_AT.clear()
    resumed = run(longer, tmp_path / "killed").values
    assert ASKED == [8, 8, 8, 8], "the call that the kill cut short is made again"
    assert resumed["queries"] == whole["queries"]
    assert resumed["teacher"] == whole["teacher"]
    assert student_bytes(tmp_path / "killed") == student_bytes(tmp_path / "whole")
