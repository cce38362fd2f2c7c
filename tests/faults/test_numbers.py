"""Numbers out of proportion: every numeric setting has two bounds, and what is outside them ends in a line that names
its key."""

import importlib
import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from synthkd.errors import ConfigError
from synthkd.generators.cgan import CGAN
from synthkd.generators.diffusion import Diffusion
from synthkd.generators.inversion import Inversion
from synthkd.generators.merf import Merf
from synthkd.generators.settings import CGANSettings, DiffusionSettings, InversionSettings, MerfSettings
from synthkd.models import build
from synthkd.models.factories import construct
from synthkd.models.size import in_proportion
from synthkd.pipelines.cli import VERBS, main
from synthkd.settings import LARGE, LoadedModel, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

DIGITS = {"kind": "digits"}
TEACHER = {"kind": "train", "data": DIGITS, "model": {"arch": "mlp"}}
SMALL = {
    "audit": {"teacher": {"kind": "load", "model": "m"}, "members": "a", "nonmembers": "b"},
    "compress": {"teacher": TEACHER, "student": {"arch": "mlp"}},
    "distill": {"teacher": TEACHER, "student": {"arch": "mlp"}},
    "evaluate": {"generated": ["a"], "real": "b"},
    "generate": {"teacher": TEACHER, "per_class": 1},
    "teach": {"data": DIGITS, "model": {"arch": "mlp"}},
}
HOSTILE = (0, -1, 2**31, 2**63, 10**30, 1e308, math.nan, math.inf, -0.0, "", [])


@cache
def model(job):
    module, _, name = VERBS[job].config.partition(":")
    return getattr(importlib.import_module(module), name)


def numbers(job):
    """Every numeric key of a job: its path, the sections on the way to it, and the schemas it may have there."""
    root = model(job).model_json_schema()
    seen = set()

    def alternatives(schema):
        if "$ref" in schema:
            return alternatives(root["$defs"][schema["$ref"].rpartition("/")[2]])
        members = schema.get("anyOf") or schema.get("oneOf") or [schema]
        return [schema] if members == [schema] else [found for member in members for found in alternatives(member)]

    def walk(schema, path):
        found = alternatives(schema)
        if any(one.get("type") in ("integer", "number") and "enum" not in one for one in found):
            yield path, found
        for one in found:
            if "items" in one:
                yield from walk(one["items"], (*path, 0))
            if isinstance(one.get("additionalProperties"), dict):
                yield from walk(one["additionalProperties"], (*path, "key"))
            kind = one.get("properties", {}).get("kind", {})
            kind = kind.get("const", (kind.get("enum") or [None])[0])
            for key, inside in one.get("properties", {}).items():
                if one["title"] == "Curve" and key in ("start", "end"):  # bounded where the curve stands
                    continue
                if (one.get("title"), kind, key) not in seen:
                    seen.add((one.get("title"), kind, key))
                    yield from walk(inside, (*path, *([{"kind": kind}] if kind else []), key))

    return list(walk(root, ()))


def written(path, value):
    """Nested data in which `path` leads to `value`; a dict on the path is merged into what comes after it."""
    for step in reversed(path):
        value = {**step, **value} if isinstance(step, dict) else [value] if step == 0 else {step: value}
    return value


def dotted(path):
    return ".".join(str(step) for step in path if not isinstance(step, dict))


def complaints(job, path, value):
    """What is said of the key, its own value being the only strange one."""
    try:
        load_config(model(job), {**SMALL[job], **written(path, value)}, [])
    except ConfigError as error:
        return [line for line in str(error).splitlines() if line.startswith((f"{dotted(path)}:", f"{dotted(path)}."))]
    return []


def inside(value, schemas):
    for one in schemas:
        whole, numeric = one.get("type") == "integer", isinstance(value, int | float)
        low, high = one.get("minimum", -LARGE), one.get("maximum", LARGE)
        above, below = one.get("exclusiveMinimum", -math.inf), one.get("exclusiveMaximum", math.inf)
        if numeric and one.get("type") in ("integer", "number") and not (whole and isinstance(value, float)):
            if "enum" in one:
                return value in one["enum"]
            if low <= value <= high and above < value < below:
                return True
    return False


@pytest.mark.parametrize("job", SMALL)
def test_every_number_in_the_settings_has_two_bounds(job):
    found = numbers(job)
    assert len(found) > 20
    for path, schemas in found:
        for one in schemas:
            scheduled = any(other.get("title") == "Curve" for other in schemas)  # see the test of curves
            if one.get("type") in ("integer", "number") and "enum" not in one and not scheduled:
                assert {"minimum", "exclusiveMinimum"} & one.keys(), dotted(path)
                assert {"maximum", "exclusiveMaximum"} & one.keys(), dotted(path)


@pytest.mark.parametrize("job", SMALL)
def test_what_is_out_of_bounds_is_refused_by_the_name_of_its_key(job):
    for path, schemas in numbers(job):
        for value in HOSTILE:
            assert inside(value, schemas) or complaints(job, path, value), (dotted(path), value)
        for top in (one["maximum"] for one in schemas if "maximum" in one):
            assert not complaints(job, path, top), (dotted(path), top)


