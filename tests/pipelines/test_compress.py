"""From private images to a student to hand over, with its exports and its report; small, on real digits."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import synthkd
from synthkd.compression.pareto import Candidate, Front, Scores
from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError, MissingExtraError
from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig, Distillation, ExportSettings, TeachConfig
from synthkd.pipelines.config import compress as compress_config
from synthkd.pipelines.handover import attack, flow
from synthkd.pipelines.handover import search as choose
from synthkd.pipelines.handover.export import require_packages
from synthkd.pipelines.handover.private_generator import ReleaseConfig
from synthkd.pipelines.run.result import Plan, Result
from synthkd.privacy import copies
from synthkd.settings import LoadedModel, ZooModel
from synthkd.settings.load import load_config

compress_module = sys.modules["synthkd.pipelines.compress"]

pytest.importorskip("onnxruntime")
pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")


def recipe(generator: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "device": "cpu",
        "threads": 1,
        "teacher": {
            "kind": "train",
            "data": {"kind": "digits"},
            "model": {"arch": "convnet", "width": 8},
            "training": {"steps": 60, "batch_size": 64},
        },
        "student": {"arch": "convnet", "width": 4},
        "test": {"kind": "digits"},
        "distillation": {
            "transfer_set": {"generator": generator or {"width": 8, "latent": 16}},
            "distill": {"batch_size": 32},
            "phases": [{"kind": "pregenerate", "rounds": 3}, {"kind": "joint", "steps": 30}],
            "grid_every": 100,
        },
        **changes,
    }


DP = {
    "kind": "train",
    "data": {"kind": "digits"},
    "model": {"arch": "convnet", "width": 4, "norm": "group"},
    "training": {"steps": 10, "batch_size": 128, "dp": {"epsilon": 8.0}},
}
PIXELS = {"kind": "pixels", "batch_size": 30}
DIGITS = {"kind": "digits"}
REAL = {"kind": "real", "data": DIGITS}
HALF_REAL = [{"kind": "generated"}, {**REAL, "share": 0.5}]
REFINE = {"phases": [{"kind": "refine", "steps": 30}]}


@pytest.fixture(scope="module", autouse=True)
def _few_features() -> Iterator[None]:
    """Features of some hundred images only, and of a few of those that are generated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "MOST_EXTRACTED", 100)
        patch.setattr(compress_module, "SYNTHETIC", 200)
        yield


def made(out: Path, **changes: Any) -> Result:
    result = compress(load_config(CompressConfig, recipe(**changes), [f"out={out}"]))
    assert isinstance(result, Result)
    return result


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack, "CONTROL", attack.CONTROL.model_copy(update={"steps": 250}))
        return made(tmp_path_factory.mktemp("compress") / "run", audit={"canaries": 200, "references": 1})


def test_the_run_holds_student_exports_and_reports(audited: Result) -> None:
    run = audited.directory
    assert synthkd.load(run / "student").spec.classes == 10
    assert {p.name for p in (run / "export").iterdir()} == {"student.onnx", "student.int8.onnx", "student.pt2"}
    assert "Exported files" in (run / "report.html").read_text()
    assert str(run) not in (run / "privacy_report.html").read_text()
    assert audited.values["job"] == "compress"
    assert audited.values["handover"]["cost"]["student"]["parameters"] < 4000
    files = audited.values["handover"]["files"]
    assert files["onnx"]["parity"]["agreement"]["value"] == 1.0
    assert files["int8"]["parity"]["agreement"]["value"] > 0.8


def test_the_report_says_what_was_measured_and_claims_nothing(audited: Result) -> None:
    report = json.loads((audited.directory / "privacy_report.json").read_text())
    assert report["verdict"]["text"] == "NO GUARANTEE (measured only)", report["checks"]
    assert report["dp"] is None
    assert [check["name"] for check in report["checks"]] == [
        "no image in two roles", "blind baseline", "negative control", "positive control",
    ]  # fmt: skip
    models = report["audit"]["models"]
    assert set(models) == {"teacher", "student"}
    for groups in models.values():
        assert groups["natural"]["attacks"][0]["n_in"] + groups["natural"]["attacks"][0]["n_out"] == 100
        assert {attack["name"] for attack in groups["mislabelled"]["attacks"]} == {"log-odds", "calibrated", "LiRA"}
    assert {test["n_generated"] for test in report["copies"]} == {200}
    text = json.dumps(report)
    assert str(audited.directory) not in text
    assert "digits" not in text, "the name of the private data"


