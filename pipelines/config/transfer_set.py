"""What a student learns from: a list of sources, each with the keys that belong to it.

A transfer set is the set of images whose soft labels a student learns (Hinton et al. 2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, model_validator

from synthkd.errors import ConfigError
from synthkd.generators.settings import FROM_REAL, GeneratorSettings, InversionSettings
from synthkd.settings import (
    BankSettings,
    DataOrStream,
    DataSettings,
    DifficultySettings,
    ReplaySettings,
    Settings,
    Share,
    StreamData,
)


class _Source(Settings):
    share: Share | None = None
    """Share of a batch. One source of a list has none and fills the rest."""

    @property
    def needs_teacher(self) -> bool:
        """Whether its images have no label without a teacher."""
        return True


class GeneratedSet(_Source):
    """Images that a generator makes while the student learns, kept in a memory bank."""

    kind: Literal["generated"] = "generated"
    generator: GeneratorSettings = InversionSettings()
    data: DataSettings | None = None
    """Real images that cgan, diffusion and merf learn from. None: those of the real source of the list."""
    difficulty: DifficultySettings = DifficultySettings()
    bank: BankSettings = BankSettings()
    live: Share = 0.0
    """Share of a batch of fresh samples, made for it and not stored; the others are drawn from the bank."""

    @property
    def learns_from_data(self) -> bool:
        """Whether the generator learns from real images."""
        return isinstance(self.generator, FROM_REAL)

    @model_validator(mode="after")
    def _has_its_data(self) -> GeneratedSet:
        if self.data is not None and not self.learns_from_data:
            raise ValueError(
                f"data: generator.kind {self.generator.kind} does not learn from real images: leave data out, or add "
                "a source of kind real to transfer_set"
            )
        return self


class StoredSet(_Source):
    """A dataset that `synthkd generate` wrote, with its soft labels."""

    kind: Literal["stored"]
    path: str
    """Its directory, or the run that wrote it."""
    bank: ReplaySettings = ReplaySettings()
    """How its images are drawn."""

    @property
    def needs_teacher(self) -> bool:
        """It has the labels of the teacher that its images were made with."""
        return False


class RealSet(_Source):
    """Real images: a dataset, or a stream of them that arrives while the student learns."""

    kind: Literal["real"]
    data: DataOrStream

    @property
    def needs_teacher(self) -> bool:
        """A stream says neither size nor classes of its images, and may lack labels."""
        return isinstance(self.data, StreamData)


def _tag(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "list"
    kind = value.get("kind", "generated") if isinstance(value, Mapping) else getattr(value, "kind", "generated")
    return str(kind)


SourceSettings = Annotated[
    Annotated[GeneratedSet, Tag("generated")] | Annotated[StoredSet, Tag("stored")] | Annotated[RealSet, Tag("real")],
    Discriminator(_tag),
]

TransferSetSettings = Annotated[
    Annotated[GeneratedSet, Tag("generated")]
    | Annotated[StoredSet, Tag("stored")]
    | Annotated[RealSet, Tag("real")]
    | Annotated[Annotated[tuple[SourceSettings, ...], Field(min_length=1, max_length=8)], Tag("list")],
    Discriminator(_tag),
]
"""One source, or a list of them that share each batch."""


def sources_of(transfer_set: TransferSetSettings) -> tuple[GeneratedSet | StoredSet | RealSet, ...]:
    """The sources of a transfer set, one or several.

    Raises:
        ValueError: shares that leave none or more than one source for the rest, two sources of one kind, or generated
            beside stored images.
    """
    sources = transfer_set if isinstance(transfer_set, tuple) else (transfer_set,)
    if sum(source.share is None for source in sources) != 1:
        raise ValueError("transfer_set: one source has no share and fills the rest, each other one has a share")
    kinds = [source.kind for source in sources]
    if twice := [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]:
        raise ValueError(f"transfer_set: there are two sources of kind {twice[0]}: leave one out")
    if {"generated", "stored"} <= set(kinds):  # a run has one memory bank, and the dataset fills all of it
        raise ValueError("transfer_set: generated and stored images need a memory bank each: leave one source out")
    return tuple(sources)


MOVED = ("generator", "data", "difficulty", "bank")
"""Keys of the top level that are keys of a source now."""


def refuse_sources_outside(recipe: Mapping[str, Any]) -> None:
    """Refuse keys that have moved into `transfer_set`.

    Raises:
        ConfigError: with the line that says the same today.
    """
    if moved := _moved(recipe):
        raise ConfigError(_moved_to(moved, recipe, {"transfer_set": present_form(recipe)}))


def refuse_flat_form(recipe: Mapping[str, Any], keys: set[str]) -> None:
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
        distillation = {"transfer_set": present_form(recipe)} | distillation
        mix = {key: value for key, value in section(recipe, "mix").items() if key not in ("real", "live")}
        distillation.pop("mix", None)
        distillation |= {"mix": mix} if mix else {}
    raise ConfigError(_moved_to(moved, recipe, {"distillation": distillation}))


def _moved(recipe: Mapping[str, Any]) -> list[str]:
    mix = section(recipe, "mix")
    return [key for key in MOVED if key in recipe] + [f"mix.{key}" for key in ("real", "live") if key in mix]


def _moved_to(moved: Sequence[str], recipe: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    where, one = next(iter(form)), len(moved) == 1
    keys = f"{', '.join(moved)} {'is' if one else 'are'} part of {where} now"
    if where in recipe:  # its place is taken, and what is there may be more than `form` says
        return f"{keys}: move {'it' if one else 'them'} into the {where} of this recipe"
    line = yaml.safe_dump(form, default_flow_style=True, sort_keys=False, width=10**6).strip()[1:-1]
    return f"{keys}: write {line}"


def section(recipe: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of a recipe; empty where there is none."""
    value = recipe.get(key)
    return value if isinstance(value, Mapping) else {}


