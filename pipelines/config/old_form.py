"""Keys of recipes of earlier versions: an error has the line that says the same today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from synthkd.errors import ConfigError

Section = Mapping[str, object]
"""A section of a recipe as it was read from YAML."""

MOVED = ("generator", "data", "difficulty", "bank")
"""Keys of the top level that are keys of a source now."""


def refuse_sources_outside(recipe: Section) -> None:
    """Refuse keys that have moved into `transfer_set`.

    Raises:
        ConfigError: with the line that says the same today.
    """
    if moved := _moved(recipe):
        transfer_set = _transfer_set(recipe)
        line = _message(moved, recipe, {"transfer_set": transfer_set})
        # In the old form a student inherited the teacher's weights by default, whatever it learned from.
        is_generated = isinstance(transfer_set, Mapping) and transfer_set["kind"] == "generated"
        if not is_generated and not {"inherit", "transfer_set"} & set(recipe):
            line += ", and inherit: true, which was the default"
        raise ConfigError(line)


def refuse_flat_form(recipe: Section, keys: set[str]) -> None:
    """Refuse keys of a compression that have moved into `distillation`.

    Args:
        recipe: as it was read.
        keys: those of a distillation.

    Raises:
        ConfigError: with the line that says the same today.
    """
    sources = _moved(recipe)
    moved = [key for key in recipe if key in keys] + [key for key in sources if "." not in key]
    if not moved:
        return
    distillation = {key: recipe[key] for key in recipe if key in keys}
    if sources:
        distillation = {"transfer_set": _transfer_set(recipe)} | distillation
        mix = {key: value for key, value in section(recipe, "mix").items() if key not in ("real", "live")}
        distillation.pop("mix", None)
        distillation |= {"mix": mix} if mix else {}
    raise ConfigError(_message(moved, recipe, {"distillation": distillation}))


def section(recipe: Section, key: str) -> Section:
    """A section of a recipe; empty if there is none."""
    value = recipe.get(key)
    return value if isinstance(value, Mapping) else {}


def _moved(recipe: Section) -> list[str]:
    mix = section(recipe, "mix")
    return [key for key in MOVED if key in recipe] + [f"mix.{key}" for key in ("real", "live") if key in mix]


def _message(moved: Sequence[str], recipe: Section, form: Section) -> str:
    where, single = next(iter(form)), len(moved) == 1
    keys = f"{', '.join(moved)} {'is' if single else 'are'} part of {where} now"
    if where in recipe:  # the recipe already has this section, and it may say more than `form`
        return f"{keys}: move {'it' if single else 'them'} into the {where} of this recipe"
    line = yaml.safe_dump(form, default_flow_style=True, sort_keys=False, width=10**6).strip()[1:-1]
    return f"{keys}: write {line}"


def _transfer_set(recipe: Section) -> Section | list[Section]:
    """The `transfer_set` that stands for `generator`, `data`, `difficulty`, `bank`, `mix.real` and `mix.live`."""
    generator, mix = section(recipe, "generator"), section(recipe, "mix")
    kind, data, real = generator.get("kind", "inversion"), recipe.get("data"), mix.get("real", 0.0)
    if kind == "none" or real == 1.0:
        return {"kind": "real", "data": data}
    bank = dict(section(recipe, "bank"))
    if kind == "dataset":
        first: dict[str, object] = {"kind": "stored", "path": generator.get("path")}
        bank = {key: value for key, value in bank.items() if key not in ("capacity", "storage")}
    else:
        first = {"kind": "generated"} | {key: recipe[key] for key in ("generator", "difficulty") if key in recipe}
        first |= {"live": mix["live"]} if mix.get("live") else {}
        first |= {"data": data} if data is not None and real == 0.0 else {}
    first |= {"bank": bank} if bank else {}
    return first if real == 0.0 else [first, {"kind": "real", "data": data, "share": real}]