def test_the_audited_pipeline_trained_on_canaries_and_the_references_did_not(audited: Result) -> None:
    def trained_on(run: str) -> int:
        found = json.loads((audited.directory / run / "teach" / "result.json").read_text())
        return int(found["data"]["train"])

    report = json.loads((audited.directory / "privacy_report.json").read_text())
    everything, canaries, included = trained_on("."), 200, report["audit"]["included"]
    assert trained_on("audit/audited") == everything - canaries + included
    assert trained_on("audit/reference-0") == everything - canaries
    assert 60 < included < 140


def test_the_same_command_runs_nothing_again(audited: Result) -> None:
    before = (audited.directory / "result.json").read_bytes()
    again = made(audited.directory, audit={"canaries": 200, "references": 1})
    assert str(again).startswith(f"{audited.directory} was complete already")
    assert (audited.directory / "result.json").read_bytes() == before


def test_with_a_given_teacher_and_generator_nothing_private_is_opened_or_measured(
    audited: Result, tmp_path: Path
) -> None:
    given = {
        "teacher": {"kind": "load", "model": str(audited.directory / "teach")},
        "generator": {"kind": "saved", "path": str(audited.directory / "distill")},
    }
    result = made(tmp_path / "run", **given, test=None, export={"formats": []})
    assert result.values["verdict"]["text"] == "NO GUARANTEE (not measured either)"
    report = json.loads((tmp_path / "run" / "privacy_report.json").read_text())
    assert report["audit"] is None
    assert report["copies"] == []
    assert "synthkd audit" in report["unaudited"]


@pytest.mark.parametrize("generator", [PIXELS, {"kind": "procedural", "batch_size": 20}], ids=["pixels", "procedural"])
def test_a_private_teacher_gives_a_claim(tmp_path: Path, generator: dict[str, Any]) -> None:
    result = made(tmp_path / "run", flow="dp_teacher", teacher=DP, generator=generator, export={"formats": []})
    verdict = result.values["verdict"]
    assert verdict["kind"] == "dp"
    assert verdict["text"].startswith("DP: epsilon=7.9") or verdict["text"].startswith("DP: epsilon=8,")
    report = json.loads((tmp_path / "run" / "privacy_report.json").read_text())
    touched = [(touch["source"], touch["target"]) for touch in report["flow"]["touches"]]
    assert (("teacher", "generator") in touched) == (generator is PIXELS)  # drawn images learn nothing of it
    (claim,) = report["dp"]["claims"]
    assert claim["sampler"] == "Poisson"
    assert claim["ledger"][0]["steps"] == 10
    assert report["unaudited"]
    assert not any((tmp_path / "run" / "export").glob("*"))


@pytest.mark.parametrize("kind", ["continuous", "contrastive", "noisy_label", "pixel_inversion"])
def test_a_flow_with_a_private_teacher_takes_the_generators_of_the_methods(kind: str) -> None:
    generator = {"kind": kind, **({"one_hot": 1.0} if kind == "continuous" else {})}
    config = load_config(CompressConfig, recipe(flow="dp_teacher", teacher=DP, generator=generator), [])
    assert config.generated.generator.kind == kind


MERF = {"kind": "merf", "epsilon": 4.0, "delta": 1e-4, "features": 400, "width": 16, "batch_size": 40, "steps": 5}
FEW = {"rounds": 3, "per_class": 20}


def test_a_private_generator_shows_teacher_and_student_its_images_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    taught: list[tuple[str, int]] = []
    first, second = flow.release, flow.teach

    def release(config: ReleaseConfig, private: RealData) -> Result:
        looked.append(len(private))
        return first(config, private)

    def teach(config: TeachConfig, splits: Splits) -> Any:
        taught.append((splits.train.name, len(splits.train)))
        assert not len(splits.holdout)
        return second(config, splits=splits)

    monkeypatch.setattr(flow, "release", release)
    monkeypatch.setattr(flow, "teach", teach)
    result = made(tmp_path / "run", flow="dp_generator", generator=MERF, synthetic=FEW, export={"formats": []})
    assert looked == [1294]
    assert taught == [("synthetic images", 200)]
    assert result.values["verdict"]["text"] == "DP: epsilon=4, delta=0.0001"
    report = json.loads((result.directory / "privacy_report.json").read_text())
    assert [touch["noisy"] for touch in report["flow"]["touches"]] == [True, None, None, None]
    assert report["dp"]["claims"][0]["ledger"][0]["event"] == "release"
    assert result.values["real_images_used"] == 1294, "those of the release"


