import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from synthkd.errors import ConfigError
from synthkd.pipelines.config import DistillConfig, RealSet, StoredSet, TeachConfig
from synthkd.settings import LoadedModel
from synthkd.settings.load import differences, dump_config, load_config

TEACHER = {"kind": "train", "data": {"kind": "digits"}, "model": {"arch": "resnet"}}
MINIMAL = {"teacher": TEACHER, "student": {"arch": "resnet", "width": 8}}


def hybrid(share):
    return {"transfer_set": [{}, {"kind": "real", "data": {"kind": "digits"}, "share": share}]}


def load(source=None, *overrides):
    return load_config(DistillConfig, source, overrides)


def problems(source=None, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(source, *overrides)
    return str(caught.value).splitlines()


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# --- error text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": "abc"}, "seed: expected a whole number >= 0 and <= 9223372036854775807, got 'abc'"),
        ({"seed": True}, "seed: expected a whole number >= 0 and <= 9223372036854775807, got true"),
        ({"seed": "3"}, "seed: expected a whole number >= 0 and <= 9223372036854775807, got '3'"),
        ({"seed": 1.0}, "seed: expected a whole number >= 0 and <= 9223372036854775807, got 1.0"),
        ({"seed": None}, "seed: expected a whole number >= 0 and <= 9223372036854775807, got null"),
        (
            {"precision": "bf61"},
            "precision: expected one of 'no', 'bf16', 'fp16', 'auto', got 'bf61' (did you mean 'bf16'?)",
        ),
        (
            {"distill": {"optimizer": {"momentum": 1}}},
            "distill.optimizer.momentum: expected a number >= 0 and < 1, got 1",
        ),
        ({"out": 3}, "out: expected text or null, got 3"),
        ({"name": "a/b"}, "name: expected text that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'a/b'"),
        ({"sead": 3}, "sead: unknown key (did you mean 'seed'?)"),
        ({"student": {"arch": "mlp", "widht": 3}}, "student.widht: unknown key (did you mean 'width'?)"),
        ({"student": {}}, "student.arch: required"),
        ({"student": 5}, "student: expected a section with kind zoo | load, got 5"),
        ({"student": {"kind": "zo"}}, "student.kind: expected one of 'zoo', 'load', got 'zo' (did you mean 'zoo'?)"),
        ({"teacher": {"model": "x"}}, "teacher.kind: required, one of 'train', 'load', 'labels'"),
        (
            {"test": {"kind": "digit"}},
            "test.kind: expected one of 'digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'folder', 'npz', "
            "got 'digit' (did you mean 'digits'?)",
        ),
        (
            {"student": {"arch": "mlp", "classes": 3}},
            "student.classes: unknown key of kind zoo (it belongs to kind load)",
        ),
        (
            {"adversarial": 0.5},
            "adversarial: unknown key (transfer_set.generator.adversarial or transfer_set.0.generator.adversarial?)",
        ),
        (
            {"transfer_set": {"difficulty": {"momentum": 0.5}}},
            "transfer_set.difficulty.momentum: unknown key (distill.optimizer.momentum or "
            "transfer_set.generator.optimizer.momentum or teacher.training.optimizer.momentum?)",
        ),
        (
            {"transfer_set": {"difficulty": {"xyz": 1}}},
            "transfer_set.difficulty.xyz: unknown key (keys here: start, low, high, raise_above, lower_below, up, "
            "down, augment)",
        ),
        (
            {"transfer_set": {"difficulty": {"low": 0.5}}},
            "transfer_set.difficulty: must hold: low <= start <= high",
        ),
        (
            {"transfer_set": {"difficulty": {"augment": "yes"}}},
            "transfer_set.difficulty.augment: expected true or false, got 'yes'",
        ),
        (
            {"transfer_set": {"difficulty": {"high": float("inf")}}},
            "transfer_set.difficulty.high: expected a number >= 0 and <= 1, got inf",
        ),
        ({"transfer_set": [{}, {"kind": "real", "share": 0.5}]}, "transfer_set.1.data: required"),
        (
            hybrid("x"),
            "transfer_set.1.share: expected a number or a section with kind linear | cosine | step or null, got 'x'",
        ),
        (
            hybrid({"kind": "linear", "start": "x", "end": 0}),
            "transfer_set.1.share.start: expected a number, got 'x'",
        ),
        (
            hybrid({"kind": "step", "start": 1, "end": 0, "begin": 0.5, "until": 0.2}),
            "transfer_set.1.share: begin must not be after until",
        ),
        (
            {"transfer_set": {"kind": "reel"}},
            "transfer_set.kind: expected one of 'generated', 'stored', 'real', "
            "'procedural', 'pictures', got 'reel' (did you mean 'real'?)",
        ),
        (
            {"transfer_set": 5},
            "transfer_set: expected a list of at most 8 items, each item a section with kind generated | stored | "
            "real | procedural | pictures or a section with kind generated | stored | real | procedural | pictures, "
            "got 5",
        ),
        (
            {"phases": [{"kind": "joint", "steps": -1}]},
            "phases.0.steps: expected a whole number >= 0 and <= 1000000000, got -1",
        ),
        ({"track": ["wandb", "x"]}, "track.1: expected one of 'tensorboard', 'wandb', 'mlflow', 'trackio', got 'x'"),
        (
            {"teacher": {"kind": "load", "model": "x", "size": [28, "a"]}},
            "teacher.size.1: expected a whole number >= 1 and <= 8192, got 'a'",
        ),
        (
            {"teacher": {"kind": "load", "model": "x", "size": "a"}},
            "teacher.size: expected a whole number >= 1 and <= 8192 or a list [a whole number >= 1 and <= 8192, a "
            "whole number >= 1 and <= 8192] or null, got 'a'",
        ),
        (
            {
                "transfer_set": {
                    "generator": {"kind": "python", "target": "a:b", "options": {"when": datetime.date(2020, 1, 2)}}
                }
            },
            "transfer_set.generator.options.when: expected text, a number, true, false, null, a list or a section, "
            "got datetime.date(2020, 1, 2)",
        ),
    ],
)
def test_a_problem_is_one_line_with_path_expectation_and_remedy(change, expected):
    assert problems({**MINIMAL, **change}) == [expected]


