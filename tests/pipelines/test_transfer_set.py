"""What a student learns from: sources and their shares, and recipes that were written before there were sources."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from synthkd.errors import ConfigError
from synthkd.generators.settings import CGANSettings, InversionSettings, PixelSettings
from synthkd.pipelines.config import CompressConfig, DistillConfig, GeneratedSet, RealSet, StoredSet
from synthkd.settings import (
    BankSettings,
    Curve,
    DifficultySettings,
    DigitsData,
    DistillSettings,
    Joint,
    NpzData,
    OptimizerSettings,
    Pregenerate,
    Refine,
    ReplaySettings,
    StreamData,
)
from synthkd.settings.load import differences, dump_config, load_config

DIGITS = {"kind": "digits"}
TEACHER = {"kind": "load", "model": "t"}
MINIMAL: dict[str, Any] = {"teacher": TEACHER, "student": {"arch": "convnet", "width": 4}}
REAL: dict[str, Any] = {"kind": "real", "data": DIGITS}
STORED: dict[str, Any] = {"kind": "stored", "path": "made"}
CGAN: dict[str, Any] = {"generator": {"kind": "cgan"}}
REFINE = [{"kind": "refine", "steps": 5}]
RISING = {"kind": "linear", "start": 0.0, "end": 0.5, "begin": 0.2}
STREAM = {"kind": "stream", "path": "arriving"}
INHERIT = ", and inherit: true, which was the default"
MOVED = ("generator", "data", "difficulty", "bank")


def load(transfer_set: Any, **changes: Any) -> DistillConfig:
    return load_config(DistillConfig, {**MINIMAL, "transfer_set": transfer_set, **changes}, [])


def refusal(recipe: Any, model: type[DistillConfig | CompressConfig] = DistillConfig, *overrides: str) -> str:
    """The line that a recipe is refused with."""
    with pytest.raises(ConfigError) as caught:
        load_config(model, recipe, overrides)
    (line,) = str(caught.value).splitlines()
    return line


def without_sources(recipe: dict[str, Any]) -> dict[str, Any]:
    """An old recipe without the keys that are part of a source today."""
    left = {key: value for key, value in recipe.items() if key not in MOVED}
    mix = {key: value for key, value in recipe.get("mix", {}).items() if key not in ("real", "live")}
    return left | ({"mix": mix} if "mix" in recipe else {})


# --- recipes of before ----------------------------------------------------------------------------------------------

OLD_FORMS: dict[str, tuple[dict[str, Any], list[str], tuple[GeneratedSet | StoredSet | RealSet, ...]]] = {
    "data-free": (
        {"generator": {"kind": "pixels", "batch_size": 20}},
        ["generator"],
        (GeneratedSet(generator=PixelSettings(kind="pixels", batch_size=20)),),
    ),
    "data-free, with data of null": (
        {"generator": {"width": 8}, "data": None, "mix": {"real": 0.0, "live": 0.0, "mixup": 0.25}},
        ["generator", "data", "mix.real", "mix.live"],
        (GeneratedSet(generator=InversionSettings(width=8)),),
    ),
    "hybrid": (
        {"data": DIGITS, "mix": {"real": 0.5}},
        ["data", "mix.real"],
        (GeneratedSet(), RealSet(kind="real", data=DigitsData(kind="digits"), share=0.5)),
    ),
    "hybrid, by a curve": (
        {"data": {"kind": "npz", "path": "x.npz"}, "mix": {"real": RISING}},
        ["data", "mix.real"],
        (
            GeneratedSet(),
            RealSet(
                kind="real",
                data=NpzData(kind="npz", path="x.npz"),
                share=Curve(kind="linear", start=0.0, end=0.5, begin=0.2),
            ),
        ),
    ),
    "hybrid, of a generator that learns from the same images": (
        {"generator": {"kind": "cgan"}, "data": DIGITS, "mix": {"real": 0.25}},
        ["generator", "data", "mix.real"],
        (
            GeneratedSet(generator=CGANSettings(kind="cgan")),
            RealSet(kind="real", data=DigitsData(kind="digits"), share=0.25),
        ),
    ),
    "hybrid, of a stream": (
        {"data": STREAM, "mix": {"real": 0.5}},
        ["data", "mix.real"],
        (GeneratedSet(), RealSet(kind="real", data=StreamData(kind="stream", path="arriving"), share=0.5)),
    ),
    "real alone": (
        {"generator": {"kind": "none"}, "data": DIGITS, "mix": {"real": 1.0, "mixup": 0.0}, "phases": REFINE},
        ["generator", "data", "mix.real"],
        (RealSet(kind="real", data=DigitsData(kind="digits")),),
    ),
    "real alone, of a stream": (
        {"generator": {"kind": "none"}, "data": STREAM, "mix": {"real": 1.0}, "phases": REFINE, "bank": {}},
        ["generator", "data", "bank", "mix.real"],
        (RealSet(kind="real", data=StreamData(kind="stream", path="arriving")),),
    ),
    "dataset": (
        {"generator": {"kind": "dataset", "path": "made"}, "phases": REFINE},
        ["generator"],
        (StoredSet(kind="stored", path="made"),),
    ),
    "dataset, without a teacher and by priority": (
        {
            "teacher": None,
            "generator": {"kind": "dataset", "path": "made"},
            "bank": {"policy": "class_balanced", "capacity": 9, "storage": "disk"},  # a dataset never had a choice
            "mix": {"logits": "stored"},
        },
        ["generator", "bank"],
        (StoredSet(kind="stored", path="made", bank=ReplaySettings(policy="class_balanced")),),
    ),
    "dataset, with real images": (
        {"generator": {"kind": "dataset", "path": "made"}, "data": DIGITS, "mix": {"real": 0.25}, "phases": REFINE},
        ["generator", "data", "mix.real"],
        (StoredSet(kind="stored", path="made"), RealSet(kind="real", data=DigitsData(kind="digits"), share=0.25)),
    ),
    "cgan with data": (
        {"generator": {"kind": "cgan", "width": 8}, "data": {"kind": "digits", "per_class": 20}},
        ["generator", "data"],
        (GeneratedSet(generator=CGANSettings(kind="cgan", width=8), data=DigitsData(kind="digits", per_class=20)),),
    ),
    "live": (
        {"mix": {"live": 0.2, "shift": 1}},
        ["mix.live"],
        (GeneratedSet(live=0.2),),
    ),
    "live, by a curve": (
        {"mix": {"live": RISING}},
        ["mix.live"],
        (GeneratedSet(live=Curve(kind="linear", start=0.0, end=0.5, begin=0.2)),),
    ),
    "bank and difficulty": (
        {"bank": {"capacity": 60, "policy": "prioritized"}, "difficulty": {"start": 0.8, "augment": False}},
        ["difficulty", "bank"],
        (
            GeneratedSet(
                bank=BankSettings(capacity=60, policy="prioritized"),
                difficulty=DifficultySettings(start=0.8, augment=False),
            ),
        ),
    ),
    "all of it": (
        {
            "generator": {"kind": "pixels"},
            "data": DIGITS,
            "difficulty": {"low": 0.2},
            "bank": {"storage": "disk"},
            "mix": {"real": 0.5, "live": 0.1, "mixup": 0.0, "flip": True},
        },
        ["generator", "data", "difficulty", "bank", "mix.real", "mix.live"],
        (
            GeneratedSet(
                generator=PixelSettings(kind="pixels"),
                difficulty=DifficultySettings(low=0.2),
                bank=BankSettings(storage="disk"),
                live=0.1,
            ),
            RealSet(kind="real", data=DigitsData(kind="digits"), share=0.5),
        ),
    ),
}


@pytest.mark.parametrize("name", OLD_FORMS)
def test_an_old_form_is_refused_with_the_line_that_says_the_same_today(name: str, tmp_path: Path) -> None:
    old, keys, sources = OLD_FORMS[name]
    recipe = {**MINIMAL, **old}
    line = refusal(recipe)
    verb = "is" if len(keys) == 1 else "are"
    opening = f"{', '.join(keys)} {verb} part of transfer_set now: write "
    assert line.startswith(f"{opening}transfer_set: ")

    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    assert refusal(path) == line

    rest, (written, inherit, end) = without_sources(recipe), line.removeprefix(opening).partition(INHERIT)
    assert end == ""
    lines = [written, "inherit: true"] if inherit else [written]
    path.write_text("\n".join([*lines, yaml.safe_dump(rest)]), encoding="utf-8")
    config = load_config(DistillConfig, path, [], in_place=True)
    assert config.sources == sources
    assert config.inherits, "as it did by default"
    overrides = [text.replace(": ", "=", 1) for text in lines]
    assert load_config(DistillConfig, rest, overrides) == config, "on the command line too"


def test_an_old_form_that_says_whether_to_inherit_is_not_told_to() -> None:
    old = {**MINIMAL, "data": DIGITS, "mix": {"real": 0.5}}
    assert refusal(old).endswith(f"share: 0.5}}]{INHERIT}")
    assert refusal({**old, "inherit": False}).endswith("share: 0.5}]")


def test_old_keys_on_the_command_line_are_refused_alike() -> None:
    assert refusal(MINIMAL, DistillConfig, "generator.kind=pixels", "bank.capacity=60", "mix.live=0.5") == (
        "generator, bank, mix.live are part of transfer_set now: write transfer_set: {kind: generated, generator: "
        "{kind: pixels}, live: 0.5, bank: {capacity: 60}}"
    )


@pytest.mark.parametrize("transfer_set", [{"generator": {"kind": "pixels"}}, [{}, {**REAL, "share": 0.5}]])
def test_a_recipe_with_sources_is_not_told_to_replace_them(transfer_set: Any) -> None:
    recipe = {**MINIMAL, "transfer_set": transfer_set}
    assert refusal(recipe, DistillConfig, "bank.capacity=60") == (
        "bank is part of transfer_set now: move it into the transfer_set of this recipe"
    )
    assert refusal(recipe, DistillConfig, "bank.capacity=60", "mix.real=0.5") == (
        "bank, mix.real are part of transfer_set now: move them into the transfer_set of this recipe"
    )


def test_an_old_compression_is_refused_with_the_line_that_says_the_same_today() -> None:
    kept = {"teacher": TEACHER, "student": {"arch": "convnet", "width": 4}, "flow": "plain"}
    phases = [{"kind": "joint", "steps": 8, "every": 4}]
    old = {"generator": {"kind": "pixels"}, "bank": {"capacity": 200}, "mix": {"live": 0.1, "mixup": 0.25}}
    line = refusal({**kept, **old, "phases": phases}, CompressConfig)
    assert line.startswith("mix, phases, generator, bank are part of distillation now: write distillation: {")
    written = line.partition("write ")[2]
    config = load_config(CompressConfig, {**kept, **yaml.safe_load(written)}, [])
    assert config.distillation.sources == (
        GeneratedSet(generator=PixelSettings(kind="pixels"), bank=BankSettings(capacity=200), live=0.1),
    )
    assert config.distillation.mix.mixup == 0.25
    assert config.distillation.phases == (Joint(kind="joint", steps=8, every=4),)
    within = refusal({**kept, "distillation": {"phases": phases, "generator": {"kind": "pixels"}}}, CompressConfig)
    assert within == (
        "generator is part of transfer_set now: write transfer_set: {kind: generated, generator: {kind: pixels}}"
    )
    beside = refusal({**kept, "distillation": {"phases": phases}, "mix": {"mixup": 0.25}}, CompressConfig)
    assert beside == "mix is part of distillation now: move it into the distillation of this recipe"


@pytest.mark.parametrize("key", MOVED)
def test_a_configuration_that_is_built_in_python_refuses_them_as_unknown(key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DistillConfig.model_validate({**MINIMAL, key: {}})
    (problem,) = caught.value.errors()
    assert (problem["type"], problem["loc"]) == ("extra_forbidden", (key,))


# --- sources and shares ---------------------------------------------------------------------------------------------

ONE_BANK = "transfer_set: generated and stored images need a memory bank each: leave one source out"
NOBODY_FILLS = "transfer_set: one source has no share and fills the rest, each other one has a share"


@pytest.mark.parametrize(
    ("transfer_set", "line"),
    [
        ({**REAL, "share": 0.5}, NOBODY_FILLS),
        ([{**REAL, "share": 0.5}], NOBODY_FILLS),
        ([{"share": 0.5}, {**REAL, "share": 0.5}], NOBODY_FILLS),
        ([{}, REAL], NOBODY_FILLS),
        ([{}, STORED, {**REAL, "share": 0.5}], NOBODY_FILLS),
        ([{}, {**STORED, "share": 0.5}], ONE_BANK),
        ([{**REAL, "share": 0.25}, {"share": 0.25}, STORED], ONE_BANK),
        ([{}, {"share": 0.5}], "transfer_set: there are two sources of kind generated: leave one out"),
        (
            [{}, {**REAL, "share": 0.5}, {**REAL, "share": 0.25}],
            "transfer_set: there are two sources of kind real: leave one out",
        ),
        ([{**STORED, "share": 0.5}, STORED], "transfer_set: there are two sources of kind stored: leave one out"),
        ([{}, {**REAL, "share": 1.5}], "transfer_set.1.share: must be from 0 to 1, at both ends of a curve"),
        (
            {"share": "half"},
            "transfer_set.share: expected a number or a section with kind linear | cosine | step or null, got 'half'",
        ),
        ({"live": 7.0}, "transfer_set.live: must be from 0 to 1, at both ends of a curve"),
        ({"kind": "real"}, "transfer_set.data: required"),
        ({"kind": "stored"}, "transfer_set.path: required"),
        ([{"kind": "gen"}], "transfer_set.0.kind: expected one of 'generated', 'stored', 'real', "
            "'procedural', 'pictures', got 'gen'"),
        (CGAN, "transfer_set.generator.kind: cgan learns from real images: set transfer_set.data"),
        ([CGAN], "transfer_set.0.generator.kind: cgan learns from real images: set transfer_set.0.data"),
        (
            [CGAN, {"kind": "real", "data": STREAM, "share": 0.5}],
            "transfer_set: cgan learns from a fixed dataset, not from a stream: set data of kind generated",
        ),
        (
            [{**CGAN, "data": DIGITS}, {**REAL, "share": 0.5}],
            "transfer_set: cgan learns from the images of kind real: leave its own data out",
        ),
    ],
)  # fmt: skip
def test_sources_that_do_not_share_a_batch_are_refused_with_one_line(transfer_set: Any, line: str) -> None:
    assert refusal({**MINIMAL, "transfer_set": transfer_set, "phases": REFINE}) == line


def test_a_wrong_source_is_one_line_whatever_follows_from_it() -> None:
    """The default of `phases` goes by the sources, and nothing is said of it where they are wrong."""
    assert refusal({**MINIMAL, "transfer_set": {"live": 7.0}}) == (
        "transfer_set.live: must be from 0 to 1, at both ends of a curve"
    )
    (seed, *more) = refusal({**MINIMAL, "seed": -1}).splitlines()
    assert seed.startswith("seed: expected a whole number")
    assert not more


@pytest.mark.parametrize(
    "transfer_set",
    [
        {},
        {"generator": {"kind": "pixels"}, "difficulty": {"start": 0.8}, "bank": {"capacity": 60}, "live": 0.2},
        {**CGAN, "data": DIGITS},
        REAL,
        {"kind": "real", "data": STREAM},
        {**STORED, "bank": {"policy": "class_balanced"}},
        [REAL],
        [{"live": RISING}, {**REAL, "share": RISING}],
        [{**CGAN, "data": DIGITS}, {"kind": "real", "data": STREAM, "share": 0.5}],
        [{**REAL, "share": 0.25}, STORED],
    ],
)
def test_a_dumped_transfer_set_loads_equal(transfer_set: Any, tmp_path: Path) -> None:
    config = load(transfer_set)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = load_config(DistillConfig, path, [], in_place=True)
    assert again == config
    assert differences(again, config) == []
    assert dump_config(again) == dump_config(config)
    assert isinstance(again.transfer_set, tuple) == isinstance(transfer_set, list)


@pytest.mark.parametrize(
    ("transfer_set", "inherits", "generates"),
    [
        ({}, True, True),
        ([{}], True, True),
        ([{}, {**REAL, "share": 0.5}], False, True),
        (REAL, False, False),
        (STORED, False, False),
        ([STORED, {**REAL, "share": 0.5}], False, False),
    ],
)
def test_defaults_follow_from_the_sources(transfer_set: Any, inherits: bool, generates: bool) -> None:
    config = load(transfer_set)
    assert config.inherits is inherits
    assert load(transfer_set, inherit=not inherits).inherits is not inherits
    together = (Joint(kind="joint", steps=4000, every=10), Refine(kind="refine", steps=500))
    assert config.phases == (together if generates else (Refine(kind="refine", steps=4500),))
    assert config.logits == "fresh"


SGD = OptimizerSettings(kind="sgd", lr=0.3, weight_decay=1e-4, schedule="one_cycle", warmup=0.2)


@pytest.mark.parametrize(
    ("transfer_set", "mixup"),
    [
        ({}, 0.8),
        ([{}], 0.8),
        ({"generator": {"adversarial": 10}}, 0.8),
        ({"generator": {"kind": "noisy_label"}}, 0.0),
        ([{"generator": {"kind": "noisy_label"}}, {"kind": "pictures", "share": 0.25}], 0.0),
        ({"kind": "procedural"}, 0.8),
        ([{}, {"kind": "pictures", "share": 0.25}], 0.8),
        ({"generator": {"kind": "pixels"}}, 0.5),
        ({"generator": {"kind": "cgan"}, "data": {"kind": "digits"}}, 0.5),
        ([{}, {**REAL, "share": 0.5}], 0.5),
        (REAL, 0.5),
        (STORED, 0.5),
    ],
)
def test_images_that_show_nothing_real_have_defaults_of_their_own(transfer_set: Any, mixup: float) -> None:
    config = load(transfer_set)
    adamw = DistillSettings.model_fields["optimizer"].default
    expected = (4.0, 0.5, adamw) if mixup == 0.5 else (20.0, mixup, SGD)
    assert (config.distill.temperature, config.mix.mixup, config.distill.optimizer) == expected
    written = load(transfer_set, distill={"temperature": 4.0, "optimizer": {"lr": 0.1}}, mix={"mixup": 0.5})
    assert (written.distill.temperature, written.mix.mixup) == (4.0, 0.5)
    assert written.distill.optimizer == expected[2].model_copy(update={"lr": 0.1})
    other = load(transfer_set, distill={"optimizer": {"kind": "adam", "lr": 0.01}}).distill.optimizer
    assert other == OptimizerSettings(kind="adam", lr=0.01), "nothing of another kind is left"


@pytest.mark.parametrize(
    ("teacher", "generator", "noisy"),
    [
        ({"size": 32}, None, True),
        ({"size": [48, 64], "channels": 3}, {"kind": "auto"}, True),
        ({"size": 32, "channels": 1}, None, False),
        ({"size": [64, 65]}, {"kind": "auto"}, False),
        ({}, None, False),
        ({"size": 32}, {"width": 9}, False),
        ({"size": 28, "channels": 1}, {"kind": "noisy_label"}, True),
    ],
)
def test_rounds_and_mixtures_suit_the_generator_that_the_teacher_will_choose(
    teacher: Any, generator: Any, noisy: bool
) -> None:
    transfer_set = {} if generator is None else {"generator": generator}
    config = load(transfer_set, teacher={"kind": "load", "model": "a:b", **teacher})
    assert config.mix.mixup == (0.0 if noisy else 0.8)
    assert [one.every for one in config.phases if isinstance(one, Joint)] == [25 if noisy else 10]
    assert isinstance(config.phases[0], Pregenerate) == noisy
    written = load(transfer_set, teacher={"kind": "load", "model": "a:b", **teacher}, phases=REFINE)
    assert [one.kind for one in written.phases] == ["refine"]


def test_small_images_in_colour_are_shifted_and_mirrored_where_no_generator_is_named() -> None:
    def mix(transfer_set: Any = None, **changes: Any) -> tuple[int, bool]:
        teacher = {"kind": "load", "model": "a:b", "size": 32, **changes.pop("teacher", {})}
        found = load(transfer_set or {}, teacher=teacher, **changes).mix
        return found.shift, found.flip

    assert mix() == mix([{"kind": "generated"}, {"kind": "pictures", "share": 0.3}]) == (4, True)
    assert mix(teacher={"size": [48, 64]}) == (6, True)
    assert mix(mix={"flip": False}) == (4, False), "what is written stays"
    assert mix({"generator": {"kind": "noisy_label"}}) == (0, False), "and so does a generator that is named"
    assert mix(teacher={"size": 65}) == mix(teacher={"channels": 1}) == (0, False)


def test_students_of_small_images_in_colour_have_hints_and_clipped_gradients_where_no_generator_is_named() -> None:
    def terms(transfer_set: Any = None, **changes: Any) -> tuple[object, float | None]:
        teacher = {"kind": "load", "model": "a:b", "size": 32, **changes.pop("teacher", {})}
        found = load(transfer_set or {}, teacher=teacher, **changes).distill
        assert found.optimizer.lr == 0.3
        return found.hint, found.optimizer.clip

    assert terms() == terms([{"kind": "generated"}, {"kind": "pictures", "share": 0.3}]) == ("auto", 5.0)
    assert terms(distill={"hint": 0.0}) == (0.0, 5.0), "what is written stays"
    assert terms(distill={"adapt": {"temperature": {"start": 4.0}}}) == ("auto", 5.0)
    grey, large, named = {"channels": 1}, {"size": 65}, {"generator": {"kind": "noisy_label"}}
    assert terms(teacher=grey) == terms(teacher=large) == terms(named) == (0.0, None)


def test_an_index_changes_the_phases_that_the_recipe_has_by_default() -> None:
    generator = {"transfer_set": {"generator": {"kind": "noisy_label"}}}
    config = load_config(DistillConfig, {**MINIMAL, **generator}, ["phases.1.steps=9", "phases.0.rounds=3"])
    first, second, _ = config.phases
    assert isinstance(first, Pregenerate)
    assert isinstance(second, Joint)
    assert (first.rounds, second.steps, second.every) == (3, 9, 25)
    first, _ = load_config(DistillConfig, MINIMAL, ["phases.0.steps=9"]).phases
    assert first == Joint(kind="joint", steps=9, every=10)


def test_defaults_of_a_compression_go_by_its_teacher() -> None:
    teacher = {"kind": "load", "model": "a:b", "size": 32}
    for size, mixup in ((32, 0.0), (65, 0.8)):
        recipe = {"teacher": {**teacher, "size": size}, "student": MINIMAL["student"]}
        assert load_config(CompressConfig, recipe, []).distillation.mix.mixup == mixup


def test_only_small_images_in_colour_without_a_named_generator_have_another_precision() -> None:
    teacher = {"kind": "load", "model": "a:b", "size": 32}
    assert load({}, teacher=teacher).precision == "auto"
    assert load([{"kind": "generated"}, {"kind": "pictures", "share": 0.3}], teacher=teacher).precision == "auto"
    assert load({}, teacher=teacher, precision="no").precision == "no"
    assert load({}, teacher=teacher | {"size": 65}).precision == "no"
    assert load({}, teacher=teacher | {"channels": 1}).precision == "no"
    assert load({"generator": {"kind": "noisy_label"}}, teacher=teacher).precision == "no"
    assert load({"kind": "pictures"}, teacher=teacher, phases=[{"kind": "refine", "steps": 9}]).precision == "no"


def test_defaults_follow_neither_a_black_box_nor_a_temperature_that_moves() -> None:
    labels = {"kind": "labels", "function": "a:b", "answers": "labels", "queries": 500, "channels": 1, "size": 8}
    config = load({"kind": "procedural"}, teacher={**labels, "classes": 10})
    assert (config.distill.temperature, config.distill.optimizer.kind) == (1.0, "adamw")
    written = load({"kind": "procedural"}, teacher={**labels, "classes": 10}, distill={"temperature": 4.0})
    assert written.distill.temperature == 4.0
    config = load({}, distill={"adapt": {"temperature": {}}})
    assert config.distill.adapt.temperature is not None
    assert config.distill.optimizer == SGD


def test_a_stored_dataset_has_its_labels_with_it_where_there_is_no_teacher() -> None:
    config = load(STORED, teacher=None)
    assert config.logits == "stored"
    assert (config.stored, config.generated, config.real) == (StoredSet(kind="stored", path="made"), None, None)
    changing = load({}, width={})
    assert not changing.inherits, "a width that changes leaves no layer that a weight fits"


NEEDS = [
    ({"kind": "generated"}, {"logits"}),
    ({"kind": "generated", "generator": {}}, {"logits", "gradients", "batch_norm"}),
    ({"kind": "generated", "generator": {"kind": "procedural"}}, {"logits"}),
    ({"kind": "generated", "generator": {"kind": "inversion", "batch_norm": 0}}, {"logits", "gradients"}),
    ({"kind": "generated", "generator": {"kind": "pixels"}}, {"logits", "gradients"}),
    ({"kind": "generated", "generator": {"kind": "continuous", "one_hot": 1}}, {"logits", "gradients"}),
    (
        {"kind": "generated", "generator": {"kind": "contrastive", "batch_norm": 0}},
        {"logits", "gradients", "batch_norm"},
    ),
    ({"kind": "generated", "generator": {"kind": "noisy_label", "batch_norm": 0}}, {"logits", "gradients"}),
    ({"kind": "generated", "generator": {"kind": "pixel_inversion"}}, {"logits", "gradients", "batch_norm"}),
    ({"kind": "generated", "generator": {"kind": "cgan"}, "data": {"kind": "digits"}}, {"logits"}),
    (
        {"kind": "generated", "generator": {"kind": "cgan", "distillation": 1.0}, "data": {"kind": "digits"}},
        {"logits", "gradients"},
    ),
    ({"kind": "generated", "generator": {"kind": "saved", "path": "runs/mine"}}, {"logits"}),
    ({"kind": "stored", "path": "runs/data"}, set()),
    ({"kind": "real", "data": {"kind": "digits"}}, set()),
    ({"kind": "real", "data": {"kind": "stream", "path": "incoming"}}, {"labels"}),
]


@pytest.mark.parametrize(("source", "needs"), NEEDS)
def test_each_source_says_what_it_needs_of_the_teacher(source: dict[str, Any], needs: set[str]) -> None:
    recipe = {"teacher": {"kind": "load", "model": "t"}, "student": {"arch": "mlp"}, "transfer_set": source}
    (only,) = load_config(DistillConfig, recipe, []).sources
    assert only.needs == needs
