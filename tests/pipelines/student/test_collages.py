"""Transfer sets of pictures that cost no gradient: procedural ones, and crops of pictures not of the task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from synthkd.distillation import alarms
from synthkd.errors import ConfigError, DataError
from synthkd.models import Classifier, build
from synthkd.pipelines import distill
from synthkd.pipelines.config import CompressConfig, DistillConfig, PicturesSet, ProceduralSet
from synthkd.pipelines.distill import Distilled
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.student import collages
from synthkd.pipelines.student.assembly import assemble
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec, takes_labels

SPEC = ImageSpec(3, 8, 8, 4)
RECIPE: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "phases": [{"kind": "refine", "steps": 4}],
    "distill": {"batch_size": 8},
    "device": "cpu",
}
PICTURES, PROCEDURAL = {"kind": "pictures"}, {"kind": "procedural"}
LOADED = {"kind": "load", "model": "t"}


def teacher(spec: ImageSpec = SPEC) -> Classifier:
    torch.manual_seed(0)
    return build(ZooModel(arch="convnet", width=4), spec).eval()


def run(out: Path, transfer_set: Any, **changes: Any) -> Distilled:
    done = distill(teacher=teacher(), transfer_set=transfer_set, out=str(out), **{**RECIPE, **changes})
    assert isinstance(done, Distilled)
    return done


def plan(transfer_set: Any, **changes: Any) -> Plan:
    made = distill(teacher=teacher(), transfer_set=transfer_set, dry_run=True, **{**RECIPE, **changes})
    assert isinstance(made, Plan)
    return made


def refusal(recipe: dict[str, Any], model: type[DistillConfig | CompressConfig] = DistillConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(model, {"teacher": LOADED, "student": {"arch": "convnet", "width": 4}, **recipe}, [])
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "on", "pictures"),
    [(PICTURES, "fresh crops of unrelated pictures", 2), (PROCEDURAL, "fresh procedural images", None)],
)
def test_a_student_of_one_source(tmp_path: Path, source: dict[str, Any], on: str, pictures: int | None) -> None:
    done = run(tmp_path / "a", source)
    assert done.values["real_images_used"] == 0
    assert done.values.get("unrelated_pictures") == pictures
    assert done.values["student"]["agreement_on"] == on
    assert done.values["student"]["inherited_parameters"] > 0
    seen = "never saw a real image" + (" of the task, but crops of 2 unrelated pictures." if pictures else ".")
    assert seen in done.summary[0]
    assert seen in (tmp_path / "a" / "report.html").read_text()


def test_an_alarm_says_on_what_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(alarms, "one_class", lambda *answers: seen.append(answers[3]))
    run(tmp_path / "a", PROCEDURAL)
    run(tmp_path / "b", [{**PICTURES, "share": 0.5}, PROCEDURAL], distill={"batch_size": 8, "adapt": {"images": 1}})
    assert seen == ["procedural images", "unrelated pictures"]


def test_the_plan_says_what_the_images_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 3, 20, 30), dtype=np.uint8), labels=np.zeros(3, dtype=np.int64))
    root = {**PICTURES, "root": str(tmp_path / "a.npz")}
    sources = [{**PROCEDURAL, "share": 0.5}, {**root, "pool": 30}]
    lines = plan(sources).lines
    assert "  real images: none" in lines
    assert "  procedural images: drawn by rule, new ones at every step" in lines
    assert "  unrelated pictures: crops of 3 of a.npz, new ones at every step" in lines
    # Grey images need a grey album; with stored logits there is a pool.
    grey = distill(
        teacher=teacher(ImageSpec(1, 8, 8, 4)), transfer_set=sources, mix={"logits": "stored"}, dry_run=True, **RECIPE
    )
    assert "  unrelated pictures: crops of 3 of a.npz, 30, labelled once" in grey.lines
    with pytest.raises(DataError, match=r"the student learns from a\.npz, without its labels, so it tests nothing"):
        plan(root, test={"kind": "npz", "path": str(tmp_path / "a.npz")})


def test_sources_share_each_batch_and_a_run_repeats_itself(tmp_path: Path) -> None:
    sources = [{**PICTURES, "share": 0.25}, {**PROCEDURAL, "share": 0.25}, {"generator": {"width": 8, "batch_size": 8}}]
    phases = [{"kind": "pregenerate", "rounds": 1}, {"kind": "joint", "steps": 4, "every": 2}]
    students = []
    for name in ("a", "b"):
        done = run(tmp_path / name, sources, phases=phases, mix={"mixup": 0.5})
        students.append((tmp_path / name / "student" / "model.safetensors").read_bytes())
        assert done.values["unrelated_pictures"] == 2
        assert done.values["cost"]["images_generated"] == 24
    assert students[0] == students[1]


def test_with_stored_logits_a_pool_is_labelled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collages, "CHUNK", 7)
    source, mix = {**PICTURES, "pool": 20}, {"logits": "stored", "mixup": 0.5}
    done = run(tmp_path / "a", source, mix=mix)
    assert done.values["real_images_used"] == 0


def test_a_black_box_is_asked_about_a_pool_within_its_budget(tmp_path: Path) -> None:
    recipe = {
        **RECIPE,
        "teacher": {
            "kind": "labels", "function": "synthkd.configs.digits_service:answer", "answers": "labels", "queries": 60,
            "channels": 1, "size": 8, "classes": 10,
        },
        "transfer_set": PROCEDURAL,
        "out": str(tmp_path / "a"),
    }  # fmt: skip
    done = distill(load_config(DistillConfig, recipe, []))
    assert isinstance(done, Distilled)
    assert done.values["queries"] == {"used": 60, "budget": 60, "answers": "labels"}
    both = {**recipe, "transfer_set": [{**PICTURES, "share": 0.25}, PROCEDURAL], "out": str(tmp_path / "b")}
    lines = distill(load_config(DistillConfig, {**both, "out": None}, []), dry_run=True).lines
    # A quarter of the queries is for crops; of each source a tenth is held out.
    assert "  unrelated pictures: crops of 2 of scikit-learn, 14, labelled once" in lines
    assert "  procedural images: drawn by rule, 41, labelled once" in lines
    done = distill(load_config(DistillConfig, both, []))
    assert isinstance(done, Distilled)
    assert done.values["queries"]["used"] == 60
    beside = {**recipe, "transfer_set": [{**PICTURES, "share": 0.5}, {"kind": "real", "data": {"kind": "digits"}}]}
    with pytest.raises(ConfigError, match="pictures would share the queries of a black box with images of another ki"):
        load_config(DistillConfig, beside, [])


def test_nobody_else_labels_them_and_no_flow_counts_a_folder() -> None:
    assert "a teacher is missing" in refusal({"teacher": None, "transfer_set": PICTURES})
    assert "two sources of kind procedural" in refusal({"transfer_set": [{**PROCEDURAL, "share": 0.1}, PROCEDURAL]})
    beside = [{"kind": "generated"}, {**PICTURES, "share": 0.1}]
    recipe = {"teacher": LOADED, "student": {"arch": "convnet", "width": 4}, "distillation": {"transfer_set": beside}}
    config = load_config(CompressConfig, recipe, [])
    assert config.distillation.sources[1] == PicturesSet(kind="pictures", share=0.1)
    private = [beside[0], {**beside[1], "root": "photos"}]
    assert "may be private: leave root out" in refusal({"distillation": {"transfer_set": private}}, CompressConfig)
    alone = refusal({"distillation": {"transfer_set": PROCEDURAL, "phases": RECIPE["phases"]}}, CompressConfig)
    assert "take one source of kind generated" in alone
    assert ProceduralSet(kind="procedural").needs == {"labels"}


def test_fresh_samples_of_no_class_are_labelled_by_the_teacher() -> None:
    source = {"transfer_set": {"generator": PROCEDURAL, "live": 1.0}, "teacher": LOADED, **RECIPE}
    config = load_config(DistillConfig, source | {"phases": [{"kind": "joint", "steps": 4}]}, [])
    assembly = assemble(config, [teacher()], Accelerator(cpu=True), None)
    assert assembly.transfer_set.generated is not None
    assert not takes_labels(assembly.transfer_set.generated.generator)
    (drawn,) = assembly.transfer_set.generated.source.draw(8, 0)
    assert drawn.labels.tolist() == [-1] * 8
    labelled = assembly.transfer_set.dataset.label(drawn)
    assert labelled.teacher_logits is not None
    assert torch.equal(labelled.labels, labelled.teacher_logits.argmax(1))