def test_everything_wrong_is_said_at_once():
    overrides = ["nonsense", "seed=", "transfer_set.bank.capacity=0", "phases.7.steps=1"]
    lines = problems({"teacher": TEACHER, "seeed": 1}, *overrides)
    assert lines == [
        "nonsense: expected key=value or section.key=value",
        "seed: empty value; write seed=null for none, seed=\"''\" for empty text",
        "phases.7: expected an index below 2, got 7",
        "transfer_set.bank.capacity: expected a whole number >= 1 and <= 100000000, got 0",
        "student: required",
        "seeed: unknown key (did you mean 'seed'?)",
    ]


def test_long_values_are_shortened():
    (line,) = problems({**MINIMAL, "seed": "x" * 500})
    assert len(line) < 150
    assert line.endswith("...")


# --- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_reach_sections_lists_and_absent_defaults():
    config = load(
        MINIMAL,
        "seed=4",
        "student.width=12",
        "phases.0.steps=10",
        "distill.temperature={kind: cosine, start: 3, end: 1}",
        "out='1'",
        "transfer_set.bank.policy=class_balanced",
    )
    policy = config.transfer_set.bank.policy
    assert (config.seed, config.student.width, config.out, policy) == (4, 12, "1", "class_balanced")
    assert [phase.steps for phase in config.phases] == [10, load(MINIMAL).phases[1].steps]
    assert config.distill.temperature.start == 3.0


def test_the_later_and_the_more_specific_override_wins():
    assert load(MINIMAL, "seed=1", "seed=2").seed == 2
    config = load(MINIMAL, "student.width=3", "student={arch: mlp, width: 2}")
    assert (config.student.arch, config.student.width) == ("mlp", 3)


def test_another_kind_starts_its_section_anew_whatever_the_order():
    changed = ["teacher.model=somewhere", "teacher.kind=load"]
    assert load(MINIMAL, *changed) == load(MINIMAL, *reversed(changed))
    assert load(MINIMAL, *changed).teacher.model == "somewhere"
    curve = {**MINIMAL, "distill": {"temperature": {"kind": "linear", "start": 5, "end": 2}}}
    assert load(curve, "distill.temperature.kind=cosine").distill.temperature.start == 5.0


def test_a_section_that_is_written_in_part_keeps_the_defaults_of_its_field():
    data = {"data": {"kind": "digits"}, "model": {"arch": "mlp"}}
    default = load_config(TeachConfig, data, [])
    partial = load_config(TeachConfig, {**data, "training": {"optimizer": {"lr": 0.1}}}, ["training.steps=7"])
    assert differences(default, partial) == ["training.steps", "training.optimizer.lr"]


def test_sources_are_left_untouched():
    source = {**MINIMAL, "phases": [{"kind": "refine", "steps": 3}]}
    before = repr(source)
    load(source, "phases.0.steps=4", "student.width=1")
    assert repr(source) == before


@pytest.mark.parametrize("text", ["a..b=1", "=1", ".seed=1"])
def test_a_malformed_override_is_refused(text):
    assert problems(MINIMAL, text) == [f"{text}: expected key=value or section.key=value"]


