"""Attacking finished models as a user would: lists of real digits, models that learned some of them by heart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_report import text_of
from torch import Tensor
from torch.nn import functional

from synthkd.data.read.real import load_splits
from synthkd.errors import ConfigError, DataError, ModelError
from synthkd.models import Classifier, build_model, save
from synthkd.pipelines import audit
from synthkd.pipelines.cli import main
from synthkd.pipelines.config import AuditConfig
from synthkd.pipelines.run.result import Plan, Result
from synthkd.privacy.audit import AVERAGE_CASE
from synthkd.settings import DigitsData, ZooModel
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from synthkd.types import to_float

INVALID = "INVALID AUDIT ("


def digits() -> tuple[Tensor, Tensor]:
    """Digits in random order; a third of their labels is wrong, which a model must learn by heart."""
    train = load_splits(DigitsData(kind="digits")).train
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.permutation(len(train)))
    shift = torch.from_numpy(rng.integers(1, 10, len(train)) * (rng.random(len(train)) < 1 / 3))
    return train.images[rows], (train.labels[rows] + shift) % 10


PARTS = {name: slice(200 * k, 200 * k + 200) for k, name in enumerate(("members", "nonmembers", "third", "fourth"))}


def learned(images: Tensor, target: Tensor, seed: int, steps: int = 80, names: str = "0123456789") -> Classifier:
    """A network that was trained for long on a few images, to labels or to soft labels."""
    torch.manual_seed(seed)
    spec = load_splits(DigitsData(kind="digits")).train.spec
    model = build_model(ZooModel(arch="mlp", width=32), spec, [0.3], [0.38], tuple(names))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(to_float(images)), target).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A teacher of the members, a student of the teacher, references of others; and a network of other classes."""
    folder = tmp_path_factory.mktemp("models")
    images, labels = digits()
    teacher = learned(images[PARTS["members"]], labels[PARTS["members"]], 0)
    fresh = images[PARTS["fourth"]]
    with torch.no_grad():
        soft = teacher(to_float(fresh)).softmax(1)
    found = {
        "teacher": teacher,
        "student": learned(fresh, soft, 1),
        "reference": learned(images[PARTS["third"]], labels[PARTS["third"]], 2),
        "guilty": learned(images[PARTS["members"]], labels[PARTS["members"]], 3),
        "named": learned(fresh, soft, 4, 0, "abcdefghij"),
    }
    for name, model in found.items():
        save(model, folder / name)
    return {name: {"kind": "load", "model": str(folder / name)} for name in found}


def write(path: Path, images: Tensor, labels: Tensor | None = None, **more: Any) -> str:
    given = {} if labels is None else {"labels": labels.numpy()}
    np.savez(path, images=images.numpy(), **given, **more)
    return str(path)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("patients")
    images, labels = digits()
    return {name: write(folder / f"{name}.npz", images[rows], labels[rows]) for name, rows in PARTS.items()}


@pytest.fixture
def attacked(models: dict[str, Any], lists: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """Run an audit of the teacher, or of what is given in its place, and check what every report must say."""

    def run(out: str = "run", **changes: Any) -> Result:
        asked = {
            "device": "cpu",
            "teacher": models["teacher"],
            **{key: lists[key] for key in ("members", "nonmembers")},
        }
        result = audit(load_config(AuditConfig, asked | changes, [f"out={tmp_path / out}"]))
        assert isinstance(result, Result)
        report, page = report_of(result), text_of(result.directory / "privacy_report.html")
        assert report["audit"]["kind"] == "given lists"
        assert report["audit"]["label"] == result.values["label"] == AVERAGE_CASE
        assert AVERAGE_CASE[1:] in page
        assert AVERAGE_CASE in str(result)
        assert report["verdict"]["text"] in page
        assert report["verdict"]["text"] in str(result)
        assert unsealed((result.directory / "result.json").read_bytes()) == result.values
        return result

    return run


def report_of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.directory / "privacy_report.json").read_text())
    return found


def area(result: Result, who: str, attack: str = "log-odds") -> dict[str, Any]:
    attacks = report_of(result)["audit"]["models"][who]["given lists"]["attacks"]
    found: dict[str, Any] = next(one["auc"] for one in attacks if one["name"] == attack)
    return found


