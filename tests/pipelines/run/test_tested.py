"""Which images a job tests on, by what it and its teacher train on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from synthkd.data.read.real import load_splits, load_test
from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError, DataError
from synthkd.models import build
from synthkd.pipelines.config import DistillConfig, EvaluateConfig, TeachConfig
from synthkd.pipelines.run.tested import read_test
from synthkd.pipelines.student.assembly import assemble
from synthkd.settings import DigitsData, FolderTest, NpzData, NpzTest, ZooModel
from synthkd.settings.load import dump_config, load_config
from synthkd.types import ImageSpec

COUNT = 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(COUNT) % 2)
    return tmp_path / "set.npz"


def same(one: RealData, other: RealData) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_dataset_of_its_own_is_tested_on_as_a_whole(path: Path) -> None:
    elsewhere = NpzData(kind="npz", path=str(path.parent / "other.npz"))
    for test in (NpzTest(kind="npz", path=str(path)), NpzTest(kind="npz", path=str(path), test=1.0)):
        whole = load_test(test, [elsewhere])
        assert len(whole) == COUNT
        assert whole.images.tolist() == np.load(path)["images"].tolist()
    assert len(load_test(NpzTest(kind="npz", path=str(path), test=0.25))) == COUNT // 4


def test_of_a_dataset_that_is_trained_on_the_test_split_is_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = NpzData(kind="npz", path=str(path), test=0.3, split_seed=7)
    expected = load_splits(trained).test
    assert same(load_test(NpzTest(kind="npz", path=str(path)), [trained]), expected)
    monkeypatch.chdir(path.parent)
    assert same(load_test(NpzTest(kind="npz", path="./set.npz"), [trained]), expected)
    # A share that is written down is taken as it is.
    written = load_test(NpzTest(kind="npz", path=str(path), test=0.2), [trained])
    assert same(written, load_splits(NpzData(kind="npz", path=str(path))).test)


@pytest.mark.parametrize(
    ("trainings", "count"),
    [
        ([{"test": 0.25}, {"test": 0.5}], 10),
        ([{"test": 0.5}, {"test": 0.25}], 10),
        ([{"test": 0.5}, {"test": 0.0}], 0),
        ([{"test": 0.5}, {"test": 0.5, "split_seed": 1}], None),
        ([{"test": 0.5, "half": "first"}, {"test": 0.5, "half": "second", "split_seed": 1}], None),
    ],
)
def test_of_several_trainings_only_what_all_leave_out_is_tested_on(
    path: Path, trainings: list[dict[str, Any]], count: int | None
) -> None:
    trained = [NpzData(kind="npz", path=str(path), **one) for one in trainings]
    found = {image.numpy().tobytes() for image in load_test(NpzTest(kind="npz", path=str(path)), trained).images}
    left_out = [{image.numpy().tobytes() for image in load_splits(one).test.images} for one in trained]
    assert found == left_out[0] & left_out[1]
    assert count is None or len(found) == count


def test_of_the_digits_the_test_split_of_the_training_is_left() -> None:
    test = DigitsData(kind="digits")
    trained = DigitsData(kind="digits", split_seed=3)
    assert same(load_test(test), load_splits(test).test)
    assert same(load_test(test, [trained]), load_splits(trained).test)
    assert load_test(test, [trained, test]).images.shape[0] < len(load_splits(test).test)


def test_a_test_part_of_its_own_comes_first(tmp_path: Path) -> None:
    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
    parts = {"test_images": images[:2] + 1, "test_labels": [1, 1]}
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6) % 2, **parts)
    for share in (None, 0.5, 1.0):
        found = load_test(NpzTest(kind="npz", path=str(tmp_path / "a.npz"), test=share))
        assert (found.labels.tolist(), found.spec.classes) == ([1, 1], 2)


def test_a_class_may_lack_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), dtype=np.uint8), labels=[0, 2, 2])
    found = load_test(NpzTest(kind="npz", path=str(tmp_path / "a.npz")))
    assert (found.labels.tolist(), found.spec.classes, found.counted) == (
        [0, 2, 2],
        3,
        "3 of 2 of the 3 classes, a.npz",
    )
    with pytest.raises(DataError, match="without gaps"):
        load_splits(NpzData(kind="npz", path=str(tmp_path / "a.npz")))
    (tmp_path / "set" / "cat").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "set" / "cat" / "0.png")
    (tmp_path / "set" / "dog").mkdir()
    folder = load_test(FolderTest(kind="folder", root=str(tmp_path / "set"), channels=1))
    assert (folder.class_names, folder.labels.tolist()) == (("cat", "dog"), [0])


def config(teacher: dict[str, Any], test: Path, **more: Any) -> DistillConfig:
    recipe = {"teacher": teacher, "student": {"arch": "mlp"}, "test": {"kind": "npz", "path": str(test)}, **more}
    return load_config(DistillConfig, {**recipe, "phases": [{"kind": "refine", "steps": 1}]}, [])


def test_the_data_of_the_teacher_and_of_the_student_count_as_trained_on(path: Path, tmp_path: Path) -> None:
    data = {"kind": "npz", "path": str(path), "test": 0.25}
    taught = {"kind": "train", "data": data, "model": {"arch": "mlp"}}
    run = tmp_path / "run"
    (run / "teacher").mkdir(parents=True)
    recorded = load_config(TeachConfig, {"data": data, "model": {"arch": "mlp"}}, [])
    (run / "config.yaml").write_text(dump_config(recorded))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.yaml").write_text("name: x\n")
    real = {"transfer_set": {"kind": "real", "data": data}}
    other = {"transfer_set": {"kind": "real", "data": {**data, "path": str(tmp_path / "other.npz")}}}
    for teacher, transfer_set, count in (
        (taught, other, 10),
        ({"kind": "load", "model": str(run)}, other, 10),
        ({"kind": "load", "model": str(run / "teacher")}, other, 10),
        ({"kind": "load", "model": str(foreign)}, other, COUNT),
        ({"kind": "load", "model": str(foreign)}, real, 10),
    ):
        found = read_test(config(teacher, path, **transfer_set))
        assert found is not None
        assert len(found) == count


def test_the_data_of_a_student_count_when_it_is_a_teacher(path: Path, tmp_path: Path) -> None:
    data = {"kind": "npz", "path": str(path), "test": 0.25}
    other = {"transfer_set": {"kind": "real", "data": {**data, "path": str(tmp_path / "other.npz")}}}

    def recorded(name: str, recipe: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / name / "student").mkdir(parents=True)
        learned = load_config(DistillConfig, {"student": {"arch": "mlp"}, **recipe}, [])
        (tmp_path / name / "config.yaml").write_text(dump_config(learned))
        return {"kind": "load", "model": str(tmp_path / name / "student")}

    elsewhere = {"kind": "load", "model": "elsewhere"}
    real = recorded("real", {"teacher": elsewhere, "transfer_set": {"kind": "real", "data": data}})
    cgan = {"generator": {"kind": "cgan"}, "data": data}
    own_teacher = {"kind": "train", "data": data, "model": {"arch": "mlp"}}
    for teacher, count in (
        (real, 10),
        (recorded("generator", {"teacher": elsewhere, "transfer_set": cgan}), 10),
        (recorded("taught", {"teacher": own_teacher}), 10),
        (recorded("student of a student", {"teacher": real}), 10),
        (recorded("data-free", {"teacher": elsewhere}), COUNT),
        (recorded("its own", {"teacher": {"kind": "load", "model": str(tmp_path / "its own")}}), COUNT),
    ):
        found = read_test(config(teacher, path, **other))
        assert found is not None
        assert len(found) == count, teacher


def test_settings_of_training_data_in_python_keep_their_split(path: Path) -> None:
    data = NpzData(kind="npz", path=str(path), test=0.25)
    recipe = config(
        {"kind": "load", "model": "nothing"}, path, transfer_set={"kind": "real", "data": {"kind": "digits"}}
    )
    changed = DistillConfig(**{**recipe.model_dump(), "test": data})
    assert changed.test == NpzTest(kind="npz", path=str(path), test=0.25)
    found = read_test(changed)
    assert found is not None
    assert len(found) == 10


@pytest.mark.parametrize("data", [{"kind": "digits", "half": "first"}, {"kind": "npz", "path": "p", "per_class": 3}])
def test_keys_that_choose_training_images_are_refused(path: Path, data: dict[str, Any]) -> None:
    teacher = {"kind": "load", "model": "nothing"}
    recipes: list[tuple[str, type[DistillConfig | EvaluateConfig], dict[str, Any]]] = [
        ("test", DistillConfig, {"teacher": teacher, "student": {"arch": "mlp"}, "test": data}),
        ("score.real", DistillConfig, {"teacher": teacher, "student": {"arch": "mlp"}, "score": {"real": data}}),
        ("real", EvaluateConfig, {"generated": ["a"], "real": {"data": data}}),
        ("real", EvaluateConfig, {"generated": ["a"], "real": {"data": data, "split": "test"}}),
    ]
    for key, job, recipe in recipes:
        with pytest.raises(ConfigError, match=f"{key}: (half|per_class) chooses among images that are trained on"):
            load_config(job, recipe, [])
    load_config(EvaluateConfig, {"generated": ["a"], "real": {"data": data, "split": "train"}}, [])
    few = NpzData(kind="npz", path=str(path), per_class=3, half="first", test=0.25)
    changed = DistillConfig(**{**config(teacher, path).model_dump(), "test": few})
    assert changed.test == NpzTest(kind="npz", path=str(path), test=0.25), "the same test split, in Python"


def test_of_a_teacher_without_names_the_classes_are_those_of_the_training_images(tmp_path: Path) -> None:
    images = np.zeros((24, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(24) % 3, class_names=["1", "2", "3"])
    np.savez(tmp_path / "test.npz", images=images, labels=np.arange(24) % 2, class_names=["1", "2"])
    real = {"transfer_set": {"kind": "real", "data": {"kind": "npz", "path": str(tmp_path / "train.npz")}}}
    source = config({"kind": "load", "model": "nothing"}, tmp_path / "test.npz", **real, device="cpu")
    teacher = build(ZooModel(arch="mlp"), ImageSpec(1, 8, 8, 3))
    found = assemble(source, [teacher], Accelerator(cpu=True), None).fitted_test(read_test(source))
    assert found is not None
    assert found.labels.tolist() == [0, 1] * 12


def test_a_training_that_takes_all_images_leaves_none_to_test_on(path: Path) -> None:
    data = {"kind": "npz", "path": str(path)}
    taught = {"kind": "train", "data": {**data, "test": 0.0}, "model": {"arch": "mlp"}}
    source = {"teacher": taught, "student": {"arch": "mlp"}, "test": data}
    with pytest.raises(
        DataError, match=r"test: the training leaves no image of set\.npz to test on; name other images"
    ):
        read_test(load_config(DistillConfig, source, []))
