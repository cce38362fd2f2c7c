"""Scoring sets of images as a user would: folders, archives, a teacher, broken files, a collapsed generator."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from synthkd.data.read.real import load_splits
from synthkd.errors import ConfigError, DataError, ModelError
from synthkd.models import build_model, save
from synthkd.pipelines import evaluate
from synthkd.pipelines.cli import main
from synthkd.pipelines.config import EvaluateConfig
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.scores.cas import RECIPE
from synthkd.settings import DigitsData, ZooModel
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed

SMALL = {"subsets": 10, "subset_size": 50, "splits": 2, "cache": None, "device": "cpu"}


def digits() -> tuple[Tensor, Tensor]:
    train = load_splits(DigitsData(kind="digits")).train
    return train.images, train.labels


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network: enough to give features, and quick."""
    torch.manual_seed(0)
    spec = load_splits(DigitsData(kind="digits")).train.spec
    model = build_model(ZooModel(arch="convnet", width=8), spec, [0.3], [0.38])
    path = tmp_path_factory.mktemp("teacher")
    save(model.eval(), path, {})
    return path


def write_npz(path: Path, images: Tensor, labels: Tensor, **more: Any) -> Path:
    np.savez(path, images=images.numpy(), labels=labels.numpy(), **more)
    return path