def test_a_value_that_is_no_yaml_is_refused():
    (line,) = problems(MINIMAL, "seed=[1")
    assert line.startswith("seed: the value is not YAML: line 1, column 3: ")


@pytest.mark.parametrize("text", ["runs/it #2", "#2", "a#1 #2"])
def test_an_override_that_yaml_would_cut_off_is_refused(text):
    (line,) = problems(MINIMAL, f"out={text}")
    assert line == "out: YAML begins a comment at a # that is first or after a space; write out=\"'...'\""
    assert load(MINIMAL, f"out='{text}'").out == text
    assert load(MINIMAL, "out=it#2").out == "it#2"


# --- YAML -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("yes", "yes"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2020-01-02", "2020-01-02"),
        ("true", True),
        ("~", None),
        ("1.0.0", "1.0.0"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text, value):
    values = ("kind=python", "target=a:b", f"options.x={text}")
    config = load(MINIMAL, *(f"transfer_set.generator.{value}" for value in values))
    got = config.transfer_set.generator.options["x"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "line 3, column 1: duplicate key 'seed'"),
        ("student: {arch: mlp, width: 1, arch: vit}", "line 1, column 32: duplicate key 'arch'"),
        ("1: 2\n", "line 1, column 1: a key must be text, got 1"),
        ("? [a]\n: 2\n", "line 1, column 3: a key must be text, got ['a']"),
        ("a: &a\n  b: *a\n", "line 1, column 4: found unconstructable recursive node"),
        (
            "seed: !!python/object:os.system x\n",
            "line 1, column 7: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'",
        ),
        ("seed: !!int abc\n", "line 1, column 7: the value does not fit its tag !!int"),
        ("!!map text\n", "line 1, column 1: the value does not fit its tag !!map"),
        ("a:\n- !!bool maybe\n", "line 2, column 3: the value does not fit its tag !!bool"),
        ("a: !!float ''\n", "line 1, column 4: the value does not fit its tag !!float"),
        ("!!set [1]\n", "line 1, column 1: the value does not fit its tag !!set"),
        ("!!timestamp seed: 1\n", "line 1, column 1: the value does not fit its tag !!timestamp"),
        ('name: "\\U00110000"\n', "line 1, column 10: an escape stands for no character"),
        ('name: "\\UFFFFFFFF"\n', "line 1, column 10: an escape stands for no character"),
        ("- 1\n- 2\n", "expected lines of key: value, got [1, 2]"),
        ("text", "expected lines of key: value, got 'text'"),
        ("a: \x07\n", "character 4 may not stand in YAML: special characters are not allowed"),
    ],
)
def test_a_bad_file_is_one_line_with_the_place(tmp_path, text, trouble):
    path = write(tmp_path, text)
    assert problems(path) == [f"{path}: {trouble}"]


def test_a_syntax_error_has_line_and_column(tmp_path):
    path = write(tmp_path, "seed: 1\nname: [a\n")
    (line,) = problems(path)
    assert line.startswith(f"{path}: line 3, column 1: ")


def test_files_that_cannot_be_read(tmp_path):
    assert problems(tmp_path / "none.yaml") == [
        f"{tmp_path / 'none.yaml'}: cannot read the configuration: No such file or directory"
    ]
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    assert problems(tmp_path / "latin.yaml") == [f"{tmp_path / 'latin.yaml'}: the configuration must be UTF-8 text"]


def test_merge_keys_and_an_empty_file(tmp_path):
    merged = "teacher: &t {kind: load, model: a}\nstudent:\n  <<: *t\n  model: b\n"
    config = load(str(write(tmp_path, merged)))
    assert (config.teacher.model, config.student.model) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert problems(write(tmp_path, "")) == ["student: required"]


# --- there and back -------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["yes", "1e-3", "no", "0o7", "~", "2020-01-02", "1_0", "<<", "=", "12:30", "null", " x", "", "\x85", "a\u2028b"]
)
NUMBER = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, PLAIN, max_size=3))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_a_dumped_configuration_loads_equal(tmp_path_factory, options):
    generator = {"kind": "python", "target": "a:b", "options": options}
    config = load({**MINIMAL, "transfer_set": {"generator": generator}})
    # Not config.yaml: with pytest's own .lock beside it the folder of all tests would look like a run.
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load(path) == config
    assert dump_config(load(path)) == dump_config(config)


def test_a_dump_means_the_same_to_readers_of_yaml_1_1():
    config = load(MINIMAL, "precision=no", "distill.optimizer.lr=1e-5", "name='010'")
    data = yaml.safe_load(dump_config(config))
    assert load(data) == config
    assert list(data) == list(DistillConfig.model_fields)