def test_two_private_parts_cost_more_than_either(tmp_path: Path) -> None:
    result = made(tmp_path / "run", flow="dp_both", teacher=DP, generator=MERF, synthetic=FEW, export={"formats": []})
    report = json.loads((result.directory / "privacy_report.json").read_text())
    apart = [claim["epsilon"] for claim in report["dp"]["claims"]]
    together = float(result.values["verdict"]["text"].split("=")[1].split(",")[0])
    assert len(apart) == 2
    assert max(apart) < together < 3 * sum(apart)


SEARCH = {
    "families": [{"arch": "mlp", "width": [4, 8]}, {"arch": "convnet", "width": [2, 3]}],
    "candidates": 5,
    "steps": 5,
    "rounds": 2,
}


def test_a_searched_student_is_distilled_and_attacked_and_the_search_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    killed: list[bool] = []
    attacked: list[CompressConfig] = []
    scored: list[ZooModel] = []
    first = choose.proxy_evaluator

    def noting(*arguments: Any) -> Any:
        evaluate = first(*arguments)

        def noted(model: ZooModel) -> Any:
            if len(scored) == 2 and not killed:
                killed.append(True)
                raise RuntimeError("killed")
            scored.append(model)
            return evaluate(model)

        return noted

    def cut(config: CompressConfig, *_: Any) -> None:
        attacked.append(config)
        raise RuntimeError("cut")

    monkeypatch.setattr(choose, "proxy_evaluator", noting)
    monkeypatch.setattr(compress_module, "audit_pipeline", cut)
    changes = {"student": None, "search": SEARCH, "export": {"formats": []}, "audit": {"canaries": 80}}
    for end in ("killed", "cut"):
        with pytest.raises(RuntimeError, match=end):
            made(tmp_path / "run", **changes)
    assert len(scored) == len({model.model_dump_json() for model in scored}) == 5
    chosen = attacked[0].student
    assert isinstance(chosen, ZooModel)
    assert chosen in scored
    assert attacked[0].search is None
    saved = json.loads((tmp_path / "run" / "student" / "config.json").read_text())["recipe"]
    assert (saved["arch"], saved["width"]) == (chosen.arch, chosen.width)


def test_the_chosen_one_is_the_fastest_of_those_about_as_good() -> None:
    scores = [Scores(0.90, 5.0, 1000), Scores(0.89, 2.0, 1000), Scores(0.885, 1.0, 1000), Scores(0.5, 0.1, 1000)]
    candidates = tuple(Candidate(ZooModel(arch="mlp", width=n + 1), one) for n, one in enumerate(scores))
    front = Front(candidates, ("error", "latency"), (1.0, 5.0))
    for tolerance, best in ((0.0, 0), (0.012, 1), (0.02, 2), (1.0, 3)):
        assert choose.fastest_of(front, tolerance) == candidates[best]


