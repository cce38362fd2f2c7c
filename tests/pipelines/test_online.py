"""Networks that learn together, from themselves or without a teacher: real runs on digits, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator

from synthkd.distillation.step import DistillStep
from synthkd.errors import ConfigError
from synthkd.models import build, load, save
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run import job
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.student.assembly import assemble
from synthkd.pipelines.student.teachers import untrained_teacher
from synthkd.pipelines.student.watch import RunWatch
from synthkd.reports.report import write_report
from synthkd.settings import Refine, ZooModel
from synthkd.settings.load import dump_config, load_config
from synthkd.system.sealed import unsealed
from synthkd.training.measuring import Allowance
from synthkd.training.monitor import Monitor
from synthkd.types import ImageSpec

DIGITS = {"kind": "digits"}
GENERATED: dict[str, Any] = {
    "kind": "generated",
    "generator": {"kind": "pixels", "batch_size": 20, "steps": 2},
    "bank": {"capacity": 60},
}
REAL: dict[str, Any] = {"kind": "real", "data": DIGITS}
SMALL: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "inherit": False,
    "transfer_set": [GENERATED, {**REAL, "share": 0.5}],
    "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "joint", "steps": 24, "every": 8}],
    "distill": {
        "batch_size": 16,
        "temperature": 4,
        "alpha": 0.3,
        "optimizer": {"lr": 5e-3, "ema": 0.9},
        "adapt": {"every": 6, "images": 60},
    },
    "device": "cpu",
    "checkpoint_every": 4,
    "evaluate_every": 12,
    "log_every": 2,
}
UNTAUGHT: dict[str, Any] = {
    **SMALL,
    "transfer_set": REAL,
    "mix": {"mixup": 0.0},
    "phases": [{"kind": "refine", "steps": 24}],
    "distill": {**SMALL["distill"], "alpha": 1.0},
}
PEER = {"model": {"arch": "convnet", "width": 6}}


@pytest.fixture(autouse=True)
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs; a test that looks at one has it written."""
    monkeypatch.setattr(job, "write_report", lambda _: None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("teacher") / "run"
    source = {
        "data": DIGITS, "model": {"arch": "convnet", "width": 8},
        "training": {"steps": 40, "batch_size": 64, "optimizer": {"lr": 1e-2, "schedule": "one_cycle"}},
        "device": "cpu",
    }  # fmt: skip
    result = teach(load_config(TeachConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    return {"kind": "load", "model": str(out)}


def config_of(source: dict[str, Any], out: Path | None = None, *overrides: str, **changes: Any) -> DistillConfig:
    return load_config(DistillConfig, {**source, **changes}, [*([] if out is None else [f"out={out}"]), *overrides])


def run(config: DistillConfig) -> Result:
    result = distill(config)
    assert isinstance(result, Result)
    return result


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def logged(directory: Path) -> set[str]:
    return {name for row in rows_of(directory) for name in row}


def series(directory: Path, name: str) -> list[float]:
    return [row[name] for row in rows_of(directory) if name in row]


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


def differ(*models: Path) -> bool:
    return len({weights(path) for path in models}) == len(models)


def test_two_peers_learn_with_the_student(teacher: dict[str, Any], tmp_path: Path) -> None:
    peers = [PEER, {"model": {"arch": "mlp", "width": 12}, "optimizer": {"lr": 1e-3, "ema": 0.0}}]
    source = {**SMALL, "teacher": teacher, "online": {"peers": peers, "mutual": 0.5}, "test": DIGITS}
    plan = distill(config_of(source), dry_run=True)
    assert isinstance(plan, Plan)
    assert "peer 1" in str(plan)
    assert "peer 2" in str(plan)
    values = run(config_of(source, tmp_path / "run")).values
    saved = unsealed((tmp_path / "run" / "result.json").read_bytes())
    assert saved == values
    assert len(values["peers"]) == 2
    for number, peer in enumerate(values["peers"], start=1):
        model = load(tmp_path / "run" / "peers" / str(number))
        assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)
        assert peer["parameters"] == sum(p.numel() for p in model.parameters())
        assert peer["n"] == 359
        assert 0.0 <= peer["accuracy"] <= 1.0
    names = {f"{who}/{term}" for who in ("student", "peer 1", "peer 2") for term in ("mutual", "soft", "hard", "loss")}
    assert names <= logged(tmp_path / "run")
    looks = values["evaluations"]
    assert looks["every"] == 6
    # looks at steps 0, 6, 12 and 18, the first of them at a student that has learned nothing
    assert looks["stability_of"] == 3
    assert looks["accuracy"] == series(tmp_path / "run", "evaluation/accuracy")[-1]
    assert looks["transfer_efficiency"]["n"] == 60
    write_report(tmp_path / "run")
    assert "peer 1" in (tmp_path / "run" / "report.html").read_text()
    assert {"evaluation/accuracy of peer 1", "evaluation/accuracy of peer 2"} <= logged(tmp_path / "run")


LEARN = DistillStep.__call__


def interrupted(self: DistillStep, step: int) -> dict[str, torch.Tensor | float]:
    """A step that stops the run at the 9th."""
    if step == 8:
        raise KeyboardInterrupt
    return LEARN(self, step)


ONLINE: dict[str, Any] = {
    **SMALL,
    "phases": [{"kind": "pregenerate", "rounds": 2}, {"kind": "joint", "steps": 14, "every": 7}],
    "online": {
        "peers": [{"optimizer": {"lr": 1e-3, "ema": 0.9}}, PEER],
        "averaged": True,
        "swap": {"above": 0.05, "again_below": 0.01},
    },
    "transfer_set": [
        {**GENERATED, "bank": {"capacity": 60, "policy": "prioritized"}},
        {**REAL, "share": 0.5},
    ],
    "distill": {
        **SMALL["distill"],
        "average": 0.2,
        "transfer": [{"kind": "exits", "weight": 0.2}, {"kind": "sskd"}, {"kind": "crd", "negatives": 8}],
        "adapt": {"every": 2, "images": 60, "weights": {}, "strength": {}, "temperature": {}},
    },
}  # fmt: skip


def both_ways(source: dict[str, Any], tmp_path: Path) -> tuple[Path, Path]:
    """The directories of an unbroken run and of one that was stopped in the middle and resumed."""
    straight = run(config_of(source, tmp_path / "straight"))
    half = config_of(source, tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillStep, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(half)
    assert not (tmp_path / "resumed" / "student").exists()
    resumed = run(half)
    assert straight.values["evaluations"] == resumed.values["evaluations"]
    for model in ("student", *(f"peers/{number}" for number in range(1, 1 + len(source["online"]["peers"])))):
        assert weights(straight.directory / model) == weights(resumed.directory / model), model
    curves = [
        [{k: v for k, v in row.items() if k not in ("seconds", "watching")} for row in rows if "event" not in row]
        for rows in (rows_of(straight.directory), rows_of(resumed.directory))
    ]
    assert curves[0] == curves[1]
    return straight.directory, resumed.directory


def test_online_with_all_its_parts_survives_a_stop(teacher: dict[str, Any], tmp_path: Path) -> None:
    straight, _ = both_ways({**ONLINE, "teacher": teacher}, tmp_path)
    teaching = series(straight, "adapt/teaching")
    assert teaching[-1] != 1.0, "roles changed"
    values = json.loads((straight / "result.json").read_text())
    assert values["evaluations"]["teaching"] in ("student", "peer 1", "peer 2")
    assert values["evaluations"]["gap"]["n"] == 7
    assert differ(straight / "student", straight / "peers" / "1", straight / "peers" / "2")
    assert {
        "adapt/weight_of_answers", "adapt/strength", "adapt/temperature", "adapt/gap", "student/mutual", "peer 1/crd",
        "peer 2/mutual", "student/average", "student/exits",
    } <= logged(straight)  # fmt: skip


def test_a_swap_at_the_first_step_after_a_checkpoint_is_logged_once(tmp_path: Path) -> None:
    controllers = SimpleNamespace(teaching=0)

    def evaluation(_: int) -> dict[str, float]:
        controllers.teaching = 1
        return {}

    evaluation.controllers = controllers  # type: ignore[attr-defined]
    students = [SimpleNamespace(name="student"), SimpleNamespace(name="peer 1")]
    monitor, assembly = Monitor(tmp_path), SimpleNamespace(evaluation=evaluation, students=students)
    watch = RunWatch(SimpleNamespace(monitor=monitor), assembly, None, Allowance())  # type: ignore[arg-type]
    for _ in range(2):
        monitor.rewind(6)  # to the checkpoint after step 6
        controllers.teaching = 0
        watch.evaluate(6, 6)
    assert [row["teaching"] for row in monitor.rows() if row.get("kind") == "swap"] == ["peer 1"]


def test_a_peer_without_a_model_is_a_copy_of_the_teacher_that_goes_on_learning(teacher: dict[str, Any]) -> None:
    source = {**SMALL, "teacher": teacher, "online": {"peers": [{}], "swap": {}}}
    original = load(teacher["model"])
    before = {name: value.clone() for name, value in original.state_dict().items()}
    assembly = assemble(config_of(source), [original], Accelerator(cpu=True), None)
    copied = assembly.students[1].learner.module
    assert all(torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    assert all(p.requires_grad for p in copied.parameters())
    assert assembly.transfer_set.generated is not None
    assembly.transfer_set.generated.rounds.alone(0, keep=True)
    for step in range(2):
        assembly.step(step)
    assert any(not torch.equal(value, before[name]) for name, value in copied.state_dict().items())
    assert assembly.team is not None
    for name, value in assembly.team.model.state_dict().items():
        assert torch.equal(value, before[name]), "the teacher itself is frozen"


def test_networks_learn_together_without_a_teacher(tmp_path: Path) -> None:
    source = {**UNTAUGHT, "online": {"peers": [PEER], "swap": {"above": 0.5, "again_below": 0.4}}, "test": DIGITS}
    source["distill"] = {**SMALL["distill"], "alpha": 0.5, "adapt": {"every": 4, "images": 60, "temperature": {}}}
    straight, _ = both_ways(source, tmp_path)
    values = json.loads((straight / "result.json").read_text())
    assert values["teacher"] is None
    assert values["student"]["agreement"] is None
    assert values["student"]["n"] == 359
    assert "ratio" not in values
    assert values["alarms"] == []
    assert values["evaluations"]["transfer_efficiency"] is None
    assert 100 < values["real_images_used"] <= 24 * 16
    assert load(straight / "peers" / "1").spec.classes == 10
    names = logged(straight)
    assert {
        "student/soft",
        "student/hard",
        "student/mutual",
        "evaluation/accuracy of peer 1",
        "adapt/teaching",
    } <= names
    assert not [name for name in names if "agreement" in name or "efficiency" in name]
    assert not (straight / "generator").exists()
    assert not (straight / "samples").exists()
    assert isinstance(distill(config_of(source), dry_run=True), Plan)


def test_labels_alone_are_a_run_too(tmp_path: Path) -> None:
    values = run(config_of(UNTAUGHT, tmp_path / "run", "phases.0.steps=80", test=DIGITS)).values
    assert values["student"]["accuracy"] > 0.6
    assert "peers" not in values
    assert not (tmp_path / "run" / "peers").exists()


def test_a_network_learns_from_its_exits_and_its_own_average(tmp_path: Path) -> None:
    terms = {"alpha": 1.0, "average": 0.5, "transfer": [{"kind": "exits", "features": 0.1}]}
    distilling = {**SMALL["distill"], **terms, "adapt": {"every": 4}}
    values = run(config_of(UNTAUGHT, tmp_path / "run", distill=distilling)).values
    assert {"student/exits", "student/average", "student/hard"} <= logged(tmp_path / "run")
    saved = load(tmp_path / "run")
    assert values["student"]["parameters"] == sum(p.numel() for p in saved.parameters()), "no exit is saved"


@pytest.mark.parametrize("weighting", ["selected", pytest.param("sample", marks=pytest.mark.slow)])
def test_several_teachers_teach_networks_that_learn_together(
    weighting: str, teacher: dict[str, Any], tmp_path: Path
) -> None:
    source = {**SMALL, "teacher": teacher, "teachers": [teacher], "team": {"weighting": weighting}}
    source["online"] = {"peers": [PEER]}
    values = run(config_of(source, tmp_path / "run")).values
    if weighting == "selected":
        assert sum(values["evaluations"]["selected"]) == 4
        assert {"adapt/selected_teacher", "adapt/reward"} <= logged(tmp_path / "run")
    else:
        assert "selected" not in values["evaluations"]


def test_a_look_without_held_out_images_takes_the_newest_of_the_bank(teacher: dict[str, Any], tmp_path: Path) -> None:
    source = {**SMALL, "teacher": teacher, "transfer_set": GENERATED, "online": {"peers": [PEER]}}
    source["distill"] = {**SMALL["distill"], "adapt": {"every": 6, "images": 25, "temperature": {}}}
    values = run(config_of(source, tmp_path / "run")).values
    assert values["evaluations"]["transfer_efficiency"]["n"] == 25
    assert values["real_images_used"] == 0


@pytest.mark.parametrize(
    ("team", "shares"),
    [(None, (1.0, 0.0)), ({"weights": [1.0, 3.0]}, (0.25, 0.75)), ({"weighting": "selected"}, (0.5, 0.5))],
)
def test_of_images_of_the_bank_a_team_is_asked_anew_and_one_teacher_has_answered(
    team: dict[str, Any] | None, shares: tuple[float, float], teacher: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    save(build(ZooModel(arch="convnet", width=5), ImageSpec(1, 8, 8, 10)), tmp_path / "other", {})
    source = {**SMALL, "teacher": teacher, "transfer_set": GENERATED}
    source["distill"] = {**SMALL["distill"], "adapt": {"images": 25}}
    if team is not None:
        source |= {"teachers": [{"kind": "load", "model": str(tmp_path / "other")}], "team": team}
    transfer_set = assembled(config_of(source)).transfer_set
    assert transfer_set.held_out() is None
    images, stored = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(6)), torch.randn(30, 10)
    transfer_set.banks[0].add(images, torch.arange(30) % 10, stored)
    asked = transfer_set.held_out()
    assert asked.labels is None
    torch.testing.assert_close(asked.images, images[5:], atol=1 / 255, rtol=0.0)
    expected = stored[5:]
    if team is not None:
        with torch.no_grad():
            said = [load(path).eval()(asked.images) for path in (teacher["model"], tmp_path / "other")]
        expected = shares[0] * said[0] + shares[1] * said[1]
    torch.testing.assert_close(asked.teacher_logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("mixed", [False, True])
def test_real_images_of_a_generator_are_held_out_unless_they_are_private(mixed: bool, teacher: dict[str, Any]) -> None:
    for settings, count in (
        ({"kind": "cgan", "width": 8, "critic_width": 8}, 60),
        ({"kind": "merf", "epsilon": 1.0}, None),
    ):
        own = {**GENERATED, "generator": {**settings, "batch_size": 20}}
        sources = [own, {**REAL, "share": 0.5}] if mixed else {**own, "data": DIGITS}
        transfer_set = assembled(config_of({**SMALL, "teacher": teacher, "transfer_set": sources})).transfer_set
        held_out = transfer_set.held_out()
        if count is None:
            assert held_out is None, "nobody paid for a look at them, and the bank is empty so far"
        else:
            assert held_out is not None
            assert len(held_out.images) == count
            assert held_out.labels is not None, "annotated"


def test_a_run_without_any_weight_is_refused_before_it_begins() -> None:
    with pytest.raises(ConfigError, match="all terms have weight 0 at step 0; give one to any of soft, hard"):
        assembled(config_of(UNTAUGHT, None, **distilling(alpha=0.0, soft=0.0)))


TAUGHT_BY = {"kind": "load", "model": "nowhere"}
KINDS = (
    {"kind": "hint"}, {"kind": "attention"}, {"kind": "rkd_angle"}, {"kind": "alignment"}, {"kind": "adapter"},
    {"kind": "dkd"}, {"kind": "crd"}, {"kind": "sskd"},
)  # fmt: skip


def distilling(**changes: Any) -> dict[str, Any]:
    return {"distill": {**UNTAUGHT["distill"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (distilling(alpha=0.5), r"missing for soft labels \(distill\.alpha below 1\): set teacher"),
        (distilling(alpha={"kind": "linear", "start": 0.5, "end": 1.0}), r"missing for soft labels"),
        (distilling(soft=0.5), "a teacher is missing for soft: set teacher, or leave"),
        (distilling(logit_match=1.0), "missing for logit_match"),
        (distilling(hint=1.0, semantic=1.0), "missing for hint and semantic"),
        *((distilling(transfer=[kind]), f"missing for {kind['kind']}: set teacher") for kind in KINDS),
        (distilling(adapt={"weights": {}}), r"missing for adapt\.weights"),
        (distilling(adapt={"strength": {}}), r"missing for adapt\.strength"),
        ({"width": {}}, "missing for width: set teacher"),
        ({"mix": {}}, r"no teacher labels mixtures and crops: set mix\.mixup and mix\.cutmix to 0"),
        ({"mix": {"mixup": 0.0, "cutmix": 0.5}}, r"set mix\.mixup and mix\.cutmix to 0"),
        ({"mix": {"mixup": 0.0, "logits": "stored"}}, r"set mix\.logits to fresh"),
        ({"mix": {"crop": 0.5, "logits": "stored"}}, "mix: stored logits are those of whole images: set crop to 1"),
        (
            {"transfer_set": {"kind": "stored", "path": "x"}, "mix": {"mixup": 0.0, "crop": 0.5}, "distill": {}},
            r"no teacher labels mixtures and crops: .*mix\.crop to 1",
        ),
        ({"transfer_set": {**REAL, "share": 0.5}}, "transfer_set: one source has no share and fills the rest"),
        ({"phases": [{"kind": "joint", "steps": 8}]}, "nothing is generated, so a student has refine phases only"),
        ({"transfer_set": {"kind": "real"}}, r"transfer_set\.data: required"),
        (
            {"transfer_set": [{"generator": {"kind": "pixels"}}, {**REAL, "share": 0.5}]},
            "a teacher is missing: set teacher, or learn from",
        ),
        ({"online": {"peers": [{}]}}, r"online\.peers: a peer without a model is a copy of the teacher: set its model"),
        ({"teachers": [TAUGHT_BY]}, r"teachers label beside `teacher` what is at hand: set teacher"),
    ],
)  # fmt: skip
def test_what_a_run_without_a_teacher_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(UNTAUGHT, None, **changes)


def test_soft_labels_of_a_peer_need_no_teacher_however_they_are_weighed() -> None:
    together = {"online": {"peers": [PEER], "swap": {}}}
    for changes in (distilling(alpha=0.5), distilling(soft=0.7)):
        assert config_of(UNTAUGHT, None, **changes, **together).online is not None
    with pytest.raises(ConfigError, match="missing for logit_match"):
        config_of(UNTAUGHT, None, **distilling(alpha=0.5, logit_match=1.0), **together)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (distilling(average=1.0, optimizer={"ema": 0.0}), r"there is none: set distill\.optimizer\.ema"),
        (
            {"online": {"peers": [PEER], "averaged": True}, **distilling(optimizer={"lr": 1e-3})},
            r"there is none: set distill\.optimizer\.ema",
        ),
        (
            {"online": {"peers": [PEER, {**PEER, "optimizer": {"lr": 1e-3}}], "averaged": True}},
            "peer with an optimizer of its own, to 0.99",
        ),
        ({"online": {"peers": [PEER]}, "width": {}, "teacher": TAUGHT_BY}, "leave width out, or online"),
        ({"online": {"peers": []}}, r"online\.peers"),
        ({"online": {"peers": [PEER], "swap": {"above": 0.8, "again_below": 0.9}}}, "again_below must not be above"),
        (
            {"teacher": TAUGHT_BY, "mix": {"logits": "stored"}, **distilling(hint=1.0)},
            r"hint compares features of the images at hand: set mix\.logits to fresh",
        ),
        ({"teachers": [TAUGHT_BY], "teacher": TAUGHT_BY, "mix": {"logits": "stored"}}, "logits to fresh"),
        ({"team": {"weighting": "sample", "weights": [1.0, 2.0]}}, "weights are those of fixed weighting"),
        ({"team": {"weighting": "sample"}}, "team says how several .* and there is one: set teachers, or leave team"),
        ({"team": {"selection": {"cost": 0.0}}, "teacher": TAUGHT_BY}, "set teachers, or leave team out"),
        (distilling(temperature=2.0, adapt={"temperature": {}}), r"^distill\.temperature is moved by distill\.adapt"),
        (
            distilling(temperature={"kind": "linear", "start": 4.0, "end": 1.0}, adapt={"temperature": {}}),
            r"distill\.temperature is moved by distill\.adapt\.temperature, .*: leave one of them out",
        ),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(UNTAUGHT, None, **changes)


def test_a_configuration_with_a_temperature_that_adapts_is_read_as_it_was_written() -> None:
    config = config_of(UNTAUGHT, None, **distilling(adapt={"temperature": {"start": 3.0}}))
    assert load_config(DistillConfig, yaml.safe_load(dump_config(config)), []) == config


def test_where_nothing_is_generated_one_phase_refines_unless_others_are_asked_for() -> None:
    source = {key: value for key, value in UNTAUGHT.items() if key != "phases"}
    for teacher in (None, TAUGHT_BY):
        config = config_of({**source, "teacher": teacher})
        assert config.phases == (Refine(kind="refine", steps=4500),)
        assert load_config(DistillConfig, yaml.safe_load(dump_config(config)), []) == config
    assert config_of(UNTAUGHT).phases == (Refine(kind="refine", steps=24),)


def test_exits_learn_from_the_student_alone_and_go_with_stored_logits() -> None:
    dataset = {"transfer_set": {"kind": "stored", "path": "x"}, "mix": {"mixup": 0.0, "logits": "stored"}}
    config_of(UNTAUGHT, None, **dataset, **distilling(transfer=[{"kind": "exits"}], alpha=0.0))
    with pytest.raises(ConfigError, match="distill: sskd compares features"):
        config_of(UNTAUGHT, None, **dataset, **distilling(transfer=[{"kind": "exits"}, {"kind": "sskd"}]))


def assembled(config: DistillConfig, processes: int = 1) -> Any:
    """The parts of a run of several processes, as far as they are made in one."""
    one = Accelerator(cpu=True)
    several: Any = SimpleNamespace(
        num_processes=processes, process_index=0, device=one.device, prepare=one.prepare, autocast=one.autocast
    )
    teachers = [untrained_teacher(settings, config) for settings in config.every_teacher]
    return assemble(config, teachers, one if processes == 1 else several, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"online": {"peers": [PEER]}}, "online: peers learn together in one process only; leave torchrun"),
        (distilling(adapt={"temperature": {}}), r"distill\.adapt\.temperature adapts in one process only"),
    ],
)  # fmt: skip
def test_what_works_in_one_process_only_is_refused_in_several(changes: dict[str, Any], message: str) -> None:
    config = config_of(UNTAUGHT, None, sync="fast", **changes)
    assembled(config)
    with pytest.raises(ConfigError, match=message):
        assembled(config, processes=2)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (distilling(adapt={"temperature": {}}), "distill.adapt.temperature"),
        ({"online": {"peers": [PEER], "swap": {}}}, "online.swap"),
    ],
)
def test_adapting_without_held_out_images_and_without_a_bank_is_refused(changes: dict[str, Any], key: str) -> None:
    source = {**UNTAUGHT, "transfer_set": {"kind": "real", "data": {"kind": "digits", "holdout": 0.0}}}
    with pytest.raises(
        ConfigError, match=f"{key} goes by images that are held out, or a bank: set transfer_set.data.holdout above 0"
    ):
        assembled(config_of(source, None, **changes))
    assert assembled(config_of(source, None)).evaluation(0) == {}


def test_peers_for_other_images_are_refused(teacher: dict[str, Any], tmp_path: Path) -> None:
    save(build(ZooModel(arch="mlp", width=4), ImageSpec(1, 9, 9, 10)), tmp_path / "other", {})
    peers = {"peers": [{"model": {"kind": "load", "model": str(tmp_path / "other")}}]}
    with pytest.raises(ConfigError, match="takes 1x9x9 images, 10 classes, but this job has 1x8x8"):
        assembled(config_of(SMALL, None, teacher=teacher, online=peers))


def test_a_peer_starts_from_a_saved_model(teacher: dict[str, Any]) -> None:
    assembly = assembled(config_of(UNTAUGHT, None, online={"peers": [{"model": teacher}]}))
    saved, peer = load(teacher["model"]).state_dict(), assembly.students[1].learner.module.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in peer.items())