def test_members_are_found_and_nothing_is_claimed(attacked: Callable[..., Result], models: dict[str, Any]) -> None:
    result = attacked(student=models["student"])
    report = report_of(result)
    assert report["verdict"]["text"] == "NO GUARANTEE (measured only)", report["checks"]
    assert area(result, "teacher")["low"] > 0.6
    assert area(result, "teacher")["value"] > area(result, "student")["value"]
    for model in report["audit"]["models"].values():
        group = model["given lists"]
        assert list(model) == ["given lists"]
        assert group["one_run"] is None
        assert [attack["name"] for attack in group["attacks"]] == [group["headline"]] == ["log-odds"]
        assert all(attack["heuristic"] for attack in group["attacks"])
        assert (group["attacks"][0]["n_in"], group["attacks"][0]["n_out"]) == (200, 200)
    assert report["audit"]["ratios"]["given lists"]["value"] < 1
    names = ["no image in two roles", "blind baseline", "blind baseline of labels", "labels"]
    assert [check["name"] for check in report["checks"]] == names
    assert [missing.partition(":")[0] for missing in report["audit"]["missing"]] == [
        "positive control", "negative control",
    ]  # fmt: skip
    assert report["flow"] is None
    assert report["dp"] is None
    page = text_of(result.directory / "privacy_report.html")
    for part in ("Missing: positive control", "Not known: finished models were given", "Student ÷ teacher"):
        assert part in page
    for absent in ("canar", "Bound of one run", "Worst case", "Undefined", "None"):
        assert absent not in page
    assert (result.directory / "report.html").read_bytes() == (result.directory / "privacy_report.html").read_bytes()


def test_the_report_names_no_file_and_counts_those_left_out(attacked: Callable[..., Result], tmp_path: Path) -> None:
    images, labels = (part[PARTS["members"]] for part in digits())
    folder = tmp_path / "patients"
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / str(label) / f"{number:03d}.png")
    torn = folder / "0" / "torn.png"
    torn.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"torn\.png"):
        attacked(members=str(folder))
    result = attacked(members=str(folder), skip_bad=1)
    assert "note:    members: 1 unreadable files left out" in str(result)
    text = (result.directory / "privacy_report.json").read_text()
    for private in (str(tmp_path), "torn", "nonmembers.npz", "patients"):
        assert private not in text
    assert "Unreadable files of the members that were left out: 1." in report_of(result)["caveats"]
    hashes = {key for key in report_of(result)["provenance"] if key.endswith("_sha256")}
    assert {"teacher_sha256", "config_sha256"} <= hashes
    assert not {"members_sha256", "nonmembers_sha256"} & hashes, "a hash of private images has no noise"
    page = text_of(result.directory / "privacy_report.html")
    assert "Student" not in page, "a column of a model that was not given"


