"""Keys of earlier versions: a file with one at the value that is fixed now is read, any other value is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthkd.errors import ConfigError
from synthkd.pipelines.config import CompressConfig, DistillConfig, GenerateConfig, JobConfig, TeachConfig
from synthkd.settings import Settings
from synthkd.settings.load import dump_config, load_config
from synthkd.settings.schema import Schema, properties, retired

DIGITS = {"kind": "digits"}
TEACHER = {"kind": "train", "data": DIGITS, "model": {"arch": "mlp"}}
STREAM = {"kind": "real", "data": {"kind": "stream", "path": "arriving"}}
DISTILL: dict[str, Any] = {"teacher": TEACHER, "student": {"arch": "convnet"}}
PIXELS = {"generator": {"kind": "pixels"}}
MAPS = {"kind": "attention", "at": [["body.stage2", "body.stage1"]]}

EARLIER: list[tuple[type[JobConfig], dict[str, Any], str, object, object]] = [
    (TeachConfig, {"data": DIGITS, "model": {"arch": "mlp"}}, "training.label_smoothing", 0.0, 0.1),
    (TeachConfig, {"data": DIGITS, "model": {"arch": "mlp"}}, "training.augment.erase", 0.0, 0.5),
    (DistillConfig, DISTILL, "teacher.training.label_smoothing", 0.0, 0.1),
    (DistillConfig, DISTILL, "distill.adapt.balance", None, {"kind": "gradient"}),
    (DistillConfig, DISTILL | {"distill": {"adapt": {"strength": {}}}}, "distill.adapt.strength.boost", 1.5, 1),
    (DistillConfig, DISTILL | {"teachers": [TEACHER]}, "team.selection.exploration", 1.0, 0.0),
    (DistillConfig, DISTILL | {"teachers": [TEACHER]}, "team.selection.forget", 0.02, "much"),
    (DistillConfig, DISTILL | {"width": {}}, "width.decay", 0.9, 0.5),
    (DistillConfig, DISTILL | {"transfer_set": PIXELS}, "transfer_set.generator.restart", 0.5, 0.25),
    (DistillConfig, DISTILL | {"transfer_set": PIXELS}, "transfer_set.generator.step_size", 0.2, 2.0),
    (DistillConfig, DISTILL | {"transfer_set": [STREAM]}, "transfer_set.0.data.poll", 1.0, 60.0),
    (DistillConfig, DISTILL | {"distill": {"transfer": [MAPS]}}, "distill.transfer.0.power", 2.0, 4.0),
    (
        DistillConfig,
        DISTILL | {"distill": {"transfer": [{"kind": "alignment"}]}},
        "distill.transfer.0.projections",
        64,
        8,
    ),
    (
        CompressConfig,
        DISTILL | {"distillation": {"transfer_set": PIXELS}},
        "distillation.transfer_set.generator.momentum",
        0.7,
        0.0,
    ),
    (GenerateConfig, PIXELS | {"teacher": TEACHER, "per_class": 1}, "generator.momentum", 0.7, 0.0),
]


def with_key(data: Any, keys: list[str], value: object) -> Any:
    """A copy of plain data in which `keys` lead to the value."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(data, list):
        index = int(key)
        return [*data[:index], with_key(data[index], rest, value), *data[index + 1 :]]
    return {**data, key: with_key(data.get(key), rest, value)}


@pytest.mark.parametrize(("model", "recipe", "key", "fixed", "other"), EARLIER)
def test_a_file_of_an_earlier_version_is_read_or_ends_in_one_line(
    model: type[JobConfig], recipe: dict[str, Any], key: str, fixed: object, other: object, tmp_path: Path
) -> None:
    config = load_config(model, recipe, [])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(with_key(yaml.safe_load(dump_config(config)), key.split("."), fixed)))
    assert load_config(model, path, [], in_place=True) == config
    assert load_config(model, recipe, [f"{key}={yaml.safe_dump(fixed).splitlines()[0]}"]) == config

    path.write_text(yaml.safe_dump(with_key(yaml.safe_load(dump_config(config)), key.split("."), other)))
    with pytest.raises(ConfigError) as caught:
        load_config(model, path, [])
    (line,) = str(caught.value).splitlines()
    value = "null" if fixed is None else repr(fixed)
    assert line == f"{key}: fixed at {value} now, got {other!r}: leave it out"


def sections(model: type[Settings]) -> Iterator[tuple[set[str], set[str]]]:
    """Present and retired keys of every section of a configuration."""
    schema = Schema(model)
    for section in [schema.root, *schema.root.get("$defs", {}).values()]:
        yield set(properties(section)), set(retired(section))


@pytest.mark.parametrize("model", [CompressConfig, DistillConfig, GenerateConfig, TeachConfig])
def test_a_retired_key_is_no_present_one_and_is_tested_above(model: type[JobConfig]) -> None:
    tested = {key.rpartition(".")[2] for _, _, key, _, _ in EARLIER}
    for present, earlier in sections(model):
        assert not present & earlier
        assert earlier <= tested