def test_a_test_seed_is_stamped(tmp_path: Path) -> None:
    seeded = {**DP, "training": {**DP["training"], "dp": {"epsilon": 8.0, "test_seed": 1}}}  # type: ignore[dict-item]
    result = made(tmp_path / "run", flow="dp_teacher", teacher=seeded, generator=PIXELS, export={"formats": []})
    assert result.values["verdict"]["detail"].startswith("NOT DP")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flow": "dp_teacher"}, "set teacher.training.dp"),
        ({"student": None}, "set student, or search"),
        ({"search": {}}, "one of the two"),
        ({"teacher": DP}, "choose dp_teacher"),
        ({"teachers": [DP]}, "teachers: unknown key"),
        ({"distillation": {"teachers": [DP]}}, r"distillation\.teachers: unknown key"),
        (
            {"flow": "dp_teacher", "teacher": DP, "distillation": {"transfer_set": HALF_REAL}},
            "real images and stored datasets show the student what no flow counts",
        ),
        (
            {"distillation": {"transfer_set": {"kind": "real", "data": DIGITS}, **REFINE}},
            "one source of kind generated",
        ),
        ({"distillation": {"transfer_set": {"kind": "stored", "path": "x"}, **REFINE}}, "one source of kind generated"),
        (
            {"flow": "dp_generator", "distillation": {"transfer_set": {"generator": MERF, "data": DIGITS}}},
            "the private images of flow dp_generator are teacher.data: leave data out",
        ),
        ({"teacher": {"kind": "load", "model": "x"}, "audit": {}}, "synthkd audit"),
        ({"flow": "dp_teacher", "teacher": DP, "generator": {"kind": "saved", "path": "x"}}, "what saved learned from"),
        ({"flow": "dp_teacher", "teacher": DP, "generator": MERF}, "choose flow dp_generator or dp_both"),
        ({"flow": "dp_generator"}, r"set distillation\.transfer_set\.generator\.kind to merf"),
        ({"flow": "dp_generator", "generator": MERF, "teacher": DP}, "choose dp_teacher or dp_both"),
        (
            {"flow": "dp_generator", "generator": MERF, "teacher": {"kind": "load", "model": "x"}},
            "teacher.kind to train",
        ),
        ({"flow": "dp_both", "generator": MERF}, "set teacher.training.dp"),
        ({"synthetic": {"rounds": 3}}, "synthetic: flow plain has no differentially private generator: leave it out"),
        ({"flow": "dp_teacher", "teacher": DP, "generator": PIXELS, "synthetic": FEW}, "synthetic: flow dp_teacher"),
        ({"teacher": None}, "a teacher is missing: set teacher, or finished"),
        ({"audit": {"canaries": 5}}, "expected a whole number >= 80"),
    ],
)
def test_what_a_flow_does_not_allow_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(CompressConfig, recipe(**changes), [])


def test_an_audit_bounds_epsilon_at_the_delta_of_the_claim() -> None:
    private = {**DP, "training": {**DP["training"], "dp": {"epsilon": 8.0, "delta": 1e-4}}}  # type: ignore[dict-item]
    config = load_config(CompressConfig, recipe(flow="dp_teacher", teacher=private, audit={}), [])
    assert config.audited_delta == config.claimed_delta == 1e-4
    assert load_config(CompressConfig, recipe(audit={}), []).audited_delta == 1e-5


@pytest.mark.parametrize("kind", ["continuous", "pixel_inversion", "contrastive", "noisy_label"])
def test_the_generators_of_published_methods_learn_from_a_private_teacher_alone(kind: str) -> None:
    generator = {"kind": kind, "one_hot": 1.0}
    config = load_config(CompressConfig, recipe(flow="dp_teacher", teacher=DP, generator=generator), [])
    assert config.generated.generator.kind == kind


