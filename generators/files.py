"""Saved generators: what is needed to sample again, without the real images or the run they were trained in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from synthkd.errors import ModelError
from synthkd.generators.settings import (
    FROM_REAL,
    GeneratorSettings,
    InversionSettings,
    NoGenerator,
    PixelSettings,
    SavedSettings,
)
from synthkd.models.files import SavedSpec
from synthkd.settings import Settings
from synthkd.system.files import file_names, inside, sha256, write_atomically
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec, SampleGenerator, Saveable

CONFIG = "generator.json"
INSIDE_A_RUN = "generator"


class SavedGenerator(Settings):
    """The contents of generator.json.

    Attributes:
        settings: of the generator, as in a configuration.
        spec: images and classes it makes.
        class_names: one per class, or empty.
        seed: of the run it was trained in.
        real_images: how many real images it was trained on; None where nobody can say.
        files: sha256 of each other file of the generator, by its path.
    """

    format: Literal[1] = 1
    settings: GeneratorSettings
    spec: SavedSpec
    class_names: tuple[str, ...] = ()
    seed: int
    real_images: int | None = 0
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def image_spec(self) -> ImageSpec:
        """The spec as the rest of the project has it."""
        return self.spec.image_spec


def save_generator(
    generator: SampleGenerator,
    settings: GeneratorSettings,
    directory: Path,
    spec: ImageSpec,
    class_names: tuple[str, ...],
    seed: int,
    real_images: int | None,
) -> bool:
    """Save a generator, where it can be: its own files, then generator.json, so that a torn save is none.

    Returns:
        Whether it was saved; a generator of the user's own may have no `save`.
    """
    if not isinstance(generator, Saveable):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    generator.save(directory)
    saved = SavedGenerator(
        settings=settings,
        spec=SavedSpec(**vars(spec)),
        class_names=class_names,
        seed=seed,
        real_images=real_images,
        files={name: sha256(directory / name) for name in file_names(directory) if name != CONFIG},
    )
    write_atomically(directory / CONFIG, sealed(saved.model_dump(mode="json")))
    return True


def read_saved(path: Path | str) -> tuple[SavedGenerator, Path]:
    """What was saved in a directory, or in the `generator/` of a run, and that directory.

    Raises:
        ModelError: no generator there, or a damaged file.
    """
    path = Path(path).expanduser()
    directory = next((d for d in (path, path / INSIDE_A_RUN) if (d / CONFIG).is_file()), None)
    if directory is None:
        raise ModelError(f"{path} has no {CONFIG}, nor {INSIDE_A_RUN}/ with one; give a saved generator or a run")
    try:
        saved = SavedGenerator.model_validate(unsealed((directory / CONFIG).read_bytes()))
        files = {inside(directory, name): digest for name, digest in saved.files.items()}
    except (OSError, ValueError) as error:
        first = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise ModelError(f"{directory / CONFIG} is damaged or of another version: {first}; copy it again") from error
    for file, digest in files.items():
        if not file.is_file() or sha256(file) != digest:
            raise ModelError(f"{file} is missing or does not have the checksum in {CONFIG}; copy {directory} again")
    return saved, directory


def real_images_seen(settings: GeneratorSettings, train: int) -> int | None:
    """How many real images a generator has learned from; None where nobody can say.

    Args:
        settings: of the generator.
        train: real training images at hand, which those that learn from some take.
    """
    match settings:
        case _ if isinstance(settings, FROM_REAL):
            return train
        case InversionSettings() | PixelSettings() | NoGenerator():
            return 0
        case SavedSettings():
            return read_saved(settings.path)[0].real_images
        case _:
            return None