def test_differences_name_the_keys():
    config = load(MINIMAL)
    assert differences(config, load(MINIMAL)) == []
    assert differences(config, load(MINIMAL, "seed=1", "student.width=9", "phases.1.steps=1")) == [
        "seed",
        "phases.1.steps",
        "student.width",
    ]
    python = "transfer_set.generator={kind: python, target: 'a:b'}"
    defaults = ["mix.mixup", "distill.temperature", "distill.optimizer.kind"]  # these follow from the images
    assert sorted(differences(config, load(MINIMAL, python))) == sorted(["transfer_set.generator.kind", *defaults])
    assert differences(config, load(MINIMAL, "phases=[{kind: refine, steps: 1}]")) == ["phases"]
    mixed = {**MINIMAL, **hybrid(0.5)}
    assert sorted(differences(config, load(mixed))) == sorted(["transfer_set", *defaults])
    assert differences(load(mixed), load(mixed, "transfer_set.1.data.per_class=9", "transfer_set.1.share=0.25")) == [
        "transfer_set.1.share",
        "transfer_set.1.data.per_class",
    ]


def test_a_decay_that_leaves_nothing_is_refused() -> None:
    """The teacher's default decay is one for small learning rates."""
    source = {
        "data": {"kind": "digits"},
        "model": {"arch": "mlp"},
        "training": {"optimizer": {"lr": 2.0}},
    }
    with pytest.raises(ConfigError, match=r"training\.optimizer: lr 2 with weight_decay 0\.05 would take 10% off"):
        load_config(TeachConfig, source, [])
    load_config(TeachConfig, source, ["training.optimizer.weight_decay=0"])
    other = load_config(TeachConfig, source, ["training.optimizer.kind=sgd"]).training.optimizer
    assert (other.lr, other.weight_decay, other.schedule) == (2.0, 0.0, "cosine"), "nothing is left of the adamw"


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes, here = tmp_path / "my recipes", tmp_path / "here"
    for folder in (recipes / "bilder ä", here / "old"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = """
teacher: {kind: load, model: "timm:resnet18", weights: ../weights.pt}
student: {arch: mlp}
out: runs/mine
trust: [a, /b]
transfer_set:
  - {kind: real, share: 0.5, data: {kind: folder, root: bilder ä}}
  - {kind: stored, path: old}
test: {kind: npz, path: ~/test.npz}
phases: [{kind: refine, steps: 1}]
"""
    (recipes / "mine.yaml").write_text(text)
    config = load_config(DistillConfig, "../my recipes/mine.yaml", ["name=x"])
    base = Path("../my recipes")
    real, stored = config.sources
    assert isinstance(config.teacher, LoadedModel)
    assert (config.teacher.model, config.teacher.weights) == ("timm:resnet18", str(base / "../weights.pt"))
    assert config.out == str(base / "runs/mine")
    assert config.trust == (str(base / "a"), "/b")
    assert isinstance(real, RealSet)
    assert real.data.model_dump()["root"] == str(base / "bilder ä")
    assert isinstance(stored, StoredSet)
    assert stored.path == "old"  # below the working directory alone, as files of earlier versions mean it
    assert config.test is not None
    assert config.test.model_dump()["path"] == str(tmp_path / "home" / "test.npz")
    # What is recorded is read again as it is, wherever the file lies.
    (recipes / "config.yaml").write_text(dump_config(config))
    assert load_config(DistillConfig, recipes / "config.yaml", [], in_place=True) == config
    # Overrides and mappings are relative to the working directory.
    assert load_config(DistillConfig, "../my recipes/mine.yaml", ["out=runs/mine"]).out == "runs/mine"
    mapping = {"out": "runs/x", "student": {"arch": "mlp"}, "teacher": {"kind": "load", "model": "m"}}
    assert load_config(DistillConfig, mapping, []).out == "runs/x"
    monkeypatch.chdir(recipes)
    assert load_config(DistillConfig, "mine.yaml", []).out == "runs/mine"


def test_a_path_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    foreign = "b\udcffad"  # as Python hands over the byte 0xff
    assert problems(MINIMAL, f"out={foreign}") == [
        r"out: 'b\udcffad' is not UTF-8; rename it, or change into its folder (cd)"
    ]
    (tmp_path / foreign).mkdir()
    test = {"kind": "folder", "root": "set", "channels": 1}
    path = write(tmp_path / foreign, yaml.safe_dump({**MINIMAL, "test": test}))
    (line,) = problems(path)
    assert line.startswith("test.root: ")
    assert line.endswith("is not UTF-8; rename it, or change into its folder (cd)")