def present_form(recipe: Mapping[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
    """The `transfer_set` of a recipe that says `generator`, `data`, `difficulty`, `bank`, `mix.real` and `mix.live`."""
    generator, mix = section(recipe, "generator"), section(recipe, "mix")
    kind, data, real = generator.get("kind", "inversion"), recipe.get("data"), mix.get("real", 0.0)
    if kind == "none" or real == 1.0:
        return {"kind": "real", "data": data}
    if kind == "dataset":
        first: dict[str, Any] = {"kind": "stored", "path": generator.get("path")}
        bank = _without_capacity(section(recipe, "bank"))
    else:
        first = {"kind": "generated"} | {key: recipe[key] for key in ("generator", "difficulty") if key in recipe}
        bank = dict(section(recipe, "bank"))
        first |= {"live": mix["live"]} if mix.get("live") else {}
        first |= {"data": data} if data is not None and real == 0.0 else {}
    first |= {"bank": bank} if bank else {}
    return first if real == 0.0 else [first, {"kind": "real", "data": data, "share": real}]


def _without_capacity(bank: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in bank.items() if key not in ("capacity", "storage")}


def require_data(sources: Sequence[GeneratedSet | StoredSet | RealSet]) -> None:
    """Refuse a generator that learns from real images where there are none.

    Raises:
        ValueError: with the key and the remedy.
    """
    generated = next((source for source in sources if isinstance(source, GeneratedSet)), None)
    real = next((source for source in sources if isinstance(source, RealSet)), None)
    if generated is None or not generated.learns_from_data:
        return
    kind = generated.generator.kind
    if generated.data is not None:
        if real is not None and not isinstance(real.data, StreamData):
            raise ValueError(f"transfer_set: {kind} learns from the images of kind real: leave its own data out")
        return
    if real is None:
        raise ValueError(f"transfer_set.generator.kind: {kind} learns from real images: set transfer_set.data")
    if isinstance(real.data, StreamData):
        raise ValueError(
            f"transfer_set: {kind} learns from a fixed dataset, not from a stream: set data of kind generated"
        )