def test_references_make_attacks_sharper_and_are_attacked_themselves(
    attacked: Callable[..., Result], models: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    crowd = torch.from_numpy(rng.integers(0, 256, (1000, 1, 8, 8), dtype=np.uint8))
    population = write(tmp_path / "crowd.npz", crowd, torch.arange(1000) % 10)
    result = attacked(references={"teacher": [models["reference"]]}, population=population)
    report = report_of(result)
    assert report["verdict"]["text"] == "NO GUARANTEE (measured only)", report["checks"]
    (group,) = report["audit"]["models"]["teacher"].values()
    assert [attack["name"] for attack in group["attacks"]] == ["log-odds", "calibrated", "LiRA", "RMIA"]
    assert all(attack["family"] == 4 for attack in group["attacks"])
    assert area(result, "teacher", "calibrated")["low"] > 0.6
    assert report["audit"]["references"] == {"teacher": 1}
    assert report["audit"]["population"] == 1000
    assert report["checks"][-1]["name"] == "negative control"
    assert len(report["audit"]["missing"]) == 1
    assert "reference_0" not in str(result)
    assert report["provenance"]["references_teacher_0_sha256"] == result.values["digests"]["references.teacher.0"]


def test_a_reference_that_saw_the_members_is_found_out(attacked: Callable[..., Result], models: dict[str, Any]) -> None:
    result = attacked(references={"teacher": [models["reference"], models["guilty"]]})
    assert result.values["verdict"]["text"].startswith(f"{INVALID}negative control: references that saw neither list")


def test_non_members_of_another_kind_make_it_invalid(attacked: Callable[..., Result], tmp_path: Path) -> None:
    images, labels = (part[PARTS["nonmembers"]] for part in digits())
    brighter = (images.int() + 25).clamp(max=255).to(torch.uint8)
    result = attacked(nonmembers=write(tmp_path / "brighter.npz", brighter, labels))
    assert result.values["verdict"]["kind"] == "invalid"
    assert f"{INVALID}blind baseline: without any model" in result.values["verdict"]["text"]


def test_an_image_on_both_lists_makes_it_invalid(attacked: Callable[..., Result], tmp_path: Path) -> None:
    images, labels = digits()
    result = attacked(nonmembers=write(tmp_path / "overlap.npz", images[199:399], labels[199:399]))
    reason = "no image in two roles: 1 of the non-members are among the members, pixel by pixel"
    assert result.values["verdict"]["text"] == f"{INVALID}{reason})"


def test_lists_of_other_classes_make_it_invalid(attacked: Callable[..., Result], tmp_path: Path) -> None:
    images, labels = (part[PARTS["nonmembers"]] for part in digits())
    result = attacked(nonmembers=write(tmp_path / "few.npz", images[labels < 5], labels[labels < 5]))
    assert "blind baseline of labels" in result.values["verdict"]["text"]


def test_labels_that_the_model_was_not_trained_with_make_it_invalid(
    attacked: Callable[..., Result], tmp_path: Path
) -> None:
    images, labels = digits()
    shifted = {
        key: write(tmp_path / f"{key}.npz", images[PARTS[key]], (labels[PARTS[key]] + 1) % 10)
        for key in ("members", "nonmembers")
    }
    result = attacked(**shifted)
    assert f"{INVALID}labels: members are given the label they carry: " in str(result)
    assert "by the teacher, as guesses would be)" in str(result)


def test_classes_are_found_by_name(attacked: Callable[..., Result], tmp_path: Path) -> None:
    images, labels = digits()
    names = np.array([str(number) for number in reversed(range(10))])
    turned = {
        key: write(tmp_path / f"{key}.npz", images[PARTS[key]], 9 - labels[PARTS[key]], class_names=names)
        for key in ("members", "nonmembers")
    }
    assert area(attacked("turned", **turned), "teacher") == area(attacked(), "teacher")


def test_copies_are_looked_for_with_non_members_as_the_yardstick(
    attacked: Callable[..., Result], lists: dict[str, str], tmp_path: Path
) -> None:
    images, _ = digits()
    copied = torch.cat([images[PARTS["members"]][:50], images[PARTS["third"]][:50]])
    result = attacked(generated=write(tmp_path / "copied.npz", copied))
    for test in report_of(result)["copies"]:
        assert test["near_copies"]["of_train"] >= 50, test["space"]
        assert test["near_copies"]["p_value"] < 1e-6
    assert "of 100 synthetic images are near a member" in str(result)
    assert "a copy detector, not privacy evidence" in str(result)
    assert "synthetic images: those that were given" in report_of(result)["released"]
    swapped = attacked("swapped", generated=str(tmp_path / "copied.npz"), members=lists["nonmembers"],
                       nonmembers=lists["members"])  # fmt: skip
    assert all(test["near_copies"]["p_value"] > 0.5 for test in report_of(swapped)["copies"])


def test_the_second_call_shows_the_finished_result(attacked: Callable[..., Result], tmp_path: Path) -> None:
    images, labels = digits()
    members = write(tmp_path / "mine.npz", images[PARTS["members"]], labels[PARTS["members"]])
    first = attacked(members=members)
    before = (first.directory / "result.json").read_bytes()
    (first.directory / "report.html").unlink()
    again = attacked(members=members)
    assert str(again) == f"{first.directory} was complete already; nothing was run\n{first}"
    assert (first.directory / "result.json").read_bytes() == before
    write(tmp_path / "mine.npz", images[PARTS["third"]], labels[PARTS["third"]])
    with pytest.raises(ConfigError, match=r"is finished, and members has changed since; choose another out="):
        attacked(members=members)


def test_a_dry_run_reads_everything_and_writes_nothing(
    models: dict[str, Any], lists: dict[str, str], tmp_path: Path
) -> None:
    asked = {"teacher": models["teacher"], "members": lists["members"], "nonmembers": lists["nonmembers"]}
    plan = audit(load_config(AuditConfig, asked, [f"out={tmp_path / 'run'}"]), dry_run=True)
    assert isinstance(plan, Plan)
    assert "members: 200 images of members.npz" in str(plan)
    assert "0 references" in str(plan)
    assert not (tmp_path / "run").exists()


def test_parts_of_a_dataset_are_lists(models: dict[str, Any]) -> None:
    parts = {
        key: {"data": {"kind": "digits"}, "split": split}
        for key, split in (("members", "train"), ("nonmembers", "test"))
    }
    plan = audit(load_config(AuditConfig, {"teacher": models["teacher"], **parts}, []), dry_run=True)
    assert "members: 1,294 images of digits:train" in str(plan)
    with pytest.raises(ConfigError, match=r"members.split: say which part of the dataset it is"):
        load_config(AuditConfig, {"teacher": models["teacher"], **parts, "members": {"data": {"kind": "digits"}}}, [])


@pytest.fixture(scope="module")
def mistakes(lists: dict[str, str], models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name -> what the command line has instead of, or beside, sound settings."""
    folder = tmp_path_factory.mktemp("mistakes")
    images, labels = (part[:40] for part in digits())
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    load = {name: json.dumps(settings) for name, settings in models.items()}
    return {
        "a wrong path": "members=nowhere.npz",
        "no labels": f"members={write(folder / 'bare.npz', images)}",
        "unknown classes": f"members={write(folder / 'odd.npz', images, labels * 0, class_names=np.array(['yeti']))}",
        "another size": f"members={write(folder / 'large.npz', large, labels)}",
        "another size generated": f"generated={folder / 'large.npz'}",
        "too few": f"nonmembers={write(folder / 'few.npz', images[:19], labels[:19])}",
        "no model": "teacher=null",
        "no such model": f"teacher.model={folder / 'gone'}",
        "an idle reference": f"references.student=[{load['reference']}]",
        "an idle population": f"population={lists['third']}",
        "one model twice": f"student={load['teacher']}",
        "classes of other names": f"student={load['named']}",
    }


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("a wrong path", DataError, "nowhere.npz does not exist; check the path"),
        ("no labels", DataError, "members (bare.npz): its images carry no labels, and attacks ask"),
        ("unknown classes", DataError, "members (odd.npz) has images of classes that the teacher does not have: yeti"),
        ("another size", DataError, "members (large.npz): it has images of 1x16x16 (channels x height x width), the "
                                    "teacher takes 1x8x8; give them"),
        ("another size generated", DataError, "generated (large.npz): it has images of 1x16x16"),
        ("too few", DataError, "nonmembers (few.npz): 20 images or more are needed, got 19"),
        ("no model", ConfigError, "there is no model to attack: set teacher, student or both"),
        ("no such model", ConfigError, "gone"),
        ("an idle reference", ConfigError, "references.student are compared with a student: set student"),
        ("an idle population", ConfigError, "population is for RMIA, which needs references"),
        ("one model twice", ConfigError, "student: its weights are those of teacher; give each model once"),
        ("classes of other names", ConfigError, "student: its classes have other names, or another order"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_the_exit_code_of_its_kind(
    name: str, kind: type[ConfigError | DataError | ModelError], message: str, mistakes: dict[str, str],
    lists: dict[str, str], models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sound = [
        f"teacher={json.dumps(models['teacher'])}", f"members={lists['members']}", f"nonmembers={lists['nonmembers']}",
        "device=cpu", f"out={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(["audit", *sound, mistakes[name]]) == kind.exit_code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_command_line(
    lists: dict[str, str], models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "audit", "student.kind=load", f"student.model={models['student']['model']}", f"members={lists['members']}",
        f"nonmembers={lists['nonmembers']}", f"out={tmp_path / 'run'}", "device=cpu",
    ]  # fmt: skip
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"audit:   200 members, 200 non-members; {AVERAGE_CASE}\nstudent: AUC 0.")
    assert f"privacy: NO GUARANTEE (measured only)\nreport:  {tmp_path / 'run' / 'privacy_report.html'}" in shown