@pytest.mark.parametrize("value", [1e308, 2**63, -1])
@pytest.mark.parametrize("key", ["temperature", "alpha", "soft", "hint"])
def test_both_ends_of_a_curve_are_bounded(key, value):
    for end in ("start", "end"):
        curve = {"kind": "linear", "start": 0.5, "end": 0.5, end: value}
        assert complaints("distill", ("distill", key), curve), (key, end)


@pytest.mark.parametrize("value", [5e-324, 1e-9, 0.009])
def test_noise_that_no_accountant_can_follow_is_refused(value):
    generator = ("distillation", "transfer_set", {"kind": "generated"}, "generator", {"kind": "merf"})
    for path in (("teacher", {"kind": "train"}, "training", "dp"), generator):
        key = (*path, "noise_multiplier")
        assert complaints("compress", key, value)
        assert not complaints("compress", key, 0.01)


def test_a_list_has_no_more_items_than_somebody_writes():
    many = [{"kind": "refine", "steps": 1}] * 2000
    (line,) = complaints("distill", ("phases",), many)
    assert line.startswith("phases: expected a list of at most 1000 items")


def test_thousands_of_mistakes_are_told_of_at_once_and_not_all():
    with pytest.raises(ConfigError) as caught:
        load_config(model("teach"), {f"key{n}": 0 for n in range(5000)}, [])
    lines = str(caught.value).splitlines()
    assert len(lines) == 51
    assert lines[-1].startswith("and 49")


RECIPES = {
    "aliases that multiply": "a: &a [x]\n"
    + "".join(f"{after}: &{after} [{f'*{name}, ' * 9}]\n" for name, after in pairwise("abcdefghij")),
    "deep nesting": "x: " + "[" * 3000 + "]" * 3000,
    "deep and flat": "{x: " * 3000 + "}" * 3000,
    "5,000 digits": "seed: " + "1" * 5000,
    "hexadecimal digits": "seed: 0x" + "1" * 5000,
    "an alias to its own parent": "a: &a [*a]",
    "too large": "x: y\n#" + "#" * (1 << 20),
}


@pytest.mark.parametrize("fault", RECIPES)
def test_a_recipe_out_of_proportion_ends_in_one_line(fault, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES[fault])
    assert main(["config", "show", "teach", str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {recipe}: ")


def test_numbers_given_to_python_are_bounded_too():
    itself = []
    itself.append(itself)
    for value in (10**5000, itself):
        with pytest.raises(ConfigError):
            load_config(model("teach"), {**SMALL["teach"], "seed": value}, [])


@pytest.mark.parametrize("arch", ["mlp", "convnet", "resnet", "vit"])
def test_a_network_out_of_proportion_is_not_built(arch, capsys):
    depth = [] if arch == "convnet" else ["model.depth=20"]
    assert main(["teach", "data.kind=digits", f"model.arch={arch}", "model.width=65536", *depth, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: arch {arch}, width=65536")
    assert "parameters, at most 1,000,000,000 are allowed" in line


@pytest.mark.parametrize(
    ("name", "options"),
    [("torchvision:resnet152", {"width_per_group": 65536}), ("timm:vit_tiny_patch16_224", {"embed_dim": 49152})],
)
def test_a_network_of_a_library_out_of_proportion_is_not_built(name, options):
    settings = LoadedModel(kind="load", model=name, options=options)
    with pytest.raises(ConfigError, match="parameters, at most 10,000,000,000 are allowed"):
        construct(settings, ImageSpec(3, 224, 224, 10))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.raises(ConfigError):
        construct(settings, ImageSpec(3, 224, 224, 10))
    assert torch.equal(torch.get_rng_state(), state)


GENERATORS = {
    "inversion": (Inversion, InversionSettings(width=65536, batch_norm=0.0)),
    "cgan": (CGAN, CGANSettings(kind="cgan", width=65536)),
    "critic": (CGAN, CGANSettings(kind="cgan", critic_width=65536)),
    "merf": (Merf, MerfSettings(kind="merf", epsilon=1.0, width=65536)),
    "diffusion": (Diffusion, DiffusionSettings(kind="diffusion", channels=(65536,))),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_out_of_proportion_is_not_built(name):
    make, settings = GENERATORS[name]
    teacher = build(ZooModel(arch="mlp"), ImageSpec(1, 8, 8, 10))
    with pytest.raises(ConfigError, match=r"65536.* parameters, at most 1,000,000,000 are allowed"):
        make(settings, teacher, 0, Accelerator(cpu=True))


def test_counting_a_network_draws_no_random_number():
    torch.manual_seed(0)
    expected = [module.state_dict() for module in (nn.Linear(3, 4), nn.Conv2d(1, 2, 3))]
    torch.manual_seed(0)
    found = [in_proportion(make, "").state_dict() for make in (lambda: nn.Linear(3, 4), lambda: nn.Conv2d(1, 2, 3))]
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_hundred_thousand_threads_are_refused(capsys):
    assert main(["teach", "data.kind=digits", "model.arch=mlp", "threads=100000", "--dry-run"]) == 2
    assert capsys.readouterr().err == "error: threads: expected a whole number >= 1 and <= 512 or null, got 100000\n"