def test_a_key_of_a_distillation_that_no_flow_counts_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that `Distillation` gets later is refused in a compression until it is added to `COUNTED`."""
    assert set(Distillation.model_fields) <= compress_config.COUNTED
    monkeypatch.setattr(compress_config, "COUNTED", compress_config.COUNTED - {"online", "publish_every"})
    load_config(CompressConfig, recipe(), [])
    for key, value in {"publish_every": "5", "online": "{peers: [{model: {arch: mlp}}]}"}.items():
        with pytest.raises(ConfigError, match=rf"distillation\.{key}: no flow accounts for it: leave it out"):
            load_config(CompressConfig, recipe(), [f"distillation.{key}={value}"])
    with pytest.raises(ValidationError, match=r"distillation\.publish_every: no flow accounts for it"):
        CompressConfig(
            teacher=LoadedModel(kind="load", model="x"),
            student=ZooModel(arch="mlp"),
            distillation=Distillation(publish_every=5),
        )


def test_a_flat_recipe_ends_with_one_line_that_loads() -> None:
    """Its remedy is the present form of the same compression."""
    present = recipe(generator=PIXELS)
    inner = present.pop("distillation")
    inner["transfer_set"] |= {"difficulty": {"start": 0.5}, "bank": {"capacity": 40}, "live": 0.25}
    inner["mix"] = {"mixup": 0.8}
    flat = {**present, **inner, "mix": {"mixup": 0.8, "live": 0.25}, **inner["transfer_set"]}
    del flat["transfer_set"], flat["live"]
    with pytest.raises(ConfigError) as caught:
        load_config(CompressConfig, flat, [])
    line = str(caught.value)
    assert "\n" not in line
    moved, separator, remedy = line.partition(" are part of distillation now: write ")
    assert separator
    assert set(moved.split(", ")) == {"distill", "mix", "phases", "grid_every", "generator", "difficulty", "bank"}
    assert load_config(CompressConfig, present | yaml.safe_load(remedy), []) == load_config(
        CompressConfig, present | {"distillation": inner}, []
    )


@pytest.mark.parametrize("changes", [{"generator": PIXELS}, {"grid_every": 100}, {"distill": {"batch_size": 32}}])
def test_one_key_of_the_flat_form_is_refused_with_its_present_place(changes: dict[str, Any]) -> None:
    present = recipe()
    del present["distillation"]
    with pytest.raises(ConfigError) as caught:
        load_config(CompressConfig, present | changes, [])
    moved, separator, remedy = str(caught.value).partition(" is part of distillation now: write ")
    assert separator
    assert [moved] == list(changes)
    assert load_config(CompressConfig, present | yaml.safe_load(remedy), [])


def test_sources_beside_the_transfer_set_of_a_distillation_are_refused() -> None:
    old = recipe()["distillation"]
    generator = old.pop("transfer_set")["generator"]
    with pytest.raises(ConfigError) as caught:
        load_config(CompressConfig, recipe(distillation={**old, "generator": generator}), [])
    _, separator, remedy = str(caught.value).partition("generator is part of transfer_set now: write ")
    assert separator
    present = load_config(CompressConfig, recipe(distillation={**old, **yaml.safe_load(remedy)}), [])
    assert present == load_config(CompressConfig, recipe(), [])


def test_more_canaries_than_half_of_the_images_are_refused_before_the_audit_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than half of the 1,294 private images"):
        made(tmp_path / "run", audit={"canaries": 700})
    assert not (tmp_path / "run" / "teach").exists()


def test_a_missing_package_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"a student needs .*'optuna': pip install 'synthkd\[search\]'"):
        require_packages(ExportSettings(formats=()), searched=True)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[export\]'"):
        made(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_time_of_a_search_is_that_of_its_candidates() -> None:
    families = [{"arch": "mlp", "width": [8, 32], "depth": [1]}, {"arch": "convnet", "width": [4, 4]}]
    search = {"families": families, "candidates": 5, "steps": 7, "rounds": 11, "max_parameters": 100_000}
    source = recipe(student=None, search=search)
    plan = compress(load_config(CompressConfig, source, []), dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.time is not None
    counts = {one.name: one.count for one in plan.time.timed}
    assert counts["steps of candidates"] == 5 * 7
    assert counts["scores of candidates"] == 5
    assert counts["rounds of the search"] == 11 + 8, "64 images a round, and 500 that are held out"
    assert "for 5 candidates of 7 steps), without the exports, measured in " in str(plan)
    (flow,) = [line for line in plan.lines if line.startswith("  time of the flow, without the search: about ")]
    assert flow


def test_a_dry_run_says_what_would_be_done(tmp_path: Path) -> None:
    plan = compress(load_config(CompressConfig, recipe(audit={}), [f"out={tmp_path / 'run'}"]), dry_run=True)
    assert isinstance(plan, Plan)
    assert "flow plain" in str(plan)
    assert "500 canaries, 3 further runs of it and a control" in str(plan)
    flow, whole = (line for line in plan.lines if line.startswith("  time"))
    assert plan.lines[-1].startswith("  export: onnx, int8")
    assert plan.lines[-1].endswith("; it and the measurements of the finished student come on top of the time")
    assert flow.startswith("  time of the flow: about ")
    assert whole.startswith("  time: about ")
    assert "for 3 further runs of the flow and a control), without the exports" in whole
    assert plan.time is not None
    runs, control = plan.time.timed[-2:]
    (teaching,) = [one for one in plan.time.timed if one.name == "steps of the teacher"]
    assert runs.count * runs.seconds == pytest.approx(3 * sum(one.count * one.seconds for one in plan.time.timed[:-2]))
    assert (control.count, control.seconds) == (600, teaching.seconds)
    assert not (tmp_path / "run").exists()