def without_notes(scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: (score["value"], score["interval"]) for name, score in scores.items()}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real digits in disjoint parts, and generated sets with one fault each."""
    folder = tmp_path_factory.mktemp("sets")
    images, labels = digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    real, good, train, holdout = (order[i * 300 : (i + 1) * 300] for i in range(4))
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.integers(0, 256, (300, 1, 8, 8), dtype=np.uint8))
    few = good[labels[good] < 3][:12].repeat(25)
    parts = {
        "real": (images[real], labels[real]),
        "good": (images[good], labels[good]),
        "train": (images[train], labels[train]),
        "holdout": (images[holdout], labels[holdout]),
        "noise": (noise, labels[good]),
        "collapsed": (images[few], labels[few]),
        "copies": (images[train], labels[train]),
    }
    return {name: write_npz(folder / f"{name}.npz", *part) for name, part in parts.items()}


def scored(out: Path, generated: list[Path], real: Path, **more: Any) -> dict[str, dict[str, Any]]:
    """Name of the set -> name of the score -> the score."""
    source = {**SMALL, "generated": [str(path) for path in generated], "real": str(real), "out": str(out), **more}
    result = evaluate(load_config(EvaluateConfig, source, []))
    assert isinstance(result, Result)
    saved = unsealed((out / "result.json").read_bytes())
    assert saved == result.values
    return {one["name"]: {score["name"]: score for score in one["scores"]} for one in saved["generated"]}


def test_every_score_tells_good_images_from_bad_ones(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    generated = [sets[name] for name in ("good", "noise", "collapsed")]
    found = scored(
        tmp_path / "run",
        generated,
        sets["real"],
        teacher={"kind": "load", "model": str(teacher)},
        train=str(sets["train"]),
        holdout=str(sets["holdout"]),
        pairs=4,
    )
    good, noise, collapsed = (found[path.name] for path in generated)
    for name, score in good.items():
        assert score["value"] is not None, f"{name}: {score['note']}"
    for worse, seen_by in (
        (noise, ("FD", "FD_inf", "FD per class", "KD", "precision", "recall", "density", "coverage")),
        (collapsed, ("FD", "FD_inf", "FD per class", "KD", "recall", "coverage", "Vendi")),
    ):
        for name in seen_by:
            score = good[f"{name}-teacher"]
            sign = 1 if score["better"] == "higher" else -1
            assert sign * score["value"] > sign * worse[f"{name}-teacher"]["value"], name
    page = (tmp_path / "run" / "report.html").read_text()
    for shown in ("FD-teacher", "good.npz", "collapsed.npz", "data:image/png", "Closest pairs"):
        assert shown in page
    assert (tmp_path / "run" / "samples" / "pairs.generated.0.png").exists()


def test_copies_of_the_training_images_are_seen(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    found = scored(
        tmp_path / "run",
        [sets["good"], sets["copies"]],
        sets["real"],
        teacher={"kind": "load", "model": str(teacher)},
        train=str(sets["train"]),
        holdout=str(sets["holdout"]),
    )
    good, copies = found["good.npz"], found["copies.npz"]
    assert abs(good["C_T-teacher"]["value"]) < 3.0
    assert copies["C_T-teacher"]["value"] < -10.0
    assert copies["authenticity-teacher"]["value"] == 0.0
    assert good["authenticity-teacher"]["value"] == pytest.approx(good["authenticity-teacher"]["target"], abs=0.1)
    assert copies["nearer to train-teacher"]["value"] == 1.0


def test_what_cannot_be_measured_says_why(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    settings = {"kind": "load", "model": str(teacher), "resize": "none", "classes": None}
    found = scored(tmp_path / "run", [sets["good"]], sets["real"], features=settings)["good.npz"]
    assert found["C_T"]["value"] is None
    assert "train=" in found["C_T"]["note"]
    assert found["label fidelity"]["note"] == "needs a teacher"
    assert "not measured" in (tmp_path / "run" / "report.html").read_text()
    assert not list((tmp_path / "run" / "samples").glob("pairs*")), (
        "real images are shown beside copies only when asked"
    )


def test_saved_features_stand_for_the_real_images(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    judge = {"kind": "load", "model": str(teacher)}
    file = tmp_path / "real.safetensors"
    first = scored(tmp_path / "a", [sets["good"]], sets["real"], teacher=judge, save_features=str(file))["good.npz"]
    second = scored(tmp_path / "b", [sets["good"]], file, teacher=judge)["good.npz"]
    for name in ("FD-teacher", "KD-teacher", "precision-teacher", "Vendi-teacher"):
        assert second[name]["value"] == first[name]["value"]
    torch.manual_seed(1)
    spec = load_splits(DigitsData(kind="digits")).train.spec
    save(build_model(ZooModel(arch="convnet", width=8), spec, [0.3], [0.38]).eval(), tmp_path / "other", {})
    with pytest.raises(DataError, match="take both with the same settings"):
        scored(tmp_path / "c", [sets["good"]], file, teacher={"kind": "load", "model": str(tmp_path / "other")})


@pytest.mark.parametrize("judge_beside", [False, True])
def test_saved_features_keep_labels_and_what_the_teacher_sees(
    sets: dict[str, Path], teacher: Path, tmp_path: Path, judge_beside: bool
) -> None:
    judge = {"teacher": {"kind": "load", "model": str(teacher)}}
    more: dict[str, Any] = judge
    if judge_beside:
        other = tmp_path / "other"
        torch.manual_seed(2)
        spec = load_splits(DigitsData(kind="digits")).train.spec
        save(build_model(ZooModel(arch="convnet", width=8), spec, [0.3], [0.38]).eval(), other, {})
        more = judge | {"features": {"kind": "load", "model": str(other)}}
    file = tmp_path / "real.safetensors"
    first = scored(tmp_path / "a", [sets["good"]], sets["real"], save_features=str(file), **more)["good.npz"]
    second = scored(tmp_path / "b", [sets["good"]], file, **more)["good.npz"]
    assert without_notes(second) == without_notes(first)
    assert any(name.startswith("FD per class") and score["value"] is not None for name, score in second.items())
    about = json.loads((tmp_path / "b" / "result.json").read_text())["sets"]["real"]
    assert about["notes"] == ["saved features of real.npz"]
    if judge_beside:
        alone = tmp_path / "alone.safetensors"
        scored(tmp_path / "c", [sets["good"]], sets["real"], save_features=str(alone), features=more["features"])
        with pytest.raises(DataError, match=r"alone.safetensors: it holds no features of a teacher; save them beside"):
            scored(tmp_path / "d", [sets["good"]], alone, **more)


def test_classes_are_compared_by_name(teacher: Path, tmp_path: Path) -> None:
    judge = {"kind": "load", "model": str(teacher)}
    images, labels = digits()
    names = np.array([f"digit {number}" for number in range(10)])
    real = write_npz(tmp_path / "real.npz", images[:300], labels[:300], class_names=names)
    good = write_npz(tmp_path / "good.npz", images[300:600], labels[300:600], class_names=names)
    turned = write_npz(tmp_path / "turned.npz", images[300:600], 9 - labels[300:600], class_names=names[::-1])
    numbered = write_npz(tmp_path / "numbered.npz", images[300:600], labels[300:600])
    few = tmp_path / "few"
    for row in range(300, 600):
        if int(labels[row]) in (2, 7):
            (few / f"digit {labels[row]}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[row, 0].numpy()).save(few / f"digit {labels[row]}" / f"{row}.png")
    found = scored(tmp_path / "run", [good, turned, numbered, few], real, teacher=judge)
    assert found["turned.npz"] == found["numbered.npz"] == found["good.npz"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["class_names"] == names.tolist()
    assert "classes taken by number" in result["sets"]["generated.2"]["notes"][0]
    assert result["generated"][3]["per_class"]["labels"] == [2, 7]
    assert result["generated"][3]["per_class"]["counts"] == [int((labels[300:600] == n).sum()) for n in (2, 7)]

    odd = write_npz(tmp_path / "odd.npz", images[:20], labels[:20] * 0, class_names=np.array(["yeti"]))
    with pytest.raises(
        DataError, match=r"^generated.0 \(odd.npz\) has images of classes that the real set \(real.npz\)"
    ):
        scored(tmp_path / "odd", [odd], real, features=judge)
    with pytest.raises(DataError, match=r"^real \(odd.npz\) has images .* the teacher .* yeti .*features.kind=load$"):
        scored(tmp_path / "odd", [good], odd, teacher=judge)


def test_a_class_without_real_images_is_noted(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    images, labels = digits()
    real = write_npz(tmp_path / "real.npz", images[:300][labels[:300] < 8], labels[:300][labels[:300] < 8])
    with pytest.raises(DataError, match=r"not have: 8, 9 \(it has 0, 1, 2, 3, 4 and 3 more\)"):
        scored(tmp_path / "a", [sets["good"]], real, features={"kind": "load", "model": str(teacher)})
    scored(tmp_path / "b", [sets["good"]], real, teacher={"kind": "load", "model": str(teacher)})
    result = json.loads((tmp_path / "b" / "result.json").read_text())
    assert result["sets"]["generated.0"]["notes"] == ["no real images of its classes 8, 9"]


def test_classes_that_were_not_generated_are_named_under_the_table_and_in_the_report(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    images, labels = digits()
    lacks = write_npz(tmp_path / "lacks.npz", images[:300][labels[:300] < 8], labels[:300][labels[:300] < 8])
    asked = {"generated": [str(sets["good"]), str(lacks)], "real": str(sets["real"])}
    result = evaluate(load_config(EvaluateConfig, asked, [f"out={tmp_path / 'run'}"]))
    assert isinstance(result, Result)
    assert [line for line in result.summary if "note" in line] == ["note: lacks.npz: not generated: classes 8, 9"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "lacks.npz: classes not generated: 2" in page
    assert "good.npz: classes not generated" not in page


def test_a_finished_evaluation_is_not_shown_for_other_images_or_weights(
    sets: dict[str, Path], teacher: Path, tmp_path: Path
) -> None:
    images, _ = digits()
    folder, network = tmp_path / "folder", tmp_path / "network"
    folder.mkdir()
    for number, image in enumerate(images[:20]):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:03d}.png")
    shutil.copytree(teacher, network)
    judge = {"kind": "load", "model": str(network)}
    first = scored(tmp_path / "run", [folder], sets["real"], teacher=judge)
    assert scored(tmp_path / "run", [folder], sets["real"], teacher=judge) == first
    before = (tmp_path / "run" / "result.json").read_bytes()
    kept = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes((folder / "004.png").read_bytes())
    changed = r"is finished, and generated.0 \(folder\) has changed since; choose another out="
    with pytest.raises(ConfigError, match=changed):
        scored(tmp_path / "run", [folder], sets["real"], teacher=judge)
    (folder / "003.png").write_bytes(kept)
    assert scored(tmp_path / "run", [folder], sets["real"], teacher=judge) == first
    torch.manual_seed(3)
    spec = load_splits(DigitsData(kind="digits")).train.spec
    shutil.rmtree(network)
    save(build_model(ZooModel(arch="convnet", width=8), spec, [0.3], [0.38]).eval(), network, {})
    with pytest.raises(ConfigError, match=r"the extractor \(teacher\) has changed since; choose another out="):
        scored(tmp_path / "run", [folder], sets["real"], teacher=judge)
    assert (tmp_path / "run" / "result.json").read_bytes() == before


def test_the_page_warns_of_real_images_only_where_it_shows_some(
    sets: dict[str, Path], teacher: Path, tmp_path: Path
) -> None:
    judge = {"kind": "load", "model": str(teacher)}
    for run, shown, options in (
        ("none", False, {"show_real": False}),
        ("real", True, {}),
        ("pairs", True, {"show_real": False, "pairs": 2}),
    ):
        scored(tmp_path / run, [sets["good"]], sets["real"], features=judge, **options)
        page = (tmp_path / run / "report.html").read_text()
        assert ("as private as those images" in page) == shown, run


def test_features_are_taken_once(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    judge = {"kind": "load", "model": str(teacher)}
    first = scored(tmp_path / "a", [sets["good"]], sets["real"], teacher=judge, cache=str(tmp_path / "cache"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert len(kept) == 2
    second = scored(tmp_path / "b", [sets["good"]], sets["real"], teacher=judge, cache=str(tmp_path / "cache"))
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_named_split_is_a_set(teacher: Path, sets: dict[str, Path]) -> None:
    real = {"data": {"kind": "digits"}, "split": "test"}
    source = {
        **SMALL,
        "generated": [str(sets["good"])],
        "real": real,
        "teacher": {"kind": "load", "model": str(teacher)},
    }
    plan = evaluate(load_config(EvaluateConfig, source, []), dry_run=True)
    assert isinstance(plan, Plan)
    assert "real: 359 images" in str(plan)


@pytest.mark.parametrize("key", ["train", "holdout"])
def test_which_part_of_a_dataset_was_learned_from_is_said(sets: dict[str, Path], teacher: Path, key: str) -> None:
    data = {"kind": "npz", "path": str(sets["real"])}
    source = {
        **SMALL,
        "generated": [str(sets["good"])],
        "real": {"data": data},
        "teacher": {"kind": "load", "model": str(teacher)},
    }
    with pytest.raises(ConfigError, match=rf"{key}.split: say which part of the dataset it is"):
        load_config(EvaluateConfig, {**source, key: {"data": data}}, [])
    plan = str(
        evaluate(load_config(EvaluateConfig, {**source, key: {"data": data, "split": "test"}}, []), dry_run=True)
    )
    # Real images that were not learned from leave the real set as it is.
    assert ("real: 300 images" in plan) == (key == "holdout")


def test_a_limit_of_unreadable_files_that_reaches_no_dataset_is_refused(sets: dict[str, Path]) -> None:
    folder = {"kind": "folder", "root": "photos"}
    source = {"generated": [str(sets["good"])], "real": {"data": folder}, "skip_bad": 1}
    with pytest.raises(ConfigError, match=r"real is a dataset: set real.data.skip_bad=true, or give real as a path"):
        load_config(EvaluateConfig, source, [])
    load_config(EvaluateConfig, source | {"real": {"data": folder | {"skip_bad": True}}}, [])
    load_config(EvaluateConfig, source | {"real": {"data": {"kind": "digits"}}}, [])


def test_the_command_line(
    sets: dict[str, Path], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    images, _ = digits()
    for number, image in enumerate(images[:60]):
        Image.fromarray(image[0].numpy()).save(folder / f"{number:03d}.png")
    (folder / "060.png").write_bytes((folder / "059.png").read_bytes()[:40])
    common = [
        "evaluate", str(folder), str(sets["good"]), f"real={sets['real']}", f"out={tmp_path / 'run'}",
        "teacher.kind=load", f"teacher.model={teacher}", "subset_size=50", "subsets=5", "splits=2",
        "cache=null", "device=cpu",
    ]  # fmt: skip
    assert main(common) == DataError.exit_code
    assert "060.png" in capsys.readouterr().err
    assert main([*common, "--skip-bad", "1"]) == 0
    shown = capsys.readouterr().out
    assert "FD-teacher ↓" in shown
    assert "60, 300 generated against 300 real images" in shown
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["sets"]["generated.0"]["skipped"][0][0].endswith("060.png")
    assert main([*common, "--skip-bad", "1"]) == 0, "a finished evaluation is shown again"


def test_mistakes_end_before_any_work(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'real'"):
        load_config(EvaluateConfig, None, [f"generated=[{sets['good']}]", f"rael={sets['real']}"])
    with pytest.raises(DataError, match="nowhere"):
        scored(tmp_path / "run", [tmp_path / "nowhere"], sets["real"], teacher={"kind": "load", "model": str(teacher)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": {"softmax": True}}, r"the teacher gives probabilities"),
        ({"classes": 7}, r"the teacher must give logits \[N, 7\]"),
        ({"size": 6}, r"the teacher cannot take 1x6x6 images"),
    ],
)
def test_a_teacher_that_is_none_ends_before_any_work(
    sets: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "own_teacher.py").write_text(
        "import torch\n"
        "def network(softmax=False):\n"
        "    torch.manual_seed(0)\n"
        "    layers = [torch.nn.Flatten(), torch.nn.Linear(64, 10)]\n"
        "    return torch.nn.Sequential(*layers, *[torch.nn.Softmax(1)][: int(softmax)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    judge = {"kind": "load", "model": "own_teacher:network", "channels": 1, "size": 8, "classes": 10, **wrong}
    with pytest.raises(ModelError, match=message):
        scored(tmp_path / "run", [sets["good"]], sets["real"], teacher=judge)


def test_a_classifier_is_trained_on_the_generated_images(
    sets: dict[str, Path], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPE["training"], "steps", 60)
    judge = {"kind": "load", "model": str(teacher)}
    found = scored(tmp_path / "run", [sets["good"], sets["noise"]], sets["real"], teacher=judge, cas=True)
    good, noise = found["good.npz"]["CAS"], found["noise.npz"]["CAS"]
    assert good["n"] == [300, 150]
    assert good["value"] > 0.5 > 0.3 > noise["value"]
    assert "when trained on 150 real images" in good["note"]
    assert not list((tmp_path / "run" / "cas").glob("*.npz"))


def test_a_class_that_was_not_generated_is_all_wrong(
    sets: dict[str, Path], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPE["training"], "steps", 60)
    judge = {"kind": "load", "model": str(teacher)}
    one = write_npz(tmp_path / "one.npz", *(part[digits()[1] == 3] for part in digits()))
    few = [sets["collapsed"], sets["good"], one]
    found = scored(tmp_path / "run", few, sets["real"], teacher=judge, cas=True)
    collapsed, good = found["collapsed.npz"]["CAS"], found["good.npz"]["CAS"]
    assert collapsed["n"][1] == good["n"][1] == 150
    assert collapsed["value"] < 0.4 < good["value"], "three classes of ten"
    assert good["interval"][0] < good["value"] < good["interval"][1]
    assert "fewer than two of the real classes" in found["one.npz"]["CAS"]["note"]


def test_images_that_no_classifier_takes_cost_its_score_alone(
    sets: dict[str, Path], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPE["training"], "steps", 2)
    judge = {"kind": "load", "model": str(teacher)}
    images, labels = (part[:60] for part in digits())
    tiny = write_npz(tmp_path / "tiny.npz", images[:, :, 2:6, 2:6].contiguous(), labels)
    colour = write_npz(tmp_path / "colour.npz", images.expand(-1, 3, -1, -1).contiguous(), labels)
    found = scored(tmp_path / "tiny", [sets["good"]], tiny, teacher=judge, cas=True)["good.npz"]
    assert found["CAS"]["value"] is None
    assert "4x4" in found["CAS"]["note"]
    assert found["FD-teacher"]["value"] is not None
    assert not list((tmp_path / "tiny" / "cas").glob("*.npz"))
    asked = {**SMALL, "generated": [str(sets["good"])], "real": str(tiny), "teacher": judge, "cas": True}
    assert isinstance(evaluate(load_config(EvaluateConfig, asked, []), dry_run=True), Plan)
    found = scored(tmp_path / "colour", [colour], sets["real"], teacher=judge, cas=True)["colour.npz"]
    assert "its images are 3x8x8, the real ones 1x8x8" in found["CAS"]["note"]


def test_images_of_another_shape_are_noted(sets: dict[str, Path], teacher: Path, tmp_path: Path) -> None:
    images, labels = digits()
    large = write_npz(
        tmp_path / "large.npz", images[:300].repeat_interleave(2, 2).repeat_interleave(2, 3), labels[:300]
    )
    judge = {"kind": "load", "model": str(teacher)}
    scored(tmp_path / "run", [large, sets["good"]], sets["real"], teacher=judge)
    kept = json.loads((tmp_path / "run" / "result.json").read_text())["sets"]
    assert "images of 1x16x16, the real ones of 1x8x8" in " ".join(kept["generated.0"]["notes"])
    assert "images of" not in " ".join(kept["generated.1"]["notes"])
